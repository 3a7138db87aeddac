"""A queue in front of a function that answers many questions in about the time of one.

Knows nothing about what is asked, nor about HTTP.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

from bundle_mllm.serving.settings import QueueOptions

Q = TypeVar("Q")
A = TypeVar("A")
_BATCHES = 5
"""Batches whose median time of a question counts (ours): one that was held up changes little, and more would lag."""


class BusyError(Exception):
    """There is no room for a question now.

    Attributes:
        retry_after: Seconds after which there should be.
    """

    def __init__(self, retry_after: float):
        super().__init__(f"busy for about {retry_after:.1f} s")
        self.retry_after = max(1, math.ceil(retry_after))


class StoppingError(Exception):
    """The queue takes no further question, since the service stops."""


@dataclass(eq=False)
class _Waiting(Generic[Q, A]):
    question: Q
    answer: asyncio.Future[A]
    since: float


class BatchingQueue(Generic[Q, A]):
    """Answers questions in one thread: those that wait when it becomes free, together.

    An idle queue waits for others for `batch_window`, or until a batch is full or the queue is closed. A question that
    would not be answered within `time_limit` is refused: at once where too many wait, or where those before it take
    more than half of the limit, as the last ones went (they may become slower); and where it has come too late after
    all, when its turn is there.

    Args:
        answer: Takes a batch of questions, returns an answer for each, or an exception for one that has none.
        options: Sizes and times.
    """

    def __init__(self, answer: Callable[[Sequence[Q]], Sequence[A | Exception]], options: QueueOptions):
        self._answer, self._options = answer, options
        self._waiting: deque[_Waiting[Q, A]] = deque()
        self._num_running, self._start = 0, 0.0
        self._times: deque[float] = deque(maxlen=_BATCHES)  # seconds of a question in the last batches
        self._is_open = True
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def num_waiting(self) -> int:
        """Questions that wait or are being answered."""
        return len(self._waiting) + self._num_running

    def check_room(self) -> None:
        """Refuse a question that would come now.

        Raises:
            BusyError: If the answer would come too late, or too many others wait.
            StoppingError: If the queue was closed.
        """
        if not self._is_open:
            raise StoppingError
        expected = self._seconds_for(self.num_waiting)
        if len(self._waiting) >= self._options.max_waiting or expected > self._options.time_limit / 2:
            raise BusyError(expected)

    async def ask(self, question: Q) -> A:
        """Answer a question; see `check_room` for what is raised."""
        self.check_room()
        waiting = _Waiting[Q, A](question, asyncio.get_running_loop().create_future(), time.monotonic())
        self._waiting.append(waiting)
        self._changed.set()
        return await waiting.answer

    async def close(self) -> None:
        """Answer what waits, and take no further questions."""
        self._is_open = False
        self._changed.set()
        await self._task
        self._thread.shutdown()

    async def _run(self) -> None:
        window, size = self._options.batch_window / 1000, self._options.batch_size
        while self._is_open or self._waiting:
            self._changed.clear()
            if not self._waiting:
                await self._changed.wait()
                continue
            delay = self._waiting[0].since + window - time.monotonic()
            if delay > 0 and len(self._waiting) < size and self._is_open:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), delay)
                continue
            batch = [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
            if batch := self._in_time(batch):
                await self._answer_batch(batch)

    def _seconds_for(self, count: int) -> float:
        """Return what so many questions take, as the last ones went, and the running ones so far."""
        each = median(self._times) if self._times else 0.0
        if self._num_running:
            each = max(each, (time.monotonic() - self._start) / self._num_running)
        return count * each

    def _in_time(self, batch: Sequence[_Waiting[Q, A]]) -> list[_Waiting[Q, A]]:
        """Return those that can be answered in time, if in twice what the last ones took; refuse the others.

        Those that have waited for no more than half of the limit are answered, however long that takes.
        """
        limit, seconds = self._options.time_limit, self._seconds_for(len(batch))
        latest = time.monotonic() - (limit - min(2 * seconds, limit / 2))
        for waiting in batch:
            if waiting.since < latest and not waiting.answer.cancelled():
                waiting.answer.set_exception(BusyError(seconds))
        return [waiting for waiting in batch if waiting.since >= latest]

    async def _answer_batch(self, batch: Sequence[_Waiting[Q, A]]) -> None:
        self._num_running, self._start = len(batch), time.monotonic()
        questions = [waiting.question for waiting in batch]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, questions)
        except Exception as error:
            answers = [error] * len(batch)
        self._num_running = 0
        self._times.append((time.monotonic() - self._start) / len(batch))
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.cancelled():
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)
