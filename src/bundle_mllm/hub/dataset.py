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

from bundle_mllm.data.bundles import SPLITS, find_bundles
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.features import MANIFEST
from bundle_mllm.data.files import read_json, write_json
from bundle_mllm.data.folder import OUT_OF_FOLD, DatasetFolder
from bundle_mllm.data.folds import OutOfFoldFeatures, count_folds
from bundle_mllm.data.interactions import USER, Interactions
from bundle_mllm.data.questions import load_questions
from bundle_mllm.data.tables import SUFFIXES, find_table, iter_records, write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.card import card_template, check_license, split_name
from bundle_mllm.hub.integrity import check_safe
from bundle_mllm.hub.records import FEATURES, FEATURES_METADATA
from bundle_mllm.hub.repository import CARD, PublishReport, link_or_copy, place_tensors, read_tensors
from bundle_mllm.hub.schema import rebuild
from bundle_mllm.hub.settings import LICENSE_UNKNOWN, DatasetPublishSettings
from bundle_mllm.hub.upload import check_repo_id, publish_folder
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
    """One configuration of the repository."""

    config: str
    splits: dict[str, int]
    """Rows of each split."""
    files: dict[str, str]
    """File of each split."""
    columns: tuple[str, ...]


@configured_by(DatasetPublishSettings)
def publish_dataset(settings: DatasetPublishSettings) -> PublishReport:
    """Publish a dataset folder on the Hub.

    The repository holds the tables as Parquet (ids as text, whatever they were written as), with a file for each split
    of the bundles, and the features. `datasets.load_dataset(repo, "items" | "bundles" | "questions")` reads the
    tables; a download of it is a dataset folder with the same items, bundles and questions.

    Args:
        settings: Whose fields are the arguments: see `DatasetPublishSettings`.

    Returns:
        The files with their sizes, and the commit.

    Raises:
        BundleMLLMError: If the name is none, there is no valid token, the folder is malformed, a column mixes types,
            no table has a named column, or the Hub cannot be reached. Then nothing has become visible.
    """
    source = settings.data
    check_repo_id(settings.repo)
    check_license(settings.license)
    data = DatasetFolder.open(source)
    if not any(data.bundles[split] for split in SPLITS):
        raise BundleMLLMError(
            f"{source} holds no bundle, so nobody could learn from it: add some to its bundles file."
        )
    used: set[Path] = {path for path, _ in find_bundles(source)}
    sources: dict[str, Path] = {}
    media = {path: _path_inside(source, path) for item in data.catalog for path in (item.image, item.audio) if path}
    tables: list[_Table] = []
    selected = _Columns((*settings.columns, *([USER] if settings.include_interactions else [])))

    def write(target: Path) -> None:
        tables.append(_write_items(data, media, target, sources, selected))
        tables.append(_write_bundles(data, target, sources, selected))
        tables.extend(_write_questions(data, target, used, sources, selected))
        if unknown := set(settings.columns) - selected.published:
            raise BundleMLLMError(f"No table has a column {min(unknown)!r} to publish: check --columns.")
        features = _place_features(data, target)
        interactions = find_table(source, "interactions") if settings.include_interactions else None
        if interactions is not None:
            Interactions.load(source, data.catalog).save(target / INTERACTIONS, data.catalog)
            used.add(interactions)
        for name, path in sorted(media.items()) if settings.include_media else ():
            link_or_copy(_inside(source, name), target / str(path))
            used.add(source / Path(str(path)).parts[0])
        card = _render_card(
            settings.repo,
            settings.license,
            tables,
            num_items=len(data.catalog),
            features=features,
            cross_fitted=[name for name in features if count_folds(data.path / "features", name)],
            interactions=None if interactions is None else INTERACTIONS,
            names_media=bool(media),
            media=settings.include_media,
        )
        (target / CARD).write_text(str(card), encoding="utf-8")

    def check(target: Path) -> None:
        check_safe(target)
        _check_readable(target, tables)
        _check_same(data, DatasetFolder.open(target))

    published = publish_folder(
        source, settings.repo, settings, write, check, repo_type="dataset", written=WRITTEN, sources=sources
    )
    used |= {path for path in source.iterdir() if path.name in ("features", "questions", "bundles")}
    used |= {path for path in source.iterdir() if path.name.startswith("items.")}
    left_out = sorted(path.name for path in source.iterdir() if path not in used and path.name[0] != ".")
    left_out += [
        f"columns of the {table} (--columns publishes them): {', '.join(names)}"
        for table, names in selected.left.items()
        if names
    ]
    if num_outside := sum(path is None for path in media.values()):
        left_out.append(f"{num_outside} paths of pictures and sounds that are not in the folder")
    notes = [f"bundle ids (such as {next(iter(data.bundles)).bundle_id!r}): are they order numbers?"]
    notes += ["user ids: do they name anyone?"] if settings.include_interactions else []
    return replace(published, left_out=tuple(left_out), notes=tuple(notes))


@dataclass
class _Columns:
    """The columns of the tables: those that were named to be published, and those that stay here."""

    named: tuple[str, ...]
    published: set[str] = field(default_factory=set)
    left: dict[str, dict[str, None]] = field(default_factory=dict)

    def select(self, table: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a record that are published."""
        kept = {name: value for name, value in record.items() if name in COLUMNS[table] or name in self.named}
        self.published |= kept.keys()
        self.left.setdefault(table, {}).update(dict.fromkeys(name for name in record if name not in kept))
        return kept


def _write_items(
    data: DatasetFolder, media: Mapping[str, str | None], target: Path, sources: dict[str, Path], columns: _Columns
) -> _Table:
    """Write the items; a picture or sound outside the folder is nobody else's, so its item has none."""
    items = (
        replace(
            item,
            extra=columns.select("items", item.extra),
            **{kind: media.get(getattr(item, kind) or "") for kind in ("image", "audio")},
        )
        for item in data.catalog
    )
    sources["items.parquet"] = find_table(data.path, "items") or data.path
    ItemCatalog(items).save(target / "items.parquet")
    return _table("items", {"items": ("items.parquet", len(data.catalog))}, target)


def _write_bundles(data: DatasetFolder, target: Path, sources: dict[str, Path], columns: _Columns) -> _Table:
    """Write a file per split; who made a bundle goes along with the interactions only."""
    by_id = {bundle.bundle_id: bundle for bundle in data.bundles}
    rows: dict[str, list[Mapping[str, Any]]] = {split: [] for split in SPLITS}
    for path, _ in find_bundles(data.path):
        for record in iter_records(path):
            bundle = by_id[str(record["bundle_id"])]
            known = {"bundle_id": bundle.bundle_id, "items": list(bundle.items), "split": bundle.split}
            rows[bundle.split].append({**columns.select("bundles", record), **known})
            sources[f"bundles/{bundle.split}.parquet"] = path
    splits = {}
    for split, records in rows.items():
        if records:
            write_records(target / f"bundles/{split}.parquet", records)
            splits[split] = (f"bundles/{split}.parquet", len(records))
    return _table("bundles", splits, target)


def _write_questions(
    data: DatasetFolder, target: Path, used: set[Path], sources: dict[str, Path], columns: _Columns
) -> list[_Table]:
    splits: dict[str, tuple[str, int]] = {}
    for path in sorted((data.path / "questions").glob("[!.]*")):
        if not path.name.endswith(SUFFIXES):
            continue
        questions = load_questions(path, data.catalog)
        records = [
            {
                **columns.select("questions", record),
                **{name: list(v) if isinstance(v, tuple) else v for name, v in vars(question).items()},
            }
            for record, question in zip(iter_records(path), questions, strict=True)
        ]
        split = split_name(path.name)
        if split in splits:
            raise BundleMLLMError(
                f"{path} would be the split {split!r} of the questions, as another file is already: rename one."
            )
        sources[f"questions/{split}.parquet"] = path
        write_records(target / f"questions/{split}.parquet", records)
        splits[split] = (f"questions/{split}.parquet", len(records))
        used.add(path)
    return [_table("questions", splits, target)] if splits else []


def _table(config: str, splits: Mapping[str, tuple[str, int]], target: Path) -> _Table:
    from pyarrow.parquet import read_schema

    columns = dict.fromkeys(name for file, _ in splits.values() for name in read_schema(target / file).names)
    return _Table(
        config,
        {split: rows for split, (_, rows) in splits.items()},
        {split: file for split, (file, _) in splits.items()},
        tuple(columns),
    )


def _place_features(data: DatasetFolder, target: Path) -> list[str]:
    store = data.features()
    if store is None:
        return []
    for start in range(0, len(data.catalog), _ROWS_AT_ONCE):  # refuses values that no training could use
        store.gather(range(start, min(start + _ROWS_AT_ONCE, len(data.catalog))))
    folder = data.path / "features"
    for path in sorted([*folder.glob("[!.]*.safetensors"), *(folder / OUT_OF_FOLD).glob("[!.]*.safetensors")]):
        if path.parent != folder:
            if path.stem not in store.modalities:
                continue
            OutOfFoldFeatures.load(data, path.stem)  # refuses versions of other features, which no training could use
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


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if _path_inside(folder, name) is None or not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise BundleMLLMError(
            f"An item names the file {name!r}, which is not in {folder}: put it there, correct the item, or publish "
            "without --include-media."
        )
    return path


def _render_card(repo_id: str, license: str, tables: list[_Table], *, num_items: int, **context: Any) -> DatasetCard:
    name = repo_id.split("/")[-1]
    metadata = DatasetCardData(
        license=license,
        pretty_name=name,
        task_categories=["multiple-choice"],
        tags=list(TAGS),
        configs=[
            {
                "config_name": table.config,
                "data_files": [{"split": split, "path": file} for split, file in table.files.items()],
            }
            for table in tables
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
    """Read each table as its users will, with `load_dataset`."""
    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:
            for table in tables:
                loaded = load_dataset(str(folder), table.config, cache_dir=cache)
                if {split: len(loaded[split]) for split in loaded} != table.splits:
                    raise BundleMLLMError(f"{folder} does not give all rows of {table.config} through load_dataset.")
                del loaded
    except BundleMLLMError:
        raise
    except Exception as error:  # whatever the readers of `datasets` raise
        raise BundleMLLMError(
            f"The tables of {folder} cannot be read with load_dataset: {' '.join(str(error).split())} Give the named "
            "column one type."
        ) from error
    finally:
        if not hidden:
            enable_progress_bars()


def _check_same(data: DatasetFolder, written: DatasetFolder) -> None:
    if written.catalog.content_hash != data.catalog.content_hash or any(
        written.bundles[split] != data.bundles[split] for split in SPLITS
    ):
        raise BundleMLLMError(
            f"{written.path} does not hold the same items and bundles as {data.path}, so it was not published: please "
            "report this with the first lines of the tables."
        )
