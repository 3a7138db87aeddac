"""Metrics of bundle completion and their denominators.

Knows nothing about models, prompts or files: it sees option logits, answers and bundle ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ScoredQuestion:
    """What a model said to one question."""

    question_id: str
    bundle_id: str
    answer_index: int
    option_logits: tuple[float, ...]
    """One logit per candidate, in the order shown."""
    free_answer: int | None
    """Index of the option whose letter is the most likely next token of the whole vocabulary; None if none is."""

    @property
    def hit(self) -> bool:
        """Whether the best option is the answer. The answer must win alone: a tie is a miss, not a lucky guess."""
        best = max(self.option_logits)
        return self.option_logits[self.answer_index] == best and self.option_logits.count(best) == 1


def compute_metrics(scored: Sequence[ScoredQuestion]) -> dict[str, float | int]:
    """Compute the paper's metrics.

    Returns:
        `hit_rate@1` over **all** questions (the official code divides by the valid answers only);
        `hit_rate@1_se`, its standard error with bundles as clusters; `valid_ratio`, the share of free answers that
        are a letter of the question (paper §4.1); `num_questions` and `num_bundles`.

    Raises:
        ValueError: There is no question.
    """
    if not scored:
        raise ValueError("There are no questions, so no metric is defined: give at least one.")
    hits = np.array([question.hit for question in scored], dtype=float)
    bundles = [question.bundle_id for question in scored]
    return {
        "hit_rate@1": float(hits.mean()),
        "hit_rate@1_se": clustered_standard_error(hits, bundles),
        "valid_ratio": sum(question.free_answer is not None for question in scored) / len(scored),
        "num_questions": len(scored),
        "num_bundles": len(set(bundles)),
    }


def log_likelihood(scored: Sequence[ScoredQuestion]) -> float:
    """Return the mean log-probability of the answer among the options (natural logarithm)."""
    total = 0.0
    for question in scored:
        logits = np.asarray(question.option_logits)
        total += float(logits[question.answer_index] - np.logaddexp.reduce(logits))
    return total / len(scored)


def clustered_standard_error(values: np.ndarray, clusters: Sequence[str]) -> float:
    """Return the standard error of the mean when values of one cluster are not independent.

    `sqrt(G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2) / n` with `G` clusters (the sandwich estimator of a mean).

    Args:
        values: [n] floats.
        clusters: [n] names; questions about one bundle share a cluster.

    Returns:
        The standard error; NaN when there is a single cluster.
    """
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    num_clusters = int(index.max()) + 1
    if num_clusters < 2:
        return float("nan")
    sums = np.bincount(index, weights=values - values.mean())
    return float(np.sqrt(num_clusters / (num_clusters - 1) * np.square(sums).sum()) / len(values))
