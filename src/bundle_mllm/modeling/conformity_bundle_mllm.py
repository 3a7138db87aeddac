"""How well candidates fit, on a scale that sets with a guarantee can be cut on: conformity, p-values, sets.

Knows nothing about how candidates are scored, or what calibrated the models.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .answers_bundle_mllm import Completion
from .base_bundle_mllm import evaluating, split_indices
from .conformal_bundle_mllm import BundleCalibration

COMPLETIONS_AT_ONCE = 64
"""Partial bundles that the retriever compares with the whole catalog in one pass."""


@torch.no_grad()
def conformity_of(completer: Any, completions: Sequence[Completion]) -> list[dict[str, torch.Tensor]]:
    """Return how well the candidates of questions fit, by part `[K]`: scores that no other candidate changes.

    Of the retriever it is the log-probability among the whole catalog without the partial bundle, r; of the ranker
    that among the candidates that it was shown, l, which does depend on them; of both w * l + r.

    Args:
        completer: The `BundleCompleter` that scored the questions.
        completions: Their scores.
    """
    if completer.retriever is None:
        return [{"ranker": completion.scores["ranker"]} for completion in completions]
    log_shares = {i: each.log_share for i, each in enumerate(completions) if each.log_share is not None}
    missing = [i for i in range(len(completions)) if i not in log_shares]
    for chunk in split_indices(missing, COMPLETIONS_AT_ONCE):
        asked = [{"partial": completions[i].partial, "candidates": completions[i].candidates} for i in chunk]
        total = completer.catalog_scores([question["partial"] for question in asked]).double().logsumexp(dim=-1)
        with evaluating([completer.retriever]):
            scores = completer.retriever(**completer.option_rows(asked)).scores
        of_candidates = scores.double().logsumexp(dim=-1)
        log_shares |= dict(zip(chunk, (of_candidates - total).tolist(), strict=True))
    found = []
    for i, completion in enumerate(completions):
        retriever = completion.scores["retriever"].double().log_softmax(dim=-1).nan_to_num(nan=-torch.inf)
        parts = {"retriever": retriever + log_shares[i]}
        if "ranker" in completion.scores:
            ranker = completion.scores["ranker"]
            weighted = torch.where(ranker.isinf(), ranker, completer.combination.ranker_weight * ranker)  # 0 * inf
            parts = {"ranker": ranker, **parts, "both": weighted + parts["retriever"]}
        found.append(parts)
    return found


def p_values_of(completer: Any, completions: Sequence[Completion]) -> list[torch.Tensor]:
    """Return how usual it is for right answers to fit no better than each candidate of questions does `[K]`.

    Raises:
        ValueError: If the models were not calibrated, or not for so many candidates; see `BundleCalibration`.
    """
    calibration = calibration_of(completer)
    return [calibration.p_values(conformity) for conformity in conformity_of(completer, completions)]


def holds_answer(completer: Any, p_values: torch.Tensor, coverage: float) -> torch.Tensor:
    """Return which candidates belong to the smallest set that holds the right one with a stated probability.

    Raises:
        ValueError: If the models were not calibrated, or on too few questions for this probability.
    """
    return calibration_of(completer).holds_answer(p_values, coverage)


def answer_set(completer: Any, completion: Completion, coverage: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the p-values of a question's candidates `[K]`, and which of them [`holds_answer`] keeps `[K]`."""
    [p_values] = p_values_of(completer, [completion]) if completion.candidates else [torch.zeros(0)]
    return p_values, holds_answer(completer, p_values, coverage)


def calibration_of(completer: Any) -> BundleCalibration:
    """Return what calibrated a completer.

    Raises:
        ValueError: If nothing did.
    """
    if completer.combination.calibration is None:
        raise ValueError(
            "The models were not calibrated, so no set of answers can be said to hold the right one: calibrate them "
            "(bundle-mllm calibrate), or leave coverage out."
        )
    return completer.combination.calibration
