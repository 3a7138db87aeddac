"""Product exports of shop systems, as they are."""

import csv
from pathlib import Path

import pytest

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers import import_shopify, import_woocommerce

_SHOPIFY = (
    "Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Published,Option1 Name,Option1 Value,Variant SKU,"
    "Variant Price,Image Src,Image Position,Variant Image,Status"
)
_WOOCOMMERCE = (
    "ID,Type,SKU,Name,Published,Short description,Description,In stock?,Regular price,Sale price,Categories,Tags,"
    "Images,Parent,Attribute 1 name,Attribute 1 value(s)"
)
SHOPIFY, WOOCOMMERCE = _SHOPIFY.split(","), _WOOCOMMERCE.split(",")


def table(path: Path, header, *rows):
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, header)
        writer.writeheader()
        writer.writerows(rows)


def items(folder):
    return {item.item_id: item for item in DatasetFolder.open(folder).catalog}


def shopify_product(handle, sku="", **cells):
    first = {"Handle": handle, "Title": handle.title(), "Option1 Name": "Title", "Option1 Value": "Default Title"}
    return {**first, "Variant SKU": sku, "Variant Price": "9.90", **cells}


def test_a_shopify_product_is_several_rows_of_one_handle(tmp_path):
    table(
        tmp_path / "shop" / "products_export_1.csv",
        SHOPIFY,
        {
            **shopify_product("linen-shirt", "LS-S", Vendor="Acme", Type="Shirt", Tags="linen, summer &amp; sun"),
            "Title": "Linen &amp; Cotton Shirt ",
            "Body (HTML)": "<p>Soft &eacute;toffe.</p><ul><li>Light</li></ul>",
            "Option1 Name": "Size",
            "Option1 Value": "S",
            "Product Category": "Apparel & Accessories > Clothing > Shirts",
            "Image Src": "https://cdn.example/1.jpg?v=1",
            "Image Position": "1",
        },
        {"Handle": "linen-shirt", "Option1 Value": "M", "Variant SKU": "LS-M", "Variant Price": "10.90",
         "Image Src": "https://cdn.example/2.jpg", "Variant Image": "https://cdn.example/m.jpg"},
        {"Handle": "linen-shirt", "Image Src": "https://cdn.example/3.jpg", "Image Position": "3"},
    )  # fmt: skip
    summary = import_shopify(tmp_path / "shop", tmp_path / "data")
    found = items(tmp_path / "data")
    assert list(found) == ["LS-S", "LS-M"]
    small, medium = found.values()
    assert (small.title, medium.title) == ("Linen & Cotton Shirt - S", "Linen & Cotton Shirt - M")
    assert small.description == medium.description == "Soft étoffe. Light"
    assert small.category == medium.category == "Shirts"
    assert small.image is None and small.extra["image_url"] == "https://cdn.example/1.jpg?v=1"
    assert medium.extra["image_url"] == "https://cdn.example/m.jpg"
    assert small.extra["further_images"] == ["https://cdn.example/2.jpg", "https://cdn.example/3.jpg"]
    known = {
        "category_paths": [["Apparel & Accessories", "Clothing", "Shirts"]],
        "tags": ["linen", "summer & sun"],
        "brand": "Acme",
        "type": "Shirt",
        "price": 9.9,
        "handle": "linen-shirt",
        "Option1 Value": "S",
    }
    assert known.items() <= small.extra.items()
    assert summary.dropped["rows with further pictures of a product"] == 1
    assert summary.dropped["pictures that are web addresses, kept as image_url"] == 2


def test_without_skus_the_handle_is_the_id(tmp_path):
    table(
        tmp_path / "shop" / "products.csv",
        SHOPIFY,
        shopify_product("hat", **{"Option1 Name": "Size", "Option1 Value": "S"}),
        {"Handle": "hat", "Option1 Value": "M", "Variant Price": "9.90"},
        {"Handle": "hat", "Image Src": "https://cdn.example/3.jpg"},
        shopify_product("scarf"),
        {"Handle": "", "Image Src": "https://cdn.example/4.jpg"},
    )
    write_records(tmp_path / "shop" / "bundles.csv", [{"bundle_id": "1", "items": "hat|scarf"}])
    summary = import_shopify(tmp_path / "shop", tmp_path / "data")
    assert [item.title for item in items(tmp_path / "data").values()] == ["Hat", "Scarf"]
    assert list(items(tmp_path / "data")) == ["hat", "scarf"]
    assert summary.dropped["products without an SKU, whose handle is their id"] == 3
    assert summary.dropped["rows of products without a handle, left out"] == 1
    assert summary.num_bundles["train"] == 1


def test_a_repeated_sku_stops_or_lets_the_first_count(tmp_path):
    table(tmp_path / "products.csv", SHOPIFY, shopify_product("hat", "A"), shopify_product("cap", "A"))
    with pytest.raises(BundleMLLMError, match=r"line 3 contradicts line 2 about the item 'A'.*--on-duplicate first"):
        import_shopify(tmp_path / "products.csv", tmp_path / "data")
    import_shopify(tmp_path / "products.csv", tmp_path / "data", on_duplicate="first")
    assert [item.title for item in items(tmp_path / "data").values()] == ["Hat"]


def test_shopify_orders_lie_beside_the_products(tmp_path):
    table(tmp_path / "shop" / "products_export.csv", SHOPIFY, *(shopify_product(f"p{n}", f"S{n}") for n in range(6)))
    header = ["Name", "Email", "Financial Status", "Created at", "Lineitem quantity", "Lineitem name", "Lineitem sku"]
    rows = [
        {"Name": f"#{1000 + n}", "Lineitem quantity": 1, "Lineitem sku": f"S{(n + step * (1 + n // 6)) % 6}",
         "Created at": "2024-01-05 10:00:00 +0100" if not step else ""}
        for n in range(12) for step in range(2)
    ]  # fmt: skip
    table(tmp_path / "shop" / "orders_export.csv", header, *rows)
    summary = import_shopify(tmp_path / "shop", tmp_path / "data", split_by="time")
    assert any("order_id=Name, item_id=Lineitem sku" in warning for warning in summary.warnings)
    assert sum(summary.num_bundles.values()) == 12
    with pytest.raises(BundleMLLMError, match=r"items.title maps a column of a product export"):
        import_shopify(tmp_path / "shop", tmp_path / "other", columns={"items.title": "Name"})


def woo(number, kind="simple", **cells):
    return {"ID": number, "Type": kind, "Name": f"Thing {number}", "Published": 1, **cells}


def test_woocommerce_variations_take_from_their_parent_what_they_do_not_say(tmp_path):
    table(
        tmp_path / "shop" / "wc-product-export-5-1-2024-1.csv",
        WOOCOMMERCE,
        woo(
            *(1, "variable"),
            **{
                "SKU": "HOOD",
                "Description": r"<p>Warm &amp; soft.</p>\n<p>Heavy</p>",
                "Categories": r"Clothing > Hoodies, Sale\, now, Clothing",
                "Tags": "warm, winter",
                "Images": "https://shop.example/a.jpg, https://shop.example/b.jpg",
            },
        ),
        woo(
            2,
            "variation",
            SKU="HOOD-BLUE",
            Name="Hoodie - Blue",
            Parent="HOOD",
            **{"Sale price": "35", "Regular price": "40"},
        ),
        woo(3, "variation", SKU="HOOD-RED", Name="Hoodie - Red", Parent="id:1", **{"Regular price": "40"}),
        woo(4, "variable", SKU="CAP"),
        woo(5, "variation", Name="Cap - S", Parent="CAP"),
        woo(6, "variation", SKU="LOST", Parent="GONE"),
        woo(7),
    )
    summary = import_woocommerce(tmp_path / "shop", tmp_path / "data")
    found = items(tmp_path / "data")
    assert list(found) == ["HOOD-BLUE", "HOOD-RED", "CAP", "LOST", "7"]
    blue = found["HOOD-BLUE"]
    assert (blue.title, blue.category, blue.description) == ("Hoodie - Blue", "Hoodies", "Warm & soft. Heavy")
    assert blue.extra["category_paths"] == [["Clothing", "Hoodies"], ["Sale, now"], ["Clothing"]]
    assert (blue.extra["tags"], blue.extra["price"], found["HOOD-RED"].extra["price"]) == (
        ["warm", "winter"],
        35.0,
        40.0,
    )
    assert blue.extra["image_url"].endswith("a.jpg") and blue.extra["further_images"] == ["https://shop.example/b.jpg"]
    assert summary.dropped["products that are sold as their variations, which are the items"] == 1
    assert summary.dropped["variations without an SKU, which are their parent"] == 1
    assert summary.dropped["variations whose parent is not in the table, kept without what it says"] == 1
    assert summary.dropped["products without an SKU, whose number is their id"] == 1


def test_a_file_that_is_no_such_export_is_refused(tmp_path):
    (tmp_path / "products.csv").write_text("sku,title\n1,a\n")
    for run, missing in ((import_shopify, "Handle"), (import_woocommerce, "ID")):
        with pytest.raises(BundleMLLMError, match=rf"line 2 has no '{missing}' \(its columns: sku, title\)"):
            run(tmp_path / "products.csv", tmp_path / "data")
    (tmp_path / "products2.csv").write_text("sku,title\n1,a\n")
    with pytest.raises(BundleMLLMError, match=r"products.csv and products2.csv, so it is unclear which one"):
        import_shopify(tmp_path, tmp_path / "data")
