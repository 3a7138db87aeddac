"""Product exports of shop systems, as they are."""

import csv
from pathlib import Path

import pytest

from bundle_mllm.completion.columns import ItemColumns
from bundle_mllm.completion.rules import Rules
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


def test_a_category_of_shopify_is_one_path_and_stock_is_a_column_of_true_and_false(tmp_path):
    stock = ("Variant Inventory Tracker", "Variant Inventory Qty", "Variant Inventory Policy")
    cells = [("shopify", "3", "deny"), ("shopify", "-2", "deny"), ("shopify", "0", "continue"), ("", "0", "deny")]
    rows = [shopify_product(f"p{n}", f"S{n}", **dict(zip(stock, of, strict=True))) for n, of in enumerate(cells)]
    rows[0]["Product Category"] = "Food, Beverages & Tobacco > Beverages > Coffee"
    table(tmp_path / "shop" / "p.csv", [*SHOPIFY, *stock], *rows, shopify_product("old", "S4", Status="archived"))
    import_shopify(tmp_path / "shop" / "p.csv", tmp_path / "data")
    found = items(tmp_path / "data")
    assert [item.extra["in_stock"] for item in found.values()] == [True, False, True, True, False]
    assert found["S0"].extra["category_paths"] == [["Food, Beverages & Tobacco", "Beverages", "Coffee"]]
    assert found["S0"].category == "Coffee"


def test_order_lines_without_an_sku_are_of_the_product_of_their_handle(tmp_path):
    products = [shopify_product(f"p{n}", "" if n % 2 else f"S{n}") for n in range(6)]
    table(tmp_path / "shop" / "products.csv", SHOPIFY, *products)
    lines = [
        {"order": n, "sku": "" if k % 2 else f"'S{k}", "handle": f"p{k}", "customer": f"c{n}@example.org"}
        for n in range(12) for k in (n % 6, (n + 1 + n // 6) % 6)
    ]  # fmt: skip
    lines.append({"order": 99, "sku": "S0", "handle": "p0", "customer": "c@example.org"})  # no bundle
    table(tmp_path / "shop" / "orders.csv", list(lines[0]), *lines)
    summary = import_shopify(tmp_path / "shop", tmp_path / "data")
    named = {item_id for bundle in DatasetFolder.open(tmp_path / "data").bundles for item_id in bundle.items}
    assert named == {"S0", "p1", "S2", "p3", "S4", "p5"}
    assert summary.dropped["order lines without an SKU, whose product is their item"] == 12
    assert summary.dropped["ids with an apostrophe before them, as spreadsheets write it, which was taken away"] == 12
    assert any("names customers by their e-mail addresses" in warning for warning in summary.warnings)


def shopify_orders(path, of_order, **cells):
    """Shopify's order export of three lines each: what concerns the order is in its first line alone."""
    rows = [
        {"Name": f"#{1000 + n}", "Lineitem quantity": 1, **line, **({} if step else cells.get(f"_{n}", {}))}
        for n, lines in enumerate(of_order) for step, line in enumerate(lines)
    ]  # fmt: skip
    table(
        path, ["Name", "Financial Status", "Cancelled at", "Lineitem quantity", "Lineitem name", "Lineitem sku"], *rows
    )


def test_orders_of_shopify_that_were_cancelled_refunded_or_not_paid_are_no_bundles(tmp_path):
    table(tmp_path / "shop" / "products_export.csv", SHOPIFY, *(shopify_product(f"p{n}", f"S{n}") for n in range(6)))
    lines = [[{"Lineitem sku": f"S{(n + step * (1 + n // 6)) % 6}"} for step in range(2)] for n in range(12)]
    lines[3][0] = {"Lineitem sku": "POST"}
    states = {
        "_0": {"Financial Status": "paid"},
        "_1": {"Financial Status": "partially_refunded"},
        "_2": {"Financial Status": "refunded"},
        "_3": {"Financial Status": "voided"},
        "_4": {"Financial Status": "paid", "Cancelled at": "2024-01-05 10:00:00 +0100"},
    }
    shopify_orders(tmp_path / "shop" / "orders_export.csv", lines, **states)
    summary = import_shopify(tmp_path / "shop", tmp_path / "data", exclude=("POST",))
    found = {bundle.bundle_id for bundle in DatasetFolder.open(tmp_path / "data").bundles}
    assert found == {f"#{1000 + n}" for n in (0, 1, *range(5, 12))}
    assert summary.dropped["orders that were cancelled, refunded, voided or failed, left out"] == 3


def test_in_a_shop_without_skus_order_lines_find_their_item_by_its_name(tmp_path):
    products = [shopify_product(f"hat-{n}", Title=f"Hat {n}") for n in range(6)]
    table(tmp_path / "shop" / "products_export.csv", SHOPIFY, *products, shopify_product("twin", Title="Hat 5"))
    lines = [[{"Lineitem name": f"hat {(n + s) % 6}{' - S / Red' * s}"} for s in range(2)] for n in range(5)]
    shopify_orders(tmp_path / "shop" / "orders_export.csv", lines)
    summary = import_shopify(tmp_path / "shop", tmp_path / "data")
    bundles = {bundle.bundle_id: bundle.items for bundle in DatasetFolder.open(tmp_path / "data").bundles}
    assert bundles == {f"#{1000 + n}": (f"hat-{n}", f"hat-{n + 1}") for n in range(4)}  # two products are called Hat 5
    assert summary.dropped["order lines without an id, whose item was found by its name"] == 9
    assert summary.dropped["order lines without an item, left out"] == 1
    shopify_orders(tmp_path / "shop" / "orders_export.csv", [[{"Lineitem name": "Scarf"}, {}]] * 3)
    with pytest.raises(BundleMLLMError, match=r"None of 6 order lines names an item .*fill in the SKUs"):
        import_shopify(tmp_path / "shop", tmp_path / "other")


def test_drafts_are_no_items_and_archived_products_are_with_the_rule_that_hides_them(tmp_path):
    rows = [shopify_product(status, status, Status=status) for status in ("active", "draft", "archived")]
    table(tmp_path / "products.csv", SHOPIFY, *rows, {"Handle": "draft", "Variant SKU": "draft-M"})
    summary = import_shopify(tmp_path / "products.csv", tmp_path / "data", strict=True)
    assert list(items(tmp_path / "data")) == ["active", "archived"]
    assert summary.dropped["products that are drafts, left out"] == 1
    [rule] = [warning.partition("--where ")[2] for warning in summary.warnings if "1 products are archived" in warning]
    columns = ItemColumns.load(tmp_path / "data", ["active", "archived"])
    rules = Rules(where=rule.strip("'.")).apply(["active", "archived"], columns)
    assert rules.allowed.tolist() == [True, False]
    products = [woo(1, SKU="A"), woo(2, SKU="B", Published=-1), woo(3, "variation", SKU="C", Parent="B"),
                woo(4, SKU="D", Published=0)]  # fmt: skip
    table(tmp_path / "woo" / "products.csv", WOOCOMMERCE, *products)
    summary = import_woocommerce(tmp_path / "woo", tmp_path / "woo-data")
    assert list(items(tmp_path / "woo-data")) == ["A", "D"]
    assert summary.dropped["products that are drafts, left out"] == 1  # the variation; its parent is no item anyway
    [rule] = [warning.partition("--where ")[2] for warning in summary.warnings if "1 products are private" in warning]
    columns = ItemColumns.load(tmp_path / "woo-data", ["A", "D"])
    assert Rules(where=rule.strip("'.")).apply(["A", "D"], columns).allowed.tolist() == [True, False]


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
        woo(6, "variation", SKU="LOST", Parent="GONE", **{"Regular price": "1.299,50 €"}),
        woo(7, **{"Regular price": "on request"}),
    )
    summary = import_woocommerce(tmp_path / "shop", tmp_path / "data")
    found = items(tmp_path / "data")
    assert list(found) == ["HOOD-BLUE", "HOOD-RED", "CAP", "LOST", "7"]
    blue = found["HOOD-BLUE"]
    assert [item.extra["product_id"] for item in found.values()] == ["1", "1", "4", "6", "7"]
    assert (blue.title, blue.category, blue.description) == ("Hoodie - Blue", "Hoodies", "Warm & soft. Heavy")
    assert blue.extra["category_paths"] == [["Clothing", "Hoodies"], ["Sale, now"], ["Clothing"]]
    assert (blue.extra["tags"], blue.extra["price"], found["HOOD-RED"].extra["price"]) == (
        ["warm", "winter"],
        35.0,
        40.0,
    )
    assert found["LOST"].extra["price"] == 1299.5 and "price" not in found["7"].extra
    assert summary.dropped["prices that are no number, left out"] == 1
    assert blue.extra["image_url"].endswith("a.jpg") and blue.extra["further_images"] == ["https://shop.example/b.jpg"]
    assert summary.dropped["products that are sold as their variations, which are the items"] == 1
    assert summary.dropped["variations without an SKU, which are their parent"] == 1
    assert summary.dropped["variations whose parent is not in the table, kept without what it says"] == 1
    assert summary.dropped["products without an SKU, whose number is their id"] == 1


def test_a_disabled_variation_is_not_in_stock_and_its_own_prices_count_before_those_of_its_parent(tmp_path):
    parent = woo(1, "variable", SKU="HOOD", **{"Sale price": "30", "Regular price": "50"})
    cells = [
        {"Published": 0, "Regular price": "40"},
        {"In stock?": 0},
        {"In stock?": 1, "Sale price": "35"},
        {"Published": ""},
    ]
    of_parent = [woo(2 + n, "variation", SKU=f"H{n}", Parent="HOOD", **each) for n, each in enumerate(cells)]
    gone = [woo(8, "variable", SKU="CAP", **{"In stock?": 0}), woo(9, "variation", SKU="C", Parent="CAP")]
    table(tmp_path / "products.csv", WOOCOMMERCE, parent, *of_parent, *gone)
    summary = import_woocommerce(tmp_path / "products.csv", tmp_path / "data")
    found = [item.extra for item in items(tmp_path / "data").values()]
    assert [extra["in_stock"] for extra in found] == [False, False, True, True, False]
    assert [extra.get("price") for extra in found] == [40, 30, 35, 30, None]
    assert any(warning.startswith("1 products are private or disabled") for warning in summary.warnings)


def test_products_that_shopify_does_not_show_are_not_in_stock(tmp_path):
    rows = [
        shopify_product("on", "A", Published="true", Status="active"),
        shopify_product("off", "B", Published="false", Status="active"),
        {"Handle": "off", "Option1 Value": "M", "Variant SKU": "C"},
        shopify_product("unlisted", "D", Published="true", Status="Unlisted"),
    ]
    table(tmp_path / "products.csv", SHOPIFY, *rows)
    summary = import_shopify(tmp_path / "products.csv", tmp_path / "data")
    found = {item_id: item.extra["in_stock"] for item_id, item in items(tmp_path / "data").items()}
    assert found == {"A": True, "B": False, "C": False, "D": False}
    assert any(warning.startswith("2 products are archived, unlisted or not") for warning in summary.warnings)


def test_a_file_that_is_no_such_export_is_refused(tmp_path):
    (tmp_path / "products.csv").write_text("sku,title\n1,a\n")
    for run, missing in ((import_shopify, "Handle"), (import_woocommerce, "ID")):
        with pytest.raises(BundleMLLMError, match=rf"line 2 has no '{missing}' \(its columns: sku, title\)"):
            run(tmp_path / "products.csv", tmp_path / "data")
    (tmp_path / "products2.csv").write_text("sku,title\n1,a\n")
    with pytest.raises(BundleMLLMError, match=r"products.csv and products2.csv, so it is unclear which one"):
        import_shopify(tmp_path, tmp_path / "data")
