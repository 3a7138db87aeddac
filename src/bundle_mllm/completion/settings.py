"""Settings of functions that use a model in a shop.

Knows nothing about models; imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundle_mllm.completion.product_table import Layout
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
    layout: Layout = "table"
    """What --output holds: table, a row for each item or question; or, with --every-item, what the product import of
    shopify or woocommerce takes (.csv): a row for each product, its complementary products or cross-sells in one cell.
    Variants of one product are then never complements of each other. Needs the columns that `import` writes."""
    engine: Literal["local", "ray"] = "local"
    """local, or ray (Ray Data: the cluster of RAY_ADDRESS, or this machine). `accelerate launch -m bundle_mllm.cli
    complete` shares the work among processes, too."""
    ranker: str | None = None
    """Server that runs the exported ranker (vLLM, SGLang), as openai:http://HOST/v1#MODEL. While it is down, the
    retriever answers alone, and a note says so."""
    retrieval: Literal["exact", "approximate"] = "exact"
    """approximate: search the catalog by an index (faiss), which is made first (35 s of CPU for a million items) and
    whose recall is measured and shown. It pays for one question at a time over a million items or more, in a process
    that stays; many at once are faster exactly, up to some two million."""
    batch_size: int = 32
    """Prompts per forward pass of the ranker, or that are sent to its server at once."""


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
    only stored. `put` adds the items that are new, and updates the others. `remove` needs item ids alone. Ranker and
    retriever change together, in one step; scores of all other items stay what they were.
    """

    action: Literal["add", "update", "put", "remove"]
    """What to do."""
    model: Path
    """Model folder."""
    items: Path
    """Table of items (.jsonl, .csv, .parquet), or a folder with a table `items`. Paths of pictures and sounds in it
    begin in its folder."""
    device: str | None = None
    """Where the encoders' models run; the GPU if there is one, if not given."""


@dataclass(frozen=True)
class ForgetSettings(Settings):
    """Take users and orders out of a model folder, without training.

    The retriever of a model folder holds which items a user, or a bundle, had, by numbers. They are found by the data
    set that the model was trained on. Users and bundles that were forgotten before may be missing from it.
    """

    model: Path
    """Model folder."""
    data: Path
    """Dataset folder that the model was trained on."""
    users: tuple[str, ...] = ()
    """Ids of users in its interactions."""
    bundles: tuple[str, ...] = ()
    """Ids of its training bundles, such as the orders of a customer."""
