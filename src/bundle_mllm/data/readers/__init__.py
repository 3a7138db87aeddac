"""Readers of data that others published: each is a function `(source, output_dir)` that writes a dataset folder.

It must not know questions' wording, models or how the folder is used.
"""

from .official import OfficialData, OfficialItems, import_official, read_official, read_official_items
from .summary import ImportSummary

__all__ = [
    "ImportSummary",
    "OfficialData",
    "OfficialItems",
    "import_official",
    "read_official",
    "read_official_items",
]
