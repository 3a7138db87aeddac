"""Baselines on a question file: what is written, what is skipped, and what a mistake says."""

import json
import shutil

import pytest
from tiny_models import make_backbone, make_tokenizer

from bundle_mllm.baselines import ALL, BASELINES, baseline_path, evaluate_baselines
from bundle_mllm.baselines.base import Asked
from bundle_mllm.baselines.learning import Schedule
from bundle_mllm.cli import main
from bundle_mllm.data import DatasetFolder, make_questions, save_questions
from bundle_mllm.data.tables import write_records
from bundle_mllm.encoders.lightgcn import LightGCN
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.results import compare_metrics, load_results
from bundle_mllm.hub.card import read_measurements


@pytest.fixture(scope="module")
def questions(tiny_data, tmp_path_factory):
    data, path = DatasetFolder.open(tiny_data), tmp_path_factory.mktemp("asked") / "q.jsonl"
    save_questions(path, make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=4, seed=0))
    return path


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """Train little: what is learned is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("multivae", "set_transformer"):
            patch.setattr(f"bundle_mllm.baselines.{module}.Schedule", lambda **_: Schedule(epochs=2))
        patch.setattr("bundle_mllm.baselines.graph.LightGCN", lambda seed, steps: LightGCN(seed=seed, steps=20))
        yield


@pytest.fixture(scope="module")
def everything(tiny_data, questions, tmp_path_factory):
    output = tmp_path_factory.mktemp("all") / "metrics.json"
    return {result.name: result for result in evaluate_baselines(tiny_data, questions, [ALL], output)}, output


def test_all_measures_what_the_folder_has_and_says_why_it_leaves_the_rest_out(everything):
    results, output = everything
    assert set(results) == {*BASELINES, "similarity:visual"}
    skipped = {name: result.skipped for name, result in results.items() if result.metrics is None}
    assert set(skipped) == {"item_knn_users", "lightgcn_users"}
    assert all("no interactions of users" in reason for reason in skipped.values())
    written = {path.name for path in output.parent.iterdir()}
    assert "metrics.popularity.json" in written and "metrics.similarity-visual.questions.jsonl" in written
    assert len(written) == 2 * (len(results) - len(skipped))


def test_bundles_of_one_color_are_found_by_everything_that_sees_color(everything):
    results, _ = everything
    found = {name: result.metrics["hit_rate@1_expected"] for name, result in results.items() if result.metrics}
    assert found["similarity:visual"] > 0.5 and found["boosted_ranker"] > 0.45
    assert max(found[name] for name in ("random", "popularity")) < 0.45


def test_metrics_of_a_baseline_have_the_form_of_a_models(everything, questions):
    _, output = everything
    metrics, scored = load_results(baseline_path(output, "tfidf"))
    assert metrics["baseline"] == "tfidf"
    assert metrics["train_bundles"] == 30
    assert metrics["questions"]["path"] == str(questions)
    assert "calibration_error" not in metrics and metrics["valid_ratio"] == 1
    assert {"slices", "position", "random_hit_rate@1"} < set(metrics)
    assert len(scored) == metrics["num_questions"]
    paths = [baseline_path(output, name) for name in ("tfidf", "random")]
    difference = compare_metrics(*paths)["hit_rate@1"]["difference"]
    assert difference == metrics["hit_rate@1"] - json.loads(paths[1].read_text())["hit_rate@1"]


def test_held_out_bundles_change_no_score(everything, tiny_data, questions, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    rows = [json.loads(line) for line in (data / "bundles.jsonl").read_text().splitlines()]
    rows = [row if row["split"] == "train" else {**row, "items": row["items"][:2]} for row in rows]
    write_records(data / "bundles.jsonl", [*rows, {"bundle_id": "new", "items": ["red-hat"] * 1, "split": "test"}])
    names = [name for name in BASELINES if not name.endswith("_users")]
    evaluate_baselines(data, questions, names, tmp_path / "metrics.json")
    for name in names:
        before, after = (baseline_path(out, name) for out in (everything[1], tmp_path / "metrics.json"))
        assert load_results(before)[1] == load_results(after)[1], name


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["popularty"], r"no baseline 'popularty': did you mean 'popularity'\? Choose from random, popularity"),
        (["smell"], "no baseline 'smell': choose from random"),
        (["similarity"], "'similarity' does not say which: write for example similarity:visual"),
        (["llm:"], "llm:Qwen/Qwen3-0.6B"),
        (["similarity:acoustic"], r"'similarity:acoustic' cannot be measured: .* no 'acoustic' features \(it has vis"),
        (["lightgcn_users"], "'lightgcn_users' cannot be measured: .* no interactions of users: add interactions.csv"),
        (["llm:a/b/", "llm:c/b"], "'llm:a/b/' and 'llm:c/b' would write the same file"),
        (["llm:nowhere/at/all"], "no folder nowhere/at/all"),
    ],
)
def test_a_mistake_names_the_baseline_and_the_way_out(names, message, tiny_data, questions, tmp_path):
    with pytest.raises(BundleMLLMError, match=message):
        evaluate_baselines(tiny_data, questions, names, tmp_path / "metrics.json")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_nothing_but_ids_serves_what_it_can(tmp_path):
    write_records(tmp_path / "items.jsonl", [{"item_id": str(n)} for n in range(12)])
    bundles = [{"bundle_id": f"b{n}", "items": [str(n), str(n + 1), str(n + 2)], "split": "train"} for n in range(10)]
    bundles[-1]["split"] = "test"
    write_records(tmp_path / "bundles.jsonl", bundles)
    data = DatasetFolder.open(tmp_path)
    asked = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=3, seed=0)
    save_questions(tmp_path / "q.jsonl", asked)
    results = {result.name: result for result in evaluate_baselines(tmp_path, tmp_path / "q.jsonl", [ALL])}
    assert "give `category`" in results["category_pmi"].skipped
    assert "no titles" in results["tfidf"].skipped
    assert "too few to cut into 5 folds" in results["boosted_ranker"].skipped
    assert results["set_transformer"].metrics and results["multivae"].metrics
    with pytest.raises(BundleMLLMError, match="no titles, which is all that a language model is told"):
        evaluate_baselines(tmp_path, tmp_path / "q.jsonl", ["llm:gpt2"])


def test_long_lists_are_scored_in_parts_and_to_the_same_scores(tiny_data, questions, monkeypatch):
    names = ["co_occurrence", "tfidf", "similarity:visual", "category_pmi", "random"]
    scores = {}
    for number in (50_000, 9, 1):
        monkeypatch.setattr("bundle_mllm.baselines.evaluate.CANDIDATES_AT_ONCE", number)
        results = evaluate_baselines(tiny_data, questions, names)
        scores[number] = [result.metrics["mrr"] for result in results]
    assert scores[50_000] == scores[9] == scores[1]
    asked = Asked([[0]] * 5, [[1, 2, 3], [4, 5, 6], [1], [2], list(range(9))], 32)
    assert [[len(c) for c in part.candidates] for part in asked.batches(4)] == [[3], [3, 1], [1], [9]]
    assert [len(part) for part in asked.batches(100)] == [5]


def test_without_training_bundles_what_counts_them_is_left_out(tiny_data, questions, tmp_path):
    shutil.copytree(tiny_data, tmp_path, dirs_exist_ok=True)
    rows = [json.loads(line) for line in (tmp_path / "bundles.jsonl").read_text().splitlines()]
    write_records(tmp_path / "bundles.jsonl", [row for row in rows if row["split"] != "train"])
    results = evaluate_baselines(tmp_path, questions, [ALL])
    assert {result.name for result in results if result.metrics} == {"random", "tfidf", "similarity:visual"}
    with pytest.raises(BundleMLLMError, match=r"'popularity' cannot be measured: .* no training bundles"):
        evaluate_baselines(tmp_path, questions, ["popularity"])


def test_a_language_model_is_asked_from_titles(tiny_data, questions, tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "tiny-llm")
    make_backbone().save_pretrained(tmp_path / "tiny-llm")
    name = f"llm:{tmp_path / 'tiny-llm'}"
    (result,) = evaluate_baselines(tiny_data, questions, [name], tmp_path / "metrics.json")
    assert result.path == tmp_path / "metrics.llm-tiny-llm.json"
    metrics, scored = load_results(result.path)
    assert metrics["asked"]["permutations"] == 1
    assert {"calibration_error", "valid_ratio"} < set(metrics)
    assert len({question.option_logits for question in scored}) == len(scored)


def test_the_command_prints_one_table_best_first(tiny_data, questions, tmp_path, capsys):
    command = ["evaluate", "--data", str(tiny_data), "--questions", str(questions)]
    output = tmp_path / "metrics.json"
    assert main([*command, "--baselines", "popularity", "tfidf", "random", "--output", str(output)]) == 0
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines() if line]
    assert lines[0] == ["hit_rate@1", "ties", "at", "random", "seconds"]
    assert lines[1][0] == "tfidf" and {lines[2][0], lines[3][0]} == {"popularity", "random"}
    metrics = json.loads((tmp_path / "metrics.tfidf.json").read_text())
    assert lines[1][1] == f"{metrics['hit_rate@1']:.4f}" and lines[1][4] == f"{metrics['hit_rate@1_expected']:.4f}"
    assert "tfidf: " in printed.err and "metrics.tfidf.json" in printed.err
    assert not output.exists()
    assert main(command) == 2
    assert "give --model OUT, --baselines all, or both" in capsys.readouterr().err


def test_publishing_a_model_passes_over_the_metrics_of_baselines(everything, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    shutil.copy(baseline_path(everything[1], "tfidf"), tmp_path / "metrics.tfidf.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bundle_mllm.hub.card.fingerprint", lambda folder: "f")
        assert read_measurements(tmp_path) == []
        with pytest.raises(BundleMLLMError, match="does not say which weights"):
            read_measurements(tmp_path, [tmp_path / "metrics.tfidf.json"])
