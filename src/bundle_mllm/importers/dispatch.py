"""Import a data set by the name of its format.

It must not know what the formats look like.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.bundlerec import import_bundlerec
from bundle_mllm.importers.huggingface import import_huggingface
from bundle_mllm.importers.official import import_official
from bundle_mllm.importers.summary import ImportSummary
from bundle_mllm.importers.tabular import import_tabular

FORMATS: Mapping[str, Callable[..., ImportSummary]] = {
    "official": import_official,
    "bundlerec": import_bundlerec,
    "tabular": import_tabular,
    "huggingface": import_huggingface,
}


def import_dataset(
    format: str, source: str | os.PathLike, output_dir: str | os.PathLike, **options: Any
) -> ImportSummary:
    """Import a data set.

    Args:
        format: One of `FORMATS`.
        source: The data set.
        output_dir: Receives the dataset folder.
        options: The options of the format's own function; those that are `None` are as if not given.

    Returns:
        What was written and what was met.

    Raises:
        BundleMLLMError: If there is no such format, or it has no such option, or for what its function refuses.
    """
    if format not in FORMATS:
        raise BundleMLLMError(f"There is no format {format!r} to import: choose one of {', '.join(FORMATS)}.")
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in _options(format):
            having = ", ".join(other for other in FORMATS if name in _options(other)) or "none"
            raise BundleMLLMError(f"The format {format} has no option `{name}` (formats that have it: {having}).")
    return FORMATS[format](source, output_dir, **given)


def parse_pairs(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """Read `NAME=VALUE` texts, as the command line has them.

    Args:
        option: What the error message calls them.
        pairs: The texts.

    Raises:
        BundleMLLMError: If one is not of this form or a name is there twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value) or name in found:
            raise BundleMLLMError(f"{option} has {pair!r}: write NAME=VALUE, each name once, such as item_id=sku.")
        found[name] = value
    return found


def _options(format: str) -> set[str]:
    return set(inspect.signature(FORMATS[format]).parameters) - {"source", "output_dir"}
