"""Import tables of a shop: CSV, JSON Lines or Parquet, with columns of any name.

Knows nothing about the data set that the tables are of.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

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
from bundle_mllm.importers.columns import FIELDS, Columns
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

    `ImportSettings` has the meaning of the arguments; files in `tables` are
    relative to `source`, and `delimiter` is `"\t"` for tabs. The folder appears only when all of it is written, and
    the same source and seed give the same bytes.

    Raises:
        BundleMLLMError: If a file, column or row is not what it should be, or `output_dir` is not empty.
    """
    source = Path(source)
    check_fractions(fractions)
    of = {table: Columns(table, columns) for table in FIELDS}
    if len(delimiter) != 1:
        raise BundleMLLMError(f"The delimiter {delimiter!r} is not one character: use ',', ';' or a tab.")
    paths = _find_tables(source, tables or {})
    notes = ImportNotes(strict)
    with new_folder(output_dir) as folder:
        root = require_folder(paths["items"].parent if media_dir is None else media_dir, "check media_dir")
        records = {
            table: of[table].rename(iter_records(path, delimiter), str(path), notes) for table, path in paths.items()
        }
        media = MediaFolder(folder, root, notes)
        catalog = collect_items(records["items"], str(paths["items"]), notes, media)
        raw = collect_bundles(records["bundles"], str(paths["bundles"]))
        bundles = settle_bundles(raw, catalog, str(paths["bundles"]), notes, fractions=fractions, seed=seed)
        interactions = None
        if (path := paths.get("interactions")) is not None:
            names = of["interactions"].of
            interactions = Interactions.read(path, catalog, columns=names, delimiter=delimiter)
            note_interactions(interactions, path.name, notes)
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
                f"{source} holds no table {table} ({', '.join(SUFFIXES)}): add it, or name it: {table}=FILE."
            )
    return paths
