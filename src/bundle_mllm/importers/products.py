"""Read the product exports of shop systems: several rows of one product become its items.

Knows nothing about bundles, orders or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.assemble import Place, clean_id
from bundle_mllm.importers.summary import ImportNotes
from bundle_mllm.importers.text import split_list, split_paths

Row = Mapping[str, Any]


def shopify_items(rows: Iterable[Place], notes: ImportNotes) -> Iterator[Place]:
    """Yield the items of Shopify's product export.

    A product is several rows of one `Handle`, and only the first has title, body, type and tags. A row with an option,
    a price or an SKU is a variant, others are further pictures. A variant is an item under its SKU; those without an
    SKU are one item under the handle.
    """
    first_of: dict[str, Row] = {}
    variants: dict[str, list[tuple[str, Row]]] = {}
    pictures: dict[str, dict[str, None]] = {}
    for number, (where, row) in enumerate(rows):
        if not number:
            _require(row, ("Handle", "Title"), where, "Shopify")
        handle = clean_id(row.get("Handle"), where, notes)
        if handle is None:
            notes.add("rows of products without a handle, left out", where)
            continue
        first = first_of.setdefault(handle, row)
        if row.get("Title") and not first.get("Title"):
            first = first_of[handle] = row
        is_variant = any(row.get(name) for name in ("Variant SKU", "Variant Price", "Option1 Value")) or row is first
        if not is_variant:
            notes.add("rows with further pictures of a product", f"{where}: {handle!r}", harmless=True)
        else:
            variants.setdefault(handle, []).append((where, row))
        if picture := row.get("Image Src"):
            pictures.setdefault(handle, {})[picture] = None
    used = {"Handle", "Title", "Body (HTML)", "Tags", "Type", "Image Src", "Image Position", "Image Alt Text"}
    used |= {"Variant SKU", "Variant Price", "Variant Image", "Vendor", "Product Category"}
    for handle, of_product in variants.items():
        product = first_of[handle]
        paths = split_paths(product.get("Product Category") or "")
        shared = {
            "description": product.get("Body (HTML)"),
            "category": paths[0][-1] if paths else product.get("Type"),
            "category_paths": paths or None,
            "type": product.get("Type") if paths else None,
            "brand": product.get("Vendor"),
            "tags": split_list(product.get("Tags") or "", ",") or None,
            "handle": handle,
        }
        without_sku: set[str] = set()
        for where, row in of_product:
            sku = clean_id(row.get("Variant SKU"), where, notes)
            if sku is None:
                notes.add("products without an SKU, whose handle is their id", f"{where}: {handle!r}", harmless=True)
                if handle in without_sku:
                    continue
                without_sku.add(handle)
            options = [row.get(f"Option{n} Value") for n in (1, 2, 3)]
            options = [option for option in options if option and option != "Default Title"]
            title = product.get("Title") or ""
            own = [row["Variant Image"]] if row.get("Variant Image") else []
            images: dict[str, None] = dict.fromkeys([*own, *pictures.get(handle, ())])
            yield (
                where,
                {
                    "item_id": sku or handle,
                    "title": f"{title} - {' / '.join(options)}" if sku and options else title,
                    **shared,
                    "price": _number(row.get("Variant Price")),
                    **_pictures(list(images)),
                    **_others(product, used),
                    **(_others(row, used) if row is not product else {}),
                },
            )


def woocommerce_items(rows: Iterable[Place], notes: ImportNotes) -> Iterator[Place]:
    """Yield the items of WooCommerce's product export.

    A variation is an item with what its parent says where it says nothing itself; a parent with variations is no item,
    unless they have no SKU of their own. The id is the SKU, and without one the number (`ID`).
    """
    products: list[tuple[str, Row]] = []
    for number, (where, row) in enumerate(rows):
        if not number:
            _require(row, ("ID", "Type", "Name"), where, "WooCommerce")
        products.append((where, row))
    by_key = {key: row for _, row in products for key in (f"id:{row.get('ID')}", row.get("SKU")) if key}
    own_sku = [row for _, row in products if row.get("Type") == "variation" and row.get("SKU") and row.get("Parent")]
    parents = {id(by_key[row["Parent"]]) for row in own_sku if row["Parent"] in by_key}
    used = {"ID", "SKU", "Name", "Type", "Description", "Short description", "Categories", "Tags", "Images", "Parent"}
    used |= {"Regular price", "Sale price", "Position", "Brands"}
    for where, row in products:
        variation = row.get("Type") == "variation"
        parent = by_key.get(row.get("Parent") or "") if variation else None
        if id(row) in parents:
            notes.add("products that are sold as their variations, which are the items", where, harmless=True)
            continue
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
                "price": _number(both.get("Sale price") or both.get("Regular price")),
                **_pictures(split_list(both.get("Images") or "", ",")),
                **_others(both, used),
            },
        )


def _require(row: Row, names: Iterable[str], where: str, system: str) -> None:
    for name in names:
        if name not in row:
            raise BundleMLLMError(
                f"{where} has no {name!r} (its columns: {', '.join(map(str, row))}), so it is no product export of "
                f"{system}: export the products again, or use --format tabular."
            )


def _pictures(images: list[str]) -> dict[str, Any]:
    """Return the first picture as that of the item, and the others as text."""
    return {"image": images[0] if images else None, "further_images": images[1:] or None}


def _number(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _others(row: Row, used: set[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in used and value not in (None, "")}
