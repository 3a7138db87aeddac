"""Ranks in a whole catalog, worked out by hand, and what a model folder gives."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle_mllm.cli import main
from bundle_mllm.data import load_questions, read_records, write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.catalog import CatalogQuestion, catalog_questions, rank_catalog
from bundle_mllm.evaluation.catalog_scoring import catalog_scorer
from bundle_mllm.evaluation.evaluate import evaluate
from bundle_mllm.evaluation.results import compare_metrics, load_catalog_results, load_results
from bundle_mllm.evaluation.settings import ScoringOptions
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling import BundleCompleter

PARTS = ("ranker", "retriever", "both")


def rank(data, scores, partial, relevant):
    question = CatalogQuestion("q", "b0", tuple(partial), tuple(relevant))
    [ranked] = rank_catalog(lambda partials: {"method": np.array([scores])}, [question], data)["method"]
    return ranked


def test_the_items_shown_have_no_place_and_equal_scores_are_tied(data):
    ids = data.catalog.item_ids
    scores = np.zeros(len(ids))
    scores[[0, 1, 2, 3]] = 9, 5, 5, 7
    ranked = rank(data, scores, [ids[0]], [ids[1], ids[3], ids[9]])
    assert ranked.num_better == (1, 0, 3)  # item 0 is shown; 3 beats 1, which is tied with 2
    assert ranked.num_tied == (2, 1, len(ids) - 4)
    assert ranked.top[:4] == (ids[3], ids[1], ids[2], ids[4])  # equal ones in the order of the catalog
    assert len(ranked.top) == 20 and ids[0] not in ranked.top


def test_novelty_and_diversity_are_those_of_the_definitions(data):
    scores = np.random.default_rng(0).random(len(data.catalog))
    ranked = rank(data, scores, data.catalog.item_ids[:1], data.catalog.item_ids[1:2])
    rows = data.catalog.rows(ranked.top)
    train = [frozenset(bundle.items) for bundle in data.bundles.train]
    shares = [(sum(item_id in items for items in train) + 1) / (len(train) + 1) for item_id in ranked.top]
    assert ranked.novelty == pytest.approx(-np.log2(shares).mean())
    features, present = data.features().load()
    rows = [row for row in rows if present["visual"][row]]
    units = torch.nn.functional.normalize(features["visual"][rows], dim=1)
    cosines = [float(units[i] @ units[j]) for i in range(len(rows)) for j in range(len(rows)) if i != j]
    assert ranked.diversity == pytest.approx(1 - np.mean(cosines), abs=1e-5)


def test_questions_of_one_partial_bundle_are_one_question_about_all_other_items(data, write_questions):
    questions = load_questions(write_questions(num_candidates=4), data.catalog)
    made = catalog_questions(questions, data)
    assert len(questions) == 2 * len(made) == 2 * len(data.bundles.test)
    items_of = {bundle.bundle_id: set(bundle.items) for bundle in data.bundles}
    for question in made:
        assert set(question.relevant) == items_of[question.bundle_id] - set(question.partial)
    left_out = load_questions(write_questions(num_candidates=4, partial="leave_one_out"), data.catalog)
    assert {question.relevant for question in catalog_questions(left_out, data)} == {(q.answer,) for q in left_out}


def test_a_bundle_that_the_folder_lacks_is_refused(data, write_questions):
    questions = load_questions(write_questions(num_candidates=4), data.catalog)
    foreign = [type(q)(q.question_id, "elsewhere", q.partial, q.candidates, q.answer_index) for q in questions]
    with pytest.raises(BundleMLLMError, match=r"about the bundle 'elsewhere', which .* does not have"):
        catalog_questions(foreign, data)


def test_scores_that_are_not_finite_are_refused(data):
    scores = np.zeros(len(data.catalog))
    scores[5] = np.nan
    with pytest.raises(BundleMLLMError, match="method gives items scores that are not finite in question 'q'"):
        rank(data, scores, data.catalog.item_ids[:1], data.catalog.item_ids[1:2])


def test_each_part_ranks_the_catalog_as_the_completer_does(model, data, write_questions, tmp_path):
    questions = write_questions(num_candidates=4)
    metrics = evaluate(model, data.path, questions, tmp_path / "catalog.json", catalog=True, max_options=6)
    assert metrics["part"] == "both" and set(metrics["parts"]) == set(PARTS)
    completer, step = load_completer(model), len(data.catalog)
    for part in PARTS:
        path = tmp_path / ("catalog.json" if part == "both" else f"catalog.{part}.json")
        written, ranked = load_catalog_results(path)
        assert written["protocol"] == "catalog" and written["num_items"] == len(data.catalog)
        asked = catalog_questions(load_questions(questions, data.catalog), data)
        for question, places in zip(asked, ranked, strict=True):
            [completion] = completer.score([{"partial": question.partial}], max_options=6, num_retrieved=step)
            scores = completion.scores[part]
            order = [completion.candidates[row] for row in scores.argsort(descending=True, stable=True).tolist()]
            if part == "ranker":
                order = order[:6]  # the others are as the retriever has them
            assert list(places.top[: len(order)]) == order[:20]
            assert completion.scores["retriever"].numel() == step - len(question.partial)
    assert written["slices"]["relevant"].keys() <= {"cold", "warm"}


def test_the_ranker_moves_only_the_items_that_it_is_shown(completer, data):
    completer.combination = replace(completer.combination, num_ranked=4)
    partials = [[0, 9], [3]]
    scores = catalog_scorer(completer, ScoringOptions(), 6)(partials)
    for number, partial in enumerate(partials):
        order = {part: np.argsort(-scores[part][number], kind="stable") for part in PARTS}
        assert set(order["ranker"][:4]) == set(order["retriever"][:4])
        assert list(order["ranker"][4:]) == list(order["retriever"][4:])
        assert np.isneginf(scores["both"][number]).nonzero()[0].tolist() == sorted(partial)


@pytest.mark.parametrize("parts", [PARTS, ("retriever",)])
def test_the_retriever_scores_the_catalog_once(completer, parts, monkeypatch):
    if len(parts) == 1:
        completer = BundleCompleter(completer.processor, retriever=completer.retriever)
    calls, score = [], completer.retriever.catalog_scores
    monkeypatch.setattr(completer.retriever, "catalog_scores", lambda **batch: calls.append(batch) or score(**batch))
    found = catalog_scorer(completer, ScoringOptions(), 6)([[0, 9], [3]])
    assert set(found) == set(parts) and len(calls) == 1


def test_items_in_another_order_than_those_of_the_model_are_refused(model, data, write_questions, tmp_path):
    questions = write_questions(num_candidates=4)
    items = read_records(data.path / "items.jsonl")
    write_records(tmp_path / "items.jsonl", items[::-1])
    data.bundles.save(tmp_path / "bundles.jsonl")
    with pytest.raises(BundleMLLMError, match=r"at another place .*rows would be mixed up"):
        evaluate(model, tmp_path, questions, catalog=True)


def test_a_ranker_alone_ranks_in_groups(folders, data, write_questions):
    metrics = evaluate(folders["ranker"], data.path, write_questions(num_candidates=4), catalog=True, max_options=8)
    assert set(metrics["parts"]) == {"ranker"} and 0 <= metrics["recall@20"] <= 1


def test_masking_counts_in_catalogs_too(model, data, write_questions, tmp_path):
    questions = write_questions(num_candidates=4)
    evaluate(model, data.path, questions, tmp_path / "whole.json", catalog=True)
    evaluate(model, data.path, questions, tmp_path / "masked.json", catalog=True, mask=["visual"])
    tops = [[q.top for q in load_catalog_results(tmp_path / f"{name}.json")[1]] for name in ("whole", "masked")]
    assert tops[0] != tops[1]
    assert compare_metrics(tmp_path / "whole.json", tmp_path / "masked.json")["recall@5"]["se"] > 0


def test_files_of_the_two_protocols_do_not_mix(model, data, write_questions, tmp_path):
    questions = write_questions(num_candidates=4)
    evaluate(model, data.path, questions, tmp_path / "catalog.json", catalog=True)
    evaluate(model, data.path, questions, tmp_path / "candidates.json")
    with pytest.raises(BundleMLLMError, match=r"catalog\.json is about whole catalogs"):
        load_results(tmp_path / "catalog.json")
    for pair in (("catalog", "candidates"), ("candidates", "catalog")):
        with pytest.raises(BundleMLLMError, match="evaluate with"):
            compare_metrics(*(tmp_path / f"{name}.json" for name in pair))


def test_the_command_prints_catalog_metrics_with_paired_differences(model, data, write_questions, tmp_path, capsys):
    command = ["evaluate", "--model", str(model), "--data", str(data.path), "--catalog", "--baselines", "popularity"]
    files = ["--questions", str(write_questions(num_candidates=4)), "--output", str(tmp_path / "catalog.json")]
    assert main([*command, *files]) == 0
    printed, notes = capsys.readouterr()
    assert "is better than the model" not in notes
    popularity = json.loads((tmp_path / "catalog.popularity.json").read_text())
    both = json.loads((tmp_path / "catalog.json").read_text())
    difference = both["recall@20"] - popularity["recall@20"]
    shown = both["slices"]["partial_length"]["2"]
    assert f"2 shown      recall@20 {shown['recall@20']:.4f} ± " in printed and "warm items   recall@20" in printed
    for text in ("recall@20", "ndcg@20", "coverage@20", f"{popularity['recall@20']:.4f}", f"{difference:+.4f} ± "):
        assert text in printed


def test_the_command_says_that_a_baseline_is_better_by_how_much_and_what_to_try(
    model, data, write_questions, tmp_path, capsys, monkeypatch
):
    ahead = {"recall@20": {"difference": -0.25, "se": 0.125}}
    monkeypatch.setattr("bundle_mllm.evaluation.results.compare_metrics", lambda a, b: ahead)
    command = ["evaluate", "--model", str(model), "--data", str(data.path), "--catalog", "--baselines", "popularity"]
    assert main([*command, "--questions", str(write_questions()), "--output", str(tmp_path / "c.json")]) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "better" in line]
    sentence = "note: the baseline popularity is better than the model by 0.2500 ± 0.1250 (recall@20): "
    assert line == f'{sentence}docs/guides/evaluation.md, "When a baseline is better", says what to try.'
    page = (Path(__file__).parents[2] / "docs" / "guides" / "evaluation.md").read_text()
    assert "\n### When a baseline is better\n" in page
