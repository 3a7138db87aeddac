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
from typing import Any, Literal

from bundle_mllm.bounds import bounds
from bundle_mllm.data.bundles import SPLITS, Bundle, BundleSplits
from bundle_mllm.data.catalog import MEDIA, ItemCatalog
from bundle_mllm.data.cells import to_number
from bundle_mllm.data.files import write_json
from bundle_mllm.data.interactions import NUM_EXAMPLES, Interactions
from bundle_mllm.data.records import to_id, to_ids, to_text
from bundle_mllm.data.splitting import NEAR_DUPLICATE, held_out_near_duplicates, split_bundles
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.meeting import explain_unmet, spelling_of
from bundle_mllm.importers.summary import ImportNotes, ImportSummary, count_items
from bundle_mllm.importers.text import clean_text

IMPORT_RECORD = "import.json"
TEXTS = ("title", "description", "category")
SPLIT_NAMES = {
    **{name: "train" for name in ("train", "training")},
    **{name: "validation" for name in ("validation", "valid", "val", "dev", "development")},
    **{name: "test" for name in ("test", "testing")},
}
"""What a split may be called in a foreign table, in any case."""


class Row(dict[str, Any]):
    """A record with the names of fields, which knows the columns that they come from."""

    columns: Mapping[str, str] = {}


Place = tuple[str, Mapping[str, Any]]
"""A record, and before it its place for messages, such as `"items.csv line 7"`."""
OnDuplicate = Literal["error", "first"]
StoreMedia = Callable[[str, int, Any, str], str | None]
"""Called with kind (`"image"` or `"audio"`), row of the item, cell and name of the item; returns the path to keep."""


@dataclass
class RawBundle:
    """A bundle as its source has it: item ids with repetitions, and split and name if the source gives them."""

    items: list[str] = field(default_factory=list)
    split: str | None = None
    name: str | None = None


def collect_items(
    records: Iterable[Place],
    source: str,
    notes: ImportNotes,
    store_media: StoreMedia | None = None,
    *,
    on_duplicate: OnDuplicate | None = None,
) -> ItemCatalog:
    """Build the catalog.

    A record that repeats an item word by word is counted and left out; one that contradicts it is a problem, or left
    out, too. Records without an id are counted and left out. HTML, entities and blanks around are taken out of titles,
    descriptions and categories. Web addresses of pictures and sounds are kept as text (`image_url`, `audio_url`).
    Values that JSON lacks become text (dates, decimals) or null (NaN); columns of bytes are left out.

    Args:
        records: One mapping per item, with the names of fields (see `columns.FIELDS`); others are kept as they are.
        source: What error messages call all records.
        notes: Receives what was left out or repaired, and problems.
        store_media: Puts pictures and sounds into the dataset folder; `None` leaves the paths as they are.
        on_duplicate: Whether a record that contradicts an earlier one is a problem, or the first one counts; `None`
            where the user has no such choice.

    Raises:
        BundleMLLMError: If the first record has no `item_id`; what is wrong with single records are problems.
    """
    first_of: dict[str, _ItemRow] = {}
    left_out: set[str] = set()
    items: list[dict[str, Any]] = []
    for number, (where, record) in enumerate(records):
        if not number:
            need_column(record, "item_id", where)
        with notes.problems():
            if (item_id := clean_id(need_column(record, "item_id", where), where, notes)) is None:
                notes.add("rows of items without an id, left out", where)
                continue
            row = _read_item(item_id, record, where, notes, left_out)
            if item_id in first_of:
                _note_repeated(row, first_of[item_id], on_duplicate, notes)
                continue
            first_of[item_id] = row
            item = dict(row.fields)
            for kind, value in row.media.items():
                path = value if store_media is None else store_media(kind, len(items), value, f"item {item_id!r}")
                if path is not None:
                    item[kind] = path
            for kind in [kind for kind in MEDIA if f"{kind}_url" in item and f"{kind}_url" not in record]:
                what = f"{'pictures' if kind == 'image' else 'sounds'} that are web addresses, kept as {kind}_url"
                notes.add(what, f"item {item_id!r}", harmless=True)
            items.append(item)
            if not item.get("title"):
                notes.add("items without a title", f"item {item_id!r}", harmless=True)
    if left_out:
        names = ", ".join(name or "(no name)" for name in sorted(left_out))
        notes.warn(f"{source}: columns that have no name or hold bytes were left out: {names}.")
    return ItemCatalog.from_records(items, source)


@dataclass(frozen=True)
class _ItemRow:
    """What a row says about an item.

    Attributes:
        where: Its place, for messages.
        fields: Id, clean texts and all other columns.
        media: Cells of pictures and sounds that are no web addresses.
    """

    where: str
    fields: dict[str, Any]
    media: dict[str, Any]

    @property
    def paths(self) -> dict[str, str]:
        """The pictures and sounds that are files, which can be compared."""
        return {kind: value for kind, value in self.media.items() if isinstance(value, str)}


def _read_item(
    item_id: str, record: Mapping[str, Any], where: str, notes: ImportNotes, left_out: set[str]
) -> _ItemRow:
    """Read a row; the names of columns that cannot be kept are added to `left_out`."""
    media = {kind: record[kind] for kind in MEDIA if record.get(kind) is not None}
    fields: dict[str, Any] = {"item_id": item_id}
    for kind in [kind for kind, value in media.items() if isinstance(value, str) and "://" in value]:
        fields[f"{kind}_url"] = media.pop(kind)
    for name, value in record.items():
        if name not in MEDIA and (name == "" or _holds_bytes(value)):
            left_out.add(name)
        elif name in TEXTS:
            if (text := _clean(name, record, where, notes)) is not None:
                fields[name] = text
        elif name not in fields and name not in MEDIA and (value := _to_plain(value)) is not None:
            fields[name] = value
    return _ItemRow(where, fields, media)


def _note_repeated(row: _ItemRow, first: _ItemRow, on_duplicate: OnDuplicate | None, notes: ImportNotes) -> None:
    """Note a row about an item that an earlier one describes.

    Raises:
        BundleMLLMError: If it contradicts that row, and the first is not said to count.
    """
    item_id = row.fields["item_id"]
    if row.fields == first.fields:
        same = row.media == first.paths
        what = "rows that repeat an item, counted once" if same else "further pictures or sounds of an item, left out"
        notes.add(what, f"{row.where}: item {item_id!r}", harmless=same)
    elif on_duplicate == "first":
        what = "rows that contradict an earlier one about an item, left out"
        notes.add(what, f"{row.where}: item {item_id!r}")
    else:
        choice = ", or let the first count (--on-duplicate first)" * (on_duplicate is not None)
        raise BundleMLLMError(
            f"{row.where} contradicts {_shorten(first.where, row.where)} about the item {item_id!r}: remove one, or "
            f"give it another id{choice}."
        )


def collect_bundles(records: Iterable[Place], notes: ImportNotes) -> dict[str, RawBundle]:
    """Gather the bundles of a table by id: a list of items per row, or one row per bundle and item.

    Rows without a bundle or an item are counted and left out.

    Args:
        records: Mappings with `bundle_id` and either `items` (a list, or text as `to_ids` reads it) or `item_id`;
            optionally `split` (see `SPLIT_NAMES`) and `name`. The rows of a bundle must agree on these.
        notes: Receives what was left out or repaired, and problems.

    Raises:
        BundleMLLMError: If the first record has no `bundle_id`; what is wrong with single records are problems.
    """
    bundles: dict[str, RawBundle] = {}
    for number, (where, record) in enumerate(records):
        if not number:
            need_column(record, "bundle_id", where)
        with notes.problems():
            if (bundle_id := clean_id(need_column(record, "bundle_id", where), where, notes)) is None:
                notes.add("rows of bundles without a bundle's id, left out", where)
                continue
            place = f"{where} (bundle {bundle_id!r})"
            whole = "items" in record
            if whole and bundle_id in bundles:
                raise BundleMLLMError(f"{place} repeats it, so its items are unclear: remove or rename one.")
            items = (
                to_ids(record["items"], column_of(record, "items"), place)
                if whole
                else [need_column(record, "item_id", place, "`items` or `item_id`")]
            )
            cleaned = [item_id for each in items if (item_id := clean_id(each, place, notes)) is not None]
            if not whole and not cleaned:
                notes.add("rows of bundles without an item, left out", where)
            split, name = _to_split(record, place), text_of(record, "name", place)
            bundle = bundles.setdefault(bundle_id, RawBundle(split=split, name=name))
            if (split, name) != (bundle.split, bundle.name):
                earlier = f"an earlier row of the bundle has {bundle.split!r} and {bundle.name!r}: make them agree"
                raise BundleMLLMError(f"{place} has split {split!r} and name {name!r}, but {earlier}.")
            bundle.items += cleaned
    return bundles


def clean_id(value: Any, where: str, notes: ImportNotes) -> str | None:
    """Return an id without the blanks around it, which are noted, or `None` for a missing or blank one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    item_id = to_id(value, where)
    if (stripped := item_id.strip()) != item_id:
        notes.add("ids with blanks around them, which were taken away", f"{where}: {item_id!r}", harmless=True)
    if stripped.startswith("'") and len(stripped) > 1:
        notes.add(
            "ids with an apostrophe before them, as spreadsheets write it, which was taken away", where, harmless=True
        )
        stripped = stripped[1:]
    return stripped


def to_price(cell: str | None, where: str, notes: ImportNotes) -> float | None:
    """Return a price as a number, such as 1299 of `"1.299,00 €"`; one that is none is noted, and `None`."""
    price = to_number(cell)
    if cell and math.isnan(price):
        notes.add("prices that are no number, left out", f"{where}: {cell!r}")
    return None if math.isnan(price) else price


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

    Raises:
        BundleMLLMError: If no bundle of two known items is left, or only some bundles have a split.
    """
    members: dict[str, tuple[str, ...]] = {}
    named = [item_id for bundle in raw.values() for item_id in bundle.items]
    unmet = [item_id for item_id in named if item_id not in catalog]
    if len(unmet) < len(named):
        _hint_at_unmet("bundles", unmet, named, catalog, notes)
    where = [
        f"{each!r} in {bundle_id!r}"
        for bundle_id, bundle in raw.items()
        for each in bundle.items
        if each not in catalog
    ]
    what = "entries of bundles whose item the catalog lacks, taken out of them"
    notes.add(what, where, num_items=len({*unmet}))
    for bundle_id, bundle in raw.items():
        known = [item_id for item_id in bundle.items if item_id in catalog]
        items = tuple(dict.fromkeys(known))
        if repeated := len(known) - len(items):
            what = "items repeated in their bundle, counted once"
            notes.add(what, f"bundle {bundle_id!r}", count=repeated, harmless=True)
        if len(items) < 2:
            notes.add("bundles of fewer than two items, left out", f"bundle {bundle_id!r}")
        else:
            members[bundle_id] = items
    if not members:
        advice = explain_unmet(unmet, catalog.item_ids) or "add bundles, or import the items alone"
        raise BundleMLLMError(f"{source} has no bundle of two known items to learn from: {advice}.")
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


def note_unmet(sold: Sequence[tuple[str, str]], catalog: ItemCatalog, notes: ImportNotes) -> None:
    """Note items of orders that the catalog lacks, and what would make the ids meet.

    Args:
        sold: Each order and item.
        catalog: The items.
        notes: Receives what is unmet.

    Raises:
        BundleMLLMError: If the catalog lacks all of them.
    """
    unmet = [item_id for _, item_id in sold if item_id not in catalog]
    if sold and len(unmet) == len(sold):
        raise BundleMLLMError(
            f"None of the {len(sold)} entries of orders ({count_items(len({*unmet}))}) is in the catalog: "
            f"{explain_unmet(unmet, catalog.item_ids)}."
        )
    what = "entries of orders whose item the catalog lacks, left out"
    where = (f"{item_id!r} in {order_id!r}" for order_id, item_id in sold if item_id not in catalog)
    notes.add(what, where, num_items=len({*unmet}))
    _hint_at_unmet("orders", unmet, [item_id for _, item_id in sold], catalog, notes)


def _hint_at_unmet(
    of: str, unmet: Sequence[str], named: Sequence[str], catalog: ItemCatalog, notes: ImportNotes
) -> None:
    items = f"{len({*unmet})} of {count_items(len({*named}))}"
    text = f"{len(unmet)} of {len(named)} entries of {of} ({items}) are not in the catalog: "
    if len(unmet) * 2 > len(named):
        notes.alarm(f"{text}{explain_unmet(unmet, catalog.item_ids)}.")
    elif hint := spelling_of(unmet, catalog.item_ids):
        notes.warn(f"{text}{hint}.")


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


def note_interactions(interactions: Interactions, catalog: ItemCatalog, source: str, notes: ImportNotes) -> None:
    """Note what reading interactions left out."""
    unknown = (f"{source} row {row}: item {item_id!r}" for row, item_id in interactions.unknown)
    what = "interactions with an item that the catalog lacks, left out"
    notes.add(what, unknown, count=interactions.num_unknown, num_items=interactions.num_unknown_items)
    if not len(interactions) and interactions.unknown:
        hint = explain_unmet([item_id for _, item_id in interactions.unknown], catalog.item_ids)
        notes.alarm(f"{source} names no item of the catalog: {hint}.")
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
    made_of: str | None = None,
) -> ImportSummary:
    """Write `items.jsonl`, `bundles.jsonl` and `interactions.parquet` to a folder that becomes `output_dir`.

    `import.json` beside them keeps the summary, and of what the bundles were made ("bundles", "orders" or nothing).
    """
    notes.refuse_problems()
    checked = notes.check()
    catalog.save(folder / "items.jsonl")
    bundles.save(folder / "bundles.jsonl")
    if interactions is not None:
        interactions.save(folder / "interactions.parquet", catalog)
    summary = ImportSummary(
        path=output_dir,
        num_items=len(catalog),
        num_bundles={split: len(bundles[split]) for split in SPLITS},
        num_interactions=0 if interactions is None else len(interactions),
        num_users=0 if interactions is None else interactions.num_users,
        notes=checked,
        warnings=tuple(notes.warnings),
        alarms=tuple(notes.alarms),
    )
    record = {"made_of": made_of, "notes": [vars(note) for note in checked]}
    record |= {"alarms": summary.alarms, "warnings": summary.warnings}
    write_json(folder / IMPORT_RECORD, record)
    return summary


def need_column(record: Mapping[str, Any], name: str, where: str, wanted: str = "") -> Any:
    """Return a cell of a record; refuse a table without the column, and say which delimiter it seems to have.

    Raises:
        BundleMLLMError: If the record has no such column.
    """
    if name not in record:
        columns = ", ".join(column_of(record, each) for each in record) or "none"
        separator = next((mark for mark in (";", "\t", "|") if len(record) == 1 and mark in columns), None)
        fix = f"map the column that holds it, such as --columns {name}=COLUMN"
        if (column := column_of(record, name)) != name:
            wanted, fix = f"`{column}`", f"correct --columns {name}={column}"
        raise BundleMLLMError(
            f"{where} has no {wanted or f'`{name}`'} (its columns: {columns}): "
            f"{fix if separator is None else f'set the delimiter to {separator!r}'}."
        )
    return record[name]


def column_of(record: Mapping[str, Any], name: str) -> str:
    """Return the column that a field of a record comes from, for messages."""
    return record.columns.get(name, name) if isinstance(record, Row) else name


def text_of(record: Mapping[str, Any], name: str, where: str) -> str | None:
    """Return a text of a record, if it has any; errors are those of `to_text`, about the column."""
    return to_text(record.get(name), name, where, column_of(record, name))


def _to_split(record: Mapping[str, Any], where: str) -> str | None:
    text = text_of(record, "split", where)
    if text is None:
        return None
    if (split := SPLIT_NAMES.get(text.strip().lower())) is None:
        raise BundleMLLMError(f"{where} has the split {text!r}: use one of {', '.join(SPLITS)}.")
    return split


def _clean(name: str, record: Mapping[str, Any], where: str, notes: ImportNotes) -> str | None:
    """Return a text field as plain text, and note what was cleaned; a title that is far too long is cut."""
    value, column = record[name], column_of(record, name)
    if not isinstance(value, str):
        return to_text(value if isinstance(value, float) else _to_plain(value), name, where, column)
    cleaned = clean_text(value)
    if cleaned != value:
        notes.add(
            "titles, descriptions and categories with HTML, entities or blanks around, cleaned", where, harmless=True
        )
    most = bounds().title_characters if name == "title" else bounds().text_characters
    if len(cleaned) > most:
        notes.add(f"{name}s longer than {most:,} characters, cut", where)
        cleaned = cleaned[: most + 1].rsplit(None, 1)[0][:most]
    return to_text(cleaned, name, where, column)


def _shorten(place: str, beside: str) -> str:
    """Return a place without the file's name, where the other place has it: `"line 3"`."""
    file, _, line = place.rpartition(" line ")
    return f"line {line}" if file and beside.startswith(f"{file} line ") else place


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
