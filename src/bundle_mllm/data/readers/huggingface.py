"""Import a data set of the Hugging Face Hub, or a local folder that `datasets` reads.

It must not run code that comes with a data set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BundleMLLMError
from ..files import new_folder
from ..splitting import FRACTIONS, check_fractions
from ..user_log import ITEM, TIME, USER, collect_log
from .assemble import SPLIT_NAMES, collect_bundles, collect_items, count_log, settle_bundles, write_dataset
from .columns import FIELDS, Columns, check_columns
from .media import MediaFolder
from .summary import Findings, ImportSummary

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

_SAVED = ("state.json", "dataset_dict.json")  # one of them tells a folder of `save_to_disk`


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
    numbers of a `ClassLabel`. What is an error and what is counted is as in [`import_tabular`].

    Args:
        source: The data set's name on the Hub, or a local folder. Loading scripts and pickled data are refused.
        output_dir: Receives the dataset folder. It must not exist or be empty, and it appears only when all of it is
            written.
        columns: The column of each field that has another name, see `columns.Columns`.
        tables: The configuration or sub-folder of each of `items`, `bundles` and `interactions` that has another name.
        revision: The commit, branch or tag of a data set on the Hub.
        fractions: The shares of train, validation and test, for bundles without splits.
        seed: Seed of these splits.
        strict: Refuse to leave anything out.

    Returns:
        What was written and what was met.

    Raises:
        BundleMLLMError: If a table cannot be loaded, or its columns or rows are not what they should be.
    """
    check_fractions(fractions)
    check_columns(columns)
    loaded = _load(source, tables or {}, revision)
    findings = Findings(strict)
    with new_folder(output_dir) as folder:
        media = MediaFolder(folder, _media_roots(source), findings)
        names = {table: Columns(table, columns) for table in loaded}
        where = {table: f"{source} {table}" for table in loaded}
        catalog = collect_items(
            _rename(_iter_rows(loaded["items"]), loaded["items"], names["items"], where["items"], findings),
            where["items"],
            findings,
            media,
        )
        parts = loaded["bundles"]
        rows = _rename(_iter_rows(parts), parts, names["bundles"], where["bundles"], findings)
        if len(parts) > 1 and names["bundles"].name("split") not in next(iter(parts.values())).column_names:
            rows = _with_splits(parts, names["bundles"], where["bundles"], findings)
        raw = collect_bundles(rows, where["bundles"])
        bundles = settle_bundles(raw, catalog, where["bundles"], findings, fractions=fractions, seed=seed)
        log = None
        if "interactions" in loaded:
            log = collect_log(_iter_log(loaded["interactions"], names["interactions"], where["interactions"]), catalog)
            count_log(log, "interactions", findings)
        return write_dataset(folder, Path(output_dir), catalog, bundles, log, findings)
