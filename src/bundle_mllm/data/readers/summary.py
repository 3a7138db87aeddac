"""What an import wrote, for people to check against the source.

It must not know formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImportSummary:
    """What an import wrote.

    Attributes:
        path: The dataset folder.
        num_items: How many items it has.
        num_bundles: How many bundles, by split.
        num_interactions: How many distinct pairs of user and item.
        num_questions: How many questions, by the name of their file.
        modalities: The width of the features, by modality.
        dropped: How many entries of the source were left out, by what they are and why.
    """

    path: Path
    num_items: int
    num_bundles: Mapping[str, int]
    num_interactions: int
    num_questions: Mapping[str, int]
    modalities: Mapping[str, int]
    dropped: Mapping[str, int]
