"""Metrics of bundle completion, their denominators, standard errors and paired differences.

Knows nothing about models, prompts or files: it sees option scores, answers and bundle ids, whoever made them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from bundle_mllm.data.questions import Question

CALIBRATION_BINS = 15
"""Bins of equal width of the calibration error (Guo et al., ICML 2017)."""
RANDOM_TIES = "hit_rate@1_random_ties"


@dataclass(frozen=True)
class ScoredQuestion:
    """The scores of one question's candidates, by a model or any other method."""

    question_id: str
    bundle_id: str
    answer_index: int
    scores: tuple[float, ...]
    """One score per candidate, in the order of the question; higher is better."""
    unrestricted_choice: int | None
    """Index of the option whose letter is the most likely next token of the whole vocabulary; None if none is."""
    per_order_scores: tuple[tuple[float, ...], ...] = ()
    """Of a question scored in several candidate orders: the log-probabilities under each, of which `scores` is the
    mean; candidates in the order of the question, the question's own order first."""

    @property
    def hit(self) -> bool:
        """Whether the best option is the answer. The answer must win alone: a tie is a miss, not a lucky guess."""
        return self.num_better == 0 and self.num_tied == 1

    @property
    def num_better(self) -> int:
        """How many candidates score higher than the answer."""
        answer = self.scores[self.answer_index]
        return sum(score > answer for score in self.scores)

    @property
    def num_tied(self) -> int:
        """How many candidates score as the answer does, itself among them."""
        return self.scores.count(self.scores[self.answer_index])

    @property
    def rank(self) -> float:
        """Rank of the answer, from 1: the mean over all orders of the candidates that it is tied with."""
        return self.num_better + (self.num_tied + 1) / 2


def as_scored(questions: Sequence[Question], scores: Sequence[Sequence[float]]) -> list[ScoredQuestion]:
    """Put plain scores into the form that every metric takes: one `ScoredQuestion` per question.

    A method that only chooses among the candidates always gives a valid answer: its first best candidate.

    Args:
        questions: The questions.
        scores: One list per question, one score per candidate, higher is better.

    Raises:
        ValueError: If the numbers of questions, scores or candidates differ, or a score is not finite.
    """
    if len(questions) != len(scores):
        raise ValueError(f"There are {len(questions)} questions but {len(scores)} lists of scores: give one for each.")
    scored = []
    for question, row in zip(questions, scores, strict=True):
        row = tuple(float(score) for score in row)
        if len(row) != len(question.candidates):
            raise ValueError(
                f"Question {question.question_id!r} has {len(question.candidates)} candidates but {len(row)} scores, "
                "so it is unclear whose they are: give one score per candidate."
            )
        _check_numbers(question.question_id, row)
        best = max(range(len(row)), key=row.__getitem__)
        scored.append(ScoredQuestion(question.question_id, question.bundle_id, question.answer_index, row, best))
    return scored


def compute_metrics(scored: Sequence[ScoredQuestion], *, probabilities: bool = True) -> dict[str, float | int]:
    """Compute all metrics of a list of questions.

    Every metric is a mean over questions. Its standard error, with bundles as clusters, stands beside it under the
    same name with `_se`.

    - `hit_rate@1`: share of **all** questions whose answer scores highest, alone; a tie is a miss. (The official code
      divides by the valid answers only.)
    - `hit_rate@1_random_ties`: the same with ties broken at random, in expectation: the fair figure for a method that
      gives many equal scores, and equal to `hit_rate@1` where nothing is tied.
    - `hit_rate@1_valid`: right free answers divided by valid free answers, the denominator of the official code; NaN
      if none is valid.
    - `valid_ratio`: share of free answers that are a letter of the question (paper §4.1). The free answer is the most
      likely token of the whole vocabulary after the question in its own order. Methods without words are always valid.
    - `hit_rate@3`, `hit_rate@5`: share of questions whose answer is among the best 3, 5.
    - `mrr`: mean of 1 / rank of the answer, over the whole list.
    - `ndcg`: mean of 1 / log2(1 + rank), over the whole list; with one right item the ideal gain is 1.
    - `mean_rank`: mean rank of the answer, from 1; lower is better.
    - `calibration_error`: expected calibration error, lower is better: |probability of the best option (softmax over
      the options) - share of hits|, averaged over 15 bins of equal width, weighted by their questions.

    All from `hit_rate@3` to `mean_rank` count an answer that is tied with others as its mean over all orders of these.
    `num_questions` and `num_bundles` are counts.

    Args:
        scored: The scored questions.
        probabilities: Whether the scores are log-probabilities up to a constant; if not, `calibration_error` is
            left out.

    Raises:
        ValueError: If there is no question, or a score is not finite.
    """
    bundles = [question.bundle_id for question in scored]
    return with_errors(mean_estimates(question_values(scored, probabilities=probabilities)), bundles)


def question_values(scored: Sequence[ScoredQuestion], *, probabilities: bool = True) -> dict[str, np.ndarray]:
    """Return what each question adds to each metric of [`compute_metrics`].

    Returns:
        Arrays `[n]` whose mean is the metric. NaN stands for a question that is not in the denominator. What one adds
        to `calibration_error` is the difference of confidence and hit, with the sign that its bin has.

    Raises:
        ValueError: If there is no question, or a score is not finite.
    """
    if not scored:
        raise ValueError("There are no questions, so no metric is defined: give at least one.")
    for question in scored:
        _check_numbers(question.question_id, question.scores)
    places = [(question.num_better, question.num_tied) for question in scored]

    def expected(gain: Callable[[int], float]) -> np.ndarray:  # the mean gain of the ranks that a tied answer may have
        return np.array([sum(gain(b + i) for i in range(1, t + 1)) / t for b, t in places])

    hits = np.array([question.hit for question in scored], dtype=float)
    free = [None if q.unrestricted_choice is None else q.unrestricted_choice == q.answer_index for q in scored]
    values = {
        "hit_rate@1": hits,
        RANDOM_TIES: expected(lambda rank: rank <= 1),
        "hit_rate@1_valid": np.array([math.nan if right is None else right for right in free], dtype=float),
        "valid_ratio": np.array([right is not None for right in free], dtype=float),
        "hit_rate@3": expected(lambda rank: rank <= 3),
        "hit_rate@5": expected(lambda rank: rank <= 5),
        "mrr": expected(lambda rank: 1 / rank),
        "ndcg": expected(lambda rank: 1 / math.log2(1 + rank)),
        "mean_rank": np.array([question.rank for question in scored]),
    }
    if probabilities:
        values["calibration_error"] = _calibration(scored, hits)
    return values


def paired_differences(
    a: Sequence[ScoredQuestion], b: Sequence[ScoredQuestion], *, probabilities: bool = True
) -> dict[str, dict[str, float]]:
    """Compare two methods on the same questions.

    What makes a question easy or hard for both cancels out: the standard error is that of the differences question by
    question, clustered by bundle, and mostly smaller than those of the two metrics.

    Args:
        a: Questions scored by one method.
        b: The same questions scored by the other, in any order.
        probabilities: Whether both give log-probabilities; see [`compute_metrics`].

    Returns:
        For each metric `a`, `b`, `difference` (`a` minus `b`), `se` and `z` (difference by standard error; NaN where
        that is 0).

    Raises:
        ValueError: If the questions are not the same.
    """
    other = {question.question_id: question for question in b}
    if len(a) != len(b) or {q.question_id for q in a} != other.keys():
        raise ValueError(
            f"One run has {len(a)} questions and the other {len(b)}, and they are not the same ones, so they cannot "
            "be paired: evaluate both on one question file."
        )
    b = [other[question.question_id] for question in a]
    for one, two in zip(a, b, strict=True):
        if len({(q.bundle_id, q.answer_index, len(q.scores)) for q in (one, two)}) > 1:
            raise ValueError(
                f"Question {one.question_id!r} is about another bundle, answer or number of candidates in the second "
                "run, so its scores cannot be paired: evaluate both on one question file."
            )
    of_a, of_b = (mean_estimates(question_values(run, probabilities=probabilities)) for run in (a, b))
    return estimate_differences(of_a, of_b, [question.bundle_id for question in a])


class Estimate(NamedTuple):
    """A metric, and what each question adds to its error."""

    value: float
    influence: np.ndarray
    """`[n]` values, the standard error of whose mean is that of the metric."""


def mean_estimates(values: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """Return the means of `[n]` values of each question; NaN stands for a question that does not count."""
    return {name: Estimate(_mean(of_metric), _influence(of_metric)) for name, of_metric in values.items()}


def with_errors(estimates: Mapping[str, Estimate], bundles: Sequence[str]) -> dict[str, float | int]:
    """Return metrics, the standard error of each under its name with `_se`, and the numbers of questions and bundles.

    Args:
        estimates: The metrics.
        bundles: `[n]` the bundle of each question; bundles are clusters.
    """
    metrics: dict[str, float | int] = {}
    for name, estimate in estimates.items():
        metrics[name] = estimate.value
        metrics[f"{name}_se"] = clustered_standard_error(estimate.influence, bundles)
    return metrics | {"num_questions": len(bundles), "num_bundles": len(set(bundles))}


def estimate_differences(
    a: Mapping[str, Estimate], b: Mapping[str, Estimate], bundles: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Compare the metrics of two methods on the same questions, in the same order; see [`paired_differences`]."""
    result = {}
    for name in a:
        difference = a[name].value - b[name].value
        error = clustered_standard_error(a[name].influence - b[name].influence, bundles)
        z = difference / error if error > 0 else math.nan
        result[name] = {"a": a[name].value, "b": b[name].value, "difference": difference, "se": error, "z": z}
    return result


def validation_figures(scored: Sequence[ScoredQuestion]) -> dict[str, float | int]:
    """Return the figures of a validation: the main metrics, and the log-likelihood of the answers."""
    metrics = compute_metrics(scored)
    kept = ("hit_rate@1", "hit_rate@1_se", "mrr", "valid_ratio", "num_questions", "num_bundles")
    return {name: metrics[name] for name in kept} | {"log_likelihood": log_likelihood(scored)}


def log_likelihood(scored: Sequence[ScoredQuestion]) -> float:
    """Return the mean log-probability of the answer among the options (natural logarithm)."""
    total = sum(question.scores[question.answer_index] - np.logaddexp.reduce(question.scores) for question in scored)
    return float(total) / len(scored)


def clustered_standard_error(values: np.ndarray, clusters: Sequence[str]) -> float:
    """Return the standard error of the mean when values of one cluster are not independent; NaN for one cluster.

    `sqrt(G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2) / n` with `G` clusters (the sandwich estimator of a mean).

    Args:
        values: `[n]` floats.
        clusters: `[n]` names; questions about one bundle share a cluster.
    """
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    num_clusters = int(index.max()) + 1
    if num_clusters < 2:
        return float("nan")
    sums = np.bincount(index, weights=values - values.mean())
    return float(np.sqrt(num_clusters / (num_clusters - 1) * np.square(sums).sum()) / len(values))


def _check_numbers(question_id: str, scores: Sequence[float]) -> None:
    if not all(map(math.isfinite, scores)):
        raise ValueError(
            f"Question {question_id!r} has scores that are not finite, so its answer has no rank: repair the method "
            "that scored it, and give a low score to what is unlikely."
        )


def _mean(values: np.ndarray) -> float:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else math.nan


def _influence(values: np.ndarray) -> np.ndarray:
    """Return values `[n]` whose standard error is that of the mean of the counted (not NaN) values.

    With all counted these are deviations from the mean; else the linearization of the ratio of two sums.
    """
    counted = ~np.isnan(values)
    if not counted.any():
        return np.full(len(values), math.nan)
    return np.where(counted, values - _mean(values), 0.0) * (len(values) / counted.sum())


def calibration_before_temperature(scored: Sequence[ScoredQuestion], temperature: float) -> float:
    """Return the `calibration_error` (see [`compute_metrics`]) of scores before a temperature divided them.

    Args:
        scored: Questions whose options were all scored under the temperature.
        temperature: The temperature.
    """
    before = [replace(each, scores=tuple(temperature * score for score in each.scores)) for each in scored]
    return float(compute_metrics(before)["calibration_error"])


def _calibration(scored: Sequence[ScoredQuestion], hits: np.ndarray) -> np.ndarray:
    """Return values whose mean is the expected calibration error; the sign of a bin is taken as known."""
    logits = [np.asarray(question.scores) for question in scored]
    confidence = np.array([np.exp(row.max() - np.logaddexp.reduce(row)) for row in logits])  # softmax of the best
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = confidence - hits
    signs = np.sign(np.bincount(bins, weights=gaps, minlength=CALIBRATION_BINS))
    return gaps * signs[bins]
