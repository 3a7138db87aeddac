"""Read who meets which item, for the matching: users of the log, training bundles, words of texts.

Knows nothing about models or how groups are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import count_folds as is_current
from bundle_mllm.data.leakage import check_interactions
from bundle_mllm.data.memberships import BUNDLE_ITEM, ItemGroups
from bundle_mllm.data.words import words
from bundle_mllm.modeling.configuration_bundle_mllm import BUNDLE_CATEGORY

USER_ITEM, TEXTUAL = "user_item", "textual"
MAX_GROUPS = 512
"""Of an item in more groups the smallest are kept, which tell most: the cost of a question has a bound."""
MAX_GROUPS_OF_CATEGORY = 128
"""The same for a category, which is in many more bundles than an item is; more of them changed no figure."""


def load_relations(
    data: DatasetFolder, names: Sequence[str], *, allow_leakage: bool = False
) -> dict[str, tuple[torch.LongTensor, ...]]:
    """Return the pairs of item and group of each relation that the folder has, as `set_catalog` takes them.

    Training bundles are numbered in the order of their sorted ids. They are left out if the folder has no cross-fitted
    versions of `bundle_item`: a training question would find its own bundle, and the model would learn nothing else.

    Args:
        data: The dataset folder.
        names: "bundle_category", "bundle_item", "textual", "user_item"; others have no groups.
        allow_leakage: Take a user log that encodes held-out bundles, too.

    Returns:
        By name, row of the item and number of the group, [num_pairs] both; of `bundle_category` the number of the
        category and that of the bundle, and the category of each item [num_items], -1 for none.

    Raises:
        BundleMLLMError: The user log encodes held-out bundles; see `check_interactions`.
    """
    found: dict[str, tuple[torch.LongTensor, ...]] = {}
    if {BUNDLE_ITEM, BUNDLE_CATEGORY} & set(names) and is_current(data.path / "features", BUNDLE_ITEM):
        members = ItemGroups.of_bundles(data.bundles.train, data.catalog)
        groups, rows = members.groups, members.nodes
        if BUNDLE_ITEM in names:
            found[BUNDLE_ITEM] = _smallest_groups(rows, groups, MAX_GROUPS)
        category = _categories(data)
        known = category[rows] >= 0
        if BUNDLE_CATEGORY in names and known.any():
            pairs = _smallest_groups(category[rows][known], groups[known], MAX_GROUPS_OF_CATEGORY)
            found[BUNDLE_CATEGORY] = (*pairs, torch.from_numpy(category))
    if TEXTUAL in names:
        of_items = [sorted(set(words(item.text))) for item in data.catalog]
        number = {word: index for index, word in enumerate(sorted({word for each in of_items for word in each}))}
        rows = np.repeat(np.arange(len(of_items)), [len(each) for each in of_items])
        groups = np.array([number[word] for each in of_items for word in each], dtype=np.int64)
        found[TEXTUAL] = _smallest_groups(rows, groups, MAX_GROUPS)
    if USER_ITEM in names and data.interactions is not None and len(data.interactions):
        check_interactions(data, allow_leakage=allow_leakage)
        found[USER_ITEM] = _smallest_groups(data.interactions.rows, data.interactions.user_index, MAX_GROUPS)
    return found


def _categories(data: DatasetFolder) -> np.ndarray:
    """Return the number of each item's category among the sorted ones, -1 for none."""
    number = {category: index for index, category in enumerate(sorted(set(data.catalog.categories) - {None}))}
    return np.array([number.get(category, -1) for category in data.catalog.categories], dtype=np.int64)


def _smallest_groups(rows: np.ndarray, groups: np.ndarray, number: int) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Drop, of each row, all but so many of its smallest groups."""
    rows, groups = np.unique(np.stack([rows, groups]), axis=1)
    order = np.lexsort((groups, np.bincount(groups)[groups], rows))
    rows, groups = rows[order], groups[order]
    first = np.searchsorted(rows, rows)  # of the row's edges
    kept = np.arange(len(rows)) - first < number
    return torch.from_numpy(rows[kept].astype(np.int64)), torch.from_numpy(groups[kept].astype(np.int64))
