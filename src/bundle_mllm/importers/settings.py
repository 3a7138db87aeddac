"""Settings of `import_dataset`.

Knows nothing about the formats but their names; imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundle_mllm.settings import Settings


@dataclass(frozen=True, kw_only=True)
class NamingOptions(Settings):
    """Tables and columns that have other names (tabular, shopify, woocommerce, orders, huggingface)."""

    columns: dict[str, str] | tuple[str, ...] | None = None
    """Columns that have other names, as FIELD=COLUMN, such as item_id=sku title=name bundles.items=products."""
    tables: dict[str, str] | tuple[str, ...] | None = None
    """Tables that have other names, as TABLE=FILE, such as items=products.csv."""
    delimiter: str | None = None
    """What separates the cells of CSV files (a comma)."""
    media_dir: Path | None = None
    """Folder that the paths of pictures and sounds are relative to (that of the items table)."""
    on_duplicate: Literal["error", "first"] = "error"
    """What to do about a row that contradicts an earlier one about an item: stop, or let the first count."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions(Settings):
    """Splits, where the data have none."""

    fractions: tuple[float, float, float] | None = None
    """Shares of train, validation and test (0.8 0.1 0.1)."""
    seed: int | None = None
    """Seed of the splits (42); bundles that are nearly the same stay on one side."""


@dataclass(frozen=True, kw_only=True)
class OrderOptions(Settings):
    """Bundles made of orders (tabular, shopify, woocommerce, orders)."""

    order_size: tuple[int, int] = (2, 50)
    """Fewest and most different items of an order that becomes a bundle."""
    min_support: int = 1
    """Items of fewer orders than this are taken out of bundles; they stay in the catalog."""
    split_by: Literal["bundle", "time"] = "bundle"
    """Split orders at random, near-duplicates together; or by time: the newest are test, those before validation."""
    exclude: tuple[str, ...] = ()
    """Ids that are no products, such as POST or DISCOUNT: taken out of orders."""
    order_ids: Literal["keep", "number"] = "keep"
    """Keep the numbers of orders as ids of bundles, or count from 1, for data that will be published."""


@dataclass(frozen=True)
class TableSettings(OrderOptions, SplitOptions, NamingOptions):
    """Turn the tables of a shop into a dataset folder."""

    source: Path
    """Folder of the tables, or the one table."""
    output_dir: Path
    """The dataset folder to write."""
    strict: bool = False
    """Stop at anything that would be left out."""


@dataclass(frozen=True)
class ImportSettings(OrderOptions, SplitOptions, NamingOptions):
    """Turn a data set of another format into a dataset folder."""

    format: Literal["official", "bundlerec", "polyvore", "tabular", "huggingface", "shopify", "woocommerce", "orders"]
    """The layout that the authors of Bundle-MLLM published; that of BundleRec; that of Polyvore Outfits; tables of
    your own (CSV, JSON Lines, Parquet); a data set of the Hub or of `datasets.save_to_disk`; the product export of
    Shopify or of WooCommerce, with tables of orders or bundles beside it; or one file of order lines with
    descriptions."""
    source: str
    """Folder of the data set, or its name on the Hub; of one table, the file."""
    output_dir: Path
    """The dataset folder to write."""
    interactions: Literal["none", "pretrain", "user_item"] | None = None
    """Which of BundleRec's interaction tables to take (none)."""
    revision: str | None = None
    """Commit, branch or tag of a data set on the Hub."""
    strict: bool = False
    """Stop at anything that would be left out."""
