"""Baselines on a question file: metrics files, skipped baselines, and the errors of wrong arguments."""

import json
import shutil
import sys

import numpy as np
import pytest
from tiny_models import make_backbone, make_tokenizer

from bundle_mllm.baselines import ALL, BASELINES, baseline_path, evaluate_baselines, make_baseline
from bundle_mllm.baselines.base import QuestionBatch, score_in_parts
from bundle_mllm.baselines.evaluate import BaselineResult, BaselineResults
from bundle_mllm.baselines.learning import Schedule
from bundle_mllm.baselines.multivae import MultiVAE
from bundle_mllm.baselines.set_transformer import SetTransformer
from bundle_mllm.cli import main
from bundle_mllm.data import DatasetFolder, load_questions, make_questions, save_questions
from bundle_mllm.data.tables import write_records
from bundle_mllm.encoders.lightgcn import LightGCN
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.results import compare_metrics, load_catalog_results, load_results
from bundle_mllm.hub.card import read_measurements


@pytest.fixture(scope="module")
def questions(tiny_data, tmp_path_factory):
    data, path = DatasetFolder.open(tiny_data), tmp_path_factory.mktemp("questions") / "q.jsonl"
    save_questions(path, make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=4, seed=0))
    return path


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """Train little: test_learned.py tests what the baselines learn."""
    with pytest.MonkeyPatch.context() as patch:
        for baseline in (MultiVAE, SetTransformer):
            patch.setattr(baseline, "schedule", Schedule(epochs=2))
        patch.setattr("bundle_mllm.baselines.similarity.LightGCN", lambda seed, steps: LightGCN(seed=seed, steps=20))
        yield


@pytest.fixture(scope="module")
def everything(tiny_data, questions, tmp_path_factory):
    output = tmp_path_factory.mktemp("all") / "metrics.json"
    return {result.name: result for result in evaluate_baselines(tiny_data, questions, [ALL], output)}, output


def test_all_measures_each_baseline_with_data_and_gives_the_reason_for_the_others(everything):
    results, output = everything
    assert set(results) == {*BASELINES, "similarity:visual"}
    skipped = {name: result.skipped for name, result in results.items() if result.metrics is None}
    assert set(skipped) == {"item_knn_users", "lightgcn_users", "ease_users"}
    assert all("no interactions of users" in reason for reason in skipped.values())
    written = {path.name for path in output.parent.iterdir()}
    assert "metrics.popularity.json" in written and "metrics.similarity-visual.questions.jsonl" in written
    assert len(written) == 2 * (len(results) - len(skipped))


def test_bundles_of_one_color_are_completed_by_baselines_that_read_color(everything):
    results, _ = everything
    rates = {name: result.metrics["hit_rate@1_random_ties"] for name, result in results.items() if result.metrics}
    assert rates["similarity:visual"] > 0.5 and rates["boosted_ranker"] > 0.45
    assert max(rates[name] for name in ("random", "popularity")) < 0.45


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
        (["similarity"], "'similarity' lacks its modality: write for example similarity:visual"),
        (["llm:"], "'llm:' lacks its model: write for example llm:Qwen/Qwen3-0.6B"),
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


def test_a_folder_of_ids_alone_serves_the_baselines_that_need_no_more(tmp_path):
    write_records(tmp_path / "items.jsonl", [{"item_id": str(n)} for n in range(12)])
    bundles = [{"bundle_id": f"b{n}", "items": [str(n), str(n + 1), str(n + 2)], "split": "train"} for n in range(10)]
    bundles[-1]["split"] = "test"
    write_records(tmp_path / "bundles.jsonl", bundles)
    data = DatasetFolder.open(tmp_path)
    questions = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=3, seed=0)
    save_questions(tmp_path / "q.jsonl", questions)
    results = {result.name: result for result in evaluate_baselines(tmp_path, tmp_path / "q.jsonl", [ALL])}
    assert "give `category`" in results["category_pmi"].skipped
    assert "no titles" in results["tfidf"].skipped
    assert "too few for 5 folds" in results["boosted_ranker"].skipped
    assert results["set_transformer"].metrics and results["multivae"].metrics
    with pytest.raises(BundleMLLMError, match="no titles, so the prompts would be empty"):
        evaluate_baselines(tmp_path, tmp_path / "q.jsonl", ["llm:gpt2"])


def test_long_lists_are_scored_in_parts_and_to_the_same_scores(tiny_data, questions):
    folder = DatasetFolder.open(tiny_data)
    batch = QuestionBatch.of(load_questions(questions, folder.catalog), folder.catalog)
    for name in ("co_occurrence", "item_knn", "tfidf", "similarity:visual", "category_pmi", "random"):
        baseline = make_baseline(name, folder)
        baseline.fit(folder, folder.bundles.train)
        whole = baseline.score(batch)
        for number in (9, 1):
            np.testing.assert_array_equal(score_in_parts(baseline, batch, number), whole)
    batch = QuestionBatch([[0]] * 5, [[1, 2, 3], [4, 5, 6], [1], [2], list(range(9))], 32)
    assert [[len(c) for c in part.candidates] for part in batch.parts(4)] == [[3], [3, 1], [1], [9]]
    assert [len(part) for part in batch.parts(100)] == [5]


def test_whole_catalogs_get_the_scores_that_candidates_get(tiny_data):
    folder = DatasetFolder.open(tiny_data)
    num_items = len(folder.catalog)
    partials = [[0, 9], [3], [17, 2, 30]]
    everything = QuestionBatch(partials, [range(num_items)] * len(partials), num_items)
    catalogs = [name for name, entry in BASELINES.items() if entry.catalogs and not entry.reads_users]
    for name in (*catalogs, "set_transformer", "similarity:visual"):
        baseline = make_baseline(name, folder)
        baseline.fit(folder, folder.bundles.train)
        scores = baseline.score_catalog(QuestionBatch.of_catalog(partials, num_items))
        assert scores.shape == (len(partials), num_items)
        if name != "random":
            of_candidates = np.stack(everything.split(baseline.score(everything)))
            np.testing.assert_allclose(scores, of_candidates, atol=1e-5, err_msg=name)


def test_a_catalog_evaluation_leaves_out_what_ranks_given_candidates(tiny_data, questions, tmp_path):
    names = ["popularity", "ease", "random"]
    results = evaluate_baselines(tiny_data, questions, names, tmp_path / "catalog.json", catalog=True)
    metrics, ranked = load_catalog_results(results[1].path)
    assert metrics["baseline"] == "ease" and 0 < metrics["recall@5"] < 1 and len(ranked) == metrics["num_questions"]
    assert compare_metrics(results[1].path, results[0].path)["ndcg@20"]["a"] == metrics["ndcg@20"]
    for name in ("boosted_ranker", "llm:some/model"):
        with pytest.raises(BundleMLLMError, match="ranks given candidates, not whole catalogs"):
            evaluate_baselines(tiny_data, questions, [name], catalog=True)


def test_without_lightgbm_the_listwise_ranker_is_left_out(tiny_data, questions, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(BundleMLLMError, match=r"LightGBM is not installed: pip install 'bundle-mllm\[lightgbm\]'"):
        evaluate_baselines(tiny_data, questions, ["listwise_ranker"])


def test_a_user_log_with_the_answers_is_a_warning_for_baselines_that_read_users_only(
    tiny_data, questions, monkeypatch
):
    checked = []
    monkeypatch.setattr("bundle_mllm.baselines.evaluate.check_interactions", lambda *_, **__: checked.append(True))
    evaluate_baselines(tiny_data, questions, ["popularity", "similarity:visual"])
    assert not checked
    evaluate_baselines(tiny_data, questions, ["popularity", "set_transformer"])
    assert checked


def test_without_training_bundles_baselines_that_read_them_are_left_out(tiny_data, questions, tmp_path):
    shutil.copytree(tiny_data, tmp_path, dirs_exist_ok=True)
    rows = [json.loads(line) for line in (tmp_path / "bundles.jsonl").read_text().splitlines()]
    write_records(tmp_path / "bundles.jsonl", [row for row in rows if row["split"] != "train"])
    results = evaluate_baselines(tmp_path, questions, [ALL])
    assert {result.name for result in results if result.metrics} == {"random", "tfidf", "similarity:visual"}
    with pytest.raises(BundleMLLMError, match=r"'popularity' cannot be measured: .* no training bundles"):
        evaluate_baselines(tmp_path, questions, ["popularity"])


def test_a_language_model_scores_from_titles(tiny_data, questions, tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "tiny-llm")
    make_backbone().save_pretrained(tmp_path / "tiny-llm")
    name = f"llm:{tmp_path / 'tiny-llm'}"
    (result,) = evaluate_baselines(tiny_data, questions, [name], tmp_path / "metrics.json")
    assert result.path == tmp_path / "metrics.llm-tiny-llm.json"
    metrics, scored = load_results(result.path)
    assert metrics["options"] == {"permutations": 1, "max_options": 26, "group_size": 10, "seed": 0}
    assert {"calibration_error", "valid_ratio"} < set(metrics)
    assert len({question.scores for question in scored}) == len(scored)


def test_the_command_prints_one_table_best_first(tiny_data, questions, tmp_path, capsys):
    command = ["evaluate", "--data", str(tiny_data), "--questions", str(questions)]
    output = tmp_path / "metrics.json"
    assert main([*command, "--baselines", "popularity", "tfidf", "random", "--output", str(output)]) == 0
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines() if line]
    assert lines[0] == ["hit_rate@1", "hit_rate@1_random_ties", "hit_rate@3", "mrr", "seconds"]
    assert lines[1][0] == "tfidf" and {lines[2][0], lines[3][0]} == {"popularity", "random"}
    metrics = json.loads((tmp_path / "metrics.tfidf.json").read_text())
    assert lines[1][1] == f"{metrics['hit_rate@1']:.4f}" and lines[1][4] == f"{metrics['hit_rate@1_random_ties']:.4f}"
    assert "tfidf: " in printed.err and "metrics.tfidf.json" in printed.err
    assert not output.exists()
    assert main(command) == 2
    assert "give --model OUT, --baselines all, or both" in capsys.readouterr().err


def test_publishing_a_model_leaves_out_the_metrics_of_baselines(everything, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    shutil.copy(baseline_path(everything[1], "tfidf"), tmp_path / "metrics.tfidf.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bundle_mllm.hub.card.fingerprint", lambda folder: "f")
        assert read_measurements(tmp_path) == []
        with pytest.raises(BundleMLLMError, match="does not name the weights"):
            read_measurements(tmp_path, [tmp_path / "metrics.tfidf.json"])


def test_results_are_a_list_that_a_notebook_shows_as_a_table():
    metrics = {"hit_rate@1": 0.5, "hit_rate@1_se": 0.1, "hit_rate@1_random_ties": 0.5, "hit_rate@3": 0.75, "mrr": 0.7}
    better = metrics | {"hit_rate@1_random_ties": 0.75}
    results = BaselineResults([BaselineResult("<b>a", metrics, seconds=1.25), BaselineResult("ease", better)])
    results.append(BaselineResult("popularity", None, skipped="no <i>bundles"))
    html = results._repr_html_()
    assert (
        "<td>&lt;b&gt;a</td><td>0.5000 ± 0.1000</td><td>0.5000</td><td>0.7500</td><td>0.7000</td><td>1.2</td>" in html
    )
    assert html.index("<td>ease") < html.index("<td>&lt;b&gt;a") and "popularity: no &lt;i&gt;bundles" in html
    assert "no baseline was measured" in BaselineResults(results[2:])._repr_html_()
