"""A file of JSON objects, one a line, that many processes append to: whole lines, whatever happens to the disk.

Knows nothing about what is written.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bundle_mllm.data.files import require_file
from bundle_mllm.data.json_text import parse_json
from bundle_mllm.data.tables import open_text

_TAIL = 1 << 16


class AnswerLog:
    """An append-only file of JSON Lines.

    All lines of a call are written at once, under a lock of the file. A line that a full disk or a kill has cut is
    taken off again, by the writer or by the next one.

    Args:
        path: The file.
        max_bytes: Above this size the file is put aside, with the time in its name, and begins anew.
    """

    def __init__(self, path: Path, max_bytes: int):
        self.path, self._max_bytes = path, max_bytes

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write records; none to find out whether the file can be written.

        Raises:
            OSError: If not all could be written; then none is.
        """
        lines = "".join(json.dumps(record) + "\n" for record in records).encode()
        stream = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)  # until it is closed
            size = _end_of_lines(stream)
            try:
                if os.write(stream, lines) < len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with suppress(OSError):  # of a device
                    os.ftruncate(stream, size)
                raise
            if size + len(lines) > self._max_bytes and os.path.samestat(os.stat(self.path), os.fstat(stream)):
                now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
                self.path.rename(self.path.with_name(f"{self.path.name}.{now}"))
        finally:
            os.close(stream)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a log, those of its older parts first.

    Raises:
        BundleMLLMError: If there is no such file, or a line of it is no JSON.
    """
    parts = sorted(each for each in path.parent.glob(f"{path.name}.*") if each.suffix[1:9].isdecimal())
    if not parts or path.exists():
        parts.append(require_file(path, "give the --log of `bundle-mllm serve`"))
    for part in parts:
        with open_text(part) as lines:
            for number, line in enumerate(lines, start=1):
                if line.endswith("\n"):  # not what a kill has cut
                    yield parse_json(line, f"{part} line {number}")


def _end_of_lines(stream: int) -> int:
    """Return the size of a file once what a killed process has begun to write at its end is cut off."""
    size = end = os.fstat(stream).st_size
    while end:
        start = max(0, end - _TAIL)
        place = os.pread(stream, end - start, start).rfind(b"\n")
        if place >= 0:
            end = start + place + 1
            break
        end = start
    if end < size:
        os.ftruncate(stream, end)
    return end
