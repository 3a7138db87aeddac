"""Fit how a completer joins ranker and retriever: the ranker's weight and a temperature.

Knows nothing about models or how the scores were computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from bundle_mllm.modeling.combination_bundle_mllm import BundleCombination

MAX_WEIGHT, MAX_TEMPERATURE = 10.0, 10.0


@dataclass(frozen=True)
class CombinationFit:
    """The likeliest combination, and how likely the answers are under it.

    Attributes:
        combination: The likeliest one.
        num_questions: Questions that it was fitted on.
        log_likelihood: Mean log-probability of the answers, joined.
        log_likelihood_of_retriever: The same of the retriever alone.
        log_likelihood_of_ranker: The same of the ranker alone.
    """

    combination: BundleCombination
    num_questions: int
    log_likelihood: float
    log_likelihood_of_retriever: float
    log_likelihood_of_ranker: float


def fit_combination(
    ranker: Sequence[Sequence[float]], retriever: Sequence[Sequence[float]], answers: Sequence[int]
) -> CombinationFit:
    """Find the weight and the temperature under which the answers are most likely.

    Args:
        ranker: Scores of each question's candidates, by a ranker that has not seen the questions' bundles.
        retriever: The same by such a retriever.
        answers: Index of each right candidate.
    """
    logs = [(_log_softmax(a), _log_softmax(b)) for a, b in zip(ranker, retriever, strict=True)]

    def likelihood(weight: float, temperature: float, retriever_weight: float = 1.0) -> float:
        joined = (_log_softmax((weight * a + retriever_weight * b) / temperature) for a, b in logs)
        return float(np.mean([row[answer] for row, answer in zip(joined, answers, strict=True)]))

    best = min(
        (
            minimize(
                lambda x: -likelihood(x[0], float(np.exp(x[1]))),
                [start, 0.0],
                method="L-BFGS-B",
                bounds=[(0.0, MAX_WEIGHT), (-np.log(MAX_TEMPERATURE), np.log(MAX_TEMPERATURE))],
            )
            for start in (0.1, 1.0)
        ),
        key=lambda result: result.fun,
    )
    weight, temperature = float(best.x[0]), float(np.exp(best.x[1]))
    return CombinationFit(
        combination=BundleCombination(weight, temperature),
        num_questions=len(answers),
        log_likelihood=likelihood(weight, temperature),
        log_likelihood_of_retriever=likelihood(0.0, 1.0),
        log_likelihood_of_ranker=likelihood(1.0, 1.0, retriever_weight=0.0),
    )


def _log_softmax(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=float)
    return scores - np.logaddexp.reduce(scores)
