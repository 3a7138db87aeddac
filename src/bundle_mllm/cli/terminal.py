"""What a terminal shows beside results: the package's warnings, nothing of other libraries, nothing at all if quiet.

Knows nothing about commands.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from bundle_mllm.cli.show import say
from bundle_mllm.progress import without_progress

_SILENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Environment variables by which libraries say nothing but errors; those that a user has set stay."""
_WITHOUT_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


class _Lines(logging.Handler):
    """Writes warnings to standard error, as text that no terminal takes for commands."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"bundle-mllm: {record.levelname.lower()}: {record.getMessage()}", sys.stderr)


def silence_libraries() -> None:
    """Let other libraries say only what is an error; to be called before they are imported."""
    bars = {} if sys.stderr.isatty() else _WITHOUT_BARS
    for name, value in (_SILENT | bars).items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextmanager
def only_our_messages(quiet: bool) -> Iterator[None]:
    """Show the package's warnings (none if quiet), and of other libraries errors alone, while a command runs."""
    ours, root, handler = logging.getLogger("bundle_mllm"), logging.getLogger(), _Lines()
    levels = ours.level, root.level
    ours.setLevel(logging.ERROR if quiet else logging.WARNING)
    root.setLevel(logging.ERROR)
    ours.addHandler(handler)
    ours.propagate = False
    try:
        if quiet:
            with without_progress():
                yield
        else:
            yield
    finally:
        ours.removeHandler(handler)
        ours.propagate = True
        ours.setLevel(levels[0])
        root.setLevel(levels[1])
