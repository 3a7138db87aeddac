"""Add items to a model folder, update some or remove some: the catalogs of both models, the items and their columns.

Knows nothing about how an item is encoded or scored.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle_mllm.completion.columns import ITEM_TABLE
from bundle_mllm.completion.item_table import read_item_table, write_item_table
from bundle_mllm.completion.new_items import NewItemEncoder, NewItems
from bundle_mllm.completion.settings import CatalogSettings
from bundle_mllm.data.catalog import MEDIA
from bundle_mllm.data.cells import to_boolean, to_number
from bundle_mllm.data.files import delete_abandoned, replaced_folder, require_folder
from bundle_mllm.data.memberships import BUNDLE_CATEGORY, MAX_GROUPS
from bundle_mllm.data.records import require_fields, to_id, to_text
from bundle_mllm.data.tables import read_records, table_at
from bundle_mllm.encoders.batches import BatchEncoder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling.answers_bundle_mllm import known_items
from bundle_mllm.modeling.completion_bundle_mllm import RETRIEVER_FOLDER, BundleCompleter
from bundle_mllm.modeling.groups_bundle_mllm import ItemPairs
from bundle_mllm.settings import configured_by

ENCODED = ("title", "description", "category", *MEDIA)
"""The columns whose change means that an item is encoded again."""


@dataclass(frozen=True)
class CatalogChange:
    """What became of a model folder.

    Attributes:
        added: Number of items that were added.
        updated: Number of items of which a column changed.
        encoded: Number of items that were encoded.
        removed: Number of items that were removed.
        num_items: Number of items afterwards.
        unknown: Ids of encoded items of which no model knows anything, so that their scores are guesses.
    """

    added: int
    updated: int
    encoded: int
    removed: int
    num_items: int
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = {name: getattr(self, name) for name in ("added", "updated", "encoded", "removed")}
        text = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing changed"
        text = f"{text}: {self.num_items} items"
        if self.unknown:
            some = ", ".join(self.unknown[:3]) + (", …" if len(self.unknown) > 3 else "")
            text += f"\nnothing is known about {len(self.unknown)} of them, whose scores are guesses: {some}"
        return text


@configured_by(CatalogSettings)
def update_catalog(settings: CatalogSettings) -> CatalogChange:
    """Add, update or remove items of a model folder.

    The folder is replaced in one step: it holds the old items or the new ones, after a kill, too. Columns that are not
    encoded change in the item table alone.

    Returns:
        What was changed.

    Raises:
        BundleMLLMError: If the table is none, an id exists already or does not, there is nothing in a new item that
            could be encoded, a picture or sound cannot be used, or no item would be left. Nothing is changed then.
    """
    folder = require_folder(settings.model, "give the output folder of `bundle-mllm train`").resolve()
    table = table_at(settings.items, "items", "one row per item")
    delete_abandoned(folder.parent)
    seen = folder_identity(folder)
    given = _by_id(read_records(table), str(table))
    items = {record["item_id"]: record for record in read_item_table(folder)}
    _check_ids(settings.action, given, items, table, folder)
    encoder = NewItemEncoder(folder, settings.device)
    root = table.parent.resolve()
    if settings.action == "remove":
        kept = [item_id for item_id in items if item_id not in given]
        if not kept:
            raise BundleMLLMError(
                f"{table} lists all {len(items)} items of {folder}, so none would be left: keep one."
            )
        return _rewrite(folder, {item_id: items[item_id] for item_id in kept}, items, {}, encoder, root, seen)
    before = {item_id: items.get(item_id, {}) for item_id in given}
    kinds = {name: type(value) for item in items.values() for name, value in item.items()}  # one of each column
    after = {item_id: _merged(before[item_id], record, kinds) for item_id, record in given.items()}
    changed = {item_id: record for item_id, record in after.items() if record != before[item_id]}
    encoded = {
        item_id: record
        for item_id, record in changed.items()
        if item_id not in items or any(record.get(name) != before[item_id].get(name) for name in ENCODED)
    }
    table_after = {**items, **after}
    if encoded:
        change = _rewrite(folder, table_after, items, encoded, encoder, root, seen)
    else:
        if changed:
            _check_unchanged(folder, seen)
            write_item_table(folder, table_after.values())
        change = CatalogChange(0, 0, 0, 0, len(items))
    return replace(change, updated=len(changed.keys() & items.keys()))


def _check_ids(action: str, given: Mapping[str, Any], items: Mapping[str, Any], table: Path, folder: Path) -> None:
    """Refuse new items that exist, and others that do not; `put` takes both."""
    if action == "put":
        return
    wrong = [item_id for item_id in given if (item_id in items) == (action == "add")]
    if wrong:
        some = ", ".join(map(repr, wrong[:3])) + (", …" if len(wrong) > 3 else "")
        where, fix = ("in", "`catalog update` is for these") if action == "add" else ("not in", "add them first")
        raise BundleMLLMError(f"{len(wrong)} items of {table} are {where} {folder} ({some}): check the ids, or {fix}.")


def _by_id(records: Sequence[Mapping[str, Any]], source: str) -> dict[str, dict[str, Any]]:
    """Return the records of a table by item id."""
    by_id: dict[str, dict[str, Any]] = {}
    for number, record in enumerate(records, start=1):
        require_fields(record, ("item_id",), f"{source} row {number}")
        item_id = to_id(record["item_id"], f"{source} row {number}")
        if item_id in by_id:
            raise BundleMLLMError(f"{source} row {number} has the item id {item_id!r} a second time: remove one row.")
        texts = {name: to_text(record[name], name, f"{source} row {number}") for name in ENCODED if name in record}
        by_id[item_id] = {**record, **texts, "item_id": item_id}
    if not by_id:
        raise BundleMLLMError(f"{source} holds no item, so nothing would change: add one row per item.")
    return by_id


def _merged(before: Mapping[str, Any], record: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return an item with the columns of a record; an empty cell removes the value."""
    read = {
        name: _as_kind(value, kinds.get(name), f"{name!r} of {record['item_id']!r}") for name, value in record.items()
    }
    return {name: value for name, value in {**before, **read}.items() if value is not None}


def _as_kind(value: Any, kind: type | None, what: str) -> Any:
    """Return a text, such as CSV has, as what its column holds; one text would make texts of all numbers."""
    if not isinstance(value, str) or kind not in (int, float, bool):
        return value
    if not value.strip():
        return None
    number = to_boolean(value) if kind is bool else to_number(value)
    if math.isnan(number):
        held = "true or false" if kind is bool else "numbers"
        raise BundleMLLMError(
            f"{what} is {value!r}, but the column holds {held}, so rules could not read it any more: write it as the "
            "others are, or leave it empty."
        )
    return bool(number) if kind is bool else int(number) if kind is int and number.is_integer() else number


def _rewrite(
    folder: Path,
    after: Mapping[str, Mapping[str, Any]],
    before: Mapping[str, Mapping[str, Any]],
    encoded: Mapping[str, Mapping[str, Any]],
    encoder: NewItemEncoder,
    root: Path,
    seen: tuple[int, ...],
) -> CatalogChange:
    """Write a model folder anew, with other items; all items by id, in the order of their rows."""
    completer = load_completer(folder)
    _check_order(completer, before, folder)
    new = _encode(completer, encoded, before, encoder, root)
    change_catalog(completer, after, before, list(encoded), new)
    known = known_items(completer, list(encoded))
    unknown = [item_id for item_id, is_known in zip(encoded, known, strict=True) if not is_known]
    with written_anew(folder, seen) as target:
        completer.save_pretrained(target)
        write_item_table(target, after.values())
    added, removed = len(after.keys() - before.keys()), len(before.keys() - after.keys())
    return CatalogChange(added, 0, len(encoded), removed, len(after), tuple(unknown))


@contextmanager
def written_anew(folder: Path, seen: tuple[int, ...]) -> Iterator[Path]:
    """Yield a new folder that replaces a model folder at the end, in one step, with the files that it did not get.

    Args:
        folder: The model folder.
        seen: What `folder_identity` returned before the model was loaded.

    Raises:
        BundleMLLMError: If another process has changed the items meanwhile; then nothing is replaced.
    """
    with replaced_folder(folder) as target:
        yield target
        _link_others(folder, target)
        _check_unchanged(folder, seen)


def folder_identity(folder: Path) -> tuple[int, ...]:
    """Return what tells whether another process has changed the items of a model folder."""
    paths = [path for path in (folder, folder / ITEM_TABLE) if path.exists()]
    return tuple(number for path in paths for number in (path.stat().st_ino, path.stat().st_mtime_ns))


def _check_unchanged(folder: Path, seen: tuple[int, ...]) -> None:
    if folder_identity(folder) != seen:
        raise BundleMLLMError(f"The items of {folder} were changed by another process meanwhile: repeat the command.")


def _check_order(completer: BundleCompleter, items: Mapping[str, Any], folder: Path) -> None:
    """Refuse an item table that is not of the models' items."""
    if tuple(items) != completer.processor.item_ids:
        raise BundleMLLMError(
            f"{folder / ITEM_TABLE} does not list the items of the models in their order, so rows would be mixed up: "
            "copy the model folder again."
        )


def _encode(
    completer: BundleCompleter,
    encoded: Mapping[str, Mapping[str, Any]],
    before: Mapping[str, Mapping[str, Any]],
    encoder: NewItemEncoder,
    root: Path,
) -> NewItems:
    """Encode the items that need it; of an updated item the pictures and sounds that the update names."""
    if not encoded:
        return NewItems({}, {}, {})
    known = set(completer.modalities) & set(encoder.encoders)
    empty = [
        item_id for item_id, record in encoded.items() if not any(record[name] for name in record if name != "item_id")
    ]
    if empty:
        some = ", ".join(map(repr, empty[:3])) + (", …" if len(empty) > 3 else "")
        raise BundleMLLMError(
            f"{len(empty)} items have nothing but an id ({some}), so nothing could be known about them: give a title, "
            "a picture, or whatever else the model was trained on."
        )
    if not known and completer.ranker is None:
        raise BundleMLLMError(
            f"{encoder.folder} keeps no encoder of what an item is (it has {', '.join(encoder.kept) or 'none'}), so "
            "nothing would be known about new items: train on features that `bundle-mllm encode` makes of texts, "
            "pictures or sounds."
        )
    records, unchanged = [], {name: np.zeros(len(encoded), dtype=bool) for name in MEDIA}
    for number, (item_id, record) in enumerate(encoded.items()):
        for name in MEDIA:
            unchanged[name][number] = item_id in before and before[item_id].get(name) == record.get(name)
        records.append({name: v for name, v in record.items() if name not in MEDIA or not unchanged[name][number]})
    new = encoder.encode(records, root)
    fields = {m: each.field for m, each in encoder.encoders.items() if isinstance(each, BatchEncoder)}
    kept = {modality: unchanged[field] for modality, field in fields.items() if field in MEDIA}
    return replace(new, kept=kept)


def change_catalog(
    completer: BundleCompleter,
    after: Mapping[str, Mapping[str, Any]],
    before: Mapping[str, Mapping[str, Any]],
    encoded: Sequence[str],
    new: NewItems,
) -> None:
    """Give both models and the processor of a completer other items; see `update_catalog`.

    Args:
        completer: The completer of the items `before`.
        after: All items by id, in the order of their rows; those that were there before keep their order.
        before: The same of now.
        encoded: Ids of the items that were encoded.
        new: What is known about these.
    """
    row_before = {item_id: row for row, item_id in enumerate(before)}
    source = torch.tensor([row_before.get(item_id, -1) for item_id in after])  # [num_items]
    row_after = {item_id: row for row, item_id in enumerate(after)}
    at = torch.tensor([row_after[item_id] for item_id in encoded], dtype=torch.long)  # [n]
    categories = [record.get("category") for record in after.values()]
    for model in completer.models:
        rows = model.catalog_rows()
        if not rows["features"]:
            continue
        features = {name: _taken(matrix, source) for name, matrix in rows["features"].items()}
        present = {name: _taken(mask, source) for name, mask in rows["present"].items()}
        for name in features.keys() & new.features.keys():
            is_new = torch.from_numpy(~new.kept[name]) if name in new.kept else slice(None)
            features[name][at[is_new]] = torch.from_numpy(new.features[name])[is_new].to(features[name])
            present[name][at[is_new]] = torch.from_numpy(new.present[name])[is_new].to(present[name])
        memberships = {}
        if "memberships" in rows:
            before_categories = [record.get("category") for record in before.values()]
            for name, pairs in rows["memberships"].items():
                if name == BUNDLE_CATEGORY:
                    memberships[name] = _of_categories(pairs, before_categories, categories)
                else:
                    memberships[name] = _of_items(pairs, source, at, new.groups.get(name))
            model.set_catalog(features, present, memberships)
        else:
            model.set_catalog(features, present)
    completer.processor.set_items(list(after), [record.get("title") or "" for record in after.values()])
    for model in completer.models:
        model.config.items_hash = completer.processor.items_hash


def _taken(table: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Return the rows `source` `[n]` of a table; zeros for -1."""
    source = source.to(table.device)
    taken = table[source.clamp(min=0)]
    taken[source < 0] = 0
    return taken


def _of_items(
    pairs: ItemPairs, source: torch.Tensor, at: torch.Tensor, groups: Sequence[Sequence[int]] | None
) -> ItemPairs:
    """Return the pairs of other items.

    Args:
        pairs: Those of the items before.
        source: `[num_items]` the row before of each item, -1 for a new one.
        at: `[n]` the rows of the items that were encoded.
        groups: The groups of these; `None` if the membership does not follow from what an item is.
    """
    assert pairs.sizes is not None and pairs.node_of_item is not None
    row_after = torch.full((len(pairs.node_of_item),), -1)
    kept_rows = (source >= 0).nonzero()[:, 0]
    row_after[source[kept_rows]] = kept_rows
    nodes = row_after[pairs.nodes]
    kept = nodes >= 0
    if groups is None:
        return ItemPairs(nodes[kept], pairs.groups[kept], sizes=pairs.sizes)
    kept &= ~torch.isin(nodes, at)
    size_of = dict(enumerate(pairs.sizes.tolist()))
    smallest = [sorted(of_item, key=lambda group: (size_of.get(group, 1), group))[:MAX_GROUPS] for of_item in groups]
    new_nodes = at.repeat_interleave(torch.tensor([len(of_item) for of_item in smallest], dtype=torch.long))
    new_groups = torch.tensor([group for of_item in smallest for group in of_item], dtype=torch.long)
    sizes = torch.ones(max(len(pairs.sizes), int(new_groups.max()) + 1 if len(new_groups) else 0), dtype=torch.long)
    sizes[: len(pairs.sizes)] = pairs.sizes
    return ItemPairs(torch.cat([nodes[kept], new_nodes]), torch.cat([pairs.groups[kept], new_groups]), sizes=sizes)


def _of_categories(pairs: ItemPairs, before: Sequence[str | None], after: Sequence[str | None]) -> ItemPairs:
    """Return the pairs of categories, given the category of each item before and after."""
    assert pairs.node_of_item is not None
    number = {name: node for name, node in zip(before, pairs.node_of_item.tolist(), strict=True) if node >= 0}
    node_of_item = torch.tensor([-1 if name is None else number.get(name, -1) for name in after], dtype=torch.long)
    used = node_of_item[node_of_item >= 0].unique()
    renumbered = torch.full((len(pairs.node_of_item),), -1)
    renumbered[used] = torch.arange(len(used))
    nodes = renumbered[pairs.nodes]
    node_of_item[node_of_item >= 0] = renumbered[node_of_item[node_of_item >= 0]]
    return ItemPairs(nodes[nodes >= 0], pairs.groups[nodes >= 0], node_of_item, sizes=pairs.sizes)


def _link_others(folder: Path, target: Path) -> None:
    """Give a new model folder the files of the old one that are not of its models, as hard links where possible."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        is_weights = fnmatch(path.name, "*.safetensors*") and name.parent.as_posix() in (".", RETRIEVER_FOLDER)
        if path.is_file() and not is_weights and not (target / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target / name)
            except OSError:  # a file system without links
                shutil.copy2(path, target / name)
