"""Let training questions see the features that were fitted without the bundles they are about.

Knows nothing about how features are fitted, prompts or optimizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import OutOfFoldFeatures as CrossFitted
from bundle_mllm.data.memberships import BUNDLE_ITEM
from bundle_mllm.modeling.configuration_bundle_mllm import modality_of
from bundle_mllm.modeling.items_bundle_mllm import BundleMLLMItemCatalog

if TYPE_CHECKING:
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM

logger = logging.get_logger(__name__)


def load_versions(data: DatasetFolder, modalities: Sequence[str]) -> CrossFitted | None:
    """Read the cross-fitted versions of `bundle_item`; `None`, with a warning, if a model uses it without any.

    Args:
        data: The dataset folder.
        modalities: What the model uses.
    """
    versions = CrossFitted.load(data, BUNDLE_ITEM) if BUNDLE_ITEM in modalities else None
    if versions is None and BUNDLE_ITEM in modalities:
        logger.warning(
            f"{data.path} has {BUNDLE_ITEM!r} features without cross-fitted versions: they know the bundles that "
            "training asks about, so the model will trust them more than it may. `bundle-mllm encode` makes both."
        )
    return versions


class VersionedCatalog(BundleMLLMItemCatalog):
    """A catalog whose row `r + (f + 1) N` is item `r` as it looks without the bundles of fold `f`; N is its length.

    Args:
        catalog: The catalog; its buffers are shared.
        versions: Other features of one of its modalities.
    """

    def __init__(self, catalog: BundleMLLMItemCatalog, versions: CrossFitted):
        torch.nn.Module.__init__(self)
        self.modalities, self.features, self.versioned = catalog.modalities, catalog.features, versions.modality
        self.relations = catalog.relations
        self.register_buffer("present", catalog.present)
        table = catalog.features[versions.modality]
        self.register_buffer("versions", versions.features.flatten(0, 1).to(table), persistent=False)
        self.register_buffer("versions_present", versions.present.flatten().to(table.device), persistent=False)
        folds = torch.tensor([fold for _, fold in sorted(versions.fold_of_bundle.items())], device=table.device)
        self.register_buffer("fold_of_group", folds, persistent=False)

    @property
    def num_items(self) -> int:
        """Number of rows, those of versions included."""
        return len(self.present) + len(self.versions)

    def gather(
        self, rows: torch.LongTensor, extra_items: dict | None = None
    ) -> tuple[dict[str, torch.Tensor], torch.BoolTensor]:
        """Read the given rows; see the base class."""
        num_items, column = len(self.present), list(self.modalities).index(self.versioned)
        features = {name: self.features[name][rows % num_items] for name in self.modalities}
        present = self.present[rows % num_items]
        other = rows >= num_items
        features[self.versioned][other] = self.versions[rows[other] - num_items]
        present[other, column] = self.versions_present[rows[other] - num_items]
        return features, present

    def gather_edges(
        self, rows: torch.LongTensor, present: torch.BoolTensor
    ) -> dict[str, tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]]:
        """Read the edges of the given rows, but for the bundles of a version's own fold; see the base class."""
        edges = super().gather_edges(rows % len(self.present), present)
        for name, (owner, group, size) in edges.items():
            if modality_of(name) == self.versioned:
                kept = self.fold_of_group[group] != rows[owner] // len(self.present) - 1
                edges[name] = owner[kept], group[kept], size[kept]
        return edges


@contextmanager
def versions_of_items(model: BundleMLLMForCausalLM, versions: CrossFitted | None) -> Iterator[None]:
    """Give a model the versions' rows for a while."""
    catalog = model.model.catalog
    if versions is not None:
        model.model.catalog = VersionedCatalog(catalog, versions)
    try:
        yield
    finally:
        model.model.catalog = catalog.to(model.model.catalog.present.device)  # the trainer moved what stood for it


def row_shift(bundle_id: str, versions: CrossFitted | None, num_items: int) -> int:
    """Return what is added to the rows of a question about a training bundle."""
    return 0 if versions is None else (versions.fold_of_bundle[bundle_id] + 1) * num_items
