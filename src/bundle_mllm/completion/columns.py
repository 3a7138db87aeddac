"""The columns of an items table, in the order of a model's catalog: what conditions and rules read.

Knows nothing about rules, models or how a condition is written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bundle_mllm.data.cells import as_text, is_id_name, plain, to_boolean, to_number, unit_of
from bundle_mllm.data.records import require_fields, to_id
from bundle_mllm.data.tables import iter_records, table_at
from bundle_mllm.errors import BundleMLLMError, did_you_mean

Kind = Literal["number", "boolean", "text", "list"]
ITEM_TABLE = "catalog.parquet"
"""The items of a model folder, one row for each row of the models' catalogs; prices and stock are read from here."""
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
        """A value, for messages; of texts one that is no number, if there is one."""
        if self.names:
            return repr(next((name for name in self.names if math.isnan(to_number(name))), self.names[0]))
        present = self.values[~np.isnan(self.values)]
        if not len(present):
            return "nothing"
        return self.text_of(present[0])

    def text_of(self, value: float) -> str:
        """Return one of the numbers, or true or false, as text; no two of them have the same."""
        return as_text(bool(value) if self.kind == "boolean" else value)


@dataclass(frozen=True, eq=False)
class ItemColumns:
    """The columns of a catalog's items.

    A column in which every value is a number holds numbers, also with one unit beside them ("12,50 EUR", see
    `cells.to_number`), one of `true` and `false` booleans (so do texts that read so, as in CSV), one of lists lists
    (in CSV a JSON list); any other column holds texts, and so does one of ids by its name. Empty cells are missing.

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
    def of_model(
        cls,
        model: str | os.PathLike,
        item_ids: Sequence[str],
        titles: Sequence[str],
        items: str | os.PathLike | None = None,
    ) -> ItemColumns:
        """Read the columns of a model's items.

        Args:
            model: Its folder or Hub repository.
            item_ids: The items, in the order of its catalog.
            titles: Their titles.
            items: Items table or dataset folder; by default the table that the model folder holds or, where there is
                none, ids and titles alone.

        Raises:
            BundleMLLMError: See [`~ItemColumns.load`].
        """
        if items is None and (Path(model) / ITEM_TABLE).is_file():
            items = Path(model) / ITEM_TABLE
        if items is not None:
            return cls.load(items, item_ids)
        records = ({"item_id": item_id, "title": title} for item_id, title in zip(item_ids, titles, strict=True))
        return cls.from_records(records, item_ids, f"The model {model} (no table of its items was given)")

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
        """Take the columns from one mapping per item; see [`~ItemColumns.load`].

        Raises:
            BundleMLLMError: If the records list none of the items, or one twice.
        """
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

    def record(self, row: int) -> dict[str, Any]:
        """Return the cells of an item by column, without those that are empty."""
        cells = {name: plain(values[row]) for name, values in self._cells.items()}
        return {name: cell for name, cell in cells.items() if cell is not None}

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
    cells = [plain(cell) for cell in cells]
    present = [cell for cell in cells if cell is not None]
    if any(isinstance(cell, list) for cell in present):
        return _list_column(name, cells)
    if present and name not in ALWAYS_TEXT and not is_id_name(name):
        if (values := _read(cells, to_boolean)) is not None:
            return Column(name, "boolean", values, size=len(cells))
        if (values := _read(cells, to_number)) is not None and len({*map(unit_of, present)} - {""}) < 2:
            return Column(name, "number", values, size=len(cells))
    texts = [None if cell is None else as_text(cell) for cell in cells]
    names = tuple(sorted({text for text in texts if text is not None}))
    codes: dict[str | None, int] = {text: code for code, text in enumerate(names)} | {None: -1}
    values = np.fromiter((codes[text] for text in texts), dtype=np.int64, count=len(texts))
    return Column(name, "text", values, names, size=len(cells))


def _read(cells: Sequence[Any], read: Callable[[Any], float]) -> np.ndarray | None:
    """Return what all cells are read as `[n]`, NaN where missing; `None` if one of them is nothing of the kind."""
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if cell is not None:
            values[row] = read(cell)
            if math.isnan(values[row]):
                return None
    return values


def _list_column(name: str, cells: Sequence[Any]) -> Column:
    members = [cell if isinstance(cell, list) else [] if cell is None else [cell] for cell in cells]
    texts = [[as_text(member) for member in each if member is not None] for each in members]
    names = tuple(sorted({text for each in texts for text in each}))
    codes = {text: code for code, text in enumerate(names)}
    rows = np.repeat(np.arange(len(texts)), [len(each) for each in texts])
    values = np.array([codes[text] for each in texts for text in each], dtype=np.int64)
    return Column(name, "list", values, names, rows, len(cells))
