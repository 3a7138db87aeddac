"""Readers of data that others published: each is a function `(source, output_dir)` that writes a dataset folder.

It must not know questions' wording, models or how the folder is used.
"""

from bundle_mllm.importers.bundlerec import import_bundlerec
from bundle_mllm.importers.dispatch import FORMATS, import_dataset, parse_pairs
from bundle_mllm.importers.huggingface import import_huggingface
from bundle_mllm.importers.official import (
    OfficialData,
    OfficialItems,
    import_official,
    read_official,
    read_official_items,
)
from bundle_mllm.importers.summary import Finding, ImportSummary
from bundle_mllm.importers.tabular import import_tabular

__all__ = [
    "FORMATS",
    "Finding",
    "ImportSummary",
    "OfficialData",
    "OfficialItems",
    "import_bundlerec",
    "import_dataset",
    "import_huggingface",
    "import_official",
    "import_tabular",
    "parse_pairs",
    "read_official",
    "read_official_items",
]
