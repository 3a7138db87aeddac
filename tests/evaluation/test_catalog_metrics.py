"""Metrics of whole-catalog ranking against independent definitions."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.catalog import CatalogQuestion, RankedQuestion
from bundle_mllm.evaluation.catalog_metrics import (
    catalog_differences,
    compute_catalog_metrics,
    compute_catalog_slices,
)

NUM_ITEMS = 12


def ranked(scores, relevant, question="q", top=("a",), bundle=None):
    better = tuple(sum(other > scores[item] for other in scores) for item in relevant)
    tied = tuple(scores.count(scores[item]) for item in relevant)
    names = tuple(f"i{item}" for item in relevant)
    return RankedQuestion(question, bundle or question, names, better, tied, top, 1.0, 0.5)


def expected(scores, relevant, k):
    """Average recall, NDCG, hit rate and MRR over all orders of tied items."""
    results = []
    for order in itertools.permutations(range(len(scores))):
        listed = sorted(order, key=lambda item: -scores[item])
        ranks = sorted(listed.index(item) + 1 for item in relevant)
        gain = sum(1 / math.log2(1 + rank) for rank in ranks if rank <= k)
        ideal = sum(1 / math.log2(1 + rank) for rank in range(1, min(k, len(relevant)) + 1))
        recall = sum(rank <= k for rank in ranks) / len(relevant)
        results.append((recall, gain / ideal, float(ranks[0] <= k), 1 / ranks[0]))
    return np.mean(results, axis=0)


@pytest.mark.parametrize(
    ("scores", "relevant"),
    [
        ([7, 6, 5, 4, 3, 2, 1], [1, 5]),
        ([2, 2, 2, 2, 1, 1, 1], [0, 3, 5]),
        ([1, 1, 1, 1, 1, 1, 1], [2, 4]),
        ([3, 2, 2, 2, 2, 2, 2], [6]),
        ([3, 2, 2, 2, 2, 2, 2], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_ties_count_as_the_mean_over_all_orders(scores, relevant):
    metrics = compute_catalog_metrics([ranked(scores, relevant)], NUM_ITEMS)
    values = [metrics[name] for name in ("recall@5", "ndcg@5", "hit_rate@5", "mrr")]
    assert values == pytest.approx(expected(scores, relevant, 5))
    assert metrics["recall@100"] == metrics["hit_rate@100"] == 1


def test_coverage_counts_each_item_once_and_its_error_is_that_of_leaving_lists_out():
    tops = [("a", "b"), ("b", "c"), ("b", "a"), ("d", "e")]
    questions = [ranked([2, 1], [0], f"q{n}", top) for n, top in enumerate(tops)]
    metrics = compute_catalog_metrics(questions, NUM_ITEMS)
    assert metrics["coverage@20"] == 5 / NUM_ITEMS
    without = [len(set().union(*(tops[j] for j in range(4) if j != i))) / NUM_ITEMS for i in range(4)]
    assert metrics["coverage@20_se"] == pytest.approx(math.sqrt(3 / 4 * np.square(without - np.mean(without)).sum()))
    assert metrics["novelty@20"] == 1 and metrics["diversity@20"] == 0.5


def test_the_error_of_coverage_leaves_out_all_lists_of_a_bundle():
    tops = [("a", "b"), ("b", "c"), ("b", "a"), ("d", "e")]
    once = [ranked([2, 1], [0], f"q{n}", top) for n, top in enumerate(tops)]
    twice = [replace(question, question_id=f"{question.question_id}-{n}") for question in once for n in range(2)]
    a, b = (compute_catalog_metrics(questions, NUM_ITEMS) for questions in (once, twice))
    assert b["coverage@20"] == a["coverage@20"] and b["coverage@20_se"] == pytest.approx(a["coverage@20_se"])


def test_errors_have_bundles_as_clusters():
    rows = [([3, 2, 1], [0]), ([1, 2, 3], [0]), ([3, 2, 1], [0]), ([1, 3, 2], [0])]
    apart = [ranked(scores * 3, relevant, f"q{n}") for n, (scores, relevant) in enumerate(rows)]
    together = [ranked(scores * 3, relevant, f"q{n}", bundle=f"b{n % 2}") for n, (scores, relevant) in enumerate(rows)]
    a, b = (compute_catalog_metrics(questions, NUM_ITEMS) for questions in (apart, together))
    assert a["mrr"] == b["mrr"] and a["mrr_se"] != b["mrr_se"]
    assert (a["num_bundles"], b["num_bundles"]) == (4, 2)


def test_slices_restrict_the_relevant_items_to_cold_and_warm_ones():
    scores = list(range(30, 0, -1))
    questions = [CatalogQuestion("q0", "q0", ("x",), ("i2", "i25")), CatalogQuestion("q1", "q1", ("x", "y"), ("i3",))]
    places = [ranked(scores, [2, 25], "q0"), ranked(scores, [3], "q1")]
    slices = compute_catalog_slices(questions, places, NUM_ITEMS, frozenset({"i2", "i3"}))
    assert slices["relevant"]["cold"]["recall@20"] == 0 and slices["relevant"]["cold"]["num_questions"] == 1
    assert slices["relevant"]["warm"]["recall@20"] == 1 and slices["relevant"]["warm"]["num_questions"] == 2
    assert slices["partial_length"]["1"]["recall@20"] == 0.5 and slices["partial_length"]["2"]["recall@20"] == 1
    assert "relevant" not in compute_catalog_slices(questions, places, NUM_ITEMS, None)


def test_in_a_slice_the_other_relevant_items_are_in_no_list():
    scores = [9, 8, 7, 7, 7, 6, 5, 4]
    relevant, warm = [0, 2, 3, 6], {"i0", "i3"}
    for train_items in (warm, {"i2", "i6"}):
        others = [row for row in relevant if f"i{row}" not in train_items]
        kept = [row for row in relevant if f"i{row}" in train_items]
        filtered = [-np.inf if row in others else score for row, score in enumerate(scores)]
        questions = [CatalogQuestion("q", "q", ("x",), tuple(f"i{row}" for row in relevant))]
        slices = compute_catalog_slices(questions, [ranked(scores, relevant, "q")], 8, train_items)
        expected = compute_catalog_metrics([ranked(filtered, kept, "q")], 8)
        for name in ("recall@20", "ndcg@20"):
            assert slices["relevant"]["warm"][name] == pytest.approx(expected[name])


def test_differences_are_paired_by_question():
    rng = np.random.default_rng(0)
    a = [ranked(rng.permutation(200).tolist(), [0, 1], f"q{n}", top=(f"i{n}",)) for n in range(20)]
    same = catalog_differences(a, a[::-1], 200)
    assert all(row["difference"] == 0 and row["se"] == pytest.approx(0) for row in same.values())
    b = [ranked(rng.permutation(200).tolist(), [0, 1], f"q{n}") for n in range(20)]
    result = catalog_differences(a, b, 200)["mrr"]
    mrr = np.array([[1 / (1 + min(q.num_better)) for q in run] for run in (a, b)])
    assert result["difference"] == pytest.approx((mrr[0] - mrr[1]).mean())
    assert result["se"] == pytest.approx((mrr[0] - mrr[1]).std(ddof=1) / math.sqrt(20))
    with pytest.raises(BundleMLLMError, match="cannot be paired"):
        catalog_differences(a, b[1:], 200)
