"""Import a domain of BundleRec (Sun et al., "Revisiting Bundle Recommendation", SIGIR 2022).

It must not know the other formats.
"""

from __future__ import annotations

import csv
import html
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bundle_mllm.data.bundles import SPLITS, BundleSplits
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.files import new_folder
from bundle_mllm.data.interactions import FIELDS, ITEM, USER, Interactions
from bundle_mllm.data.records import require_fields, to_id, to_text
from bundle_mllm.data.splitting import FRACTIONS, check_fractions
from bundle_mllm.data.tables import iter_records, open_text
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.assemble import RawBundle, collect_items, count_log, settle_bundles, write_dataset
from bundle_mllm.importers.summary import Findings, ImportSummary

LogChoice = Literal["none", "pretrain", "user_item"]
LOG_FILES = {"pretrain": "user_item_pretrain.csv", "user_item": "user_item.csv"}
_ALIKE = {"title": "titles", "category": "categories"}


def import_bundlerec(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    interactions: LogChoice = "none",
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 42,
    strict: bool = False,
) -> ImportSummary:
    """Turn one domain (electronic, clothing, food) of BundleRec into a dataset folder.

    `bundle_item.csv` and `item_titles.csv` are needed. Where they are there, `item_categories.csv` gives each item
    `category` (the leaf of its first path) and `category_paths`, `item_idx_mapping.csv` gives `source_id` (its Amazon
    id), and `bundle_intent.csv` gives bundles their `name`. An intent describes the whole bundle, the answer included,
    so no question shows it. HTML entities in titles
    are resolved.

    The published `user_item.csv` lists, for each user, the items of the bundles that were made from this user's
    sessions: it is bundle membership once more, those of validation and test included, so whatever is fitted on it
    knows the answers. It is left out unless it is asked for. `user_item_pretrain.csv` is the wider log of the shop.
    How many held-out bundles lie within the items of one user is measured and reported for either.

    An error names file and row: malformed lines, missing ids, an item with two titles. Counted, reported and left out:
    items without a title row, bundles of fewer than two items, rows of other files that name no known item.

    Args:
        source: The folder of the domain.
        output_dir: Receives the dataset folder. It must not exist or be empty, and it appears only when all of it is
            written. The same source and seed give the same bytes.
        interactions: Which user log to take: `"none"`, `"pretrain"` or `"user_item"`.
        fractions: The shares of train, validation and test.
        seed: Seed of the splits; near-duplicates stay on one side.
        strict: Refuse to leave anything out.

    Returns:
        What was written and what was met.

    Raises:
        BundleMLLMError: If a file, column or row is not what it should be, or `output_dir` is not empty.
    """
    source = Path(source)
    check_fractions(fractions)
    if interactions not in get_args(LogChoice):
        raise BundleMLLMError(f"interactions is {interactions!r}: choose one of {', '.join(get_args(LogChoice))}.")
    _check_folder(source)
    findings = Findings(strict)
    with new_folder(output_dir) as folder:
        catalog = collect_items(_iter_items(source, findings), str(source / "item_titles.csv"), findings)
        raw = _read_bundles(source, findings)
        bundles = settle_bundles(
            raw, catalog, str(source / "bundle_item.csv"), findings, fractions=fractions, seed=seed
        )
        if any(bundle.name for bundle in bundles):
            findings.warn(
                "intents describe whole bundles, answers included: they are kept as the bundles' names only."
            )
        log = None
        if interactions != "none":
            log = _read_log(source / LOG_FILES[interactions], catalog, bundles, findings)
        elif (source / LOG_FILES["user_item"]).is_file():
            findings.warn(
                f"{LOG_FILES['user_item']} was left out: it repeats which items are in which bundles, the held-out "
                "ones included. interactions=user_item takes it all the same."
            )
        return write_dataset(folder, Path(output_dir), catalog, bundles, log, findings)


def _check_folder(source: Path) -> None:
    if not source.is_dir():
        raise BundleMLLMError(f"There is no folder {source}: give the folder of one domain.")
    for name in ("bundle_item.csv", "item_titles.csv"):
        if not (source / name).is_file():
            domains = ", ".join(sorted(path.parent.name for path in source.glob(f"*/{name}")))
            fix = f"give one of its folders {domains}" if domains else "copy the whole folder of the domain"
            raise BundleMLLMError(f"{source} holds no {name}: {fix}.")


def _iter_items(source: Path, findings: Findings) -> Iterator[dict[str, Any]]:
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
        yield item
    if foreign := [item_id for item_id in paths_of if item_id not in known]:
        what = "categories of items without a title row, left out"
        findings.add(what, (f"item {item_id!r}" for item_id in foreign))


def _read_attribute(path: Path, column: str) -> dict[str, tuple[str, str]]:
    """Return a value and where it is, for each item that has one; no file gives none."""
    values: dict[str, tuple[str, str]] = {}
    for where, record in _iter_rows(path, ("item_id", column)) if path.is_file() else ():
        item_id, value = to_id(record["item_id"], where), to_text(record[column], column, where)
        if value is not None and values.setdefault(item_id, (value, where))[0] != value:
            raise BundleMLLMError(
                f"{where} gives the item {item_id!r} another value than {values[item_id][1]}: keep one."
            )
    return values


def _read_bundles(source: Path, findings: Findings) -> dict[str, RawBundle]:
    bundles: dict[str, RawBundle] = {}
    for where, record in _iter_rows(source / "bundle_item.csv", ("bundle_id", "item_id")):
        bundle = bundles.setdefault(to_id(record["bundle_id"], where), RawBundle())
        bundle.items.append(to_id(record["item_id"], where))
    path = source / "bundle_intent.csv"
    for where, record in _iter_rows(path, ("bundle_id", "intent")) if path.is_file() else ():
        bundle_id = to_id(record["bundle_id"], where)
        intent = " ".join((to_text(record["intent"], "intent", where) or "").split()) or None
        if bundle_id not in bundles:
            findings.add("intents of bundles without items, left out", f"{where}: bundle {bundle_id!r}")
        elif bundles[bundle_id].name not in (None, intent):
            raise BundleMLLMError(f"{where} gives the bundle {bundle_id!r} a second intent: keep one.")
        else:
            bundles[bundle_id].name = intent
    return bundles


def _read_log(path: Path, catalog: ItemCatalog, bundles: BundleSplits, findings: Findings) -> Interactions:
    """Read a user log, and measure how much of the held-out bundles it gives away."""
    header = _header(path)
    columns = {field: name for field, name in header.items() if field in FIELDS}
    require_fields(header, (USER, ITEM), str(path))
    log = Interactions.read(path, catalog, columns=columns, delimiter=_delimiter(path))
    count_log(log, path.name, findings)
    held_out = [bundle.items for split in SPLITS[1:] for bundle in bundles[split]]
    inside = count_within_users(log, catalog, held_out)
    advice = "; do not fit features on it" if inside > 0.5 * len(held_out) else ""
    findings.warn(
        f"{path.name} has all items of {inside} of the {len(held_out)} validation and test bundles under one user, so "
        f"features fitted on it can know their answers{advice}."
    )
    return log


def count_within_users(log: Interactions, catalog: ItemCatalog, bundles: Iterable[Sequence[str]]) -> int:
    """Count the bundles all of whose items some user has."""
    order = np.argsort(log.rows, kind="stable")
    users, starts = log.user_index[order], np.searchsorted(log.rows[order], np.arange(len(catalog) + 1))
    count = 0
    for items in bundles:
        having = sorted((users[starts[row] : starts[row + 1]] for row in catalog.rows(items)), key=len)
        common = having[0]
        for others in having[1:]:
            common = np.intersect1d(common, others, assume_unique=True)
        count += len(common) > 0
    return count


def _iter_rows(path: Path, fields: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each row is, and the row under the names of fields."""
    header = _header(path)
    require_fields(header, fields, str(path))
    for number, record in enumerate(iter_records(path, _delimiter(path)), start=1):
        yield f"{path} row {number}", {field: record[name] for field, name in header.items()}


def _header(path: Path) -> dict[str, str]:
    """Return the column of each field: `bundle ID` and `bundle_id` are the same."""
    if not path.is_file():
        raise BundleMLLMError(f"There is no file {path}: copy it, or do without.")
    delimiter = _delimiter(path)
    with open_text(path) as stream:
        fields = {name: "_".join(name.lower().split()) for name in next(csv.reader(stream, delimiter=delimiter), [])}
    return {_ALIKE.get(field, field): name for name, field in fields.items()}


def _delimiter(path: Path) -> str:
    """Return a tab if the header has one: the files are said to be separated by tabs, but published with commas."""
    with open_text(path) as stream:
        return "\t" if "\t" in stream.readline() else ","


def _to_paths(text: str, where: str) -> list[list[str]]:
    """Read `[[Grocery,Coffee, Tea & Cocoa,Tea],[Home]]`: a comma before a space belongs to a name."""
    if not (text.startswith("[[") and text.endswith("]]")):
        raise BundleMLLMError(f"{where} has the categories {text!r}: write paths such as [[Home,Kitchen],[Gifts]].")
    paths = [re.split(r",(?! )", path) for path in text[2:-2].split("],[")]
    return [names for path in paths if (names := [html.unescape(name) for name in path if name])]
