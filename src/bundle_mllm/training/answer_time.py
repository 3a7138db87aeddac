"""Measure how many items of a whole catalog the ranker can score in the time that an answer may take.

Knows nothing about how models are trained.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter

SECONDS = 1.0
"""What an answer about a whole catalog may take, on the machine that trains."""
SIZES = (26, 20, 15, 10, 7, 5, 3, 2)
"""Numbers of items that are tried, the largest first; each about three quarters of the one before."""
REPEATS = 3


def measure_num_ranked(completer: BundleCompleter, partial: Sequence[str], seconds: float = SECONDS) -> int:
    """Return the largest number of items with which an answer takes up to `seconds`; 2 if none does.

    The time is the least of some repetitions, since other programs only make it longer; without loading the models and
    what is kept between questions.

    Args:
        completer: A ranker and a retriever.
        partial: Items of a partial bundle to ask about.
        seconds: What an answer may take.
    """
    combination = completer.combination
    most = completer.processor.max_options
    sizes = [most, *(size for size in SIZES if size < most)]
    try:
        for number in sizes:
            completer.combination = replace(combination, num_ranked=number)
            if min(_seconds(completer, partial) for _ in range(REPEATS)) <= seconds:
                return number
        return sizes[-1]
    finally:
        completer.combination = combination


def _seconds(completer: BundleCompleter, partial: Sequence[str]) -> float:
    start = time.perf_counter()
    completer.complete({"partial": list(partial)})
    return time.perf_counter() - start
