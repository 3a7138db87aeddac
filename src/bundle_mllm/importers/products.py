"""Read the product exports of shop systems: several rows of one product become its items.

Knows nothing about bundles, orders or files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bundle_mllm.data.cells import to_number
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.assemble import Place, clean_id, to_price
from bundle_mllm.importers.summary import ImportNotes
from bundle_mllm.importers.text import split_list, split_paths

Row = Mapping[str, Any]
_OF_SHOPIFY = frozenset(
    {"Handle", "Title", "Body (HTML)", "Tags", "Type", "Image Src", "Image Position", "Image Alt Text"}
    | {"Variant SKU", "Variant Price", "Variant Image", "Vendor", "Product Category"}
)
_OF_WOOCOMMERCE = frozenset(
    {"ID", "SKU", "Name", "Type", "Description", "Short description", "Categories", "Tags", "Images", "Parent"}
    | {"Regular price", "Sale price", "Position", "Brands"}
)
"""Columns that become fields of an item; all others are kept under their names."""


@dataclass
class _Product:
    """The rows of one `Handle`: the first, those of variants, and the addresses of all pictures."""

    first: Row
    variants: list[Place] = field(default_factory=list)
    pictures: dict[str, None] = field(default_factory=dict)


def shopify_items(rows: Iterable[Place], notes: ImportNotes) -> Iterator[Place]:
    """Yield the items of Shopify's product export.

    A product is several rows of one `Handle`, and only the first has title, body, type and tags. A row with an option,
    a price or an SKU is a variant, others are further pictures. A variant is an item under its SKU; those without an
    SKU are one item under the handle. Drafts are no items; archived, unlisted and unpublished products are, since
    orders may name them.

    Raises:
        BundleMLLMError: If a column lacks that all such exports have.
    """
    hidden = 0
    for handle, product in _by_handle(rows, notes).items():
        if _status(product.first) == "draft":
            notes.add("products that are drafts, left out", f"{product.variants[0][0]}: {handle!r}", harmless=True)
            continue
        hidden += _is_hidden_by_shopify(product.first)
        yield from _variants(handle, product, notes)
    _note_unsold(hidden, "archived, unlisted or not published", "in_stock", notes)


def _by_handle(rows: Iterable[Place], notes: ImportNotes) -> dict[str, _Product]:
    products: dict[str, _Product] = {}
    for number, (where, row) in enumerate(rows):
        if not number:
            _require(row, ("Handle", "Title"), where, "Shopify")
        handle = clean_id(row.get("Handle"), where, notes)
        if handle is None:
            notes.add("rows of products without a handle, left out", where)
            continue
        product = products.setdefault(handle, _Product(row))
        if row.get("Title") and not product.first.get("Title"):
            product.first = row
        if any(row.get(name) for name in ("Variant SKU", "Variant Price", "Option1 Value")) or row is product.first:
            product.variants.append((where, row))
        else:
            notes.add("rows with further pictures of a product", f"{where}: {handle!r}", harmless=True)
        if picture := row.get("Image Src"):
            product.pictures[picture] = None
    return products


def _variants(handle: str, product: _Product, notes: ImportNotes) -> Iterator[Place]:
    """Yield each variant with an SKU, and the first of those without one under the handle."""
    first = product.first
    paths = split_paths(first.get("Product Category") or "", None)  # one path, with commas in the names of its steps
    shared = {
        "description": first.get("Body (HTML)"),
        "category": paths[0][-1] if paths else first.get("Type"),
        "category_paths": paths or None,
        "type": first.get("Type") if paths else None,
        "brand": first.get("Vendor"),
        "tags": split_list(first.get("Tags") or "", ",") or None,
        "handle": handle,
    }
    has_handle = False
    for where, row in product.variants:
        sku = clean_id(row.get("Variant SKU"), where, notes)
        if sku is None:
            notes.add("products without an SKU, whose handle is their id", f"{where}: {handle!r}", harmless=True)
            if has_handle:
                continue
            has_handle = True
        options = [row.get(f"Option{n} Value") for n in (1, 2, 3)]
        options = [option for option in options if option and option != "Default Title"]
        title = first.get("Title") or ""
        own = [row["Variant Image"]] if row.get("Variant Image") else []
        yield (
            where,
            {
                "item_id": sku or handle,
                "title": f"{title} - {' / '.join(options)}" if sku and options else title,
                **shared,
                "product_title": title if sku and options else None,
                "price": to_price(row.get("Variant Price"), where, notes),
                "in_stock": _is_sold_by_shopify(first, row),
                **_pictures(list(dict.fromkeys([*own, *product.pictures]))),
                **_others(first, _OF_SHOPIFY),
                **(_others(row, _OF_SHOPIFY) if row is not first else {}),
            },
        )


def woocommerce_items(rows: Iterable[Place], notes: ImportNotes) -> Iterator[Place]:
    """Yield the items of WooCommerce's product export.

    A variation is an item with what its parent says where it says nothing itself; a parent with variations is no item,
    unless they have no SKU of their own. The id is the SKU, and without one the number (`ID`). Drafts are no items;
    private products and disabled variations are, since orders may name them.

    Raises:
        BundleMLLMError: If a column lacks that all such exports have.
    """
    products: list[tuple[str, Row]] = []
    for number, (where, row) in enumerate(rows):
        if not number:
            _require(row, ("ID", "Type", "Name"), where, "WooCommerce")
        products.append((where, row))
    by_key = {key: row for _, row in products for key in (f"id:{row.get('ID')}", row.get("SKU")) if key}
    own_sku = [row for _, row in products if row.get("Type") == "variation" and row.get("SKU") and row.get("Parent")]
    parents = {id(by_key[row["Parent"]]) for row in own_sku if row["Parent"] in by_key}
    private = 0
    for where, row in products:
        variation = row.get("Type") == "variation"
        parent = by_key.get(row.get("Parent") or "") if variation else None
        if id(row) in parents:
            notes.add("products that are sold as their variations, which are the items", where, harmless=True)
            continue
        published = {each.get("Published") for each in (row, parent or row)}
        if "-1" in published:
            notes.add("products that are drafts, left out", where, harmless=True)
            continue
        private += "0" in published
        if variation and parent is None:
            notes.add("variations whose parent is not in the table, kept without what it says", where)
        if parent is not None and not row.get("SKU"):
            notes.add("variations without an SKU, which are their parent", where, harmless=True)
            if id(parent) not in parents:
                continue
        item_id = clean_id(row.get("SKU"), where, notes)
        if item_id is None:
            item_id = clean_id(row.get("ID"), where, notes)
            notes.add("products without an SKU, whose number is their id", f"{where}: {item_id!r}", harmless=True)
        both = {name: row.get(name) or (parent or {}).get(name) for name in row}
        paths = split_paths(both.get("Categories") or "")
        tags = split_list(both.get("Tags") or "", ",")
        description = both.get("Description") or both.get("Short description")
        yield (
            where,
            {
                "item_id": item_id,
                "title": both.get("Name"),
                "description": description.replace("\\n", "\n") if description else None,
                "category": paths[0][-1] if paths else None,
                "category_paths": paths or None,
                "brand": both.get("Brands"),
                "tags": tags or None,
                "parent": (parent or {}).get("SKU") or (parent or {}).get("ID"),
                "product_id": (parent or row).get("ID"),
                "price": to_price(_price(row) or _price(parent or row), where, notes),
                "in_stock": "0" not in published and both.get("In stock?") != "0",
                **_pictures(split_list(both.get("Images") or "", ",")),
                **_others(both, _OF_WOOCOMMERCE),
            },
        )
    _note_unsold(private, "private or disabled", "in_stock", notes)


def _price(row: Row) -> str | None:
    return row.get("Sale price") or row.get("Regular price")


def _note_unsold(number: int, kind: str, condition: str, notes: ImportNotes) -> None:
    if number:
        notes.warn(
            f"{number} products are {kind} and stay items, since orders may name them: keep them out of answers by "
            f"--where '{condition}'."
        )


def _require(row: Row, names: Iterable[str], where: str, system: str) -> None:
    for name in names:
        if name not in row:
            raise BundleMLLMError(
                f"{where} has no {name!r} (its columns: {', '.join(map(str, row))}), so it is no product export of "
                f"{system}: export the products again, or use --format tabular."
            )


def _status(product: Row) -> str:
    return (product.get("Status") or "").lower()


def _is_hidden_by_shopify(product: Row) -> bool:
    """Return whether the shop does not show a product."""
    return _status(product) in ("archived", "unlisted") or (product.get("Published") or "").lower() == "false"


def _is_sold_by_shopify(product: Row, variant: Row) -> bool:
    """Return whether a variant can be bought: its product is shown, and its stock is there or not counted."""
    is_counted = (
        bool(variant.get("Variant Inventory Tracker")) and variant.get("Variant Inventory Policy") != "continue"
    )
    number = to_number(variant.get("Variant Inventory Qty"))  # NaN if the export has none
    return not _is_hidden_by_shopify(product) and not (is_counted and number <= 0)


def _pictures(images: list[str]) -> dict[str, Any]:
    """Return the first picture as that of the item, and the others as text."""
    return {"image": images[0] if images else None, "further_images": images[1:] or None}


def _others(row: Row, used: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in used and value not in (None, "")}
