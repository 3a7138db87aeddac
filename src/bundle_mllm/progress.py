"""Show the progress of a long job on the terminal: one bar per part, with rate and remaining time.

Knows nothing about what the job does.
"""

from __future__ import annotations

import shutil
import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm

LOG_INTERVAL = 10.0
"""Seconds between two lines where standard error is no terminal."""


class ProgressBars:
    """A context whose `show` draws a bar for a part of the job, on standard error.

    Example:
        with ProgressBars() as bars:
            encode_folder(folder, progress=bars.show)
    """

    def __init__(self) -> None:
        self._part: str | None = None
        self._bar: tqdm | None = None

    def show(self, part: str, done: int, total: int) -> None:
        """Draw how much is done.

        Args:
            part: Name of the part; another one ends the bar before.
            done: How much of it is done. What was done before the first call does not count in the rate.
            total: How much is to be done.
        """
        if part != self._part or self._bar is None:
            self.close()
            self._part = part
            size = shutil.get_terminal_size()  # 80 x 24 for a terminal of 0 x 0, on which tqdm draws nothing
            self._bar = tqdm(
                desc=part,
                initial=done if done < total else 0,
                total=total,
                unit="",
                mininterval=0.1 if sys.stderr.isatty() else LOG_INTERVAL,
                ncols=size.columns,
                nrows=size.lines,
            )
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
