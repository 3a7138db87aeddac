"""Readers of data that others published: each is a function `(source, output_dir)` that writes a dataset folder.

It must not know questions' wording, models or how the folder is used.
"""

from .official import OfficialData, import_official, read_official
from .summary import ImportSummary

__all__ = ["ImportSummary", "OfficialData", "import_official", "read_official"]
