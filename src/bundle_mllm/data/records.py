"""Check and convert the fields of one record of a table.

Knows nothing about files or what the record is used for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from bundle_mllm.errors import BundleMLLMError


def require_fields(record: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Refuse a record that lacks one of `names`; `where` is its place for messages, such as `"items.jsonl row 3"`."""
    for name in names:
        if name not in record:
            fields = ", ".join(map(str, record)) or "none"
            raise BundleMLLMError(f"{where} has no `{name}` (its fields: {fields}): every row needs one.")


def to_id(value: Any, where: str) -> str:
    """Return an id as text; refuse what is empty or neither text nor an integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip():
        return _whole(value, "id", where)
    raise BundleMLLMError(f"{where} has the id {value!r}, which identifies nothing: an id is text or an integer.")


def to_ids(value: Any, name: str, where: str) -> list[str]:
    """Return a list of ids, given as a list or, as in a cell of a CSV file, as the text of a JSON list."""
    ids = [] if value is None else value
    if isinstance(value, str):
        try:
            ids = json.loads(value)
        except json.JSONDecodeError:
            ids = None
    if not isinstance(ids, list | tuple):
        raise BundleMLLMError(f'{where} has {value!r} as `{name}`: write a list of ids, such as ["12", "7"].')
    return [to_id(item_id, f"{where}, `{name}`,") for item_id in ids]


def to_text(value: Any, name: str, where: str) -> str | None:
    """Return a text; numbers become text, `None`, NaN and the empty text are `None`, and lists are refused."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str | int | float):
        return _whole(str(value), name, where) or None
    raise BundleMLLMError(f"{where} has a {type(value).__name__} as `{name}`: write it as text.")


def _whole(text: str, name: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BundleMLLMError(
            f"{where} has half a character in `{name}` ({text!r}, at {error.start}), which no file can hold: it was "
            "probably cut inside an emoji; cut it elsewhere."
        ) from error
    return text
