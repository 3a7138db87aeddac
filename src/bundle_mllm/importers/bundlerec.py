"""Import a domain of BundleRec (Sun et al., "Revisiting Bundle Recommendation", SIGIR 2022).

Knows nothing about the other formats.
"""

from __future__ import annotations

import csv
import html
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from bundle_mllm.data.bundles import SPLITS, BundleSplits
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.files import new_folder, require_file, require_folder
from bundle_mllm.data.interactions import FIELDS, ITEM, USER, Interactions
from bundle_mllm.data.memberships import ItemGroups
from bundle_mllm.data.records import require_fields, to_id, to_text
from bundle_mllm.data.splitting import FRACTIONS, check_fractions
from bundle_mllm.data.tables import iter_places, open_text
from bundle_mllm.errors import BundleMLLMError, check_choice
from bundle_mllm.importers.assemble import (
    Place,
    RawBundle,
    collect_items,
    note_interactions,
    settle_bundles,
    write_dataset,
)
from bundle_mllm.importers.summary import ImportNotes, ImportSummary

InteractionsChoice = Literal["none", "pretrain", "user_item"]
INTERACTIONS_FILES = {"pretrain": "user_item_pretrain.csv", "user_item": "user_item.csv"}
_ALIKE = {"title": "titles", "category": "categories"}


def import_bundlerec(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    interactions: InteractionsChoice = "none",
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 42,
    strict: bool = False,
) -> ImportSummary:
    """Turn one domain (electronic, clothing, food) of BundleRec into a dataset folder.

    `bundle_item.csv` and `item_titles.csv` are needed. If present, `item_categories.csv` gives each item `category`
    (the leaf of its first path) and `category_paths`, `item_idx_mapping.csv` gives `source_id` (its Amazon id), and
    `bundle_intent.csv` gives bundles their `name`. An intent is about the whole bundle, the answer included, so no
    question shows it. HTML entities in titles are resolved.

    The published `user_item.csv` lists, for each user, the items of the bundles that were made from this user's
    sessions: it is bundle membership, that of validation and test included, so whatever is fitted on it contains the
    answers. By default it is left out. `user_item_pretrain.csv` has the other interactions of the shop. For either,
    the number of held-out bundles within the items of one user is measured and reported.

    An error names file and row: malformed lines, missing ids, an item with two titles. Counted, reported and left out:
    items without a title row, bundles of fewer than two items, rows of other files of unknown items.

    `ImportSettings` has the meaning of the arguments. The folder appears only when all of it is written, and the same
    source and seed give the same bytes.

    Raises:
        BundleMLLMError: If a file, column or row is not what it should be, or `output_dir` is not empty.
    """
    source = Path(source)
    check_fractions(fractions)
    check_choice("interactions", interactions, get_args(InteractionsChoice))
    _check_folder(source)
    notes = ImportNotes(strict)
    with new_folder(output_dir) as folder:
        catalog = collect_items(_iter_items(source, notes), str(source / "item_titles.csv"), notes)
        raw = _read_bundles(source, notes)
        notes.refuse_problems()
        bundles = settle_bundles(raw, catalog, str(source / "bundle_item.csv"), notes, fractions=fractions, seed=seed)
        if any(bundle.name for bundle in bundles):
            notes.warn("intents are about whole bundles, answers included: they are kept as the bundles' names only.")
        kept = None
        if interactions != "none":
            kept = _read_interactions(source / INTERACTIONS_FILES[interactions], catalog, bundles, notes)
        elif (source / INTERACTIONS_FILES["user_item"]).is_file():
            notes.warn(
                f"{INTERACTIONS_FILES['user_item']} was left out: it repeats which items are in which bundles, "
                "held-out ones included. interactions=user_item takes it nevertheless."
            )
        return write_dataset(folder, Path(output_dir), catalog, bundles, kept, notes)


def _check_folder(source: Path) -> None:
    require_folder(source, "give the folder of one domain")
    for name in ("bundle_item.csv", "item_titles.csv"):
        if not (source / name).is_file():
            domains = ", ".join(sorted(path.parent.name for path in source.glob(f"*/{name}")))
            fix = f"give one of its folders {domains}" if domains else "copy the whole folder of the domain"
            raise BundleMLLMError(f"{source} holds no {name}: {fix}.")


def _iter_items(source: Path, notes: ImportNotes) -> Iterator[Place]:
    paths_of = _read_attribute(source / "item_categories.csv", "categories")
    asin_of = _read_attribute(source / "item_idx_mapping.csv", "source_id")
    known = set()
    for where, record in _iter_rows(source / "item_titles.csv", ("item_id", "titles")):
        item_id = to_id(record["item_id"], where)
        known.add(item_id)
        item: dict[str, Any] = {
            "item_id": item_id,
            "title": html.unescape(to_text(record["titles"], "titles", where) or "").strip(),
        }
        if item_id in paths_of:
            paths = _to_paths(*paths_of[item_id])
            if paths:
                item["category"] = paths[0][-1]
            item["category_paths"] = paths
        if item_id in asin_of:
            item["source_id"] = asin_of[item_id][0]
        yield where, item
    if foreign := [item_id for item_id in paths_of if item_id not in known]:
        what = "categories of items without a title row, left out"
        notes.add(what, (f"item {item_id!r}" for item_id in foreign))


def _read_attribute(path: Path, column: str) -> dict[str, tuple[str, str]]:
    """Return the value of each item that has one, and its place for messages; no file gives none."""
    values: dict[str, tuple[str, str]] = {}
    for where, record in _iter_rows(path, ("item_id", column)) if path.is_file() else ():
        item_id, value = to_id(record["item_id"], where), to_text(record[column], column, where)
        if value is not None and values.setdefault(item_id, (value, where))[0] != value:
            raise BundleMLLMError(
                f"{where} gives the item {item_id!r} another value than {values[item_id][1]}: keep one."
            )
    return values


def _read_bundles(source: Path, notes: ImportNotes) -> dict[str, RawBundle]:
    bundles: dict[str, RawBundle] = {}
    for where, record in _iter_rows(source / "bundle_item.csv", ("bundle_id", "item_id")):
        bundle = bundles.setdefault(to_id(record["bundle_id"], where), RawBundle())
        bundle.items.append(to_id(record["item_id"], where))
    path = source / "bundle_intent.csv"
    for where, record in _iter_rows(path, ("bundle_id", "intent")) if path.is_file() else ():
        bundle_id = to_id(record["bundle_id"], where)
        intent = " ".join((to_text(record["intent"], "intent", where) or "").split()) or None
        if bundle_id not in bundles:
            notes.add("intents of bundles without items, left out", f"{where}: bundle {bundle_id!r}")
        elif bundles[bundle_id].name not in (None, intent):
            raise BundleMLLMError(f"{where} gives the bundle {bundle_id!r} a second intent: keep one.")
        else:
            bundles[bundle_id].name = intent
    return bundles


def _read_interactions(path: Path, catalog: ItemCatalog, bundles: BundleSplits, notes: ImportNotes) -> Interactions:
    """Read interactions, and count the held-out bundles that they contain."""
    delimiter, header = _header(path, (USER, ITEM))
    columns = {field: name for field, name in header.items() if field in FIELDS}
    interactions = Interactions.read(path, catalog, columns=columns, delimiter=delimiter)
    note_interactions(interactions, catalog, path.name, notes)
    held_out = [bundle.items for split in SPLITS[1:] for bundle in bundles[split]]
    users_of = ItemGroups.of_users(interactions, len(catalog)).csr()  # [num_items, num_users]
    inside = sum(bool((users_of[catalog.rows(items)].sum(axis=0) == len(items)).any()) for items in held_out)
    advice = "; do not fit features on it" if inside > 0.5 * len(held_out) else ""
    notes.warn(
        f"{path.name} has all items of {inside} of the {len(held_out)} validation and test bundles under one user, so "
        f"features fitted on it can contain their answers{advice}."
    )
    return interactions


def _iter_rows(path: Path, fields: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row for messages, and the row under the names of fields."""
    delimiter, header = _header(path, fields)
    for where, record in iter_places(path, delimiter):
        yield where, {field: record[name] for field, name in header.items()}


def _header(path: Path, needed: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Return the delimiter and the column of each field: `bundle ID` and `bundle_id` are the same."""
    with open_text(require_file(path, "copy it, or do without")) as stream:
        line = stream.readline()
    delimiter = "\t" if "\t" in line else ","  # documented are tabs, published are commas
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    fields = {name: "_".join(name.lower().split()) for name in names}
    columns = {_ALIKE.get(field, field): name for name, field in fields.items()}
    require_fields(columns, needed, str(path))
    return delimiter, columns


def _to_paths(text: str, where: str) -> list[list[str]]:
    """Read `[[Grocery,Coffee, Tea & Cocoa,Tea],[Home]]`: a comma before a space belongs to a name."""
    if not (text.startswith("[[") and text.endswith("]]")):
        raise BundleMLLMError(f"{where} has the categories {text!r}: write paths such as [[Home,Kitchen],[Gifts]].")
    paths = [re.split(r",(?! )", path) for path in text[2:-2].split("],[")]
    return [names for path in paths if (names := [html.unescape(name) for name in path if name])]
