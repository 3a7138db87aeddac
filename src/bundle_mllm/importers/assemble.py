"""Make clean items and bundles of foreign records, and write a dataset folder.

Knows nothing about where the records come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from bundle_mllm.data.bundles import SPLITS, Bundle, BundleSplits
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.interactions import NUM_EXAMPLES, Interactions
from bundle_mllm.data.records import to_id, to_ids, to_text
from bundle_mllm.data.splitting import NEAR_DUPLICATE, held_out_near_duplicates, split_bundles
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.summary import ImportNotes, ImportSummary

MEDIA = ("image", "audio")
SPLIT_NAMES = {
    **{name: "train" for name in ("train", "training")},
    **{name: "validation" for name in ("validation", "valid", "val", "dev", "development")},
    **{name: "test" for name in ("test", "testing")},
}
"""What a split may be called in a foreign table, in any case."""

StoreMedia = Callable[[str, int, Any, str], str | None]
"""Called with kind (`"image"` or `"audio"`), row of the item, cell and name of the item; returns the path to keep."""


@dataclass
class RawBundle:
    """A bundle as its source has it: item ids with repetitions, and split and name if the source gives them."""

    items: list[str] = field(default_factory=list)
    split: str | None = None
    name: str | None = None


def collect_items(
    records: Iterable[Mapping[str, Any]], source: str, notes: ImportNotes, store_media: StoreMedia | None = None
) -> ItemCatalog:
    """Build the catalog.

    A record that repeats an item word by word is counted and left out; one that contradicts it is an error.
    Values that JSON lacks become text (dates, decimals) or null (NaN); columns of bytes are left out.

    Args:
        records: One mapping per item, with the names of fields (see `columns.FIELDS`); others are kept as they are.
        source: What error messages call the records.
        notes: Receives what was left out or repaired.
        store_media: Puts pictures and sounds into the dataset folder; `None` leaves the paths as they are.
    """
    first_of: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {}  # row, fields, paths of media
    left_out: set[str] = set()
    items = []
    for number, record in enumerate(records, start=1):
        where = f"{source} row {number}"
        item_id = to_id(_need(record, "item_id", where), where)
        media = {kind: record[kind] for kind in MEDIA if record.get(kind) is not None}
        plain: dict[str, Any] = {"item_id": item_id}
        for name, value in record.items():
            if name not in MEDIA and (name == "" or _holds_bytes(value)):
                left_out.add(name)
            elif name not in plain and name not in MEDIA and (value := _to_plain(value)) is not None:
                plain[name] = value
        if item_id in first_of:
            first, first_plain, first_paths = first_of[item_id]
            if plain != first_plain:
                raise BundleMLLMError(
                    f"{where} contradicts row {first} about the item {item_id!r}: remove one, or give it another id."
                )
            same = media == first_paths
            further = "further pictures or sounds of an item, left out"
            what = "rows that repeat an item, counted once" if same else further
            notes.add(what, f"{where}: item {item_id!r}", harmless=same)
            continue
        first_of[item_id] = number, plain, {kind: value for kind, value in media.items() if isinstance(value, str)}
        item = dict(plain)
        for kind, value in media.items():
            path = value if store_media is None else store_media(kind, len(items), value, f"item {item_id!r}")
            if path is not None:
                item[kind] = path
        items.append(item)
        if not to_text(item.get("title"), "title", where):
            notes.add("items without a title", f"item {item_id!r}", harmless=True)
    if left_out:
        names = ", ".join(name or "(no name)" for name in sorted(left_out))
        notes.warn(f"{source}: columns that have no name or hold bytes were left out: {names}.")
    return ItemCatalog.from_records(items, source)


def collect_bundles(records: Iterable[Mapping[str, Any]], source: str) -> dict[str, RawBundle]:
    """Gather the bundles of a table by id: a list of items per row, or one row per bundle and item.

    Args:
        records: Mappings with `bundle_id` and either `items` (a list, or a JSON list as text) or `item_id`;
            optionally `split` (see `SPLIT_NAMES`) and `name`. The rows of a bundle must agree on these.
        source: What error messages call the records.
    """
    bundles: dict[str, RawBundle] = {}
    for number, record in enumerate(records, start=1):
        where = f"{source} row {number}"
        bundle_id = to_id(_need(record, "bundle_id", where), where)
        where = f"{where} (bundle {bundle_id!r})"
        whole = "items" in record
        if whole and bundle_id in bundles:
            raise BundleMLLMError(f"{where} repeats it, so its items are unclear: remove or rename one.")
        split, name = _to_split(record.get("split"), where), to_text(record.get("name"), "name", where)
        bundle = bundles.setdefault(bundle_id, RawBundle(split=split, name=name))
        if (split, name) != (bundle.split, bundle.name):
            earlier = f"an earlier row of the bundle has {bundle.split!r} and {bundle.name!r}: make them agree"
            raise BundleMLLMError(f"{where} has split {split!r} and name {name!r}, but {earlier}.")
        bundle.items += (
            to_ids(record["items"], "items", where)
            if whole
            else [to_id(_need(record, "item_id", where, "`items` or `item_id`"), where)]
        )
    return bundles


def settle_bundles(
    raw: Mapping[str, RawBundle],
    catalog: ItemCatalog,
    source: str,
    notes: ImportNotes,
    *,
    fractions: Sequence[float],
    seed: int,
) -> BundleSplits:
    """Keep the known items of each bundle, leave out bundles of fewer than two, and split the rest.

    Splits that the source gives are kept; without any, near-duplicates stay on one side (see `split_bundles`).
    """
    members: dict[str, tuple[str, ...]] = {}
    for bundle_id, bundle in raw.items():
        known = [item_id for item_id in bundle.items if item_id in catalog]
        unknown = (f"{item_id!r} in {bundle_id!r}" for item_id in bundle.items if item_id not in catalog)
        notes.add("items of bundles that the catalog lacks, taken out of them", unknown)
        items = tuple(dict.fromkeys(known))
        if repeated := len(known) - len(items):
            what = "items repeated in their bundle, counted once"
            notes.add(what, f"bundle {bundle_id!r}", count=repeated, harmless=True)
        if len(items) < 2:
            notes.add("bundles of fewer than two items, left out", f"bundle {bundle_id!r}")
        else:
            members[bundle_id] = items
    if not members:
        raise BundleMLLMError(f"{source} has no bundle of two known items to learn from: check the ids.")
    given = {bundle_id: split for bundle_id in members if (split := raw[bundle_id].split) is not None}
    if given and len(given) < len(members):
        lacking = [bundle_id for bundle_id in members if bundle_id not in given]
        raise BundleMLLMError(
            f"{source} gives some bundles a split and none for {len(lacking)}, as {lacking[0]!r}: split all or none."
        )
    split_of = given or split_bundles(members, fractions=fractions, seed=seed)
    settled = [Bundle(key, items, split_of[key], raw[key].name) for key, items in members.items()]
    train, validation, test = (tuple(bundle for bundle in settled if bundle.split == split) for split in SPLITS)
    bundles = BundleSplits(train, validation, test)
    shares = dict(zip(SPLITS, (1.0, 1.0, 1.0) if given else fractions, strict=True))
    if given:
        warn_of_near_duplicates(bundles, notes)
    else:
        most = max(abs(len(bundles[split]) - share * len(members)) for split, share in shares.items())
        if most >= max(1, 0.01 * len(members)):
            notes.warn(
                f"near-duplicates, which stay together, make the splits {bundles!r} and not the fractions "
                f"{tuple(fractions)}."
            )
    if empty := [split for split in SPLITS if shares[split] and not bundles[split]]:
        notes.warn(f"there is no bundle in {' and '.join(empty)}.")
    return bundles


def warn_of_near_duplicates(bundles: BundleSplits, notes: ImportNotes) -> None:
    """Warn of how many bundles of validation and test have a near-duplicate in another split."""
    members = {bundle.bundle_id: bundle.items for bundle in bundles}
    crossing = held_out_near_duplicates(members, {bundle.bundle_id: bundle.split for bundle in bundles})
    if crossing:
        named = ", ".join(map(repr, crossing[:NUM_EXAMPLES])) + ", …" * (len(crossing) > NUM_EXAMPLES)
        notes.warn(
            f"the given splits part near-duplicates (Jaccard {NEAR_DUPLICATE} or more): {len(crossing)} bundles of "
            f"validation and test have one in another split ({named}), which flatters results on them."
        )


def note_interactions(interactions: Interactions, source: str, notes: ImportNotes) -> None:
    """Note what reading interactions left out."""
    unknown = (f"{source} row {row}: item {item_id!r}" for row, item_id in interactions.unknown)
    what = "interactions with an item that the catalog lacks, left out"
    notes.add(what, unknown, count=interactions.num_unknown)
    missing = (f"{source} row {row}" for row in interactions.missing)
    notes.add("interactions that lack a user or an item, left out", missing, count=interactions.num_missing)
    what = "interactions that repeat a pair of user and item, counted once"
    notes.add(what, count=interactions.num_repeated, harmless=True)


def write_dataset(
    folder: Path,
    output_dir: Path,
    catalog: ItemCatalog,
    bundles: BundleSplits,
    interactions: Interactions | None,
    notes: ImportNotes,
) -> ImportSummary:
    """Write `items.jsonl`, `bundles.jsonl` and `interactions.parquet` to a folder that becomes `output_dir`."""
    checked = notes.check()
    catalog.save(folder / "items.jsonl")
    bundles.save(folder / "bundles.jsonl")
    if interactions is not None:
        interactions.save(folder / "interactions.parquet", catalog)
    return ImportSummary(
        path=output_dir,
        num_items=len(catalog),
        num_bundles={split: len(bundles[split]) for split in SPLITS},
        num_interactions=0 if interactions is None else len(interactions),
        num_users=0 if interactions is None else interactions.num_users,
        notes=checked,
        warnings=tuple(notes.warnings),
    )


def _need(record: Mapping[str, Any], name: str, where: str, wanted: str = "") -> Any:
    if name not in record:
        columns = ", ".join(map(str, record)) or "none"
        separator = next((mark for mark in (";", "\t", "|") if len(record) == 1 and mark in columns), None)
        fix = f"map the column that holds it, such as {name}=COLUMN"
        raise BundleMLLMError(
            f"{where} has no {wanted or f'`{name}`'} (its columns: {columns}): "
            f"{fix if separator is None else f'set the delimiter to {separator!r}'}."
        )
    return record[name]


def _to_split(value: Any, where: str) -> str | None:
    text = to_text(value, "split", where)
    if text is None:
        return None
    if (split := SPLIT_NAMES.get(text.strip().lower())) is None:
        raise BundleMLLMError(f"{where} has the split {text!r}: use one of {', '.join(SPLITS)}.")
    return split


def _holds_bytes(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple):
        return any(map(_holds_bytes, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, bytes | bytearray | memoryview)


def _to_plain(value: Any) -> Any:
    """Return what JSON can hold: text for dates and decimals, null for NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _to_plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(inner) for inner in value]
    return value
