"""The complements of every item as the product import of a shop system takes them: one row for each product.

Knows nothing about how answers are found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, zip_longest
from typing import Any, Literal

from bundle_mllm.completion.columns import ItemColumns
from bundle_mllm.data.cells import as_text

Layout = Literal["table", "shopify", "woocommerce"]
PRODUCT_COLUMN = {"shopify": "handle", "woocommerce": "product_id"}
"""The column of items, as `import` writes it, that names the product of a variant."""
SHOPIFY_COMPLEMENTS = (
    "Complementary products (product.metafields.shopify--discovery--product_recommendation.complementary_products)"
)


def product_rows(
    rows: Iterable[Mapping[str, Any]], columns: ItemColumns, item_ids: Iterable[str], top_k: int, layout: Layout
) -> Iterator[dict[str, str]]:
    """Yield a row for each product, with its complements in the cell that the shop system reads.

    The answers of the variants of a product are taken in turn, best first, each product once.

    Args:
        rows: Rows of answers, each with `item_id` and `answers`.
        columns: The columns of the items.
        item_ids: Their ids, in the order of the catalog.
        top_k: How many complements a product gets at most.
        layout: "shopify" (handles, `a; b`) or "woocommerce" (numbers of products, `id:1, id:2`).
    """
    records = {item_id: columns.record(row) for row, item_id in enumerate(item_ids)}
    product_of = {
        item_id: as_text(record.get(PRODUCT_COLUMN[layout]) or item_id) for item_id, record in records.items()
    }
    answers: dict[str, list[list[str]]] = {}
    titles: dict[str, str] = {}
    for row in rows:
        product = product_of[row["item_id"]]
        answers.setdefault(product, []).append([product_of[item_id] for item_id in row["answers"]])
        record = records[row["item_id"]]
        titles.setdefault(product, str(record.get("product_title") or record.get("title") or ""))
    for product, of_variants in answers.items():
        in_turn = chain.from_iterable(zip_longest(*of_variants))
        found = list(dict.fromkeys(each for each in in_turn if each not in (None, product)))[:top_k]
        if layout == "shopify":
            yield {"Handle": product, "Title": titles[product], SHOPIFY_COMPLEMENTS: "; ".join(found)}
        else:
            yield {"ID": product, "Cross-sells": ", ".join(f"id:{each}" for each in found)}
