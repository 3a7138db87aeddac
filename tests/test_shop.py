"""A shop from its exports: one import, one encode, one train, one complete; every defect is in the summary."""

import csv
import json
import random
import re
from itertools import chain

import pytest

from bundle_mllm.cli import main

THEMES = {"beach": "sand sun wave surf", "office": "desk pen paper lamp", "garden": "seed spade rose hose"}
PRODUCTS = (
    "Handle,Title,Body (HTML),Vendor,Product Category,Tags,Option1 Name,Option1 Value,Variant SKU,Variant Price,"
    "Image Src,Image Position"
)


def product_rows(rng):
    """48 products: half of two variants, one of four without an SKU; pictures in rows of their own."""
    number = 0
    for theme, words in THEMES.items():
        for n in range(16):
            word = rng.choice(words.split())
            handle = f"{theme}-{n}"
            sku = "" if n % 4 == 3 else f" SKU{number:03d} " if n == 5 else f"SKU{number:03d}"
            first = {
                "Handle": handle,
                "Title": f"{theme.title()} &amp; {word} {n} ",
                "Body (HTML)": f"<p>For the <b>{theme}</b>.</p><p>Caf&eacute; {word}</p>",
                "Vendor": "Acme",
                "Product Category": f"Home > {theme.title()} > {word.title()}",
                "Tags": f"{theme}, {word}",
                "Option1 Name": "Title",
                "Option1 Value": "Default Title",
                "Variant SKU": sku,
                "Variant Price": f"{5 + n}.90",
                "Image Src": f"https://cdn.example/{handle}.jpg?v=1",
                "Image Position": "1",
            }
            yield first
            if n % 2:
                yield {"Handle": handle, "Image Src": f"https://cdn.example/{handle}-2.jpg", "Image Position": "2"}
            number += 1
    yield {**first, "Variant SKU": "SKU000", "Handle": "copy", "Title": "A copy under a known SKU"}
    yield {"Handle": "", "Image Src": "https://cdn.example/lost.jpg"}


def order_rows(rng, ids):
    """120 orders, each about one theme, and the defects of real ones."""
    for number in range(120):
        theme = rng.choice(list(THEMES))
        for sku in rng.sample(ids[theme], 3):
            yield {"order_id": str(1000 + number), "sku": sku, "quantity": 1, "customer_id": f"c{number % 30}"}
    one = {"order_id": "5000", "sku": "SKU001", "quantity": 1, "customer_id": "c1"}
    yield one  # an order of one item
    yield {**one, "order_id": "1000", "sku": ""}
    yield {**one, "order_id": ""}
    yield {**one, "order_id": "1001", "sku": "GONE"}
    yield {**one, "order_id": "C5000", "quantity": -1}
    yield {**one, "order_id": "1002", "sku": "POST"}
    for sku in chain.from_iterable(ids.values()):
        yield {**one, "order_id": "6000", "sku": sku}  # a wholesaler
    yield {**one, "order_id": "6001", "quantity": 2}
    yield {**one, "order_id": "6001", "quantity": -2}


def write(path, rows):
    rows = list(rows)
    with open(path, "w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return rows


@pytest.mark.slow
def test_a_shop_export_with_all_its_defects_becomes_a_model(tmp_path, capsys):
    rng = random.Random(0)
    shop, data, model = tmp_path / "shop", tmp_path / "data", tmp_path / "model"
    shop.mkdir()
    products = write(shop / "products_export_1.csv", product_rows(rng))
    ids = {
        theme: [
            r["Variant SKU"].strip() or r["Handle"] for r in products if r["Handle"].startswith(theme) and "Title" in r
        ]
        for theme in THEMES
    }
    write(shop / "orders.csv", order_rows(rng, ids))
    arguments = ["--format", "shopify", str(shop), "--output-dir", str(data)]
    assert main(["import", *arguments]) == 2
    assert "contradicts" in capsys.readouterr().err
    assert main(["import", *arguments, "--on-duplicate", "first", "--exclude", "POST", "--order-size", "2", "20"]) == 0
    summary = capsys.readouterr().out
    assert re.search(r"data: 48 items, 120 bundles \(\d+ train, \d+ validation, \d+ test\)", summary)
    for defect in (
        "1 rows of products without a handle, left out",
        "24 rows with further pictures of a product",
        "12 products without an SKU, whose handle is their id",
        "97 titles, descriptions and categories with HTML, entities or blanks around, cleaned",
        "1 rows that contradict an earlier one about an item, left out",
        "48 pictures that are web addresses, kept as image_url",
        "ids with blanks around them, which were taken away",
        "1 order lines without an item, left out",
        "1 order lines without an order, left out",
        "1 order lines of excluded ids, left out",
        "1 entries of orders whose item the catalog lacks, left out (1 item): 'GONE' in ",
        "1 cancellations (their number has a C before it), which are no orders",
        "2 items of orders that were returned or cancelled, taken out of them",
        "1 orders of more than 20 items, which are no bundles",
        "left out of the user log",
        "columns taken for the fields that they resemble: item_id=sku, user_id=customer_id",
    ):
        assert defect in summary, summary
    [first, *_] = map(json.loads, (data / "items.jsonl").read_text().splitlines())
    assert re.fullmatch(r"Beach & \w+ 0", first["title"]) and "Café" in first["description"]
    assert first["tags"][0] == "beach" and first["image_url"].startswith("https://")

    assert main(["encode", "--data", str(data)]) == 0
    small = ["--retriever.steps", "60", "--retriever.num-questions", "2000"]
    assert main(["train", "--data", str(data), "--base-model", "none", "--output-dir", str(model), *small]) == 0
    capsys.readouterr()
    rules = ["--items", str(data), "--where", "price <= 15"]
    complements = tmp_path / "complements.jsonl"
    assert (
        main(["complete", "--model", str(model), "--every-item", "--output", str(complements), "--top-k", "3", *rules])
        == 0
    )
    rows = [json.loads(line) for line in complements.read_text().splitlines()]
    assert len(rows) == 48
    theme_of = {item_id: theme for theme, item_ids in ids.items() for item_id in item_ids}
    price_of = {
        item["item_id"]: item["price"] for item in map(json.loads, (data / "items.jsonl").read_text().splitlines())
    }
    answers = [(row["item_id"], answer) for row in rows for answer in row["answers"]]
    assert len(answers) == 3 * 48 and all(price_of[answer] <= 15 for _, answer in answers)
    assert sum(theme_of[item_id] == theme_of[answer] for item_id, answer in answers) > 0.8 * len(answers)
