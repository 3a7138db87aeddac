"""Show on standard error how far a long job is: a bar on a terminal; elsewhere, as in a file, one line for each tenth.

Knows nothing about what the job does.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LINE_INTERVAL = 1.0
"""Seconds between two lines about one part, at least; its last line always comes."""

_hidden = False


@contextmanager
def without_progress() -> Iterator[None]:
    """Show no progress and no notes for a while."""
    global _hidden
    before, _hidden = _hidden, True
    try:
        yield
    finally:
        _hidden = before


def note(text: str) -> None:
    """Show a line beside the bars, such as a figure that was just measured."""
    if not _hidden:
        tqdm.write(text, file=sys.stderr)


class Progress:
    """How far one part of a job is. What was done before it began does not count in the rate.

    Args:
        name: What the part is called.
        total: How much is to be done.
        done: How much was done before.
    """

    def __init__(self, name: str, total: int, done: int = 0):
        self.name, self.total, self.done, self.before = name, total, done, done
        self.remark = ""
        self.start = self.last_line = time.monotonic()
        size = shutil.get_terminal_size()  # 80 x 24 for a terminal of 0 x 0, on which tqdm draws nothing
        self.bar = tqdm(
            desc=name,
            initial=done,
            total=total,
            unit="",
            ncols=size.columns,
            nrows=size.lines,
            disable=_hidden or not sys.stderr.isatty(),
        )

    def update(self, done: int, remark: str = "") -> None:
        """Show how much is done by now, and a remark, such as the loss."""
        tenths = (10 * done // self.total) - (10 * self.done // self.total) if self.total else 0
        self.done, self.remark = done, remark or self.remark
        self.bar.set_postfix_str(self.remark, refresh=False)
        self.bar.update(done - self.bar.n)
        now = time.monotonic()
        if self.bar.disable and not _hidden and tenths > 0:
            if done < self.total and now - self.last_line < LINE_INTERVAL:
                return
            self.last_line = now
            print(self._line(now - self.start), file=sys.stderr, flush=True)  # noqa: T201

    def close(self) -> None:
        """End the part."""
        self.bar.close()

    def _line(self, seconds: float) -> str:
        times = f"{tqdm.format_interval(seconds)} so far"
        if self.done < self.total and self.done > self.before:
            left = seconds * (self.total - self.done) / (self.done - self.before)
            times += f", {tqdm.format_interval(left)} left"
        parts = [f"{self.name}: {100 * self.done // self.total}% ({self.done} of {self.total})", times, self.remark]
        return ", ".join(filter(None, parts))


def steps(values: Iterable[T], name: str, total: int | None = None, *, shown: bool = True) -> Iterator[T]:
    """Yield the values of a loop and show how many are done; `total` is their number where they have no length."""
    if not shown:
        yield from values
        return
    progress = Progress(name, len(values) if total is None else total)  # pyright: ignore[reportArgumentType]
    try:
        for done, value in enumerate(values, start=1):
            yield value
            progress.update(done)
    finally:
        progress.close()


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows the parts of a job one after the other.

    It takes the name of the part (another one ends the part before), how much of it is done, and how much is to be
    done.

    Example:
        with progress_bars() as show:
            encode_folder(folder, progress=show)
    """
    part: Progress | None = None

    def show(name: str, done: int, total: int) -> None:
        nonlocal part
        if part is None or part.name != name:
            if part is not None:
                part.close()
            part = Progress(name, total, done if done < total else 0)
        part.update(done)

    try:
        yield show
    finally:
        if part is not None:
            part.close()
