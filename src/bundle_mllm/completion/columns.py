"""The columns of an items table, in the order of a model's catalog: what conditions and rules read.

Knows nothing about rules, models or how a condition is written.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

import numpy as np

from bundle_mllm.data.records import require_fields, to_id
from bundle_mllm.data.tables import iter_records, table_at
from bundle_mllm.errors import BundleMLLMError, did_you_mean

Kind = Literal["number", "boolean", "text", "list"]
ALWAYS_TEXT = ("item_id", "title", "description", "category")
"""Columns that hold texts even where all of them look like numbers."""


@dataclass(frozen=True, eq=False)
class Column:
    """One column of `n` items.

    Attributes:
        name: Its name.
        kind: What its cells hold.
        values: `[n]` float64 of numbers and of true (1) and false (0), NaN where missing; int64 of texts: the place in
            `names`, -1 where missing. A list has one entry for each of its members.
        names: The distinct texts, sorted.
        rows: The item of each value; of lists only.
        size: n.
    """

    name: str
    kind: Kind
    values: np.ndarray
    names: tuple[str, ...] = ()
    rows: np.ndarray | None = None
    size: int = 0

    @property
    def missing(self) -> np.ndarray:
        """`[n]` bool, where an item has no value."""
        if self.rows is not None:
            return np.bincount(self.rows, minlength=self.size) == 0
        return np.isnan(self.values) if self.kind in ("number", "boolean") else self.values < 0

    @cached_property
    def codes(self) -> dict[str, int]:
        """The place of each text in `names`."""
        return {name: code for code, name in enumerate(self.names)}

    @property
    def example(self) -> str:
        """A value, for messages."""
        if self.names:
            return repr(self.names[0])
        present = self.values[~np.isnan(self.values)]
        if not len(present):
            return "nothing"
        return str(bool(present[0])).lower() if self.kind == "boolean" else f"{present[0]:g}"


@dataclass(frozen=True, eq=False)
class ItemColumns:
    """The columns of a catalog's items.

    A column in which every value is a number holds numbers, one of `true` and `false` booleans (so do texts that read
    so, as in CSV), one of lists lists (in CSV a JSON list); any other column holds texts. Empty cells are missing.

    Attributes:
        num_items: Number of items n.
        source: What messages call the table.
        num_unknown: Items of the catalog that the table does not list; all their values are missing.
    """

    num_items: int
    source: str
    num_unknown: int
    _cells: Mapping[str, Sequence[Any]]
    _columns: dict[str, Column] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike, item_ids: Sequence[str]) -> ItemColumns:
        """Read a table, or the table `items` of a dataset folder, for the items of a catalog.

        Raises:
            BundleMLLMError: If there is no such table, an id is missing or there twice, or no item of the catalog is
                in it.
        """
        table = table_at(path, "items", "one row per item with `item_id` and the columns that rules read")
        return cls.from_records(iter_records(table), item_ids, str(table))

    @classmethod
    def from_records(
        cls, records: Iterable[Mapping[str, Any]], item_ids: Sequence[str], source: str = "items"
    ) -> ItemColumns:
        """Take the columns from one mapping per item; see [`~ItemColumns.load`]."""
        row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        cells: dict[str, list[Any]] = {}
        listed = np.zeros(len(item_ids), dtype=bool)
        for number, record in enumerate(records, start=1):
            require_fields(record, ("item_id",), f"{source} row {number}")
            item_id = to_id(record["item_id"], f"{source} row {number}")
            row = row_of.get(item_id)
            if row is None:
                continue
            if listed[row]:
                raise BundleMLLMError(
                    f"{source} row {number} lists the item {item_id!r} a second time, so its price or stock would be "
                    "ambiguous: keep one row per item."
                )
            listed[row] = True
            for name, value in record.items():
                if name not in cells:
                    cells[name] = [None] * len(item_ids)
                cells[name][row] = item_id if name == "item_id" else value
        if not listed.any():
            raise BundleMLLMError(
                f"{source} lists none of the {len(item_ids)} items of the model (such as {item_ids[0]!r}), so rules "
                "would read nothing: give the table of the catalog that the model was trained on, with the same ids."
            )
        return cls(len(item_ids), source, int((~listed).sum()), cells)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self._cells)

    def __getitem__(self, name: str) -> Column:
        """Return a column; one that does not exist is an error that names those that are like it."""
        if name not in self._cells:
            raise BundleMLLMError(
                f"{self.source} has no column {name!r}, so a rule about it cannot be applied: "
                f"{did_you_mean(name, self._cells, 'its columns are')}"
            )
        if name not in self._columns:
            self._columns[name] = _column(name, self._cells[name])
        return self._columns[name]


def _column(name: str, cells: Sequence[Any]) -> Column:
    """Find out what the cells hold, and store them so that conditions are array operations."""
    plain = [_plain(cell) for cell in cells]
    present = [cell for cell in plain if cell is not None]
    if any(isinstance(cell, list) for cell in present):
        return _list_column(name, plain)
    readers: dict[Kind, Any] = {} if name in ALWAYS_TEXT else {"boolean": _to_boolean, "number": _to_number}
    for kind, read in readers.items():
        numbers = [math.nan if cell is None else read(cell) for cell in plain]
        if present and sum(map(math.isnan, numbers)) == len(plain) - len(present):
            return Column(name, kind, np.array(numbers, dtype=np.float64), size=len(plain))
    texts = [None if cell is None else _to_text(cell) for cell in plain]
    names = tuple(sorted({text for text in texts if text is not None}))
    codes: dict[str | None, int] = {text: code for code, text in enumerate(names)} | {None: -1}
    values = np.fromiter((codes[text] for text in texts), dtype=np.int64, count=len(texts))
    return Column(name, "text", values, names, size=len(plain))


def _list_column(name: str, cells: Sequence[Any]) -> Column:
    members = [cell if isinstance(cell, list) else [] if cell is None else [cell] for cell in cells]
    texts = [[_to_text(member) for member in each if member is not None] for each in members]
    names = tuple(sorted({text for each in texts for text in each}))
    codes = {text: code for code, text in enumerate(names)}
    rows = np.repeat(np.arange(len(texts)), [len(each) for each in texts])
    values = np.array([codes[text] for each in texts for text in each], dtype=np.int64)
    return Column(name, "list", values, names, rows, len(cells))


def _plain(cell: Any) -> Any:
    """Return a cell with `None` for what is missing and a list for one that is written as JSON."""
    if isinstance(cell, tuple):
        return list(cell)
    if isinstance(cell, str):
        text = cell.strip()
        if text.startswith("[") and text.endswith("]"):
            try:
                return json.loads(text)
            except (ValueError, RecursionError):
                return cell
        return cell if text else None
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def _to_number(cell: Any) -> float:
    """Return a number; NaN for what is none, or is not finite."""
    if isinstance(cell, str) and "_" in cell:
        return math.nan  # which Python would read
    try:
        number = float(cell) if isinstance(cell, int | float | Decimal | str) else math.nan
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _to_boolean(cell: Any) -> float:
    if isinstance(cell, str):
        return {"true": 1.0, "false": 0.0}.get(cell.strip().lower(), math.nan)
    return float(cell) if isinstance(cell, bool) else math.nan


def _to_text(cell: Any) -> str:
    return cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str).strip('"')
