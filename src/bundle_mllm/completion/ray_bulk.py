"""Answer parts of a bulk run on Ray Data: actors hold the models, this process saves the rows.

Knows nothing about what a question or a row holds. All machines must reach the model folder under the same path.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bundle_mllm.completion.complete import RuledCompleter, load_ruled_completer
from bundle_mllm.device import choose_device
from bundle_mllm.ray_pool import map_on_ray

if TYPE_CHECKING:
    from bundle_mllm.completion.settings import BulkSettings

Answer = Callable[[RuledCompleter, Sequence[dict[str, Any]], "BulkSettings"], list[dict[str, Any]]]
"""Returns one row for each question."""


class AnswerActor:
    """Holds the models and the rules, and answers parts."""

    def __init__(self, settings: BulkSettings, answer: Answer):
        self._settings, self._answer = settings, answer
        self._shop = load_ruled_completer(
            settings.model, settings.rules, settings.items, settings.device, settings.ranker, settings.retrieval
        )

    def __call__(self, parts: dict[str, Any]) -> dict[str, Any]:
        rows = [json.dumps(self._answer(self._shop, json.loads(each), self._settings)) for each in parts["questions"]]
        return {"number": parts["number"], "rows": rows}


def answer_on_ray(
    settings: BulkSettings, answer: Answer, parts: Sequence[tuple[int, Sequence[dict[str, Any]]]]
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Answer parts on a Ray cluster, or on this machine without one.

    Yields:
        The number of each part and its rows, in any order.

    Raises:
        BundleMLLMError: If Ray is not installed.
    """
    settings = replace(settings, device=choose_device(settings.device).type)
    rows = [{"number": number, "questions": json.dumps(questions)} for number, questions in parts]
    for row in map_on_ray(rows, AnswerActor, (settings, answer), on_gpu=settings.device == "cuda"):
        yield int(row["number"]), json.loads(row["rows"])
