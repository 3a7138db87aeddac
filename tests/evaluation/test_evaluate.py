"""A model folder on a question file: what the metrics files hold, of each part, and that two runs can be compared."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_models import make_completer_for

from bundle_mllm.baselines import evaluate_baselines
from bundle_mllm.data import DatasetFolder, make_questions, save_questions
from bundle_mllm.data.files import sha256
from bundle_mllm.data.manifest import write_question_manifest
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.evaluate import describe, evaluate
from bundle_mllm.evaluation.metrics import as_scored
from bundle_mllm.evaluation.results import compare_metrics, load_results
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.model_folder import fingerprint, load_completer
from bundle_mllm.modeling import BundleCompleter, BundleMLLMForOptionScoring

PARTS = ("ranker", "retriever", "both")
MAIN = ("hit_rate@1", "hit_rate@3", "hit_rate@5", "mrr", "valid_ratio", "calibration_error")


def test_a_metrics_file_names_its_questions_and_all_that_was_measured(model, tiny_data, write_questions, tmp_path):
    questions = write_questions(num_candidates=4)
    write_question_manifest(questions, {"seed": 0})
    metrics = evaluate(model, tiny_data, questions, tmp_path / "metrics.json")
    manifest = {"path": str(questions), "sha256": sha256(questions), "made": {"seed": 0}}
    assert metrics["questions"] == {**manifest, "num_candidates": [4, 4]}
    assert metrics["random_hit_rate@1"] == 0.25
    assert metrics["fingerprint"] == fingerprint(model)
    assert metrics["options"] == {"permutations": 1, "max_options": 26, "group_size": 10, "seed": 0}
    assert metrics["slices"].keys() == {"answer", "partial_length", "num_candidates", "position"}
    assert set(metrics["position"]) == {"accuracy_by_letter", "share_of_answers", "share_right", "share_distance"}
    written, scored = load_results(tmp_path / "metrics.json")
    assert written["hit_rate@1"] == metrics["hit_rate@1"] == sum(q.hit for q in scored) / len(scored)
    assert json.dumps(written["slices"]).count("NaN") == 0


def test_a_model_that_changes_while_it_is_evaluated_gets_no_figures(
    model, tiny_data, write_questions, tmp_path, monkeypatch
):
    shutil.copytree(model, tmp_path / "model")

    def score(*args, **kwargs):
        (tmp_path / "model" / "combination.json").unlink()
        return score_questions(*args, **kwargs)

    monkeypatch.setattr("bundle_mllm.evaluation.evaluate.score_questions", score)
    with pytest.raises(BundleMLLMError, match=r"combination.json was removed by another process meanwhile"):
        evaluate(tmp_path / "model", tiny_data, write_questions(num_candidates=4), tmp_path / "metrics.json")
    assert not (tmp_path / "metrics.json").exists()


def test_each_part_has_its_metrics_side_by_side_and_in_a_file_of_its_own(model, data, write_questions, tmp_path):
    questions = write_questions(num_candidates=4)
    metrics = evaluate(model, data.path, questions, tmp_path / "metrics.json")
    assert metrics["part"] == "both" and set(metrics["parts"]) == set(PARTS)
    completer = load_completer(model)
    asked = [json.loads(line) for line in questions.read_text().splitlines()]
    completions = completer.score(asked)
    for part in PARTS:
        path = tmp_path / ("metrics.json" if part == "both" else f"metrics.{part}.json")
        written, scored = load_results(path)
        best = [int(completion.scores[part].argmax()) for completion in completions]
        hits = [choice == question["answer_index"] for choice, question in zip(best, asked, strict=True)]
        assert written["part"] == part
        assert written["hit_rate@1"] == sum(hits) / len(hits) == metrics["parts"][part]["hit_rate@1"]
        assert {k: written[k] for k in metrics["parts"][part]} == metrics["parts"][part]
        assert {k for name in MAIN for k in (name, f"{name}_se")} <= metrics["parts"][part].keys()
        assert [q.scores for q in scored] == [
            pytest.approx(completion.scores[part].tolist(), abs=2e-4) for completion in completions
        ]
        for shared in ("questions", "options", "fingerprint", "model", "data"):
            assert written[shared] == metrics[shared]
    assert metrics["slices"]["position"] and load_results(tmp_path / "metrics.ranker.json")[0]["slices"]["position"]


def test_the_parts_of_one_run_compare(model, data, write_questions, tmp_path):
    evaluate(model, data.path, write_questions(num_candidates=4), tmp_path / "metrics.json")
    for part in ("ranker", "retriever"):
        path = tmp_path / f"metrics.{part}.json"
        result = compare_metrics(tmp_path / "metrics.json", path)
        both, alone = (load_results(p)[0] for p in (tmp_path / "metrics.json", path))
        assert result["mrr"]["difference"] == pytest.approx(both["mrr"] - alone["mrr"])
        assert result["mrr"]["se"] > 0


@pytest.mark.parametrize("part", ["ranker", "retriever"])
def test_a_folder_with_one_model_has_one_metrics_file(folders, data, write_questions, tmp_path, part):
    questions = write_questions(num_candidates=4)
    metrics = evaluate(folders[part], data.path, questions, tmp_path / "metrics.json")
    assert metrics["part"] == part and set(metrics["parts"]) == {part}
    evaluate(folders["both"], data.path, questions, tmp_path / "two.json")
    assert load_results(tmp_path / f"two.{part}.json")[0]["hit_rate@1"] == metrics["hit_rate@1"]
    assert sorted(path.name for path in tmp_path.glob("metrics*")) == ["metrics.json", "metrics.questions.jsonl"]


def test_runs_on_one_question_file_compare_and_others_do_not(model, tiny_data, write_questions, tmp_path):
    questions = write_questions(num_candidates=4)
    evaluate(model, tiny_data, questions, tmp_path / "once.json")
    metrics = evaluate(model, tiny_data, questions, tmp_path / "often.json", permutations=4)
    assert {"probability_change", "answer_change", "hit_rate@1_own_order"} < set(metrics["position"])
    result = compare_metrics(tmp_path / "often.json", tmp_path / "once.json")
    once = load_results(tmp_path / "once.json")[0]
    assert metrics["position"]["hit_rate@1_own_order"] == once["hit_rate@1"]
    assert result["hit_rate@1"]["difference"] == pytest.approx(metrics["hit_rate@1"] - once["hit_rate@1"])
    evaluate(model, tiny_data, write_questions("other.jsonl", num_candidates=5), tmp_path / "other.json")
    with pytest.raises(BundleMLLMError, match="evaluate both on one question file"):
        compare_metrics(tmp_path / "other.json", tmp_path / "once.json")


@pytest.mark.parametrize("part", PARTS)
def test_what_is_masked_or_permuted_counts_and_the_metrics_are_not_of_this_model(
    folders, data, write_questions, tmp_path, part
):
    questions, model, scores = write_questions(num_candidates=4), folders[part], {}
    for name, options in {
        "whole": {},
        "masked": {"mask": ["visual"]},
        "untitled": {"mask": ["titles"]},
        "permuted": {"permute": ["visual"]},
        "masked and permuted": {"permute": ["visual"], "mask": ["visual"]},
    }.items():
        if part == "retriever" and name == "untitled":
            continue
        metrics = evaluate(model, data.path, questions, tmp_path / f"{name}.json", **options)
        assert {k: v for k, v in metrics["options"].items() if k in ("mask", "permute")} == options
        assert metrics["fingerprint"] == (None if options else fingerprint(model))
        scores[name] = torch.tensor([q.scores for q in load_results(tmp_path / f"{name}.json")[1]])
    assert torch.allclose(scores.pop("masked and permuted"), scores["masked"], atol=2e-4)
    for name in scores:
        for other in scores.keys() - {name}:
            assert not torch.allclose(scores[name], scores[other], atol=1e-3), (name, other)
    assert "mrr" in compare_metrics(tmp_path / "masked.json", tmp_path / "whole.json")


def test_what_the_models_do_not_read_cannot_be_masked_or_permuted(folders, data, write_questions):
    questions = write_questions(num_candidates=4)
    with pytest.raises(BundleMLLMError, match=r"\['smell'\] cannot be hidden.*'titles', 'visual'"):
        evaluate(folders["both"], data.path, questions, mask=["smell"])
    with pytest.raises(BundleMLLMError, match=r"\['titles'\] cannot be permuted.*'visual'"):
        evaluate(folders["both"], data.path, questions, permute=["titles"])
    with pytest.raises(BundleMLLMError, match=r"\['titles'\] cannot be hidden.*\['visual'\]"):
        evaluate(folders["retriever"], data.path, questions, mask=["titles"])


def test_a_ranker_without_letters_has_no_metrics_of_free_answers(data, write_questions, tmp_path):
    completer = make_completer_for(data, retriever=False)
    ranker = BundleMLLMForOptionScoring.from_ranker(completer.ranker)
    BundleCompleter(completer.processor, ranker).save_pretrained(tmp_path / "model")
    metrics = evaluate(tmp_path / "model", data.path, write_questions(num_candidates=4))
    assert "hit_rate@1" in metrics["parts"]["ranker"]
    assert not {name for name in {**metrics, **metrics["parts"]["ranker"]} if "valid" in name}


def test_questions_of_more_than_26_candidates_are_evaluated(model, tiny_data, write_questions):
    metrics = evaluate(model, tiny_data, write_questions(num_candidates=28))
    assert list(metrics["slices"]["num_candidates"]) == ["28"]
    assert [metrics["parts"][part]["valid_ratio"] for part in ("ranker", "retriever")] == [1, 1]
    assert metrics["slices"]["position"] == metrics["position"] == {}
    assert 1 <= metrics["mean_rank"] <= 28


def test_cold_answers_are_those_of_no_training_bundle(tiny_data):
    data = DatasetFolder.open(tiny_data)
    asked = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=4, seed=0)
    scored = as_scored(asked, [[0.0] * 4 for _ in asked])
    known = {item_id for bundle in data.bundles.train for item_id in bundle.items} - {asked[0].answer}
    cold = describe({}, asked, scored, known, probabilities=False)["slices"]["answer"]["cold"]
    assert cold["num_questions"] == sum(question.answer not in known for question in asked) > 0


def test_lists_that_are_ranked_in_groups_have_no_letters(model, tiny_data, write_questions):
    questions = write_questions(num_candidates=8)
    assert evaluate(model, tiny_data, questions, max_options=8)["position"]
    in_groups = evaluate(model, tiny_data, questions, max_options=6)
    assert in_groups["position"] == {} and in_groups["slices"]["position"] == {}


def test_without_training_bundles_no_item_is_cold(model, tiny_data, write_questions, tmp_path):
    questions = write_questions(num_candidates=4)
    shutil.copytree(tiny_data, tmp_path / "data")
    bundles = [b for line in (tmp_path / "data" / "bundles.jsonl").read_text().splitlines() if
               (b := json.loads(line))["split"] == "test"]  # fmt: skip
    (tmp_path / "data" / "bundles.jsonl").write_text("".join(json.dumps(bundle) + "\n" for bundle in bundles))
    assert "answer" not in evaluate(model, tmp_path / "data", questions)["slices"]
    [random] = evaluate_baselines(tmp_path / "data", questions, ["random"])
    assert "answer" not in random.metrics["slices"]


def test_a_device_that_does_not_exist_is_refused(model, data, write_questions):
    with pytest.raises(BundleMLLMError, match="There is no device 'nowhere'"):
        evaluate(model, data.path, write_questions(num_candidates=4), device="nowhere")


def test_an_item_that_the_model_lacks_is_an_error(model, tiny_data, write_questions, tmp_path):
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
        (".", "is a folder, so no metrics can be written there: give a file"),
        ("taken.json", "taken.questions.jsonl is a folder"),
        ("q.jsonl/metrics.json", "cannot be written"),
        ("q.jsonl", "would overwrite .*q.jsonl, which holds the questions"),
        ("q.jsonl.json", "would overwrite .*q.jsonl.json"),
        ("q.json", "would overwrite .*q.questions.jsonl"),
        ("half.json", "half.ranker.json is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_and_nothing_is_left_there(
    model, tiny_data, write_questions, tmp_path, output, message
):
    questions = write_questions("q.questions.jsonl" if output == "q.json" else "q.jsonl", num_candidates=4)
    (tmp_path / "taken.questions.jsonl").mkdir()
    (tmp_path / "half.ranker.json").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BundleMLLMError, match=message):
        evaluate(model, tiny_data, questions, tmp_path / output)
    assert sorted(tmp_path.iterdir()) == before


def test_items_that_are_not_those_of_the_model_are_said(model, tiny_data, write_questions, tmp_path, caplog):
    questions, data = write_questions(num_candidates=4), shutil.copytree(tiny_data, tmp_path / "data")
    evaluate(model, data, questions)
    assert "other items" not in caplog.text
    path = data / "items.jsonl"
    first, *others = path.read_text().splitlines()
    title = json.loads(first) | {"title": "another title"}
    path.write_text("\n".join([*others, json.dumps(title)]) + "\n")
    evaluate(model, data, questions)
    assert "which answers by its own: 1 with another title (such as" in caplog.text
    assert "at another place (such as" in caplog.text
