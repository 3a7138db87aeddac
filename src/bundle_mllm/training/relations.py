"""Read who meets which item, for the matching: users of the log, training bundles.

Knows nothing about models or how groups are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bundle_mllm.data.cross_fitted import is_current
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.encoders.cross_fitting import edges
from bundle_mllm.training.cross_fitting import MODALITY as BUNDLE_ITEM

USER_ITEM = "user_item"
MAX_GROUPS = 512
"""Of an item in more groups the smallest are kept, which tell most: the cost of a question has a bound."""


def load_relations(data: DatasetFolder, names: Sequence[str]) -> dict[str, tuple[torch.LongTensor, torch.LongTensor]]:
    """Return the pairs of item and group of each relation that the folder has.

    Training bundles are numbered in the order of their sorted ids. They are left out if the folder has no cross-fitted
    versions of `bundle_item`: a training question would find its own bundle, and the model would learn nothing else.

    Args:
        data: The dataset folder.
        names: "bundle_item", "user_item"; others have no groups.

    Returns:
        By name, row of the item and number of the group, [num_pairs] both.
    """
    found = {}
    if BUNDLE_ITEM in names and is_current(data.path / "features", BUNDLE_ITEM):
        bundles = sorted(data.bundles.train, key=lambda bundle: bundle.bundle_id)
        groups, rows = edges([np.array(data.catalog.rows(bundle.items)) for bundle in bundles])
        found[BUNDLE_ITEM] = (rows, groups)
    if USER_ITEM in names and data.interactions is not None and len(data.interactions):
        found[USER_ITEM] = (data.interactions.rows, data.interactions.user_index)
    return {name: _smallest_groups(*pairs) for name, pairs in found.items()}


def _smallest_groups(rows: np.ndarray, groups: np.ndarray) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Drop, of each item, all but its `MAX_GROUPS` smallest groups."""
    rows, groups = np.unique(np.stack([rows, groups]), axis=1)
    order = np.lexsort((groups, np.bincount(groups)[groups], rows))
    rows, groups = rows[order], groups[order]
    first = np.searchsorted(rows, rows)  # of the item's edges
    kept = np.arange(len(rows)) - first < MAX_GROUPS
    return torch.from_numpy(rows[kept].astype(np.int64)), torch.from_numpy(groups[kept].astype(np.int64))
