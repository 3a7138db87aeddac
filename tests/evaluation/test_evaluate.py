"""A model folder on a question file: what the metrics file says, and that two runs can be compared."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from bundle_mllm.baselines import evaluate_baselines
from bundle_mllm.data import DatasetFolder, make_questions, save_questions
from bundle_mllm.data.files import sha256
from bundle_mllm.data.manifest import write_question_manifest
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.by_length import accuracy_by_num_candidates
from bundle_mllm.evaluation.evaluate import describe, evaluate
from bundle_mllm.evaluation.metrics import as_scored
from bundle_mllm.evaluation.results import compare_metrics, load_results
from bundle_mllm.model_folder import fingerprint, load_model, save_model
from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
from bundle_mllm.training.backbone import build_model
from bundle_mllm.training.config import default_run


@pytest.fixture(scope="module")
def model(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(
        *build_model(default_run("scratch", data=tiny_data, output_dir=folder), DatasetFolder.open(tiny_data)), folder
    )
    return folder


@pytest.fixture
def ask(tiny_data, tmp_path):
    def ask(name="q.jsonl", **options):
        data = DatasetFolder.open(tiny_data)
        save_questions(
            tmp_path / name, make_questions(data.bundles.test, data.catalog, data.bundles, seed=0, **options)
        )
        return tmp_path / name

    return ask


def test_a_metrics_file_names_its_questions_and_all_that_was_measured(model, tiny_data, ask, tmp_path):
    questions = ask(num_candidates=4)
    write_question_manifest(questions, {"seed": 0})
    metrics = evaluate(model, tiny_data, questions, tmp_path / "metrics.json")
    manifest = {"path": str(questions), "sha256": sha256(questions), "made": {"seed": 0}}
    assert metrics["questions"] == {**manifest, "num_candidates": [4, 4]}
    assert metrics["random_hit_rate@1"] == 0.25
    assert metrics["fingerprint"] == fingerprint(model)
    assert metrics["asked"] == {"permutations": 1, "max_options": 26, "group_size": 10, "seed": 0}
    assert metrics["slices"].keys() == {"answer", "partial_length", "num_candidates", "position"}
    assert set(metrics["position"]) == {"accuracy_by_letter", "share_of_answers", "share_right", "share_distance"}
    written, scored = load_results(tmp_path / "metrics.json")
    assert written["hit_rate@1"] == metrics["hit_rate@1"] == sum(q.hit for q in scored) / len(scored)
    assert json.dumps(written["slices"]).count("NaN") == 0


def test_runs_on_one_manifest_compare_and_others_do_not(model, tiny_data, ask, tmp_path):
    questions = ask(num_candidates=4)
    evaluate(model, tiny_data, questions, tmp_path / "once.json")
    metrics = evaluate(model, tiny_data, questions, tmp_path / "often.json", permutations=4)
    assert {"probability_change", "answer_change", "hit_rate@1_own_order"} < set(metrics["position"])
    result = compare_metrics(tmp_path / "often.json", tmp_path / "once.json")
    once = load_results(tmp_path / "once.json")[0]
    assert metrics["position"]["hit_rate@1_own_order"] == once["hit_rate@1"]
    assert result["hit_rate@1"]["difference"] == pytest.approx(metrics["hit_rate@1"] - once["hit_rate@1"])
    evaluate(model, tiny_data, ask("other.jsonl", num_candidates=5), tmp_path / "other.json")
    with pytest.raises(BundleMLLMError, match="evaluate both on one question file"):
        compare_metrics(tmp_path / "other.json", tmp_path / "once.json")


def test_what_is_hidden_or_shuffled_is_missing_from_the_answers_and_the_metrics_are_not_of_this_model(
    model, tiny_data, ask, tmp_path
):
    questions = ask(num_candidates=4)
    rows = {}
    for name, options in {
        "whole": {},
        "hidden": {"mask": ["visual"]},
        "untitled": {"mask": ["titles"]},
        "shuffled": {"permute": ["visual"]},
        "both": {"permute": ["visual"], "mask": ["visual"]},
    }.items():
        metrics = evaluate(model, tiny_data, questions, tmp_path / f"{name}.json", **options)
        assert {k: v for k, v in metrics["asked"].items() if k in ("mask", "permute")} == options
        assert metrics["fingerprint"] == (None if options else fingerprint(model))
        rows[name] = [q.scores for q in load_results(tmp_path / f"{name}.json")[1]]
    assert rows["both"] == rows["hidden"]
    different = ("whole", "hidden", "untitled", "shuffled")
    assert len({str(rows[name]) for name in different}) == 4
    assert compare_metrics(tmp_path / "hidden.json", tmp_path / "whole.json")["mrr"]["se"] > 0
    with pytest.raises(BundleMLLMError, match=r"\['smell'\] cannot be hidden.*'titles', 'visual'"):
        evaluate(model, tiny_data, questions, mask=["smell"])
    with pytest.raises(BundleMLLMError, match=r"\['titles'\] cannot be shuffled.*'visual'"):
        evaluate(model, tiny_data, questions, permute=["titles"])


def test_questions_of_more_than_26_candidates_are_evaluated(model, tiny_data, ask):
    metrics = evaluate(model, tiny_data, ask(num_candidates=28))
    assert list(metrics["slices"]["num_candidates"]) == ["28"]
    assert metrics["valid_ratio"] == 1
    assert metrics["slices"]["position"] == metrics["position"] == {}
    assert 1 <= metrics["mean_rank"] <= 28


def test_cold_answers_are_those_of_no_training_bundle(tiny_data):
    data = DatasetFolder.open(tiny_data)
    asked = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=4, seed=0)
    scored = as_scored(asked, [[0.0] * 4 for _ in asked])
    known = {item_id for bundle in data.bundles.train for item_id in bundle.items} - {asked[0].answer}
    cold = describe({}, asked, scored, known, probabilities=False)["slices"]["answer"]["cold"]
    assert cold["num_questions"] == sum(question.answer not in known for question in asked) > 0


def test_accuracy_by_number_of_candidates_has_both_methods_where_both_can(model, tiny_data):
    data = DatasetFolder.open(tiny_data)
    rows = accuracy_by_num_candidates(
        *load_model(model), data, "test", sizes=(2, 4, 8, 28, 999), max_questions=4, group_size=4
    )
    assert [(row["num_candidates"], row["method"], row["prompts"]) for row in rows] == [
        (2, "one prompt", 1),
        (4, "one prompt", 1),
        (8, "one prompt", 1),
        (8, "groups", 4),
        (28, "groups", 12),
    ]
    assert {row["num_questions"] for row in rows} == {4}


def test_lists_longer_than_the_model_is_asked_have_no_letters(model, tiny_data, ask):
    questions = ask(num_candidates=8)
    assert evaluate(model, tiny_data, questions, max_options=8)["position"]
    in_groups = evaluate(model, tiny_data, questions, max_options=6)
    assert in_groups["position"] == {} and in_groups["slices"]["position"] == {}


def test_without_training_bundles_no_item_is_cold(model, tiny_data, ask, tmp_path):
    questions = ask(num_candidates=4)
    shutil.copytree(tiny_data, tmp_path / "data")
    bundles = [b for line in (tmp_path / "data" / "bundles.jsonl").read_text().splitlines() if
               (b := json.loads(line))["split"] == "test"]  # fmt: skip
    (tmp_path / "data" / "bundles.jsonl").write_text("".join(json.dumps(bundle) + "\n" for bundle in bundles))
    assert "answer" not in evaluate(model, tmp_path / "data", questions)["slices"]
    [said] = evaluate_baselines(tmp_path / "data", questions, ["random"])
    assert "answer" not in said.metrics["slices"]


def test_the_model_runs_where_it_is_told_to(model, tiny_data, ask, monkeypatch):
    seen = []
    monkeypatch.setattr(BundleMLLMForCausalLM, "to", lambda self, device: seen.append(device))
    monkeypatch.setattr("bundle_mllm.device.torch.cuda.is_available", lambda: False)
    questions = ask(num_candidates=4)
    evaluate(model, tiny_data, questions)
    evaluate(model, tiny_data, questions, device="cpu")
    assert seen == [torch.device("cpu")] * 2
    with pytest.raises(BundleMLLMError, match="There is no device 'nowhere'"):
        evaluate(model, tiny_data, questions, device="nowhere")


def test_a_fingerprint_is_of_all_that_decides_answers(model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    assert fingerprint(tmp_path / "m") == fingerprint(model)
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"transformers_version": "6.0.0"}))
    assert fingerprint(tmp_path / "m") == fingerprint(model)
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"backbone_weight": 0.75}))
    other = fingerprint(tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages }}")
    assert len({fingerprint(model), other, fingerprint(tmp_path / "m")}) == 3


def test_a_model_that_lacks_an_item_cannot_be_asked(model, tiny_data, ask, tmp_path):
    data = DatasetFolder.open(tiny_data)
    (question, *_) = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=4, seed=0)
    records = [{"item_id": item_id} for item_id in (*data.catalog.item_ids, "new")]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    save_questions(tmp_path / "q.jsonl", [replace(question, partial=("new",))])
    with pytest.raises(BundleMLLMError, match=r"1 items of .* not in the catalog .*'new'"):
        evaluate(model, tmp_path, tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (".", "is a folder, so no metrics can be written there: give the name of a file"),
        ("taken.json", "taken.questions.jsonl is a folder"),
        ("q.jsonl/metrics.json", "cannot be written"),
        ("q.jsonl", "would overwrite .*q.jsonl, which the questions are in"),
        ("q.jsonl.json", "would overwrite .*q.jsonl.json"),
        ("q.json", "would overwrite .*q.questions.jsonl"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_scoring(
    model, tiny_data, ask, tmp_path, monkeypatch, output, message
):
    questions = ask("q.questions.jsonl" if output == "q.json" else "q.jsonl", num_candidates=4)
    (tmp_path / "taken.questions.jsonl").mkdir()
    monkeypatch.setattr("bundle_mllm.evaluation.evaluate.score_questions", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(BundleMLLMError, match=message):
        evaluate(model, tiny_data, questions, tmp_path / output)
    assert sorted(path.name for path in tmp_path.iterdir()) == [questions.name, "taken.questions.jsonl"]
