"""Say why the ids of two tables do not meet, and what would make them.

Knows nothing about what the ids name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping


def _plain(value: str) -> str:
    return unicodedata.normalize("NFC", value).strip()


_WAYS: Mapping[str, Callable[[str], str]] = {
    "without the blanks around them": str.strip,
    "in one Unicode form (NFC)": lambda value: unicodedata.normalize("NFC", value),
    "in small letters": str.casefold,
    "without the .0 at their end": lambda value: re.sub(r"\.0+$", "", value),
    "without the zeros at their start": lambda value: value.lstrip("0") or value,
    "without blanks, .0, zeros at their start and capitals": lambda value: (
        re.sub(r"\.0+$", "", _plain(value)).lstrip("0").casefold() or value
    ),
}
"""What may differ between two spellings of an id, and how to write both in one way."""


def explain_unmet(unknown: Collection[str], known: Collection[str]) -> str:
    """Say how the ids would meet, see [`spelling_of`]; failing that, show an id of each side.

    Args:
        unknown: Ids of one table that the other lacks.
        known: The ids of the other table.

    Returns:
        A clause for a message; empty if there is no unknown id.
    """
    if not unknown or not known:
        return ""
    sample = f"ids such as {next(iter(unknown))!r}, where the items have ids such as {next(iter(known))!r}"
    return spelling_of(unknown, known) or f"{sample}; check the columns"


def spelling_of(unknown: Collection[str], known: Collection[str]) -> str:
    """Name the way of writing in which most of the unknown ids would be known, as a clause; empty if there is none."""
    distinct = dict.fromkeys(unknown)
    best, most = "", 0
    for way, write in _WAYS.items() if distinct else ():
        known_as = {write(item_id): item_id for item_id in known}
        pairs = [(item_id, known_as[alike]) for item_id in distinct if (alike := write(item_id)) in known_as]
        if len(pairs) > most:
            most, (left, right) = len(pairs), pairs[0]
            best = f"{most} of {len(distinct)} ids would meet {way}, such as {left!r} and {right!r} of the items"
    return f"{best}; write them in one way" if best else ""
