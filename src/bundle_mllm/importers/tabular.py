"""Import tables of a shop: CSV, JSON Lines or Parquet, with columns of any name.

Knows nothing about the data set that the tables are of.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle_mllm.data.files import new_folder, require_folder
from bundle_mllm.data.interactions import Interactions
from bundle_mllm.data.splitting import FRACTIONS, check_fractions
from bundle_mllm.data.tables import SUFFIXES, find_table, iter_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.assemble import (
    collect_bundles,
    collect_items,
    note_interactions,
    settle_bundles,
    write_dataset,
)
from bundle_mllm.importers.columns import FIELDS, Columns, check_columns
from bundle_mllm.importers.media import MediaFolder
from bundle_mllm.importers.summary import ImportNotes, ImportSummary


def import_tabular(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    columns: Mapping[str, str] | None = None,
    tables: Mapping[str, str] | None = None,
    delimiter: str = ",",
    media_dir: str | os.PathLike | None = None,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 42,
    strict: bool = False,
) -> ImportSummary:
    r"""Turn tables of items, bundles and, optionally, interactions into a dataset folder.

    Bundles are one row each, with a list of item ids (a list, or a JSON list as text), or one row per bundle and item.
    An error names file and row: a malformed line, an item or bundle without an id, an item described in two ways, a
    repeated bundle, an unknown split. Counted, reported and left out: items of bundles and interactions
    that the items table lacks, bundles of fewer than two items, interactions without user or item, files of media
    that are missing. Counted once: repeated pairs of user and item, repeated items of a bundle.

    Args:
        source: The folder of the tables.
        output_dir: Receives the dataset folder. It must not exist or be empty, and it appears only when all of it is
            written. The same source and seed give the same bytes.
        columns: The column of each field that has another name, see `columns.Columns`, such as
            `{"item_id": "sku", "title": "product_name", "bundles.items": "products"}`.
        tables: The file of each of `items`, `bundles` and `interactions` that has another name, relative to `source`.
        delimiter: What separates the cells of CSV files; `"\t"` for tabs.
        media_dir: The folder that `image` and `audio` are relative to; by default that of the items table. The files
            are copied, byte for byte.
        fractions: The shares of train, validation and test, for bundles without a column `split`.
        seed: Seed of these splits.
        strict: Refuse to leave anything out.

    Returns:
        What was written, and what was left out or repaired.

    Raises:
        BundleMLLMError: If a file, column or row is not what it should be, or `output_dir` is not empty.
    """
    source = Path(source)
    check_fractions(fractions)
    check_columns(columns)
    if len(delimiter) != 1:
        raise BundleMLLMError(f"The delimiter {delimiter!r} is not one character: use ',', ';' or a tab.")
    paths = _find_tables(source, tables or {})
    notes = ImportNotes(strict)
    with new_folder(output_dir) as folder:
        root = require_folder(paths["items"].parent if media_dir is None else media_dir, "check media_dir")
        media = MediaFolder(folder, root, notes)
        records = _read(paths["items"], Columns("items", columns), delimiter, notes)
        catalog = collect_items(records, str(paths["items"]), notes, media)
        records = _read(paths["bundles"], Columns("bundles", columns), delimiter, notes)
        raw = collect_bundles(records, str(paths["bundles"]))
        bundles = settle_bundles(raw, catalog, str(paths["bundles"]), notes, fractions=fractions, seed=seed)
        interactions = None
        if "interactions" in paths:
            names = Columns("interactions", columns).of
            interactions = Interactions.read(paths["interactions"], catalog, columns=names, delimiter=delimiter)
            note_interactions(interactions, paths["interactions"].name, notes)
        return write_dataset(folder, Path(output_dir), catalog, bundles, interactions, notes)


def _find_tables(source: Path, tables: Mapping[str, str]) -> dict[str, Path]:
    require_folder(source, "give the folder that holds the tables")
    if unknown := tables.keys() - FIELDS.keys():
        raise BundleMLLMError(f"There is no table {min(unknown)!r}: name the files of {', '.join(FIELDS)}.")
    paths = {}
    for table in FIELDS:
        path = source / tables[table] if table in tables else find_table(source, table)
        if path is not None and path.is_file():
            paths[table] = path
        elif path is not None:
            raise BundleMLLMError(f"There is no file {path}: correct the name that `tables` gives for {table}.")
        elif table != "interactions":
            raise BundleMLLMError(
                f"{source} holds no table {table} ({', '.join(table + suffix for suffix in SUFFIXES)}): add it, or "
                f"name its file, such as {table}=FILE."
            )
    return paths


def _read(path: Path, columns: Columns, delimiter: str, notes: ImportNotes) -> Iterator[dict[str, Any]]:
    """Read a table under the names of fields, and check afterwards that it had the columns that are mapped."""
    seen: dict[str, None] = {}

    def watched() -> Iterator[dict[str, Any]]:
        for record in iter_records(path, delimiter):
            seen.update(dict.fromkeys(record))
            yield record

    yield from columns.rename(watched())
    columns.check_seen(str(path), seen, optional=("item_id",) if columns.name("items") in seen else ())
    if columns.replaced:
        names = ", ".join(sorted(columns.replaced))
        notes.warn(f"{path.name}: columns whose name another column took were left out: {names}.")
