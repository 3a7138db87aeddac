"""Keep the items of a model folder with all their columns, and what is needed to describe new ones.

Knows nothing about models or how items are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle_mllm.completion.columns import ITEM_TABLE
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.files import read_json, write_json
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.memberships import TEXTUAL, ItemGroups
from bundle_mllm.data.tables import read_records, write_records
from bundle_mllm.encoders.fitted import ENCODERS_FOLDER, copy_encoders
from bundle_mllm.errors import BundleMLLMError

GROUP_NAMES = "group_names.json"
"""The names of the groups of a membership, in the order of their numbers."""
_TEXTS = ("item_id", "title", "description", "category", "image", "audio")
_FIX = "train the model again with this version of bundle-mllm"


def write_item_table(folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write the items of a model folder in one step.

    Columns are those of all records; a column whose values are not of one kind becomes text.
    """
    rows = [dict(record) for record in records]
    names = [*_TEXTS, *dict.fromkeys(name for row in rows for name in row if name not in _TEXTS)]
    columns = {name: _of_one_kind([row.get(name) for row in rows]) for name in names}
    cells = zip(*columns.values(), strict=True)
    write_records(folder / ITEM_TABLE, [dict(zip(names, row, strict=True)) for row in cells])


def read_item_table(folder: Path) -> list[dict[str, Any]]:
    """Read the items of a model folder, one dictionary for each catalog row, without the cells that are empty.

    Raises:
        BundleMLLMError: If the folder has no such table.
    """
    path = folder / ITEM_TABLE
    if not path.is_file():
        raise BundleMLLMError(f"{folder} has no {ITEM_TABLE}, so only ids and titles of its items are known: {_FIX}.")
    return [{name: value for name, value in row.items() if value is not None} for row in read_records(path)]


def read_categories(folder: Path) -> list[tuple[str, str | None]]:
    """Read id and category of each item of a model folder; nothing if it has no item table."""
    import pyarrow.parquet

    if not (folder / ITEM_TABLE).is_file():
        return []
    table = pyarrow.parquet.read_table(folder / ITEM_TABLE, columns=["item_id", "category"])
    return list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))


def save_items(folder: Path, data: DatasetFolder, modalities: Iterable[str], memberships: Iterable[str]) -> None:
    """Write all that a model folder keeps of the items it was trained on, so that others can be added.

    Args:
        folder: The model folder.
        data: The dataset folder.
        modalities: Those that its models read.
        memberships: Those that its retriever counts.
    """
    write_item_table(folder, data.catalog.records())
    write_group_names(folder, data.catalog, memberships)
    copy_encoders(data.path / "features" / ENCODERS_FOLDER, folder / ENCODERS_FOLDER, modalities)


def write_group_names(folder: Path, catalog: ItemCatalog, memberships: Iterable[str]) -> None:
    """Write the words that are the groups of the membership `textual`, where a retriever has it."""
    if TEXTUAL in memberships:
        write_json(folder / GROUP_NAMES, {TEXTUAL: ItemGroups.of_words(catalog).names})


def read_group_names(folder: Path) -> dict[str, Sequence[str]]:
    """Read what `write_group_names` wrote; nothing if there is none."""
    path = folder / GROUP_NAMES
    return read_json(path) if path.is_file() else {}


def _of_one_kind(values: list[Any]) -> list[Any]:
    """Return the cells of a column as they are if Parquet can hold them in one column, else as text."""
    import pyarrow

    try:
        pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError):
        return [value if value is None or isinstance(value, str) else str(value) for value in values]
    return values
