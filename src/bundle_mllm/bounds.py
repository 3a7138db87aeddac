"""How large the input of others may be: pictures, sounds, tables, tensors, JSON and YAML documents, titles.

Knows nothing about who reads what; a reader calls `check` before it allocates.

Small files can ask for hours and gigabytes (a picture of one color, a table of one repeated row). Each bound is far
above what real data need. docs/guides/bounds.md has time and memory of the worst accepted input of each kind.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from functools import lru_cache

from bundle_mllm.errors import BundleMLLMError

VARIABLE = "BUNDLE_MLLM_BOUNDS"
"""Environment variable that changes bounds: `picture_pixels=200000000 table_rows=50000000`."""


@dataclass(frozen=True)
class Bounds:
    """The bounds (ours)."""

    picture_pixels: int = 64_000_000
    """Pixels of a picture."""
    picture_aspect: int = 100
    """How many times as long as wide a picture may be."""
    sound_channels: int = 64
    """Channels of a sound."""
    sound_values: int = 64_000_000
    """Samples times channels of the window of a sound that is read at once."""
    table_rows: int = 10_000_000
    """Rows of a table that is read row by row (items, bundles, questions)."""
    rows_per_byte: int = 32
    """Rows of a Parquet file for each of its bytes: a few bytes can claim millions of equal rows."""
    cell_characters: int = 10_000_000
    """Characters of a line of JSON Lines, or of a cell of a CSV file."""
    json_bytes: int = 1 << 28
    """Bytes of a JSON document."""
    yaml_bytes: int = 100_000
    """Bytes of a YAML file of settings."""
    tensor_values: int = 1 << 33
    """Values of one tensor of a file of tensors (`.pt`, `.bin`)."""
    title_characters: int = 2_000
    """Characters of a title, which each question shows in full."""
    text_characters: int = 200_000
    """Characters of a description or category."""
    id_characters: int = 1_000
    """Characters of an id."""


@lru_cache(maxsize=1)
def bounds() -> Bounds:
    """Return the bounds, as `BUNDLE_MLLM_BOUNDS` changes them.

    Raises:
        BundleMLLMError: If the variable names no bound, or a value is no positive integer.
    """
    changes: dict[str, int] = {}
    names = [field.name for field in fields(Bounds)]
    for pair in os.environ.get(VARIABLE, "").replace(",", " ").split():
        name, _, value = pair.partition("=")
        if name not in names or not value.isdecimal() or len(value) > 18 or not int(value):
            raise BundleMLLMError(f"{VARIABLE} has {pair!r}: write NAME=NUMBER, NAME being one of {', '.join(names)}.")
        changes[name] = int(value)
    return Bounds(**changes)


def check(bound: str, value: int, what: str, fix: str = "check that it is what you mean") -> None:
    """Refuse what is larger than a bound.

    Args:
        bound: Name of a field of `Bounds`.
        value: How large `what` is.
        what: What messages call it, such as `"items.jsonl line 3"`.
        fix: What to do about it, besides raising the bound.

    Raises:
        BundleMLLMError: If the value is above the bound.
    """
    if value > (most := getattr(bounds(), bound)):
        unit = bound.replace("_", " ")
        raise BundleMLLMError(
            f"{what} has {value:,} {unit}, above the bound of {most:,}: {fix}, or raise the bound with "
            f"{VARIABLE}={bound}={value}."
        )
