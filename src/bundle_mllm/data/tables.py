"""Read and write tables of records as JSON Lines, CSV or Parquet, chosen by the file's suffix.

Knows nothing about what the records mean.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from bundle_mllm.bounds import bounds, check
from bundle_mllm.data.files import atomic_path, require_file, require_folder
from bundle_mllm.data.json_text import parse_json
from bundle_mllm.data.records import require_fields
from bundle_mllm.errors import BundleMLLMError

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
BATCH_ROWS = 200_000
_BATCH_BYTES = 1 << 24  # of CSV

Report = Callable[[str], None]
"""Called with the message about a malformed row, which is then skipped; by default the message is raised."""


def refuse(message: str) -> NoReturn:
    """Raise a message, as readers do by default."""
    raise BundleMLLMError(message)


def read_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read a whole table (see `SUFFIXES`), one dictionary per row; CSV cells are strings, an empty cell is `None`.

    Raises:
        BundleMLLMError: If the file is missing, has another suffix or is malformed (the message names the line).
    """
    return list(iter_records(path))


def iter_records(path: str | os.PathLike, delimiter: str = ",") -> Iterator[dict[str, Any]]:
    """Read a table row by row; rows and errors are those of [`read_records`]."""
    return (record for _, record in iter_places(path, delimiter))


def iter_places(
    path: str | os.PathLike, delimiter: str = ",", report: Report = refuse, name: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row for messages, such as `"items.csv line 7"`, and the row.

    Args:
        path: A table (see `SUFFIXES`).
        delimiter: What separates the cells of a CSV file.
        report: Receives rows that are malformed; what spoils the whole file is raised.
        name: What messages call the file; by default its path.

    Raises:
        BundleMLLMError: See [`read_records`]; also for a table above the bounds (see `bounds`).
    """
    path, suffix = _table(path)
    name = str(path) if name is None else name
    if suffix == ".parquet":
        yield from _iter_parquet(path, name)
        return
    with open_text(path) as stream:
        rows = _iter_jsonl(stream, name, report)
        if suffix.startswith(".csv"):
            rows = _iter_csv(stream, name, delimiter, report)
        most = bounds().table_rows
        for number, (line, record) in enumerate(rows, start=1):
            if number > most:
                check("table_rows", number, f"{name} line {line}", "split the file")
            yield f"{name} line {line}", record


def read_header(path: str | os.PathLike, delimiter: str = ",") -> list[str]:
    """Return the columns of a table; of JSON Lines, those of its first row."""
    path, suffix = _table(path)
    if suffix == ".parquet":
        columns: list[str] = []
        next(_parquet_batches(path, lambda names: columns.extend(names) or columns[:1]), None)
        return columns
    if suffix.startswith(".jsonl"):
        return list(next(iter_records(path), {}))
    with open_text(path) as stream:
        return _header(next(csv.reader(stream, delimiter=delimiter), []), path)


def iter_columns(
    path: str | os.PathLike,
    names: Mapping[str, str],
    needed: Sequence[str],
    delimiter: str = ",",
    report: Report = refuse,
) -> Iterator[pyarrow.RecordBatch]:
    """Read columns of a CSV or Parquet table, many rows at a time; CSV cells are text, and an empty cell is null.

    `names` has the column of each field, by the name that the field has in the batches; `needed` are those that the
    table must have. `report` receives malformed rows of a CSV file.
    """
    path, suffix = _table(path)
    fields: list[str] = []

    def choose(header: Sequence[str]) -> list[str]:
        require_fields(dict.fromkeys(header), (names[field] for field in needed), str(path))
        fields.extend(field for field in names if names[field] in header)
        return [names[field] for field in fields]

    read = _parquet_batches(path, choose) if suffix == ".parquet" else _csv_batches(path, choose, delimiter, report)
    for batch in read:
        yield batch.select([names[field] for field in fields]).rename_columns(fields)


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a CSV or JSON Lines file, packed or not; refuse, while it is read, what is no UTF-8 text or cut gzip."""
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise BundleMLLMError(f"{path} is not UTF-8 text ({error}): save it as UTF-8.") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BundleMLLMError(f"{path} is not a complete gzip file ({error}): write or copy it again.") from error


def write_records(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table in one step; the same rows give the same bytes.

    In CSV, lists and dictionaries are written as JSON and `None` as an empty cell.

    Raises:
        BundleMLLMError: If the suffix is none of `SUFFIXES` or a value does not fit the format.
    """
    path = Path(path)
    suffix = suffix_of(path)
    try:
        with atomic_path(path) as temporary:
            if suffix == ".parquet":
                _write_parquet(temporary, path, rows)
                return
            with open(temporary, "wb") as raw:
                # An empty name and a zero time keep the gzip header the same from run to run.
                binary = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if suffix.endswith(".gz") else raw
                with io.TextIOWrapper(binary, encoding="utf-8", newline="") as stream:
                    if suffix.startswith(".csv"):
                        _write_csv(stream, path, rows)
                    else:
                        for number, row in enumerate(rows, start=1):
                            stream.write(_to_json(row, path, number) + "\n")
    except UnicodeEncodeError as error:
        raise BundleMLLMError(
            f"{path} cannot be written, since a text has half a character ({error}): it was probably cut inside an "
            "emoji; cut it elsewhere."
        ) from error


def find_table(folder: str | os.PathLike, stem: str) -> Path | None:
    """Return the only file `stem` of a folder with one of `SUFFIXES`, or `None`; refuse several such files."""
    folder = require_folder(folder)
    tables = [path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()]
    if len(tables) > 1:
        names = " and ".join(path.name for path in tables)
        raise BundleMLLMError(f"{folder} holds {names}, so it is unclear which one to read: keep one of them.")
    return tables[0] if tables else None


def table_at(path_or_folder: str | os.PathLike, stem: str, content: str) -> Path:
    """Return a table that is given by its own path, or the table `stem` of a folder; refuse a folder without it."""
    path = Path(path_or_folder)
    if not path.exists():
        raise BundleMLLMError(f"There is no file or folder {path}: check the path.")
    table = path if path.is_file() else find_table(path, stem)
    if table is None:
        raise BundleMLLMError(f"{path} holds no {stem} file: add {stem}.jsonl, .csv or .parquet, {content}.")
    return table


def suffix_of(path: Path) -> str:
    """Return the suffix of a table's file name, such as `".jsonl.gz"`; refuse one that is none of `SUFFIXES`."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return suffix
    raise BundleMLLMError(f"{path} cannot be a table: its name must end in one of {', '.join(SUFFIXES)}.")


def _iter_jsonl(stream: TextIO, name: str, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    longest = bounds().cell_characters
    lines = iter(lambda: stream.readline(longest + 1), "")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        check("cell_characters", len(line.rstrip("\r\n")), where, "shorten the line")
        try:
            record = parse_json(line.rstrip("\r\n"), where)
        except BundleMLLMError as error:
            report(str(error))
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            report(f"{where} is a {type(record).__name__}, not an object: write {{…}}.")


def _iter_parquet(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for batch in _parquet_batches(path, lambda _: None):
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError) as error:  # text that is no UTF-8, dates of other calendars
            raise BundleMLLMError(
                f"{name} rows {number + 1} to {number + len(batch)} hold a value that cannot be read ({error}): "
                "write dates of the years 1 to 9999, and text as UTF-8."
            ) from error
        for number, row in enumerate(rows, start=number + 1):  # noqa: B020
            yield f"{name} row {number}", row


def _table(path: str | os.PathLike) -> tuple[Path, str]:
    """Return the path of a table that must exist, and its suffix."""
    suffix = suffix_of(Path(path))
    return require_file(path), suffix


def _iter_csv(stream: TextIO, name: str, delimiter: str, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(bounds().cell_characters)  # a long description; the default is 131,072 characters
    reader = csv.reader(stream, strict=True, delimiter=delimiter)
    header = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            report(f"{name} line {reader.line_num} is not CSV ({error}): correct the line.")
            continue
        if row is None:
            return
        if header is None:
            header = _header(row, name)
        elif len(row) == len(header):
            yield line, {column: cell or None for column, cell in zip(header, row, strict=True)}
        elif row:
            report(_wrong_length(f"{name} line {line}", len(row), len(header)))


def _wrong_length(where: str, number: int, expected: int) -> str:
    return f"{where} has {number} cells for {expected} columns: quote cells that hold a comma, and keep empty cells."


def _header(cells: list[str], path: Path | str) -> list[str]:
    """Return the names of columns without the blanks around them; columns without a name may be several."""
    header = [name.strip() for name in cells]
    named = [name for name in header if name]
    if len(set(named)) < len(named):
        raise BundleMLLMError(f"{path} names a column twice in its header {header}: rename one of them.")
    return header


def _csv_batches(
    path: Path, choose: Callable[[Sequence[str]], list[str]], delimiter: str, report: Report
) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow
    import pyarrow.csv

    with open_text(path) as stream:
        cells = next(csv.reader(stream, delimiter=delimiter), [])
    header = _header(cells, path)
    columns = choose(header)
    written = [cells[header.index(name)] for name in columns]  # with the blanks around them
    malformed: list[str] = []

    def note(row: Any) -> str:
        where = f"{path} row {row.number - 1}" if row.number else str(path)
        malformed.append(_wrong_length(where, row.actual_columns, row.expected_columns))
        return "error" if report is refuse else "skip"

    try:
        with pyarrow.input_stream(path) as stream:  # unpacks .gz
            batches = pyarrow.csv.open_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=_BATCH_BYTES),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=delimiter,
                    newlines_in_values=True,
                    invalid_row_handler=note,
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=written,
                    column_types=dict.fromkeys(written, pyarrow.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
            for batch in batches:
                yield batch.rename_columns(columns)
    except (pyarrow.ArrowException, OSError) as error:
        if malformed:
            raise BundleMLLMError(malformed[0]) from error
        raise BundleMLLMError(f"{path} is not CSV ({error}): correct it, or copy it again.") from error
    for message in malformed:
        report(message)


def _parquet_batches(path: Path, choose: Callable[[Sequence[str]], list[str] | None]) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            columns = choose(table.schema_arrow.names)
            num_rows, size = table.metadata.num_rows, max(path.stat().st_size, 4096)
            if columns is None:
                check("table_rows", num_rows, str(path), "split the file")
            check("rows_per_byte", num_rows // size, str(path), "its rows are nearly all the same")
            yield from table.iter_batches(65_536 if columns is None else BATCH_ROWS, columns=columns)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # of damaged pages, of damaged names
        raise BundleMLLMError(f"{path} is not a Parquet file that can be read ({error}): write it again.") from error


def _write_csv(stream: TextIO, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    columns = _columns(rows)
    # Python before 3.13 leaves a carriage return without quotes, which then ends the line
    quoting = csv.QUOTE_ALL if any("\r" in str(cell) for row in rows for cell in row.values()) else csv.QUOTE_MINIMAL
    writer = csv.writer(stream, lineterminator="\n", quoting=quoting)
    if columns:
        writer.writerow(columns)
    for number, row in enumerate(rows, start=1):
        cells = [row.get(column) for column in columns]
        nested = (list, tuple, Mapping)
        writer.writerow([_to_json(cell, path, number) if isinstance(cell, nested) else cell for cell in cells])


def _write_parquet(temporary: Path, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = list(rows)
    try:
        table = pyarrow.table({column: [row.get(column) for row in rows] for column in _columns(rows)})
        pyarrow.parquet.write_table(table, temporary)
    except (pyarrow.ArrowException, OverflowError) as error:
        raise BundleMLLMError(
            f"{path} cannot be written: {_misfit(rows) or error}. Give each column one type, integers of 64 bits and "
            "objects that are not empty, or write .jsonl."
        ) from error


def _misfit(rows: list[Mapping[str, Any]]) -> str | None:
    """Name the column and the row whose value Parquet cannot hold beside those before it."""
    import pyarrow

    for column in _columns(rows):
        values = [row.get(column) for row in rows]
        try:
            pyarrow.array(values)
            continue
        except (pyarrow.ArrowException, OverflowError, ValueError, TypeError):
            given = [number for number, value in enumerate(values, start=1) if value is not None]
        first = values[given[0] - 1]
        for number in given:
            try:
                pyarrow.array([first, values[number - 1]])
            except (pyarrow.ArrowException, OverflowError, ValueError, TypeError):
                other = "" if number == given[0] else f" and {_kind(first)} in row {given[0]}"
                return f"the column {column!r} has {_kind(values[number - 1])} in row {number}{other}"
    return None


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number" if abs(value) < 1 << 63 else "an integer of more than 64 bits"
    return {str: "text", list: "a list", dict: "an object" if value else "an empty object"}.get(type(value), "a value")


def _columns(rows: list[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _to_json(value: Any, path: Path, number: int) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleMLLMError(
            f"{path} row {number} cannot be written as JSON ({error}): use finite numbers and text."
        ) from error
