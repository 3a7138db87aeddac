"""Read the cells of a table, whatever it is: what is missing, numbers as people write them, true and false, JSON.

Knows nothing about what a column is used for.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from decimal import Decimal
from typing import Any

LONGEST_NUMBER = 40
LARGEST_WHOLE = 2**53 - 1
"""Up to here float64 holds all integers; longer ones are ids."""

_NUMBER = re.compile(
    r" *(?:[A-Za-z]{2,3}\.? +)?([+-]?\d(?:[\d.,]|[ '](?=\d{3}(?!\d)))*(?<=\d)) *(?:%|[A-Z]{3})? *"
)  # "Rs. 1 299,50", "12.50 EUR", "30%"
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")
_ID = re.compile("ids?|key|sku|asin|ean|upc|gtin|isbn|barcode|handle|code|uuid|hash|no")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def plain(cell: Any) -> Any:
    """Return a cell with `None` for what is missing, and what is written as a JSON list or object as such."""
    if isinstance(cell, tuple):
        return list(cell)
    if isinstance(cell, str):
        text = cell.strip()
        if text[:1] in ("[", "{"):
            try:
                return json.loads(text)
            except (ValueError, RecursionError):
                return cell
        return cell if text else None
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def to_number(cell: Any) -> float:
    """Read a finite number, or text such as "1,299.00", "$ 12", "12,50 EUR" or "30%".

    Returns:
        The number; NaN for what is none, and for an integer so long that float64 would change it, which is an id.
    """
    text = cell.strip() if isinstance(cell, str) else ""
    if len(text) > LONGEST_NUMBER or isinstance(cell, bool):
        return math.nan
    try:
        number = float(cell) if isinstance(cell, int | float | Decimal) else _of_text(text)
    except (ValueError, OverflowError):
        return math.nan
    is_id = not isinstance(cell, float) and number.is_integer() and abs(number) > LARGEST_WHOLE
    return number if math.isfinite(number) and not is_id else math.nan


def unit_of(cell: Any) -> str:
    """Return what stands beside the number in a text, such as "EUR"; the empty text if there is nothing."""
    if not isinstance(cell, str) or (match := _match(cell)) is None:
        return ""
    return (cell[: match.start(1)] + cell[match.end(1) :]).strip().rstrip(".")


def to_boolean(cell: Any) -> float:
    """Read `true` (1) or `false` (0), or text that says so in any case; NaN for anything else."""
    if isinstance(cell, str):
        return {"true": 1.0, "false": 0.0}.get(cell.strip().lower(), math.nan)
    return float(cell) if isinstance(cell, bool) else math.nan


def as_text(cell: Any) -> str:
    """Return a cell as text: whole numbers without a point, others with all digits, lists and objects as JSON."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str).strip('"')


def words_of(name: str) -> list[str]:
    """Return the words of a column's name, in lower case: "Variant SKU", "variant_sku" and "variantSku" have two."""
    return [word.casefold() for word in _WORD.findall(name)]


def is_id_name(name: str) -> bool:
    """Return whether a column's name says that it holds ids, which are names even where they look like numbers."""
    words = words_of(name)
    return bool(words) and (_ID.fullmatch(words[-1]) is not None or words[0] == "id")


def _match(text: str) -> re.Match[str] | None:
    blanks = "".join(" " if unicodedata.category(each) in ("Sc", "Zs") else each for each in text)
    return _NUMBER.fullmatch(blanks)


def _of_text(text: str) -> float:
    """Read a number as Python writes it or people do; a `ValueError` if it is none."""
    if (match := _match(text)) is None:
        return math.nan if "_" in text else float(text)
    digits = re.sub("[' ]", "", match[1])
    if digits.rfind(",") > digits.rfind(".") and not _THOUSANDS.fullmatch(digits):
        digits = digits.replace(".", "").replace(",", ".")  # a decimal comma
    return float(digits.replace(",", ""))
