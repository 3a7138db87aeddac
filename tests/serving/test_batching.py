"""The queue: what waits together is answered together; what is answered is so in time, the rest is refused."""

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest

from bundle_mllm.serving import batching
from bundle_mllm.serving.batching import BatchingQueue, BusyError, StoppingError
from bundle_mllm.serving.settings import QueueOptions


def run(answer, use, **options):
    async def main():
        queue = BatchingQueue(answer, QueueOptions(**options))
        try:
            return await use(queue)
        finally:
            await queue.close()

    return asyncio.run(main())


def squares(batches, seconds=0.0):
    def answer(questions):
        batches.append(list(questions))
        time.sleep(seconds)
        return [ValueError(each) if each < 0 else each * each for each in questions]

    return answer


def test_questions_that_wait_are_answered_together_and_each_gets_its_own_answer():
    batches = []

    async def use(queue):
        return await asyncio.gather(*(queue.ask(number) for number in range(-1, 9)), return_exceptions=True)

    first, *others = run(squares(batches, 0.01), use, batch_size=4, batch_window=5)
    assert isinstance(first, ValueError) and others == [number * number for number in range(9)]
    assert [len(batch) for batch in batches] == [4, 4, 2]


def test_an_idle_queue_waits_for_the_window():
    batches = []

    async def use(queue):
        return [await queue.ask(1), await queue.ask(2)]

    start = time.monotonic()
    assert run(squares(batches), use, batch_window=60) == [1, 4]
    assert time.monotonic() - start >= 0.11 and batches == [[1], [2]]


def test_a_window_ends_when_a_batch_is_full_or_the_queue_is_closed():
    batches = []

    async def main():
        queue = BatchingQueue(squares(batches), QueueOptions(batch_size=3, batch_window=1e7))
        asked = [asyncio.create_task(queue.ask(1))]
        for number in (2, 3, 4):
            await asyncio.sleep(0.01)
            asked.append(asyncio.create_task(queue.ask(number)))
        assert await asyncio.gather(*asked[:3]) == [1, 4, 9]
        await asyncio.sleep(0)  # now the fourth has been asked
        await queue.close()
        return await asked[3]

    assert asyncio.run(asyncio.wait_for(main(), 60)) == 16
    assert batches == [[1, 2, 3], [4]]


def test_a_full_queue_refuses_and_what_it_took_is_answered():
    async def use(queue):
        found = await asyncio.gather(*(queue.ask(number) for number in range(20)), return_exceptions=True)
        return found, queue.num_waiting

    found, waiting = run(squares([], 0.01), use, batch_size=2, max_waiting=5)
    refused = [each for each in found if isinstance(each, BusyError)]
    assert len(refused) == 15 and all(each.retry_after >= 1 for each in refused)
    assert [each for each in found if not isinstance(each, BusyError)] == [0, 1, 4, 9, 16] and waiting == 0


def test_what_would_take_longer_than_the_limit_is_refused_at_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def answer(questions):
        now[0] += 0.1 * len(questions)
        return questions

    async def use(queue):
        await queue.ask(-1)  # which shows what a question takes: 0.1 s
        start, ends = now[0], []

        async def ask(number):
            try:
                await queue.ask(number)
                ends.append((number, now[0] - start))
            except BusyError as error:
                assert not ends and error.retry_after == 1

        await asyncio.gather(*(ask(number) for number in range(50)))
        return ends

    ends = run(answer, use, batch_size=1, time_limit=1.1, batch_window=0)
    assert [number for number, _ in ends] == list(range(6))  # half of the limit: those before may become slower
    assert max(end for _, end in ends) == pytest.approx(0.6)


def test_what_would_be_answered_too_late_after_all_is_refused(monkeypatch):
    now, seconds, ends, late = [0.0], 0.1, {}, []
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def answer(questions):  # in a thread of its own: only here the clock is that of the answer
        now[0] += seconds * len(questions)
        ends.update(dict.fromkeys(questions, now[0]))
        return questions

    async def use(queue):
        nonlocal seconds
        await queue.ask(-1)
        seconds = 0.3

        async def ask(number):
            try:
                await queue.ask(number)
            except BusyError:
                late.append(number)

        await asyncio.gather(*(ask(number) for number in range(6)))
        await ask(6)  # an idle queue answers, whatever the last ones took

    run(answer, use, batch_size=1, time_limit=1.1, batch_window=0)
    assert late == [2, 3, 4, 5] and ends == pytest.approx({-1: 0.1, 0: 0.4, 1: 0.7, 6: 1.0})


def test_a_batch_that_takes_long_is_seen_before_it_ends(monkeypatch):
    """What waits behind it would be answered too late."""
    now, released, begun = [0.0], threading.Event(), threading.Event()
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def answer(questions):
        begun.set()
        assert released.wait(600)
        return questions

    async def use(queue):
        first = asyncio.create_task(queue.ask(1))
        await asyncio.to_thread(begun.wait, 60)
        now[0] += 0.2
        with pytest.raises(BusyError):
            await queue.ask(2)
        released.set()
        return await first

    assert run(answer, use, time_limit=0.2, batch_window=0) == 1


def test_a_closed_queue_answers_what_it_took():
    async def main():
        queue = BatchingQueue(squares([], 0.01), QueueOptions(batch_size=1))
        taken = [asyncio.create_task(queue.ask(number)) for number in range(5)]
        await asyncio.sleep(0)
        await queue.close()
        with pytest.raises(StoppingError):
            await queue.ask(9)
        return await asyncio.gather(*taken)

    assert asyncio.run(main()) == [0, 1, 4, 9, 16]


def test_an_answer_that_nobody_waits_for_does_not_stop_the_queue():
    async def use(queue):
        gone = asyncio.create_task(queue.ask(1))
        await asyncio.sleep(0)
        gone.cancel()
        return await queue.ask(2)

    assert run(squares([]), use) == 4
