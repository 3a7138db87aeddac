"""Read further columns of an items table (numbers, dates, names), and choose those that carry information.

Knows nothing about features, groups of items or models.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.cells import as_text, is_id_name, plain, to_number, words_of
from bundle_mllm.errors import BundleMLLMError

Kind = Literal["number", "date", "category", "list", "path"]

MOSTLY = 0.9
"""A column is one of numbers, dates or addresses if such a share of its cells are."""
LOOKED_AT = 2_000
"""Cells, at equal distances, that decide of which kind a column is."""
NEARLY_UNIQUE = 0.1
"""A column is nearly unique if a smaller share of its items than this have a value that another item has, too."""

_MISSING = frozenset(("", "-", "n/a", "na", "nan", "nat", "none", "null"))
_DATES = {
    "year first": re.compile(r"(?P<y>[12]\d{3})(?:[-/.]?(?P<m>\d\d?)(?:[-/.]?(?P<d>\d\d?))?)?(?:[T ]\d.*)?"),
    "day first": re.compile(r"(?P<d>\d\d?)[-/.](?P<m>\d\d?)[-/.](?P<y>[12]\d{3})(?: \d.*)?"),
    "month first": re.compile(r"(?P<m>\d\d?)[-/.](?P<d>\d\d?)[-/.](?P<y>[12]\d{3})(?: \d.*)?"),
}
_ADDRESS = re.compile(r"(?:\w+:)?//.*|www\..*|\S+\.(?:jpe?g|png|gif|webp|svg|mp[34]|wav|flac|ogg|pdf|html?)", re.I)
_DATE_NAMES = frozenset(("date", "year", "released", "published"))
_BELOW, _SEPARATORS, _LONGEST_NAME = " > ", ("|", ";", ","), 40


@dataclass(frozen=True)
class AttributeColumn:
    """How the cells of a column are read.

    Attributes:
        name: Name of the column.
        kind: "number", "date", "category" (one name), "list" (several) or "path" (names from general to special).
        form: What a list that is text is split at; the order of day, month and year in a date.
    """

    name: str
    kind: Kind
    form: str | None = None

    @property
    def is_quantity(self) -> bool:
        """Whether cells are points on a line; else they are names, which items share or not."""
        return self.kind in ("number", "date")

    def numbers(self, cells: Sequence[Any]) -> np.ndarray:
        """Read the cells of a number or date: `[n]` float64, dates in years, NaN where missing or unreadable."""
        read = to_number if self.kind == "number" else partial(to_year, order=self.form or "year first")
        return np.array([read(cell) for cell in cells], dtype=np.float64)

    def names(self, cells: Sequence[Any]) -> list[tuple[str, ...]]:
        """Read the distinct names in each cell, in normal form (NFKC, folded case); none where missing.

        A path gives each of its beginnings: "Shoes > Boots" is in "shoes" and in "shoes > boots". A date gives its
        year, and a number nothing.
        """
        if self.is_quantity:
            years = [] if self.kind == "number" else self.numbers(cells)
            return [() if math.isnan(year) else (str(int(year)),) for year in years] or [()] * len(cells)
        texts = {cell for cell in cells if isinstance(cell, str)}  # many are equal
        of_text = {text: tuple(dict.fromkeys(self._names(plain(text)))) for text in texts}
        return [of_text[c] if isinstance(c, str) else tuple(dict.fromkeys(self._names(c))) for c in cells]

    def _names(self, cell: Any) -> Iterator[str]:
        if self.kind == "path":
            for path in _paths(cell):
                yield from accumulate(filter(None, map(_to_name, path)), lambda above, name: f"{above}{_BELOW}{name}")
        else:
            yield from filter(None, map(_to_name, _parts(cell, self.form) if self.kind == "list" else [cell]))


@dataclass(frozen=True)
class AttributeChoice:
    """The columns of a catalog that are read, and why each other one is not."""

    columns: tuple[AttributeColumn, ...]
    left_out: Mapping[str, str]


def choose_columns(catalog: ItemCatalog, names: Sequence[str] | None = None) -> AttributeChoice:
    """Choose the columns that say something about an item beyond its title, description and category.

    Left out are columns without a value or with only one, objects, addresses of pages and files, running numbers, and
    names of which nearly every item has its own (ids, codes, texts).

    Args:
        catalog: The items.
        names: The columns to take; a column that is named may be nearly unique. All if not given.

    Raises:
        BundleMLLMError: If a named column does not exist or nothing can be read from it.
    """
    columns, left_out = [], {}
    for name in catalog.other_columns if names is None else dict.fromkeys(names):
        if name not in catalog.other_columns:
            have = ", ".join(catalog.other_columns) or "none"
            raise BundleMLLMError(
                f"The items have no column {name!r} beside title, description, category and files: choose from {have}."
            )
        column, reason, is_hopeless = _examine(name, catalog.cells(name))
        if reason is None or (names is not None and not is_hopeless):
            columns.append(column)
        elif names is not None:
            raise BundleMLLMError(f"The column {name!r} has {reason}, so it says nothing about an item: leave it out.")
        else:
            left_out[name] = reason
    return AttributeChoice(tuple(columns), left_out)


def _examine(name: str, cells: Sequence[Any]) -> tuple[AttributeColumn, str | None, bool]:
    """Return how a column is read, why it should not be (if so), and whether nothing could be read from it."""
    cells = [plain(cell) for cell in cells]
    present = [cell for cell in cells if not _is_missing(cell)]
    column = AttributeColumn(name, "category")
    if not present:
        return column, "no values", True
    if any(isinstance(cell, Mapping) for cell in present):
        return column, "objects as values", True
    column = _kind_of(name, present)
    if column.is_quantity:
        numbers = column.numbers(cells)
        distinct = np.unique(numbers[~np.isnan(numbers)])
        if len(distinct) < 2:
            return column, "the same value everywhere", True
        steps = np.diff(numbers)
        is_running = len(cells) > 2 and len(distinct) == len(cells) and bool((steps == steps[0]).all())
        return column, "running numbers" if is_running else None, False
    of_items = column.names(cells)
    if len(set(of_items)) < 2:
        return column, "the same value everywhere", True
    if _share(present, lambda cell: isinstance(cell, str) and bool(_ADDRESS.fullmatch(cell.strip()))) >= MOSTLY:
        return column, "addresses of pages or files", False
    counts = Counter(value for values in of_items for value in values)
    num_shared = sum(any(counts[value] > 1 for value in values) for values in of_items)
    is_unique = num_shared < NEARLY_UNIQUE * sum(map(bool, of_items))
    return column, "values of which nearly every item has its own" if is_unique else None, False


def _kind_of(name: str, present: Sequence[Any]) -> AttributeColumn:
    """Return how the cells that are present are read."""
    present = present[:: 1 + len(present) // LOOKED_AT]
    if any(isinstance(cell, list | tuple) for cell in present):
        is_nested = any(isinstance(part, list | tuple) for cell in present for part in _parts(cell, None))
        return AttributeColumn(name, "path" if is_nested else "list")
    if not is_id_name(name):  # numbers that are ids are names
        years = {order: _share(present, lambda cell, o=order: not math.isnan(to_year(cell, o))) for order in _DATES}
        order = max(years, key=lambda each: years[each])
        is_number = _share(present, lambda cell: not math.isnan(to_number(cell))) >= MOSTLY
        if years[order] >= MOSTLY and (not is_number or _DATE_NAMES.intersection(words_of(name))):
            return AttributeColumn(name, "date", order)
        if is_number:
            return AttributeColumn(name, "number")
    texts = [cell for cell in present if isinstance(cell, str)]
    if _share(texts, lambda cell: _BELOW in cell) >= 0.5:
        return AttributeColumn(name, "path")
    whole = len(set(texts))
    for separator in _SEPARATORS:
        names = {part.strip() for cell in texts if separator in cell for part in cell.split(separator)}
        are_fewer = len(names | {cell for cell in texts if separator not in cell}) < whole
        if names and are_fewer and max(map(len, names)) <= _LONGEST_NAME:
            return AttributeColumn(name, "list", separator)
    return AttributeColumn(name, "category")


def quantiles(numbers: np.ndarray, parts: int) -> list[float]:
    """Return the different quantiles that cut numbers into equal parts, the least and the greatest with them.

    NaN are left out; the list is empty if there is nothing else.
    """
    numbers = numbers[~np.isnan(numbers)]
    return np.unique(np.quantile(numbers, np.linspace(0, 1, parts + 1))).tolist() if len(numbers) else []


def to_year(cell: Any, order: str) -> float:
    """Read a date as a year with its fraction ("2010-07-02" is about 2010.5); NaN if it is none.

    `order` is "year first" ("2010-07-02", "2010-07", 2010), "day first" or "month first".
    """
    if not isinstance(cell, date):
        is_whole = isinstance(cell, int | float) and not isinstance(cell, bool) and float(cell).is_integer()
        text = str(int(cell)) if is_whole else cell.strip() if isinstance(cell, str) else ""
        match = _DATES[order].fullmatch(text[:_LONGEST_NAME])
        if match is None:
            return math.nan
        try:
            cell = date(int(match["y"]), int(match["m"] or 1), int(match["d"] or 1))
        except ValueError:
            return math.nan
    return cell.year + (cell.timetuple().tm_yday - 1) / 366


def _share(cells: Sequence[Any], holds: Callable[[Any], bool]) -> float:
    return sum(map(holds, cells)) / len(cells) if cells else 0.0


def _is_missing(cell: Any) -> bool:
    return len(cell) == 0 if isinstance(cell, list | tuple | Mapping) else not _to_name(cell)


def _to_name(value: Any) -> str:
    """Return a value in normal form; the empty text for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return _normal(as_text(value))


@lru_cache(maxsize=65_536)
def _normal(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return "" if text in _MISSING else text


def _parts(cell: Any, separator: str | None) -> Sequence[Any]:
    if isinstance(cell, str) and separator is not None:
        return cell.split(separator)
    return cell if isinstance(cell, list | tuple) else [cell]


def _paths(cell: Any) -> Iterator[Sequence[Any]]:
    for part in _parts(cell, None):
        yield part.split(_BELOW.strip()) if isinstance(part, str) else _parts(part, None)
