"""What a worker answers with: the model, the queue in front of it, the log of answers, and the counts.

Knows nothing about HTTP.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import torch
from anyio.to_thread import run_sync

from bundle_mllm.completion.catalog import CatalogChange
from bundle_mllm.completion.complete import Answers
from bundle_mllm.modeling.questions_bundle_mllm import id_of
from bundle_mllm.serving.answer_log import AnswerLog
from bundle_mllm.serving.batching import BatchingQueue, BusyError, StoppingError
from bundle_mllm.serving.item_changes import put_items, remove_items
from bundle_mllm.serving.metrics import Metrics
from bundle_mllm.serving.served_model import Asked, ServedModel
from bundle_mllm.serving.settings import MEBIBYTE, ServiceSettings

logger = logging.getLogger(__name__)

Identified = tuple[str, Answers]
"""The answers to a question, and their id."""


class Service:
    """What all requests to a worker share.

    Args:
        settings: The settings.
        model: The model.
    """

    def __init__(self, settings: ServiceSettings, model: ServedModel):
        self.settings, self.model = settings, model
        self.metrics = Metrics()
        self.log = None if settings.log is None else AnswerLog(settings.log, settings.log_mib * MEBIBYTE)
        self._queue: BatchingQueue[Asked, Identified] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take questions; in the end, answer those that were taken."""
        torch.set_num_threads(max(1, torch.get_num_threads() // self.settings.workers))
        await run_sync(self.model.warm_up)
        if problem := await run_sync(self.model.ranker_problem):
            logger.warning("the ranker does not answer: %s", problem)
        self.metrics.items.set(self.model.num_items)
        self._queue = BatchingQueue(self._answer, self.settings)
        try:
            yield
        finally:
            queue, self._queue = self._queue, None
            await queue.close()

    @property
    def is_ready(self) -> bool:
        """Whether questions are taken."""
        return self._queue is not None

    async def ask(self, asked: Asked) -> Identified:
        """Answer a question, together with others.

        Raises:
            BusyError: If too many others wait.
            StoppingError: If the service stops.
            ValueError: If the question cannot be answered.
        """
        if (queue := self._queue) is None:
            raise StoppingError
        self.metrics.waiting.set(queue.num_waiting + 1)
        try:
            return await queue.ask(asked)
        finally:
            self.metrics.waiting.set(queue.num_waiting)

    def busy(self) -> BusyError | None:
        """Return why a question that would come now is refused; `None` if it is not, or the service stops."""
        try:
            if self._queue is not None:
                self._queue.check_room()
        except BusyError as error:
            return error
        except StoppingError:
            pass
        return None

    def put_items(self, items: Sequence[Mapping[str, Any]]) -> CatalogChange:
        """Add and change items; see the function of this name."""
        return put_items(self.settings.model, items, self.settings.device)

    def remove_items(self, item_ids: Sequence[str]) -> CatalogChange:
        """Remove items; see the function of this name."""
        return remove_items(self.settings.model, item_ids)

    def _answer(self, asked: Sequence[Asked]) -> list[Identified | Exception]:
        self.metrics.batches.observe(len(asked))
        found = self.model.complete(asked)
        answers = [each if isinstance(each, Exception) else (uuid.uuid4().hex, each) for each in found]
        self.metrics.items.set(self.model.num_items)
        self.metrics.unranked.inc(sum(isinstance(each, Answers) and each.unranked is not None for each in found))
        if self.log is not None:
            pairs = zip(asked, answers, strict=True)
            records = [_record(question, *answer) for question, answer in pairs if not isinstance(answer, Exception)]
            try:
                self.log.append(records)
            except OSError as error:
                self.metrics.unwritten.inc(len(records))
                logger.error("answers are given, but cannot be written into the log: %s", error.strerror)
        return answers


def _record(asked: Asked, answer_id: str, answers: Answers) -> dict[str, Any]:
    """Return what the log keeps of an answer: ids alone; of a new item that has none, null."""
    return {
        "answer_id": answer_id,
        "time": round(time.time(), 3),
        "partial": [id_of(entry) for entry in asked.partial],
        "new": [number for number, entry in enumerate(asked.partial) if isinstance(entry, Mapping)],
        "items": [item["item_id"] for item in answers.items],
    }
