"""Read large logs of users and items column by column, and reduce them to the distinct pairs of known items.

It must not know bundles, nor what the pairs are used for.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.records import require_fields, to_id, to_text
from bundle_mllm.data.tables import iter_records, open_text, suffix_of
from bundle_mllm.errors import BundleMLLMError

if TYPE_CHECKING:
    import pyarrow

USER, ITEM, TIME = "user_id", "item_id", "timestamp"
NUM_EXAMPLES = 3
_RECORDS = 200_000  # rows read together
_BYTES = 1 << 24  # of CSV, likewise


@dataclass(frozen=True, eq=False)
class UserLog:
    """Distinct pairs of a user and an item in the order in which a log first has them, and what was left out.

    Attributes:
        users: The distinct user ids, in order of first appearance.
        user_index: The position in `users` of each pair's user, `[num_pairs]` (int64).
        rows: The catalog row of each pair's item, `[num_pairs]` (int64).
        timestamps: When the log first has each pair, `[num_pairs]` (as read; integers in text become int64), or
            `None` if it does not say.
        num_repeated: How many records repeat a pair.
        num_unknown: How many records were dropped because the catalog lacks their item.
        unknown: The first few such items, each once: record (counted from 1) and item id.
        num_missing: How many records were dropped because they name no user or no item.
        missing: The first few of those: record (counted from 1).
    """

    users: tuple[str, ...]
    user_index: np.ndarray
    rows: np.ndarray
    timestamps: pyarrow.Array | None = None
    num_repeated: int = 0
    num_unknown: int = 0
    unknown: tuple[tuple[int, str], ...] = ()
    num_missing: int = 0
    missing: tuple[int, ...] = ()

    @classmethod
    def from_pairs(cls, user_ids: Iterable[str], rows: np.ndarray) -> UserLog:
        """Build a log of distinct pairs, given as two columns of equal length."""
        index: dict[str, int] = {}
        numbers = [index.setdefault(user_id, len(index)) for user_id in user_ids]
        return cls(tuple(index), np.array(numbers, dtype=np.int64), rows)

    def __len__(self) -> int:
        return len(self.rows)


def read_log(
    path: str | os.PathLike,
    catalog: ItemCatalog,
    *,
    columns: Mapping[str, str] | None = None,
    delimiter: str = ",",
) -> UserLog:
    """Read a log from a table.

    Args:
        path: A table (see `tables.SUFFIXES`).
        catalog: The catalog that holds the items.
        columns: The column of each of `user_id`, `item_id` and, optionally, `timestamp`, where it has another name.
        delimiter: What separates the cells of a CSV file.

    Raises:
        BundleMLLMError: If the file or a column is missing, or a row is malformed (the message names the row).
    """
    return collect_log(iter_log(path, columns, delimiter), catalog, str(path))


def iter_log(
    path: str | os.PathLike, columns: Mapping[str, str] | None = None, delimiter: str = ","
) -> Iterator[pyarrow.RecordBatch]:
    """Read the columns `user_id`, `item_id` and, where there is one, `timestamp`, many rows at a time.

    Arguments and errors are those of [`read_log`].
    """
    path = Path(path)
    suffix = suffix_of(path)
    if not path.is_file():
        raise BundleMLLMError(f"There is no file {path}: check the path.")
    names = {USER: USER, ITEM: ITEM, TIME: TIME, **(columns or {})}
    needed = (USER, ITEM, *(columns or {}))
    if suffix == ".parquet":
        return _iter_parquet(path, names, needed)
    if suffix.startswith(".csv"):
        return _iter_csv(path, names, needed, delimiter)
    return _iter_jsonl(path, names, needed)


def collect_log(batches: Iterable[pyarrow.RecordBatch], catalog: ItemCatalog, source: str = "The log") -> UserLog:
    """Reduce a log to its distinct pairs of users and known items.

    Args:
        batches: Batches with the columns `user_id` and `item_id` (text or integers) and, optionally, `timestamp`.
        catalog: The catalog that holds the items.
        source: What error messages call the log, such as a file name.

    Raises:
        BundleMLLMError: If ids are neither text nor integers.
    """
    import pyarrow
    import pyarrow.compute as compute

    known = compute.SetLookupOptions(pyarrow.array(catalog.item_ids, pyarrow.string()))
    users, rows, timestamps = [], [], []
    num_records = num_unknown = num_missing = 0
    unknown: dict[str, int] = {}
    missing: list[int] = []
    for batch in batches:
        user, item = (_to_text(batch.column(name), name, source) for name in (USER, ITEM))
        named = _is_named(user) & _is_named(item)  # [num_rows]
        row = compute.call_function("index_in", [item], known).fill_null(-1).to_numpy(zero_copy_only=False)
        kept = named & (row >= 0)
        foreign = np.flatnonzero(named & (row < 0))
        nameless = np.flatnonzero(~named)
        num_unknown += len(foreign)
        num_missing += len(nameless)
        for at in foreign.tolist() if len(unknown) < NUM_EXAMPLES else ():
            unknown.setdefault(item[at].as_py(), num_records + at + 1)
            if len(unknown) == NUM_EXAMPLES:
                break
        missing += (num_records + 1 + nameless[: NUM_EXAMPLES - len(missing)]).tolist()
        num_records += len(batch)
        users.append(user.filter(pyarrow.array(kept)).dictionary_encode())
        rows.append(row[kept].astype(np.int64))
        if TIME in batch.schema.names:
            timestamps.append(batch.column(TIME).filter(pyarrow.array(kept)))
    names, user_index = _unify(users)
    all_rows = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
    first = np.sort(np.unique(user_index * len(catalog) + all_rows, return_index=True)[1])  # first of each pair
    when = None
    if timestamps:
        when = _as_integers(pyarrow.chunked_array(timestamps).take(pyarrow.array(first)).combine_chunks())
        when = when if when.null_count < len(when) else None
    return UserLog(
        users=names,
        user_index=user_index[first],
        rows=all_rows[first],
        timestamps=when,
        num_repeated=len(all_rows) - len(first),
        num_unknown=num_unknown,
        unknown=tuple((record, item_id) for item_id, record in unknown.items()),
        num_missing=num_missing,
        missing=tuple(missing),
    )


def write_log(path: str | os.PathLike, log: UserLog, catalog: ItemCatalog) -> None:
    """Write the pairs of a log as a Parquet table that [`read_log`] reads; the same log gives the same bytes.

    Args:
        path: A file that ends in `.parquet`.
        log: The log.
        catalog: The catalog that its rows refer to.
    """
    import pyarrow
    import pyarrow.parquet

    from bundle_mllm.data.files import atomic_path

    users = pyarrow.array(log.users, pyarrow.string())
    items = pyarrow.array(catalog.item_ids, pyarrow.string())
    fields = [(USER, pyarrow.string()), (ITEM, pyarrow.string())]
    if log.timestamps is not None:
        fields.append((TIME, log.timestamps.type))
    schema = pyarrow.schema(fields)
    with atomic_path(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(log), 1_000_000):
            part = slice(start, start + 1_000_000)
            columns = [users.take(pyarrow.array(log.user_index[part])), items.take(pyarrow.array(log.rows[part]))]
            if log.timestamps is not None:
                columns.append(log.timestamps.slice(start, 1_000_000))
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))


def _iter_parquet(path: Path, names: Mapping[str, str], needed: Iterable[str]) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            present = _present(path, table.schema_arrow.names, names, needed)
            columns = [names[field] for field in present]
            for batch in table.iter_batches(batch_size=_RECORDS, columns=columns):
                yield pyarrow.record_batch([batch.column(names[field]) for field in present], names=present)
    except pyarrow.ArrowException as error:
        raise BundleMLLMError(f"{path} is not a Parquet file that can be read ({error}): write it again.") from error


def _iter_csv(
    path: Path, names: Mapping[str, str], needed: Iterable[str], delimiter: str
) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow
    import pyarrow.csv

    with open_text(path) as stream:
        header = next(csv.reader(stream, delimiter=delimiter), [])
    if len(set(header)) < len(header):
        raise BundleMLLMError(f"{path} names a column twice in its header {header}: rename one of them.")
    present = _present(path, header, names, needed)
    columns = [names[field] for field in present]
    malformed: list[Any] = []

    def refuse(row: Any) -> str:
        malformed.append(row)
        return "error"

    try:
        with pyarrow.input_stream(path) as stream:  # unpacks .gz
            reader = pyarrow.csv.open_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=_BYTES),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=columns,
                    column_types={column: pyarrow.string() for column in columns},
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
            for batch in reader:
                yield pyarrow.record_batch([batch.column(names[field]) for field in present], names=present)
    except (pyarrow.ArrowException, OSError) as error:
        if malformed:
            row = malformed[0]
            raise BundleMLLMError(
                f"{path} row {row.number - 1} has {row.actual_columns} cells for {row.expected_columns} columns: "
                "quote cells that hold a comma or a line break, and keep empty cells."
            ) from error
        raise BundleMLLMError(
            f"{path} is not CSV that can be read ({error}): correct it, or copy it again."
        ) from error


def _iter_jsonl(path: Path, names: Mapping[str, str], needed: Iterable[str]) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    records = enumerate(iter_records(path), start=1)
    while chunk := list(islice(records, _RECORDS)):
        columns: dict[str, list[str | None]] = {USER: [], ITEM: [], TIME: []}
        for number, record in chunk:
            where = f"{path} row {number}"
            require_fields(record, (names[field] for field in needed), where)
            for field in (USER, ITEM):
                value = record[names[field]]
                blank = value is None or (isinstance(value, str) and not value.strip())
                columns[field].append(None if blank else to_id(value, where))
            columns[TIME].append(to_text(record.get(names[TIME]), names[TIME], where))
        yield pyarrow.record_batch(
            [pyarrow.array(values, pyarrow.string()) for values in columns.values()], [*columns]
        )


def _present(path: Path, header: Iterable[str], names: Mapping[str, str], needed: Iterable[str]) -> list[str]:
    """Return the fields whose column the table has, and check that it has those that are needed."""
    header = list(header)
    require_fields(dict.fromkeys(header), (names[field] for field in needed), str(path))
    return [field for field in (USER, ITEM, TIME) if names[field] in header]


def _to_text(column: pyarrow.Array, name: str, source: str) -> pyarrow.Array:
    import pyarrow
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if text or types.is_integer(kind) or types.is_null(kind):
        return column.cast(kind).cast(pyarrow.string())
    raise BundleMLLMError(f"{source} holds {kind} values as `{name}`: ids are text or integers; convert the column.")


def _is_named(ids: pyarrow.Array) -> np.ndarray:
    """Return where an id is neither missing nor blank, `[num_rows]` (bool)."""
    from pyarrow.compute import call_function

    length = call_function("utf8_length", [call_function("utf8_trim_whitespace", [ids])])
    return length.fill_null(0).to_numpy(zero_copy_only=False) > 0


def _unify(parts: list[pyarrow.DictionaryArray]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the distinct values in order of first appearance, and the position among them of each value."""
    import pyarrow

    if not parts:
        return (), np.empty(0, dtype=np.int64)
    unified = pyarrow.chunked_array(parts).unify_dictionaries()
    index = np.concatenate([chunk.indices.to_numpy() for chunk in unified.chunks]).astype(np.int64)
    return tuple(unified.chunk(0).dictionary.to_pylist()), index


def _as_integers(values: pyarrow.Array) -> pyarrow.Array:
    """Return text that says integers as int64, and other values as they are."""
    import pyarrow

    if not pyarrow.types.is_string(values.type):
        return values
    try:
        return values.cast(pyarrow.int64())
    except pyarrow.ArrowInvalid:
        return values
