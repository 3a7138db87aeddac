"""Read the item-group memberships of a dataset folder for the retriever.

Knows nothing about how a retriever counts shared groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import OutOfFoldFeatures
from bundle_mllm.data.leakage import check_interactions
from bundle_mllm.data.memberships import (
    ATTRIBUTES,
    BUNDLE_CATEGORY,
    BUNDLE_ITEM,
    MAX_GROUPS,
    TEXTUAL,
    USER_ITEM,
    ItemGroups,
)
from bundle_mllm.encoders.attributes import AttributeEncoder
from bundle_mllm.encoders.fitted import ENCODERS_FOLDER, read_encoder
from bundle_mllm.modeling.groups_bundle_mllm import ItemPairs

MAX_GROUPS_OF_CATEGORY = 128
"""The same for a category, which is in many more bundles than an item is; more of them changed no figure."""


def load_memberships(
    data: DatasetFolder,
    names: Sequence[str],
    modalities: Sequence[str],
    out_of_fold: OutOfFoldFeatures | None,
    *,
    allow_leakage: bool = False,
) -> dict[str, ItemPairs]:
    """Return the pairs of item and group of each named kind of membership that the folder has.

    A kind is used only beside its modality: "bundle_item" and "bundle_category" with `bundle_item` features, and so
    on. Training bundles are left out if the folder has no out-of-fold features: a training question would find its own
    bundle, and the retriever would learn nothing else.

    Raises:
        BundleMLLMError: If the user log encodes held-out bundles; see `check_interactions`.
    """
    memberships: dict[str, ItemPairs] = {}
    folds = None
    if out_of_fold is not None:  # groups are numbered in the order of the bundles' sorted ids
        folds = torch.tensor([fold for _, fold in sorted(out_of_fold.fold_of_bundle.items())])
    has_bundles = BUNDLE_ITEM in modalities and folds is not None
    if BUNDLE_CATEGORY in names and has_bundles:
        groups = ItemGroups.of_bundles_of_categories(data.bundles.train, data.catalog)
        if len(groups):
            memberships[BUNDLE_CATEGORY] = _pairs(groups.smallest_groups(MAX_GROUPS_OF_CATEGORY), folds)
    if BUNDLE_ITEM in names and has_bundles:
        groups = ItemGroups.of_bundles(data.bundles.train, data.catalog)
        memberships[BUNDLE_ITEM] = _pairs(groups.smallest_groups(MAX_GROUPS), folds)
    if ATTRIBUTES in names and ATTRIBUTES in modalities and (groups := _attribute_groups(data)):
        memberships[ATTRIBUTES] = _pairs(groups.smallest_groups(MAX_GROUPS))
    if TEXTUAL in names and TEXTUAL in modalities:
        memberships[TEXTUAL] = _pairs(ItemGroups.of_words(data.catalog).smallest_groups(MAX_GROUPS))
    interactions = data.interactions if USER_ITEM in names and USER_ITEM in modalities else None
    if interactions is not None and len(interactions):
        check_interactions(data, allow_leakage=allow_leakage)
        users = ItemGroups.of_users(interactions, len(data.catalog))
        memberships[USER_ITEM] = _pairs(users.smallest_groups(MAX_GROUPS))
    return memberships


def _attribute_groups(data: DatasetFolder) -> ItemGroups | None:
    """Return the names that items share in the columns that were encoded; `None` if `encode` did not encode them."""
    kept = read_encoder(data.path / "features" / ENCODERS_FOLDER, ATTRIBUTES)
    encoder = None if kept is None else kept.make(torch.device("cpu"))
    return encoder.groups(data) if isinstance(encoder, AttributeEncoder) else None


def _pairs(groups: ItemGroups, folds: torch.Tensor | None = None) -> ItemPairs:
    nodes = None if groups.node_of_item is None else torch.from_numpy(groups.node_of_item)
    return ItemPairs(torch.from_numpy(groups.nodes), torch.from_numpy(groups.groups), nodes, folds)
