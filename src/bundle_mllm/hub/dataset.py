"""Publish a dataset folder: as a repository that `datasets.load_dataset` reads and that is still a dataset folder.

Knows nothing about models.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars, enable_progress_bars, load_dataset
from datasets.utils import are_progress_bars_disabled
from huggingface_hub import DatasetCard, DatasetCardData
from pyarrow.parquet import read_schema

from bundle_mllm.data.bundles import SPLITS, find_bundles
from bundle_mllm.data.catalog import MEDIA, ItemCatalog
from bundle_mllm.data.features import MANIFEST
from bundle_mllm.data.files import read_json, write_json
from bundle_mllm.data.folder import OUT_OF_FOLD, DatasetFolder
from bundle_mllm.data.folds import OutOfFoldFeatures, count_folds
from bundle_mllm.data.interactions import USER, Interactions
from bundle_mllm.data.questions import load_questions
from bundle_mllm.data.tables import SUFFIXES, find_table, iter_records, write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.card import card_template, check_license, split_name
from bundle_mllm.hub.integrity import check_safe, read_tensors
from bundle_mllm.hub.records import FEATURES, FEATURES_METADATA
from bundle_mllm.hub.repository import CARD, PublishReport, link_or_copy, place_tensors
from bundle_mllm.hub.schema import rebuild
from bundle_mllm.hub.settings import LICENSE_UNKNOWN, DatasetPublishSettings
from bundle_mllm.hub.upload import check_repo_id, publish_folder
from bundle_mllm.importers.assemble import IMPORT_RECORD
from bundle_mllm.settings import configured_by

INTERACTIONS = "interactions.parquet"
TAGS = ("bundle-mllm", "product-bundling", "recommendation", "arxiv:2407.11712")
WRITTEN = (
    CARD,
    "items.parquet",
    "bundles/*.parquet",
    "questions/*.parquet",
    "features/*.safetensors",
    f"features/{OUT_OF_FOLD}/*.safetensors",
    f"features/{MANIFEST}",
    *(f"interactions{suffix}" for suffix in SUFFIXES),
)
"""The files of a dataset repository that this module writes, or wrote; others stay when it is published again."""
COLUMNS = {
    "items": ("item_id", "title", "description", "category", "image", "audio"),
    "bundles": ("bundle_id", "items", "split", "name"),
    "questions": ("question_id", "bundle_id", "partial", "candidates", "answer_index"),
}
"""The columns of each table that are published without being named."""
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class _Table:
    """One configuration of the repository, with the number of rows of each split."""

    config: str
    splits: dict[str, int]
    columns: tuple[str, ...] = ()

    def file(self, split: str) -> str:
        """Return the path of a split in the repository."""
        return "items.parquet" if self.config == "items" else f"{self.config}/{split}.parquet"


@configured_by(DatasetPublishSettings)
def publish_dataset(settings: DatasetPublishSettings) -> PublishReport:
    """Publish a dataset folder on the Hub.

    The repository holds features and tables (Parquet, ids as text), which `datasets.load_dataset(repo, "items" |
    "bundles" | "questions")` reads; a download is a dataset folder with the same items, bundles and questions.

    Args:
        settings: Whose fields are the arguments: see `DatasetPublishSettings`.

    Returns:
        The files with their sizes, and the commit.

    Raises:
        BundleMLLMError: If the name is none, there is no valid token, the folder is malformed, a column mixes types,
            no table has a named column, ids are order numbers, or the Hub cannot be reached. Then nothing has become
            visible.
    """
    source = settings.data
    check_repo_id(settings.repo)
    check_license(settings.license)
    data = DatasetFolder.open(source)
    if not any(data.bundles[split] for split in SPLITS):
        raise BundleMLLMError(f"{source} holds no bundle, so nothing can be learned from it: add some.")
    _check_order_ids(data, settings.share_order_ids)
    media = {path: _path_inside(source, path) for item in data.catalog for path in (item.image, item.audio) if path}
    used: set[Path] = set()
    writer = _Writer(data, (*settings.columns, *([USER] if settings.include_interactions else [])))

    def write(target: Path) -> None:
        writer.write_items(target, media)
        writer.write_bundles(target)
        writer.write_questions(target)
        if unknown := set(settings.columns) - writer.published:
            raise BundleMLLMError(f"No table has a column {min(unknown)!r} to publish: check --columns.")
        features = _place_features(data, target)
        interactions = find_table(source, "interactions") if settings.include_interactions else None
        if interactions is not None:
            Interactions.load(source, data.catalog).save(target / INTERACTIONS, data.catalog)
            used.add(interactions)
        for name, path in sorted(media.items()) if settings.include_media else ():
            file = source / name
            if path is None or not file.resolve().is_relative_to(source.resolve()) or not file.is_file():
                raise BundleMLLMError(
                    f"An item names {name!r}, which is not in {source}: correct it or publish without --include-media."
                )
            link_or_copy(file, target / path)
            used.add(source / Path(path).parts[0])
        card = _render_card(
            settings.repo,
            settings.license,
            writer.tables,
            features=features,
            cross_fitted=[name for name in features if count_folds(data.path / "features", name)],
            interactions=None if interactions is None else INTERACTIONS,
            names_media=bool(media),
            media=settings.include_media,
        )
        (target / CARD).write_text(str(card), encoding="utf-8")

    def check(target: Path) -> None:
        check_safe(target)
        _check_readable(target, writer.tables)
        copy = DatasetFolder.open(target)
        is_same = all(copy.bundles[split] == data.bundles[split] for split in SPLITS)
        if not is_same or copy.catalog.content_hash != data.catalog.content_hash:
            raise BundleMLLMError(f"The repository holds other items or bundles than {source}: report this.")

    published = publish_folder(
        source, settings.repo, settings, write, check, repo_type="dataset", written=WRITTEN, sources=writer.sources
    )
    used |= {path for path, _ in find_bundles(source)}
    used |= {source / name for name in ("features", "questions", "bundles")}
    left = [path.name for path in source.iterdir() if path not in used]
    left_out = sorted(name for name in left if not name.startswith(("items.", ".")))
    columns = {table: ", ".join(names) for table, names in writer.left.items() if names}
    left_out += [f"columns of the {table} (--columns publishes them): {names}" for table, names in columns.items()]
    if num_outside := sum(path is None for path in media.values()):
        left_out.append(f"{num_outside} paths of pictures and sounds that are not in the folder")
    notes = [f"bundle ids (such as {next(iter(data.bundles)).bundle_id!r}): are they order numbers?"]
    notes += ["user ids: do they name anyone?"] if settings.include_interactions else []
    return replace(published, left_out=tuple(left_out), notes=tuple(notes))


def _check_order_ids(data: DatasetFolder, share: bool) -> None:
    """Refuse to publish order numbers without a word: who has a receipt finds the order, and what else is in it."""
    record = data.path / IMPORT_RECORD
    if not share and record.is_file() and read_json(record).get("made_of") == "orders":
        raise BundleMLLMError(
            f"The bundles of {data.path} are orders, and their ids the numbers of these orders (such as "
            f"{next(iter(data.bundles)).bundle_id!r}), by which customers can be found: import them again with "
            "--order-ids number, or publish them with --share-order-ids."
        )


@dataclass
class _Writer:
    """Writes the tables, and keeps where each comes from and which columns were published, or stay here."""

    data: DatasetFolder
    named: tuple[str, ...]
    tables: list[_Table] = field(default_factory=list)
    sources: dict[str, Path] = field(default_factory=dict)
    published: set[str] = field(default_factory=set)
    left: dict[str, dict[str, None]] = field(default_factory=dict)

    def write_items(self, target: Path, media: Mapping[str, str | None]) -> None:
        """Write the items; one whose picture or sound is outside the folder has none."""
        items = (
            replace(
                item,
                extra=self._select("items", item.extra),
                **{kind: media.get(getattr(item, kind) or "") for kind in MEDIA},
            )
            for item in self.data.catalog
        )
        self.sources["items.parquet"] = find_table(self.data.path, "items") or self.data.path
        ItemCatalog(items).save(target / "items.parquet")
        self._add(target, _Table("items", {"items": len(self.data.catalog)}))

    def write_bundles(self, target: Path) -> None:
        """Write a file per split; who made a bundle goes along with the interactions only."""
        by_id = {bundle.bundle_id: bundle for bundle in self.data.bundles}
        splits: dict[str, list[Mapping[str, Any]]] = {split: [] for split in SPLITS}
        table = _Table("bundles", {})
        for path, _ in find_bundles(self.data.path):
            for record in iter_records(path):
                bundle = by_id[str(record["bundle_id"])]
                known = {"bundle_id": bundle.bundle_id, "items": list(bundle.items), "split": bundle.split}
                splits[bundle.split].append({**self._select("bundles", record), **known})
                self.sources[table.file(bundle.split)] = path
        for split, records in splits.items():
            if records:
                write_records(target / table.file(split), records)
                table.splits[split] = len(records)
        self._add(target, table)

    def write_questions(self, target: Path) -> None:
        """Write a file for each file of questions."""
        table = _Table("questions", {})
        for path in sorted((self.data.path / "questions").glob("[!.]*")):
            if not path.name.endswith(SUFFIXES):
                continue
            split = split_name(path.name)
            if split in table.splits:
                raise BundleMLLMError(f"{path} would be the split {split!r} of the questions twice: rename it.")
            known = [
                {name: list(value) if isinstance(value, tuple) else value for name, value in vars(question).items()}
                for question in load_questions(path, self.data.catalog)
            ]
            rows = zip(iter_records(path), known, strict=True)
            self.sources[table.file(split)] = path
            write_records(target / table.file(split), [{**self._select("questions", row), **new} for row, new in rows])
            table.splits[split] = len(known)
        if table.splits:
            self._add(target, table)

    def _add(self, target: Path, table: _Table) -> None:
        columns = [name for split in table.splits for name in read_schema(target / table.file(split)).names]
        self.tables.append(replace(table, columns=tuple(dict.fromkeys(columns))))

    def _select(self, table: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a record that are published."""
        kept = {name: value for name, value in record.items() if name in COLUMNS[table] or name in self.named}
        self.published |= kept.keys()
        self.left.setdefault(table, {}).update(dict.fromkeys(name for name in record if name not in kept))
        return kept


def _place_features(data: DatasetFolder, target: Path) -> list[str]:
    store = data.features()
    if store is None:
        return []
    for start in range(0, len(data.catalog), _ROWS_AT_ONCE):  # refuses values that no training could use
        store.gather(range(start, min(start + _ROWS_AT_ONCE, len(data.catalog))))
    folder = data.path / "features"
    versions = [path for path in (folder / OUT_OF_FOLD).glob("[!.]*.safetensors") if path.stem in store.modalities]
    for path in versions:
        OutOfFoldFeatures.load(data, path.stem)  # refuses versions of other features, which no training could use
    for path in sorted([*folder.glob("[!.]*.safetensors"), *versions]):
        metadata = rebuild(read_tensors(path)[1], FEATURES_METADATA)
        place_tensors(path, target / "features" / path.relative_to(folder), metadata)
    if (folder / MANIFEST).exists():
        write_json(target / "features" / MANIFEST, rebuild(read_json(folder / MANIFEST), FEATURES))
    return list(store.modalities)


def _path_inside(folder: Path, name: str) -> str | None:
    """Return a path of a picture or sound relative to the folder, or `None` if it leads out; a URL stays."""
    if "://" in name and not name.lower().startswith("file:"):
        return name
    if name.startswith("~") or re.match(r"file:|[A-Za-z]:[/\\]|\\\\", name):
        return None
    root = os.path.realpath(folder)
    path = Path(os.path.normpath(os.path.join(root, name)))
    for base in (root, os.path.abspath(folder)):
        if path.is_relative_to(base) and path != Path(base):
            return path.relative_to(base).as_posix()
    return None


def _render_card(repo_id: str, license: str, tables: list[_Table], **context: Any) -> DatasetCard:
    name = repo_id.split("/")[-1]
    metadata = DatasetCardData(
        license=license,
        pretty_name=name,
        task_categories=["multiple-choice"],
        tags=list(TAGS),
        configs=[
            {"config_name": t.config, "data_files": [{"split": split, "path": t.file(split)} for split in t.splits]}
            for t in tables
        ],
    )
    text = card_template("dataset_card.md").render(
        metadata=metadata.to_yaml(),
        name=name,
        repo_id=repo_id,
        tables=tables,
        license_text="not stated" if license == LICENSE_UNKNOWN else license,
        **context,
    )
    return DatasetCard(text)


def _check_readable(folder: Path, tables: list[_Table]) -> None:
    """Read each table as its users will."""
    hidden, read = are_progress_bars_disabled(), {}
    disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:
            for table in tables:
                loaded = load_dataset(str(folder), table.config, cache_dir=cache)
                read[table.config] = {split: len(loaded[split]) for split in loaded}
                del loaded
    except Exception as error:  # whatever the readers of `datasets` raise
        raise BundleMLLMError(
            f"{folder} cannot be read with load_dataset: {' '.join(str(error).split())} Give each column one type."
        ) from error
    finally:
        if not hidden:
            enable_progress_bars()
    if missing := [table.config for table in tables if read[table.config] != table.splits]:
        raise BundleMLLMError(f"{folder} does not give all rows of {missing[0]} through load_dataset: report this.")
