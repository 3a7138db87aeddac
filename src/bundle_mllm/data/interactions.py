"""Read which user has interacted with which item: large tables, column by column, reduced to distinct pairs.

Knows nothing about bundles, models or what the pairs are used for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.files import atomic_path
from bundle_mllm.data.records import require_fields, to_id, to_text
from bundle_mllm.data.tables import BATCH_ROWS, Report, iter_columns, iter_places, refuse, suffix_of, table_at
from bundle_mllm.errors import BundleMLLMError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

USER, ITEM, TIME = FIELDS = ("user_id", "item_id", "timestamp")
NUM_EXAMPLES = 3


@dataclass(frozen=True, eq=False)
class Interactions:
    """Distinct pairs of a user and an item in the order in which a table first has them, and what was left out.

    Attributes:
        users: The distinct user ids, in order of first appearance.
        user_index: The position in `users` of each pair's user, `[num_pairs]` (int64).
        rows: The catalog row of each pair's item, `[num_pairs]` (int64).
        timestamps: When the table first has each pair, `[num_pairs]` (as read; integers in text become int64), or
            `None` if it has no times.
        num_repeated: How many records repeat a pair.
        num_unknown: How many records were dropped because the catalog lacks their item.
        num_unknown_items: How many different items these name.
        unknown: The first few such items, each once: record (counted from 1) and item id.
        num_missing: How many records were dropped because they lack a user or an item.
        missing: The first few of those: record (counted from 1).
    """

    users: tuple[str, ...]
    user_index: np.ndarray
    rows: np.ndarray
    timestamps: pyarrow.Array | None = None
    num_repeated: int = 0
    num_unknown: int = 0
    num_unknown_items: int = 0
    unknown: tuple[tuple[int, str], ...] = ()
    num_missing: int = 0
    missing: tuple[int, ...] = ()

    @classmethod
    def load(cls, path_or_folder: str | os.PathLike, catalog: ItemCatalog) -> Interactions:
        """Read the pairs from a table, or from the table `interactions` of a folder.

        Raises:
            BundleMLLMError: If there is no such table, a row lacks a user or an item, or for what
                [`~Interactions.read`] refuses.
        """
        path = table_at(path_or_folder, "interactions", "with `user_id` and `item_id`, or do without user_item")
        return cls.read(path, catalog)._complete(path)

    @classmethod
    def read(
        cls,
        path: str | os.PathLike,
        catalog: ItemCatalog,
        *,
        columns: Mapping[str, str] | None = None,
        delimiter: str = ",",
        report: Report = refuse,
    ) -> Interactions:
        """Read the pairs from a table, and count the rows that lack a user or an item.

        Args:
            path: A table (see `tables.SUFFIXES`).
            catalog: The catalog that holds the items.
            columns: The column of each of `user_id`, `item_id` and, optionally, `timestamp` with another name.
            delimiter: What separates the cells of a CSV file.
            report: Receives malformed rows; see `tables.Report`.

        Raises:
            BundleMLLMError: If the file or a column is missing, or a row is malformed (the message names the row).
        """
        names = {field: field for field in FIELDS} | dict(columns or {})
        needed = (USER, ITEM, *(columns or {}))
        if suffix_of(Path(path)).startswith(".jsonl"):
            records = (record for _, record in iter_places(path, report=report))
            batches = _to_batches(records, names, needed, str(path))
        else:
            batches = iter_columns(path, names, needed, delimiter, report)
        return cls.from_batches(batches, catalog, str(path), names)

    @classmethod
    def from_records(
        cls, records: Iterable[Mapping[str, Any]], catalog: ItemCatalog, source: str = "interactions"
    ) -> Interactions:
        """Build the pairs from mappings with `user_id`, `item_id` and, optionally, `timestamp`.

        Raises:
            BundleMLLMError: If a field is missing or empty; the message calls the records `source`.
        """
        batches = _to_batches(records, {field: field for field in FIELDS}, (USER, ITEM), source)
        return cls.from_batches(batches, catalog, source)._complete(source)

    @classmethod
    def from_batches(
        cls,
        batches: Iterable[pyarrow.RecordBatch],
        catalog: ItemCatalog,
        source: str = "interactions",
        columns: Mapping[str, str] | None = None,
    ) -> Interactions:
        """Reduce records to their distinct pairs of users and known items.

        Args:
            batches: Batches with the columns `user_id` and `item_id` (text or integers) and, optionally, `timestamp`.
            catalog: The catalog that holds the items.
            source: What error messages call the records.
            columns: What they call `user_id` and `item_id`, if they call them otherwise.

        Raises:
            BundleMLLMError: If ids are neither text nor integers.
        """
        import numpy as np
        import pyarrow
        from pyarrow import compute

        names = columns or {}
        known = compute.SetLookupOptions(pyarrow.array(catalog.item_ids, pyarrow.string()))
        users, rows, timestamps = [], [], []
        num_records = num_unknown = num_missing = 0
        unknown: dict[str, int] = {}  # the first record of each item
        missing: list[int] = []
        for batch in batches:
            user, item = (_to_text(batch.column(name), names.get(name, name), source) for name in (USER, ITEM))
            complete = _is_given(user) & _is_given(item)  # [num_rows]
            row = compute.call_function("index_in", [item], known).fill_null(-1).to_numpy(zero_copy_only=False)
            kept = complete & (row >= 0)
            foreign, incomplete = np.flatnonzero(complete & (row < 0)), np.flatnonzero(~complete)
            num_unknown += len(foreign)
            num_missing += len(incomplete)
            distinct = item.take(pyarrow.array(foreign)).dictionary_encode()
            first = np.unique(distinct.indices.to_numpy(zero_copy_only=False), return_index=True)[1]
            for item_id, at in zip(distinct.dictionary.to_pylist(), foreign[first], strict=True):
                unknown.setdefault(item_id, num_records + int(at) + 1)
            missing += (num_records + 1 + incomplete[: NUM_EXAMPLES - len(missing)]).tolist()
            num_records += len(batch)
            users.append(user.filter(pyarrow.array(kept)).dictionary_encode())
            rows.append(row[kept].astype(np.int64))
            if TIME in batch.schema.names:
                timestamps.append(batch.column(TIME).filter(pyarrow.array(kept)))
        distinct_users, user_index = _unify(users)
        all_rows = np.concatenate([np.empty(0, dtype=np.int64), *rows])
        first = np.sort(np.unique(user_index * len(catalog) + all_rows, return_index=True)[1])  # first of each pair
        times = None
        if timestamps:
            times = _to_integers(pyarrow.chunked_array(timestamps).take(pyarrow.array(first)).combine_chunks())
        return cls(
            users=distinct_users,
            user_index=user_index[first],
            rows=all_rows[first],
            timestamps=None if times is None or times.null_count == len(times) else times,
            num_repeated=len(all_rows) - len(first),
            num_unknown=num_unknown,
            num_unknown_items=len(unknown),
            unknown=tuple((record, item_id) for item_id, record in islice(unknown.items(), NUM_EXAMPLES)),
            num_missing=num_missing,
            missing=tuple(missing),
        )

    def save(self, path: str | os.PathLike, catalog: ItemCatalog) -> None:
        """Write the pairs as a Parquet table that [`~Interactions.read`] reads; the same pairs give the same bytes."""
        import pyarrow
        import pyarrow.parquet

        text, times = pyarrow.string(), [] if self.timestamps is None else [self.timestamps]
        users, items = pyarrow.array(self.users, text), pyarrow.array(catalog.item_ids, text)
        schema = pyarrow.schema([(USER, text), (ITEM, text), *((TIME, each.type) for each in times)])
        with atomic_path(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
            for start in range(0, len(self), 1_000_000):
                part = slice(start, start + 1_000_000)
                columns = [users.take(self.user_index[part]), items.take(self.rows[part])]
                columns += [each.slice(start, 1_000_000) for each in times]
                writer.write_batch(pyarrow.record_batch(columns, schema=schema))

    def without(self, dropped: np.ndarray) -> Interactions:
        """Return the pairs but those that are marked in `dropped`, `[num_pairs]` (bool), and their users."""
        import numpy as np
        import pyarrow

        kept, index = np.unique(self.user_index[~dropped], return_inverse=True)
        times = None if self.timestamps is None else self.timestamps.filter(pyarrow.array(~dropped))
        users = tuple(self.users[user] for user in kept)
        return replace(self, users=users, user_index=index, rows=self.rows[~dropped], timestamps=times)

    @property
    def num_users(self) -> int:
        """How many different users there are."""
        return len(self.users)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Interactions({len(self)} pairs of {self.num_users} users)"

    def _complete(self, source: object) -> Interactions:
        if self.num_missing:
            raise BundleMLLMError(
                f"{source} row {self.missing[0]} lacks a user or an item ({self.num_missing} such rows): remove it."
            )
        return self


def _to_batches(
    records: Iterable[Mapping[str, Any]], names: Mapping[str, str], needed: Sequence[str], source: str
) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    numbered = enumerate(records, start=1)
    while chunk := list(islice(numbered, BATCH_ROWS)):
        columns: dict[str, list[str | None]] = {field: [] for field in FIELDS}
        for number, record in chunk:
            where = f"{source} row {number}"
            require_fields(record, (names[field] for field in needed), where)
            for field in (USER, ITEM):
                value = record[names[field]]
                blank = value is None or (isinstance(value, str) and not value.strip())
                columns[field].append(None if blank else to_id(value, where))
            columns[TIME].append(to_text(record.get(names[TIME]), names[TIME], where))
        arrays = [pyarrow.array(values, pyarrow.string()) for values in columns.values()]
        yield pyarrow.record_batch(arrays, names=list(columns))


def _to_text(column: pyarrow.Array, name: str, source: str) -> pyarrow.Array:
    import pyarrow
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if text or types.is_integer(kind) or types.is_null(kind):
        return column.cast(kind).cast(pyarrow.string())
    raise BundleMLLMError(f"{source} holds {kind} values as `{name}`: ids are text or integers; convert the column.")


def _is_given(ids: pyarrow.Array) -> np.ndarray:
    """Return where an id is neither missing nor blank, `[num_rows]` (bool)."""
    from pyarrow.compute import call_function

    length = call_function("utf8_length", [call_function("utf8_trim_whitespace", [ids])])
    return length.fill_null(0).to_numpy(zero_copy_only=False) > 0


def _unify(parts: list[pyarrow.DictionaryArray]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the distinct values in order of first appearance, and the position among them of each value."""
    import numpy as np
    import pyarrow

    if not parts:
        return (), np.empty(0, dtype=np.int64)
    unified = pyarrow.chunked_array(parts).unify_dictionaries()
    index = np.concatenate([chunk.indices.to_numpy() for chunk in unified.chunks]).astype(np.int64)
    return tuple(unified.chunk(0).dictionary.to_pylist()), index


def _to_integers(values: pyarrow.Array) -> pyarrow.Array:
    """Return integers in text as int64, and other values as they are."""
    import pyarrow

    if not pyarrow.types.is_string(values.type):
        return values
    try:
        return values.cast(pyarrow.int64())
    except pyarrow.ArrowInvalid:
        return values
