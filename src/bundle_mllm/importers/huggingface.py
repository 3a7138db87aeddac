"""Import a data set of the Hugging Face Hub, or a local folder that `datasets` reads.

Knows nothing about the other formats, and runs no code that comes with a data set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bundle_mllm.data.files import new_folder
from bundle_mllm.data.interactions import ITEM, USER, Interactions
from bundle_mllm.data.records import require_fields
from bundle_mllm.data.splitting import FRACTIONS, check_fractions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub_access import hub_problem
from bundle_mllm.importers.assemble import (
    Place,
    collect_bundles,
    collect_items,
    note_interactions,
    settle_bundles,
    write_dataset,
)
from bundle_mllm.importers.columns import FIELDS, Columns
from bundle_mllm.importers.media import MediaFolder
from bundle_mllm.importers.summary import ImportNotes, ImportSummary

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

TABLES = ("items", "bundles", "interactions")
_SAVED = ("state.json", "dataset_dict.json")  # a folder of `save_to_disk` has one of them


def import_huggingface(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    columns: Mapping[str, str] | None = None,
    tables: Mapping[str, str] | None = None,
    revision: str | None = None,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 42,
    strict: bool = False,
) -> ImportSummary:
    """Turn a data set of the Hub or a local one into a dataset folder.

    Items, bundles and, optionally, interactions are configurations of the data set (subsets, as the Hub calls them),
    or sub-folders that `save_to_disk` wrote. Of items and interactions all splits are read; the splits of bundles are
    kept, unless the table has a column `split` or a single split, which is how unsplit data come. Columns of the types
    `Image` and `Audio` are written to files with the bytes they have; nothing is decoded. Names stand in place of the
    numbers of a `ClassLabel`. Errors, and what is counted instead, are those of [`import_tabular`]. Loading scripts
    and pickled data are refused. `ImportSettings` has the meaning of the arguments; the folder appears only when all
    of it is written.

    Raises:
        BundleMLLMError: If a table cannot be loaded, or its columns or rows are not what they should be.
    """
    check_fractions(fractions)
    of = {table: Columns(table, columns) for table in TABLES}
    loaded = _load(source, tables or {}, revision)
    notes = ImportNotes(strict)
    with new_folder(output_dir) as folder:
        base = Path(source) if Path(source).is_dir() else None
        media = MediaFolder(folder, base, notes, caches=_caches())
        records = {table: _read(loaded[table], of[table], table, source, notes) for table in ("items", "bundles")}
        catalog = collect_items(records["items"], f"{source} items", notes, media)
        raw = collect_bundles(records["bundles"], notes)
        notes.refuse_problems()
        media.sound_alarm()
        bundles = settle_bundles(raw, catalog, f"{source} bundles", notes, fractions=fractions, seed=seed)
        interactions = None
        if "interactions" in loaded:
            batches = _interaction_batches(loaded["interactions"], of["interactions"], str(source))
            interactions = Interactions.from_batches(batches, catalog, f"{source} interactions", of["interactions"].of)
            note_interactions(interactions, catalog, "interactions", notes)
        return write_dataset(folder, Path(output_dir), catalog, bundles, interactions, notes)


def _load(source: str | os.PathLike, tables: Mapping[str, str], revision: str | None) -> dict[str, dict[str, Dataset]]:
    """Return the splits of each table."""
    import datasets
    from datasets.exceptions import DatasetsError

    if unknown := tables.keys() - set(TABLES):
        raise BundleMLLMError(f"There is no table {min(unknown)!r}: name the subsets of {', '.join(TABLES)}.")
    names = {table: tables.get(table, table) for table in TABLES}
    folder = Path(source)
    saved = {
        table: folder / name for table, name in names.items() if any((folder / name / f).is_file() for f in _SAVED)
    }
    try:
        if saved:
            loaded = {table: datasets.load_from_disk(os.fspath(path)) for table, path in saved.items()}
            subsets = sorted(path.parent.name for file in _SAVED for path in folder.glob(f"*/{file}"))
        else:
            subsets = datasets.get_dataset_config_names(os.fspath(source), revision=revision)
            loaded = {
                table: _load_subset(os.fspath(source), name, revision)
                for table, name in names.items()
                if name in subsets
            }
    except (DatasetsError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise BundleMLLMError(
            f"`datasets` cannot load {source} ({hub_problem(error) or error}): give a data set of the Hub, or a "
            "folder of `save_to_disk`."
        ) from error
    for table, name in names.items():
        if table not in loaded and (table in tables or table != "interactions"):
            raise BundleMLLMError(
                f"{source} has no subset {name!r} for the {table} (its subsets: {', '.join(subsets) or 'none'}): name "
                f"the one that holds them, such as {table}=SUBSET."
            )
    return {
        table: {str(split): part for split, part in data.items()} if isinstance(data, dict) else {"": data}
        for table, data in loaded.items()
    }


def _load_subset(source: str, name: str, revision: str | None) -> Any:
    """Load one configuration; cells of CSV files are text, as in every table: `0012` and `NA` are ids."""
    import datasets
    from datasets.packaged_modules.csv.csv import CsvConfig

    builder = datasets.load_dataset_builder(source, name, revision=revision)
    if not isinstance(builder.config, CsvConfig):
        return datasets.load_dataset(source, name, revision=revision)
    declared = builder.info.features or {}
    parts = datasets.load_dataset(source, name, revision=revision, streaming=True)
    columns = dict.fromkeys(column for part in parts.values() for record in part.take(1) for column in record)
    text = datasets.Value("string")
    kinds = {name: text if isinstance(kind := declared.get(name, text), datasets.Value) else kind for name in columns}
    return datasets.load_dataset(
        source,
        name,
        revision=revision,
        features=datasets.Features(kinds) if kinds else None,
        keep_default_na=False,
        na_values=[""],
    )


def _caches() -> list[Path]:
    """Return the folders that `datasets` downloads to: media that are files of their own lie there."""
    import datasets.config
    import huggingface_hub.constants

    return [Path(datasets.config.HF_DATASETS_CACHE), Path(huggingface_hub.constants.HF_HUB_CACHE)]


def _read(
    parts: Mapping[str, Dataset], columns: Columns, table: str, source: str | os.PathLike, notes: ImportNotes
) -> Iterator[Place]:
    """Yield the records of all splits under the names of fields; those of bundles with their split."""
    seen = {name for part in parts.values() for name in part.column_names}
    named = table == "bundles" and len(parts) > 1 and columns.name("split") not in seen
    records = (
        {**record, "split": split} if named else record for split, part in parts.items() for record in _iter_rows(part)
    )
    places = ((f"{source} {table} row {number}", record) for number, record in enumerate(records, start=1))
    return columns.rename(places, f"{source} {table}", notes)


def _iter_rows(part: Dataset) -> Iterator[dict[str, Any]]:
    """Yield the rows as stored: bytes of media are not decoded, and a label is its name."""
    from datasets import ClassLabel

    labels = {name: feature for name, feature in part.features.items() if isinstance(feature, ClassLabel)}
    heavy = any("binary" in str(field.type) for field in part.features.arrow_schema)
    for batch in _iter_arrow(part, 64 if heavy else 10_000):
        for row in batch.to_pylist():
            for name, feature in labels.items():
                number = row[name]
                row[name] = None if number is None or number < 0 else feature.int2str(number)
            yield row


def _iter_arrow(part: Dataset, num_rows: int) -> Iterator[pyarrow.Table]:
    return cast("Iterator[pyarrow.Table]", part.with_format("arrow").iter(num_rows))


def _interaction_batches(parts: Mapping[str, Dataset], columns: Columns, source: str) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    for part in parts.values():
        require_fields(
            dict.fromkeys(part.column_names), map(columns.name, (USER, ITEM, *columns.of)), f"{source} interactions"
        )
        fields = [field for field in FIELDS["interactions"] if columns.name(field) in part.column_names]
        chosen = part.select_columns([columns.name(field) for field in fields])
        for table in _iter_arrow(chosen, 200_000):
            arrays = [table.column(columns.name(field)).combine_chunks() for field in fields]
            yield pyarrow.record_batch(arrays, names=fields)
