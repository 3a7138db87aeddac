"""New models whose catalogs are full: in the suites, all weights are those of a new model.

Knows nothing about the suites.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from transformers import initialization as init

from bundle_mllm.modeling.base_bundle_mllm import BundlePreTrainedModel
from bundle_mllm.modeling.catalog_bundle_mllm import BundleMLLMItemCatalog


def fill(catalog: BundleMLLMItemCatalog) -> None:
    """Give all features to all items, the same in each model."""
    init.ones_(catalog.present)
    for table in catalog.features.buffers():
        init.copy_(table, torch.arange(table.numel()).sin().view_as(table))


@contextmanager
def full_catalogs() -> Iterator[None]:
    """Fill the catalogs of new models for a while."""
    init_weights, init_catalog = BundlePreTrainedModel._init_weights, BundleMLLMItemCatalog.__init__

    def init_weights_and_catalog(model, module):
        init_weights(model, module)
        if isinstance(module, BundleMLLMItemCatalog):
            fill(module)

    def init_full_catalog(catalog, *arguments):
        init_catalog(catalog, *arguments)
        fill(catalog)

    with (
        mock.patch.object(BundlePreTrainedModel, "_init_weights", init_weights_and_catalog),
        mock.patch.object(BundleMLLMItemCatalog, "__init__", init_full_catalog),
    ):
        yield
