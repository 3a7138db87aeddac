"""Check and convert the fields of one record of a table.

Knows nothing about files or what the record is used for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bundle_mllm.bounds import check
from bundle_mllm.data.cells import as_text
from bundle_mllm.data.json_text import parse_json
from bundle_mllm.errors import BundleMLLMError

_LARGE = 1 << 1024  # Python writes no integer of thousands of digits
_ONE_ID = re.compile(r"[^\s,;|\[\]{}\"]+")


def require_fields(record: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Refuse a record that lacks one of `names`; `where` is its place for messages, such as `"items.jsonl row 3"`."""
    for name in names:
        if name not in record:
            fields = ", ".join(map(str, record)) or "none"
            raise BundleMLLMError(f"{where} has no `{name}` (its fields: {fields}): every row needs one.")


def to_id(value: Any, where: str) -> str:
    """Return an id as text; refuse what is empty or neither text nor an integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) < _LARGE:
            return str(value)
        raise BundleMLLMError(f"{where} has an integer of hundreds of digits as id: write it as text.")
    if isinstance(value, str) and value.strip():
        check("id_characters", len(value), f"{where}, its id,", "shorten it")
        return _whole(value, "id", where)
    raise BundleMLLMError(f"{where} has the id {value!r}, which identifies nothing: an id is text or an integer.")


def to_ids(value: Any, name: str, where: str) -> list[str]:
    """Return a list of ids, given as a list or as text: a JSON list, ids with `|` between them, or a single id.

    `name` is what messages call it.
    """
    ids = [] if value is None else value
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            ids = parse_json(text, f"{where}, `{name}`,")
        elif "|" in text:
            ids = [part for each in text.split("|") if (part := each.strip())]
        else:
            ids = [text] if _ONE_ID.fullmatch(text) else None
    if not isinstance(ids, list | tuple):
        raise BundleMLLMError(
            f'{where} has {_short(value)} as `{name}`: write a list of ids, such as 12|7 or ["12", "7"].'
        )
    return [to_id(item_id, f"{where}, `{name}`,") for item_id in ids]


def to_text(value: Any, name: str, where: str, column: str | None = None) -> str | None:
    """Return a text; numbers become text, `None`, NaN and the empty text `None`; lists and infinity are refused.

    `name` is the field, whose bound counts, and `column` what messages call it, if not the same.
    """
    column = column or name
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and math.isinf(value):
        raise BundleMLLMError(f"{where} has an infinite number as `{column}`: write it as text, or leave it empty.")
    if isinstance(value, str) or (isinstance(value, int | float) and abs(value) < _LARGE):
        text = as_text(value)
        bound = "title_characters" if name == "title" else "text_characters"
        check(bound, len(text), f"{where}, `{column}`,", "shorten it, or move what is long to `description`")
        return _whole(text, column, where) or None
    raise BundleMLLMError(f"{where} has a {type(value).__name__} as `{column}`: write it as text.")


def _whole(text: str, name: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BundleMLLMError(
            f"{where} has half a character in `{name}` ({text!r}, at {error.start}), which no file can hold: it was "
            "probably cut inside an emoji; cut it elsewhere."
        ) from error
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
