"""Read and check data sets of items and bundles, and make multiple-choice questions about them.

Knows nothing about tokenizers or language models. Features (torch) and splitting (scipy) are modules of their own,
`data.features` and `data.splitting`, so that this package is light to import.
"""

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

__all__ = [
    "SPLITS",
    "Bundle",
    "BundleSplits",
    "DatasetFolder",
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
    "write_records",
]
