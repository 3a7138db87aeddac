"""Settings of functions that use a model in a shop.

Knows nothing about models; imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundle_mllm.completion.rules import Rules
from bundle_mllm.settings import Settings


@dataclass(frozen=True, kw_only=True)
class BulkOptions(Settings):
    """Many bundles at once."""

    input: Path | None = None
    """Table of questions (.jsonl, .csv, .parquet) with `partial` (ids as a list, in CSV JSON or a|b|c) and, if wanted,
    `candidates` and `question_id`; one row of answers each."""
    every_item: bool = False
    """Answer for each item of the catalog as a bundle of its own: the complements that a product page shows."""
    output: Path | None = None
    """Table to write (.jsonl, .csv, .parquet): `item_id` (or `question_id`), `answers` (ids, best first), `scores`,
    and `notes` of rules that left too few. Lists are JSON in CSV. Parts of a run that was killed stay beside it in
    OUTPUT.parts, and the same command continues."""
    engine: Literal["local", "ray"] = "local"
    """local, or ray (Ray Data: the cluster of RAY_ADDRESS, or this machine). `accelerate launch -m bundle_mllm.cli
    complete` shares the work among processes, too."""
    batch_size: int = 32
    """Prompts per forward pass of the ranker."""


@dataclass(frozen=True)
class BulkSettings(BulkOptions):
    """Complete many bundles into one file."""

    model: str
    """Model folder or Hub repository."""
    top_k: int = 10
    """Number of answers."""
    rules: Rules | None = None
    """The rules; none if not given."""
    items: Path | None = None
    """Items table, or dataset folder, whose columns the rules read."""
    device: str | None = None
    """Where the models run; a GPU if there is one."""


@dataclass(frozen=True)
class CatalogSettings(Settings):
    """Add items to a model folder, change some or remove some, without training.

    `add` encodes new items by the encoders that made the features of the others. `update` replaces the columns that
    the file has: title, description, category, image and audio are encoded again, others, such as price and stock, are
    only stored. `remove` needs item ids alone. Ranker and retriever change together, in one step; scores of all other
    items stay what they were.
    """

    action: Literal["add", "update", "remove"]
    """What to do."""
    model: Path
    """Model folder."""
    items: Path
    """Table of items (.jsonl, .csv, .parquet), or a folder with a table `items`. Paths of pictures and sounds in it
    begin in its folder."""
    device: str | None = None
    """Where the encoders' models run; the GPU if there is one, if not given."""
