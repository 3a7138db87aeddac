"""Read and hold the bundles of a data set, split into train, validation and test.

Knows nothing about features, questions or models.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.records import require_fields, to_id, to_ids, to_text
from bundle_mllm.data.tables import find_table, iter_records, write_records
from bundle_mllm.errors import BundleMLLMError, check_choice

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Bundle:
    """Items that belong together.

    Attributes:
        bundle_id: A stable name, unique over all splits.
        items: The distinct item ids. A bundle of fewer than two items is kept, but has no questions.
        split: One of [`SPLITS`].
        name: A title for people; no question shows it, since it is about the answer, too.
    """

    bundle_id: str
    items: tuple[str, ...]
    split: str
    name: str | None = None


@dataclass(frozen=True)
class BundleSplits:
    """All bundles of a data set, by split and in the order of their records.

    Attributes:
        train: Bundles to learn from; popularity and co-occurrence are counted in them alone.
        validation: Bundles to choose checkpoints on.
        test: Bundles to report on.
        num_repeated_items: How many repetitions of an item within its bundle were dropped; the first was kept.
    """

    train: tuple[Bundle, ...] = ()
    validation: tuple[Bundle, ...] = ()
    test: tuple[Bundle, ...] = ()
    num_repeated_items: int = 0

    @cached_property
    def train_sha256(self) -> str:
        """SHA-256 of the training bundles, whatever their order: their ids and items."""
        digest = hashlib.sha256()
        for bundle in sorted(self.train, key=lambda bundle: bundle.bundle_id):
            digest.update(json.dumps([bundle.bundle_id, sorted(bundle.items)]).encode())
        return digest.hexdigest()

    @classmethod
    def from_records(
        cls, records: Iterable[Mapping[str, Any]], catalog: ItemCatalog, source: str = "bundles"
    ) -> BundleSplits:
        """Build the splits from dictionaries.

        Args:
            records: One mapping per bundle with `bundle_id`, `items` (item ids, as a list or as a JSON list in text),
                `split` and, optionally, `name`. Other fields are ignored.
            catalog: The catalog that holds the items.
            source: What error messages call the records, such as a file name.

        Raises:
            BundleMLLMError: If a field is missing, a bundle is empty or repeated, or an item or split is unknown.
        """
        return cls._from_rows(((source, number, record) for number, record in enumerate(records, start=1)), catalog)

    @classmethod
    def _from_rows(cls, rows: Iterable[tuple[str, int, Mapping[str, Any]]], catalog: ItemCatalog) -> BundleSplits:
        """Build the splits from records and where each stands: a source, and a row of it."""
        bundles: dict[str, Bundle] = {}
        num_repeated_items = 0
        for source, number, record in rows:
            bundle, num_items = _to_bundle(record, catalog, f"{source} row {number}")
            if (other := bundles.get(bundle.bundle_id)) is not None:
                splits = " and ".join(dict.fromkeys(f"in {b.split}" for b in (other, bundle)))
                raise BundleMLLMError(
                    f"{source} has the bundle {bundle.bundle_id!r} twice, {splits} (again in row {number}), so its "
                    "items could be learned and be answers, too: remove or rename one."
                )
            bundles[bundle.bundle_id] = bundle
            num_repeated_items += num_items - len(bundle.items)
        by_split = {split: tuple(b for b in bundles.values() if b.split == split) for split in SPLITS}
        return cls(**by_split, num_repeated_items=num_repeated_items)

    @classmethod
    def load(cls, path_or_folder: str | os.PathLike, catalog: ItemCatalog) -> BundleSplits:
        """Read the splits from a table, or from the bundles of a folder, see [`find_bundles`].

        Raises:
            BundleMLLMError: If there is no such table, or for what [`~BundleSplits.from_records`] refuses.
        """
        path = Path(path_or_folder)
        if path.is_file():
            return cls.from_records(iter_records(path), catalog, source=str(path))
        files = find_bundles(path)
        if not files:
            needed = "one row per bundle with `bundle_id`, `items` and `split`"
            raise BundleMLLMError(f"{path} holds no bundles file: add bundles.jsonl, .csv or .parquet, {needed}.")
        return cls._from_rows((row for file, split in files for row in _iter_rows(file, split)), catalog)

    def save(self, path: str | os.PathLike) -> None:
        """Write all bundles as one table, split after split; the suffix of `path` chooses the format."""
        write_records(path, (_to_record(bundle) for bundle in self))

    def __getitem__(self, split: str) -> tuple[Bundle, ...]:
        check_choice("The split", split, SPLITS)
        return getattr(self, split)

    def __iter__(self) -> Iterator[Bundle]:
        return (bundle for split in SPLITS for bundle in self[split])

    def __len__(self) -> int:
        return sum(len(self[split]) for split in SPLITS)

    def __repr__(self) -> str:
        return f"BundleSplits({', '.join(f'{len(self[split])} {split}' for split in SPLITS)})"


def find_bundles(folder: str | os.PathLike) -> list[tuple[Path, str | None]]:
    """Find the bundles of a folder: the table `bundles`, or one table per split in the folder `bundles`.

    Returns:
        The files, if any, each with the split that its name gives: none for `bundles.jsonl`, `"train"` for
        `bundles/train.parquet`. A folder that has both is refused.
    """
    whole, parts = find_table(folder, "bundles"), Path(folder) / "bundles"
    files: list[tuple[Path, str | None]] = [
        (path, split) for split in SPLITS if parts.is_dir() and (path := find_table(parts, split)) is not None
    ]
    if whole is not None and files:
        raise BundleMLLMError(
            f"{folder} holds {whole.name} and bundles/{files[0][0].name}, so it is unclear which to read: keep one."
        )
    return files if whole is None else [(whole, None)]


def _iter_rows(path: Path, split: str | None) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    for number, record in enumerate(iter_records(path), start=1):
        if split is not None and record.setdefault("split", split) != split:
            raise BundleMLLMError(
                f"{path} row {number} has the split {record['split']!r}, but its file is that of {split!r}: move it."
            )
        yield str(path), number, record


def _to_bundle(record: Mapping[str, Any], catalog: ItemCatalog, where: str) -> tuple[Bundle, int]:
    """Return the bundle of a record and the number of its items before repetitions were dropped."""
    require_fields(record, ("bundle_id", "items", "split"), where)
    bundle_id = to_id(record["bundle_id"], where)
    where = f"{where} (bundle {bundle_id!r})"
    if record["split"] not in SPLITS:
        raise BundleMLLMError(f"{where} has the split {record['split']!r}: use one of {', '.join(SPLITS)}.")
    items = to_ids(record["items"], "items", where)
    if not items:
        raise BundleMLLMError(f"{where} is empty: give it items or remove it.")
    catalog.rows(items, where=where)
    name = to_text(record.get("name"), "name", where)
    return Bundle(bundle_id, tuple(dict.fromkeys(items)), record["split"], name), len(items)


def _to_record(bundle: Bundle) -> dict[str, Any]:
    record = {"bundle_id": bundle.bundle_id, "items": list(bundle.items), "split": bundle.split}
    return record if bundle.name is None else {**record, "name": bundle.name}
