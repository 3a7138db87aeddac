"""Measure prediction sets: how often they hold the answer, how large they are, and how often they are empty.

Knows nothing about models, or how p-values are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bundle_mllm.evaluation.metrics import mean_estimates, with_errors


def measure_sets(
    sets: Sequence[Sequence[bool]],
    without_answer: Sequence[Sequence[bool]],
    answers: Sequence[int],
    bundles: Sequence[str],
    asked: float,
) -> dict[str, Any]:
    """Return the figures of the sets of one stated probability; standard errors stand beside them under `_se`.

    - `coverage`: share of the sets that hold the answer; it should be `asked` or a little more.
    - `size`: mean number of candidates in a set; lower is better.
    - `nothing_fits`: share of empty sets, all of them false alarms; at most `1 - asked`.
    - `nothing_fits_without_answer`: the same where the answer is not among the candidates; higher is better.

    Args:
        sets: Of each question, which candidates belong to its set.
        without_answer: The same of each question without its answer.
        answers: Index of the answer among the candidates of each question in `sets`.
        bundles: The bundle of each question; bundles are clusters.
        asked: The stated probability.
    """
    values = {
        "coverage": [of_question[answer] for of_question, answer in zip(sets, answers, strict=True)],
        "size": [sum(of_question) for of_question in sets],
        "nothing_fits": [not any(of_question) for of_question in sets],
        "nothing_fits_without_answer": [not any(of_question) for of_question in without_answer],
    }
    arrays = {name: np.array(each, dtype=float) for name, each in values.items()}
    return {"asked": asked, **with_errors(mean_estimates(arrays), bundles)}
