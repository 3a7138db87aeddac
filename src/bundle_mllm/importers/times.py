"""Read the times of a column, whose format is not known.

Knows nothing about what happened at these times.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from bundle_mllm.errors import BundleMLLMError

_DATES = {"day first": "%d/%m/%Y", "month first": "%m/%d/%Y"}
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")


def to_seconds(texts: Sequence[str]) -> list[float]:
    """Return seconds since 1970 of times in one format: ISO 8601, numbers, `31/12/2010 8:26` or `12/31/2010 8:26`.

    A time without a zone is taken as UTC, which does not change the order within one table.

    Raises:
        BundleMLLMError: If a text is no time, or day and month cannot be told apart in any of them.
    """
    try:
        return [_iso(text) for text in texts]
    except ValueError:
        pass
    read = {name: _read(texts, date) for name, date in _DATES.items()}
    found = {name: values for name, values in read.items() if isinstance(values, list)}
    if len(found) == 2 and found["day first"] != found["month first"]:
        raise BundleMLLMError(
            f"The times, such as {texts[0]!r}, could have the day or the month first: write them as 2024-12-31 10:00."
        )
    if not found:
        farthest = max((text for text in read.values() if isinstance(text, str)), key=texts.index)
        raise BundleMLLMError(f"{farthest!r} is no time that can be read: write times as 2024-12-31 10:00.")
    return next(iter(found.values()))


def _iso(text: str) -> float:
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text) and not re.fullmatch(r"(19|20)\d{6}", text):
        return float(text)
    compact = re.sub(r"\s+(UTC|GMT)$", "+00:00", text)
    return _seconds(datetime.fromisoformat(re.sub(r"\s+([+-]\d\d:?\d\d)$", r"\1", compact)))


def _read(texts: Sequence[str], date: str) -> list[float] | str:
    """Return all times, or the first text that is none in this order of day and month."""
    formats = [date + time for time in _TIMES]
    values = []
    for text in texts:
        plain = re.sub(r"^(\d+)[.-](\d+)[.-]", r"\1/\2/", text.strip())
        for position, format in enumerate(formats):
            try:
                values.append(_seconds(datetime.strptime(plain, format)))
            except ValueError:
                continue
            if position:
                formats.insert(0, formats.pop(position))  # most likely that of the next one
            break
        else:
            return text
    return values


def _seconds(time: datetime) -> float:
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
