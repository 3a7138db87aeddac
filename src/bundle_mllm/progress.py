"""Show the progress of a long job on the terminal: one bar per part, with rate and remaining time.

Knows nothing about what the job does.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tqdm import tqdm

LOG_INTERVAL = 10.0
"""Seconds between two lines where standard error is no terminal."""


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that draws a bar for a part of a job, on standard error.

    It takes the name of the part (another one ends the bar before), how much of it is done, and how much is to be
    done. What was done before the first call does not count in the rate.

    Example:
        with progress_bars() as show:
            encode_folder(folder, progress=show)
    """
    part, bar = None, None
    with ExitStack() as stack:

        def show(name: str, done: int, total: int) -> None:
            nonlocal part, bar
            if name != part or bar is None:
                stack.close()
                size = shutil.get_terminal_size()  # 80 x 24 for a terminal of 0 x 0, on which tqdm draws nothing
                interval = 0.1 if sys.stderr.isatty() else LOG_INTERVAL
                before = done if done < total else 0
                bar = tqdm(
                    desc=name,
                    initial=before,
                    total=total,
                    unit="",
                    mininterval=interval,
                    ncols=size.columns,
                    nrows=size.lines,
                )
                part = name
                stack.enter_context(bar)
            bar.update(done - bar.n)

        yield show
