"""Data sets of items and bundles: reading, checking, and asking multiple-choice questions about them.

It must not know tokenizers or the language model.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bundle_mllm.data.bundles import SPLITS, Bundle, BundleSplits
from bundle_mllm.data.catalog import Item, ItemCatalog
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.interactions import Interactions
from bundle_mllm.data.questions import (
    Question,
    load_questions,
    make_questions,
    sample_training_questions,
    save_questions,
)
from bundle_mllm.data.tables import find_table, iter_records, read_records, write_records

if TYPE_CHECKING:
    from bundle_mllm.data.features import FeatureStore, write_modality
    from bundle_mllm.data.splitting import split_bundles


__all__ = [
    "SPLITS",
    "Bundle",
    "BundleSplits",
    "DatasetFolder",
    "FeatureStore",
    "Interactions",
    "Item",
    "ItemCatalog",
    "Question",
    "find_table",
    "iter_records",
    "load_questions",
    "make_questions",
    "read_records",
    "sample_training_questions",
    "save_questions",
    "split_bundles",
    "write_modality",
    "write_records",
]

_LAZY = {
    "FeatureStore": "features",  # torch
    "split_bundles": "splitting",  # scipy
    "write_modality": "features",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
