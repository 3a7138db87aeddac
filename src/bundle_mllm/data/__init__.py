"""Data sets of items and bundles: reading, checking, and asking multiple-choice questions about them.

It must not know tokenizers or the language model.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .bundles import SPLITS, Bundle, BundleSplits
from .catalog import Item, ItemCatalog
from .folder import DatasetFolder
from .interactions import Interactions
from .questions import Question, load_questions, make_questions, sample_training_questions, save_questions
from .tables import find_table, iter_records, read_records, write_records

if TYPE_CHECKING:
    from .features import FeatureStore, write_modality
    from .readers import import_dataset
    from .splitting import split_bundles
    from .studio import make_studio
    from .studio_ceiling import make_ceiling_studio


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
    "import_dataset",
    "iter_records",
    "load_questions",
    "make_ceiling_studio",
    "make_questions",
    "make_studio",
    "read_records",
    "sample_training_questions",
    "save_questions",
    "split_bundles",
    "write_modality",
    "write_records",
]

_LAZY = {
    "FeatureStore": "features",  # torch
    "import_dataset": "readers",
    "make_ceiling_studio": "studio_ceiling",  # pictures
    "make_studio": "studio",
    "split_bundles": "splitting",  # scipy
    "write_modality": "features",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
