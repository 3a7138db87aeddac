"""Metrics of whole-catalog ranking, their standard errors, breakdowns and paired differences.

Knows nothing about models, features or files: it sees places of relevant items, and lists.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.breakdowns import length_label
from bundle_mllm.evaluation.catalog import LIST_LENGTH, CatalogQuestion, RankedQuestion
from bundle_mllm.evaluation.metrics import Estimate, estimate_differences, mean_estimates, with_errors

CUTOFFS = (5, 20, 100)
MAIN = ("recall@20", "ndcg@20", "hit_rate@20", "mrr")
SLICE_METRICS = (*(name for metric in MAIN[:2] for name in (metric, f"{metric}_se")), "num_questions", "num_bundles")
"""What is reported of a slice."""


def compute_catalog_metrics(ranked: Sequence[RankedQuestion], num_items: int) -> dict[str, float | int]:
    """Compute all metrics of whole-catalog ranking.

    Each has a standard error, with bundles as clusters, under its name with `_se`. The items shown are in no list. The
    cutoffs k are 5, 20 and 100.

    - `recall@k`: mean share of a question's relevant items among the best k (as in CLHE; Ma et al., WSDM 2024).
    - `ndcg@k`: mean of the discounted gain of the relevant items among the best k, by that of the ideal list.
    - `hit_rate@k`: share of questions with a relevant item among the best k.
    - `mrr`: mean of 1 / rank of the first relevant item.
    - `coverage@20`: share of the catalog that is in some list of 20; its error is by the jackknife over
      bundles.
    - `novelty@20`, `diversity@20`: means of those of `RankedQuestion`.

    Ties are broken at random, in expectation; the lists of the last three have equal scores in catalog order.

    Raises:
        ValueError: If there is no question.
    """
    return with_errors(_estimates(ranked, num_items), [question.bundle_id for question in ranked])


def compute_catalog_slices(
    questions: Sequence[CatalogQuestion],
    ranked: Sequence[RankedQuestion],
    num_items: int,
    train_items: Collection[str] | None,
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Compute the metrics of `SLICE_METRICS` of the questions that have something in common.

    Returns:
        `{slice: {value: metrics}}`:

        - `relevant`: `cold` and `warm`, where only the relevant items count that are in no, or in some, training
          bundle, and the other relevant items are in no list (filtered ranks, as in Bordes et al., NeurIPS 2013); left
          out without `train_items`;
        - `partial_length`: how many items are shown: `1` to `5`, `6-10`, `11+`.
    """
    members: dict[str, dict[str, list[RankedQuestion]]] = {}
    if train_items is not None:
        members["relevant"] = {
            label: [part for question in ranked if (part := _restricted(question, train_items, label == "warm"))]
            for label in ("cold", "warm")
        }
    by_length: dict[str, list[RankedQuestion]] = defaultdict(list)
    for question, places in sorted(zip(questions, ranked, strict=True), key=lambda pair: len(pair[0].partial)):
        by_length[length_label(len(question.partial))].append(places)
    members["partial_length"] = by_length
    slices: dict[str, dict[str, dict[str, float | int]]] = {}
    for name, values in members.items():
        slices[name] = {}
        for label, part in values.items():
            if part:
                metrics = compute_catalog_metrics(part, num_items)
                slices[name][label] = {metric: metrics[metric] for metric in SLICE_METRICS}
    return slices


def catalog_differences(
    a: Sequence[RankedQuestion], b: Sequence[RankedQuestion], num_items: int
) -> dict[str, dict[str, float]]:
    """Compare two methods on the same questions; see `metrics.paired_differences`.

    Raises:
        BundleMLLMError: If the questions are not the same.
    """
    other = {question.question_id: question for question in b}
    if len(a) != len(b) or any(q.relevant != getattr(other.get(q.question_id), "relevant", None) for q in a):
        raise BundleMLLMError(
            "The two runs are not about the same questions and relevant items, so they cannot be paired: evaluate "
            "both on one question file and dataset folder."
        )
    runs = (a, [other[question.question_id] for question in a])
    of_a, of_b = (_estimates(run, num_items) for run in runs)
    return estimate_differences(of_a, of_b, [question.bundle_id for question in a])


def _estimates(ranked: Sequence[RankedQuestion], num_items: int) -> dict[str, Estimate]:
    if not ranked:
        raise ValueError("There are no questions, so no metric is defined: give at least one.")
    values: dict[str, list[float]] = defaultdict(list)
    discounts = 1 / np.log2(np.arange(2, max(CUTOFFS) + 2))
    gains = np.concatenate([[0.0], np.cumsum(discounts)])  # gains[k]: of k relevant items in the first k places
    for question in ranked:
        better, tied = np.array(question.num_better), np.array(question.num_tied)
        first = int(better.min())  # the relevant items that may come first, and the items they are tied with
        of_first, num_first = int(tied[better.argmin()]), int((better == first).sum())
        for k in CUTOFFS:
            values[f"recall@{k}"].append(float((np.clip(k - better, 0, tied) / tied).mean()))
            gain = (gains[np.minimum(k, better + tied)] - gains[np.minimum(k, better)]) / tied
            values[f"ndcg@{k}"].append(float(gain.sum() / gains[min(k, len(better))]))
            missed = _share_missed(np.array([min(max(k - first, 0), of_first)]), of_first, num_first)
            values[f"hit_rate@{k}"].append(1 - float(missed[0]))
        missed = _share_missed(np.arange(of_first + 1), of_first, num_first)
        values["mrr"].append(float((-np.diff(missed) / (first + np.arange(1, of_first + 1))).sum()))
        values[f"novelty@{LIST_LENGTH}"].append(question.novelty)
        values[f"diversity@{LIST_LENGTH}"].append(math.nan if question.diversity is None else question.diversity)
    coverage = {f"coverage@{LIST_LENGTH}": _coverage(ranked, num_items)}
    return mean_estimates({name: np.array(of_metric) for name, of_metric in values.items()}) | coverage


def _share_missed(places: np.ndarray, size: int, number: int) -> np.ndarray:
    """Return the probability that the first places of `size` tied items hold none of `number` of them."""
    drawn = np.arange(number)
    return (np.clip(size - places[:, None] - drawn, 0, None) / (size - drawn)).prod(axis=1)


def _coverage(ranked: Sequence[RankedQuestion], num_items: int) -> Estimate:
    """Return the share of items in some list; a bundle adds to the error by the items that are in its lists alone.

    What a bundle adds stands at its first question; the others add 0.
    """
    first_of: dict[str, int] = {}
    bundles_of: dict[str, set[str]] = defaultdict(set)
    for position, question in enumerate(ranked):
        first_of.setdefault(question.bundle_id, position)
        for item_id in question.top:
            bundles_of[item_id].add(question.bundle_id)
    alone = Counter(bundle_id for bundles in bundles_of.values() if len(bundles) == 1 for bundle_id in bundles)
    shares = np.array([alone[bundle_id] for bundle_id in first_of]) / num_items
    influence = np.zeros(len(ranked))
    influence[list(first_of.values())] = len(ranked) * (1 - 1 / len(first_of)) * (shares - shares.mean())
    return Estimate(len(bundles_of) / num_items, influence)


def _restricted(question: RankedQuestion, train_items: Collection[str], warm: bool) -> RankedQuestion | None:
    """Return the question with the warm or the cold ones of its relevant items, if there are any."""
    is_kept = np.array([(item_id in train_items) == warm for item_id in question.relevant])
    if not is_kept.any():
        return None
    better, tied = np.array(question.num_better), np.array(question.num_tied)
    kept, others = better[is_kept, None], better[~is_kept]  # of two items, that with fewer better ones is better
    return replace(
        question,
        relevant=tuple(item_id for item_id, keep in zip(question.relevant, is_kept, strict=True) if keep),
        num_better=tuple((kept[:, 0] - (others < kept).sum(axis=1)).tolist()),
        num_tied=tuple((tied[is_kept] - (others == kept).sum(axis=1)).tolist()),
    )
