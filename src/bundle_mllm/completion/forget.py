"""Take users and orders out of a model folder, without training.

Knows nothing about scores, or about how a model was trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bundle_mllm.completion.catalog import folder_identity, written_anew
from bundle_mllm.completion.settings import ForgetSettings
from bundle_mllm.data.files import delete_abandoned, read_json, require_folder, write_json
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.memberships import BUNDLE_CATEGORY, BUNDLE_ITEM, USER_ITEM, ItemGroups
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling.groups_bundle_mllm import ItemPairs
from bundle_mllm.settings import configured_by

FORGOTTEN = "forgotten.json"
"""The numbers of the groups that a model folder no longer has, by membership; no ids."""


@dataclass(frozen=True)
class Forgotten:
    """How many users and bundles, and how many pairs of them with an item, are no longer in a model folder."""

    num_users: int
    num_bundles: int
    num_pairs: int

    def __str__(self) -> str:
        return (
            f"forgot {self.num_users} users and {self.num_bundles} bundles: {self.num_pairs} pairs with items are no "
            "longer in the retriever. Delete their rows from the data set, too, before the next training."
        )


@configured_by(ForgetSettings)
def forget(settings: ForgetSettings) -> Forgotten:
    """Delete the memberships of users and bundles from the retriever of a model folder, in one step.

    What was computed from all users or bundles together stays until the next training: weights, the vectors of
    `user_item` and `bundle_item`, sizes of the other groups.

    Raises:
        BundleMLLMError: If no user or bundle is named, the data set has none of that id, or is not that of the model
            (or of a model that forgot others). Nothing is changed then.
    """
    if not settings.users and not settings.bundles:
        raise BundleMLLMError("Nothing is to be forgotten: name --users, --bundles, or both.")
    folder = require_folder(settings.model, "give the output folder of `bundle-mllm train`").resolve()
    delete_abandoned(folder.parent)
    seen = folder_identity(folder)
    completer = load_completer(folder)
    if (retriever := completer.retriever) is None:
        raise BundleMLLMError(
            f"{folder} has no retriever, and so holds no users or bundles: there is nothing to forget."
        )
    data = DatasetFolder.open(settings.data)
    row_of = {item_id: row for row, item_id in enumerate(data.catalog.item_ids)}
    data_rows = np.array([row_of.get(item_id, -1) for item_id in completer.processor.item_ids])
    rows = retriever.catalog_rows()
    memberships: dict[str, ItemPairs] = rows["memberships"]
    forgotten: dict[str, list[int]] = read_json(folder / FORGOTTEN) if (folder / FORGOTTEN).is_file() else {}
    num_pairs = 0
    for name, ids in ((USER_ITEM, set(settings.users)), (BUNDLE_ITEM, set(settings.bundles))):
        if not ids:
            continue
        names, groups = _groups(data, name)
        if unknown := ids.difference(names):
            raise BundleMLLMError(
                f"{data.path} has no user or training bundle {min(unknown)!r}, so nothing was forgotten: check the "
                "ids, and give the data set that the model was trained on."
            )
        numbers = _numbers(groups, len(names), memberships.get(name), forgotten.get(name, ()), data_rows, data.path)
        gone = [number for number, each in zip(numbers, names, strict=True) if each in ids]
        for kind in (BUNDLE_ITEM, BUNDLE_CATEGORY) if name == BUNDLE_ITEM else (name,):
            if kind in memberships:
                memberships[kind], dropped = _without(memberships[kind], gone)
                num_pairs += dropped
        forgotten[name] = sorted({*forgotten.get(name, ()), *gone})
    retriever.set_catalog(**rows)
    retriever.config.items_hash = completer.processor.items_hash
    with written_anew(folder, seen) as target:
        completer.save_pretrained(target)
        write_json(target / FORGOTTEN, forgotten)
    return Forgotten(len(set(settings.users)), len(set(settings.bundles)), num_pairs)


def _groups(data: DatasetFolder, name: str) -> tuple[Sequence[str], ItemGroups]:
    """Return the ids of the groups of a data set in the order of their numbers, and the groups."""
    if name == BUNDLE_ITEM:
        groups = ItemGroups.of_bundles(data.bundles.train, data.catalog)
        return sorted(bundle.bundle_id for bundle in data.bundles.train), groups
    if (log := data.interactions) is None:
        raise BundleMLLMError(f"{data.path} has no interactions, so users cannot be found: give the model's data set.")
    return log.users, ItemGroups.of_users(log, len(data.catalog))


def _numbers(
    groups: ItemGroups, count: int, pairs: ItemPairs | None, forgotten: Sequence[int], rows: np.ndarray, data: Path
) -> Sequence[int]:
    """Return the number in the model of each group of a data set, which has those that were forgotten before or not.

    Args:
        groups: The groups of the data set.
        count: How many these are.
        pairs: The pairs of the model; `None` if it has none.
        forgotten: The numbers that were forgotten before.
        rows: `[num_items]` the row in the data set of each item of the model, -1 for none.
        data: The data set.

    Raises:
        BundleMLLMError: If the data set lacks a pair of the model, so that numbers would name other users.
    """
    remaining = (number for number in itertools.count() if number not in forgotten)
    for numbers in (range(count), list(itertools.islice(remaining, count))):
        if pairs is None:
            return numbers
        nodes = rows[pairs.nodes.cpu().numpy()]
        held = pairs.groups.cpu().numpy() * groups.num_items + nodes
        known = np.asarray(numbers, dtype=np.int64)[groups.groups] * groups.num_items + groups.nodes
        if np.isin(held[nodes >= 0], known).all():
            return numbers
    raise BundleMLLMError(
        f"{data} lacks pairs of {groups.name} that the model holds, so others would be forgotten than those that are "
        "named: give the data set that it was trained on, with or without all of those that it forgot before."
    )


def _without(pairs: ItemPairs, numbers: Sequence[int]) -> tuple[ItemPairs, int]:
    """Return the pairs but those of some groups, and how many these were."""
    dropped = torch.isin(pairs.groups, torch.tensor(numbers, device=pairs.groups.device))
    kept = ~dropped
    return pairs._replace(nodes=pairs.nodes[kept], groups=pairs.groups[kept]), int(dropped.sum())
