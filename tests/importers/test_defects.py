"""Tables with the defects of real exports: nothing is lost in silence, and one run names all that must be mended."""

import os

import pytest

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers import import_tabular


def catalog(folder):
    return DatasetFolder.open(folder).catalog


def test_one_run_names_the_problems_of_all_tables_by_line(shop, tmp_path):
    (shop / "items.csv").write_text(
        'item_id,title\n1,a\n2,"b\nof two lines"\n\n1,c\n3,d,e\n4,' + "x" * 9 + "\n2,other\n", encoding="utf-8"
    )
    (shop / "bundles.jsonl").write_text(
        '{"bundle_id": 1, "items": "a, b"}\n{oops\n{"bundle_id": 2, "items": "1|2"}\n' * 2
    )
    (shop / "interactions.csv").write_text("user_id,item_id\nu,1\nu\nv,2,3\n")
    with pytest.raises(BundleMLLMError) as error:
        import_tabular(shop, tmp_path / "data")
    text = str(error.value)
    for part in (
        "10 problems stop the import. (1)",
        "items.csv line 6 contradicts line 2 about the item '1'",
        "items.csv line 7 has 3 cells for 2 columns",
        "items.csv line 9 contradicts line 3 about the item '2'",
        "bundles.jsonl line 1 (bundle '1') has 'a, b' as `items`",
        "bundles.jsonl line 2 is not JSON",
        "bundles.jsonl line 6 (bundle '2') repeats it",
        "interactions.csv row 2 has 1 cells",
        "(10)",
    ):
        assert part in text
    assert "\n" not in text
    assert os.listdir(tmp_path) == ["shop"]


def test_many_problems_are_counted_and_the_first_named(shop, tmp_path):
    (shop / "items.csv").write_text("item_id,title\n" + "1,a,b\n" * 5_000)
    with pytest.raises(BundleMLLMError, match=r"5,001 problems stop the import.*\(20\).*And 4,981 more problems"):
        import_tabular(shop, tmp_path / "data")


def test_rows_without_an_id_are_counted_and_a_repeated_id_can_let_the_first_count(shop, tmp_path, items):
    rows = [
        *items,
        {"item_id": "", "title": "a picture"},
        {"item_id": " ", "title": ""},
        {"item_id": "007", "title": "x"},
    ]
    write_records(shop / "items.csv", rows)
    write_records(
        shop / "bundles.csv",
        [{"bundle_id": "", "item_id": "001"}, {"bundle_id": "b", "item_id": ""}]
        + [{"bundle_id": f"b{n}", "item_id": f"{n + step:03d}"} for n in range(30) for step in range(3)],
    )
    (shop / "bundles.jsonl").unlink()
    with pytest.raises(BundleMLLMError, match=r"items.csv line 64 contradicts line 9 .*--on-duplicate first"):
        import_tabular(shop, tmp_path / "data")
    summary = import_tabular(shop, tmp_path / "data", on_duplicate="first")
    assert catalog(tmp_path / "data")[7].title == "thing 7"
    expected = {
        "rows of items without an id, left out": 2,
        "rows that contradict an earlier one about an item, left out": 1,
        "rows of bundles without a bundle's id, left out": 1,
        "rows of bundles without an item, left out": 1,
    }
    assert expected.items() <= summary.dropped.items()
    assert "items without an id, left out: items.csv line 62, items.csv line 63" in str(summary)
    with pytest.raises(BundleMLLMError, match="A strict import refuses 2 rows of items without an id"):
        import_tabular(shop, tmp_path / "strict", on_duplicate="first", strict=True)


def test_texts_lose_html_and_entities_and_ids_the_blanks_around_them(shop, tmp_path, items):
    items[0] |= {
        "item_id": " 000 ",
        "title": "Fish &amp;amp; <b>Chips</b> ",
        "description": "<p>One.</p><p>Two <M></p>",
    }
    items[1]["title"] = "a < b & c > d"
    write_records(shop / "items.csv", items)
    summary = import_tabular(shop, tmp_path / "data")
    first, second = catalog(tmp_path / "data")[:2]
    assert (first.item_id, first.title, first.description) == ("000", "Fish & Chips", "One. Two <M>")
    assert second.title == "a < b & c > d"
    assert summary.dropped["titles, descriptions and categories with HTML, entities or blanks around, cleaned"] == 2
    assert summary.dropped["ids with blanks around them, which were taken away"] == 1


@pytest.mark.parametrize("cell", ["000|001|002", " 000 | 001|002|", '["000", "001", "002"]'])
def test_lists_are_written_with_bars_or_as_json(shop, tmp_path, cell):
    (shop / "bundles.jsonl").unlink()
    write_records(shop / "bundles.csv", [{"bundle_id": f"b{n}", "items": cell} for n in range(3)])
    import_tabular(shop, tmp_path / "data")
    assert DatasetFolder.open(tmp_path / "data").bundles.train[0].items == ("000", "001", "002")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: f"{int(i) + 1000}.0", "ids would meet without the .0 at their end, such as '1000.0' and '1000'"),
        (lambda i: str(int(i) + 1), "without the zeros at their start, such as '1' and '001'"),
        (lambda i: f"e\u0301{i}", "in one Unicode form (NFC), such as"),
        (lambda i: f"SKU-{i}", "in small letters, such as 'SKU-000' and 'sku-000'"),
        (lambda i: f"other {i}", "ids such as 'other 000', where the items have ids such as '000'; check the columns"),
    ],
)
def test_ids_that_do_not_meet_are_shown_with_what_would_make_them(shop, tmp_path, items, bundles, change, message):
    known = {".0": lambda i: str(int(i) + 1000), "NFC": lambda i: f"\u00e9{i}", "small": lambda i: f"sku-{i}"}
    spell = next((spell for mark, spell in known.items() if mark in message), str)
    write_records(shop / "items.csv", [{**item, "item_id": spell(item["item_id"])} for item in items])
    write_records(shop / "bundles.jsonl", [{**b, "items": [*map(change, b["items"])]} for b in bundles])
    with pytest.raises(BundleMLLMError) as error:
        import_tabular(shop, tmp_path / "data")
    assert message in str(error.value)
    one = [*map(change, bundles[0]["items"])]
    write_records(
        shop / "bundles.jsonl",
        [{"bundle_id": "x", "items": one}] + [{**b, "items": [*map(spell, b["items"])]} for b in bundles],
    )
    summary = import_tabular(shop, tmp_path / "data")
    assert any(message in warning for warning in summary.warnings) == ("other" not in message)
    assert summary.num_items == 60


def test_pictures_are_found_whatever_system_wrote_their_paths(shop, tmp_path, items):
    (shop / "Images" / "new ones").mkdir(parents=True)
    for name in ("A.jpg", "b.JPG", "new ones/c d.png"):
        (shop / "Images" / name).write_bytes(name.encode())
    paths = ["images\\A.jpg", "Images/b.jpg", "images/new%20ones/c%20d.png", " Images/A.jpg "]
    write_records(shop / "items.csv", [{**i, "image": p} for i, p in zip(items, [*paths, *[None] * 56], strict=True)])
    summary = import_tabular(shop, tmp_path / "data", strict=True)
    stored = [(tmp_path / "data" / item.image).read_bytes().decode() for item in catalog(tmp_path / "data")[:4]]
    assert stored == ["A.jpg", "b.JPG", "new ones/c d.png", "A.jpg"]
    assert [n for what, n in summary.dropped.items() if "found nevertheless" in what] == [4]
    assert not summary.alarms


def test_pictures_that_are_all_missing_open_the_summary(shop, tmp_path, items):
    write_records(shop / "items.csv", [{**item, "image": f"images/{item['item_id']}.jpg"} for item in items])
    summary = import_tabular(shop, tmp_path / "data")
    first_line = str(summary).splitlines()[0]
    assert first_line.startswith("WARNING: 60 of 60 pictures were left out (most: the file does not exist)")
    assert "--media-dir" in first_line


def test_two_files_that_differ_in_case_only_are_not_guessed_between(shop, tmp_path, items):
    for name in ("a.JPG", "A.jpg"):
        (shop / name).write_bytes(b"picture")
    write_records(shop / "items.csv", [{**items[0], "image": "A.JPG"}, *items[1:]])
    assert import_tabular(shop, tmp_path / "data").dropped["pictures whose file does not exist, left out"] == 1


def test_headers_may_have_blanks_and_capitals_and_this_is_said(shop, tmp_path, items):
    lines = ["Item-ID, Title ,price,,"] + [f"{i['item_id']},{i['title']},3,," for i in items]
    (shop / "items.csv").write_text("\n".join(lines))
    (shop / "interactions.csv").write_text("User ID, item_id \nu1,001\n")
    summary = import_tabular(shop, tmp_path / "data")
    first = catalog(tmp_path / "data")[0]
    assert (first.title, dict(first.extra)) == ("thing 0", {"price": "3"})
    assert summary.num_interactions == 1
    assert any(
        "columns taken for the fields that they resemble: item_id=Item-ID, title=Title" in w for w in summary.warnings
    )


def test_a_title_of_thousands_of_words_is_cut_and_named(shop, tmp_path, items):
    items[3]["title"] = "word " * 32_000
    write_records(shop / "items.csv", items)
    summary = import_tabular(shop, tmp_path / "data")
    assert len(catalog(tmp_path / "data")[3].title) == 1_999
    assert "1 titles longer than 2,000 characters, cut: items.csv line 5" in str(summary)


def test_items_alone_make_a_folder_without_bundles(shop, tmp_path):
    (shop / "bundles.jsonl").unlink()
    (shop / "interactions.csv").unlink()
    summary = import_tabular(shop, tmp_path / "data")
    assert summary.num_bundles == {"train": 0, "validation": 0, "test": 0}
    assert "there are no bundles" in summary.warnings[0]
    assert len(DatasetFolder.open(tmp_path / "data").catalog) == 60


def test_a_log_of_the_same_orders_as_the_bundles_loses_what_shows_held_out_ones(shop, tmp_path, bundles):
    pairs = [{"user_id": b["bundle_id"], "item_id": i} for b in bundles for i in b["items"]]
    write_records(shop / "interactions.csv", pairs)
    summary = import_tabular(shop, tmp_path / "data")
    folder = DatasetFolder.open(tmp_path / "data")
    held_out = {b.bundle_id for split in ("validation", "test") for b in folder.bundles[split]}
    assert held_out and not held_out & set(folder.interactions.users)
    assert set(folder.interactions.users) == {b.bundle_id for b in folder.bundles.train}
    assert any("made of the same orders" in warning for warning in summary.warnings)
    assert summary.num_users == 32


COLUMNS = {"item_id": "sku", "title": "product_name", "items": "parts", "user_id": "who", "quantity": "pieces"}


def refused(shop, tmp_path, columns):
    with pytest.raises(BundleMLLMError) as error:
        import_tabular(shop, tmp_path / "data", columns=columns)
    return str(error.value)


def test_messages_name_the_columns_of_the_user(shop, tmp_path):
    for path in shop.iterdir():
        path.unlink()
    write_records(shop / "items.jsonl", [{"sku": "1", "product_name": ["a"]}, {"sku": "2", "product_name": "b"}])
    write_records(shop / "bundles.jsonl", [{"bundle_id": "b", "parts": {"1": 2}}])
    write_records(shop / "interactions.parquet", [{"who": 0.5, "sku": "1"}])
    message = refused(shop, tmp_path, {field: COLUMNS[field] for field in ("item_id", "title", "items", "user_id")})
    for part in (
        "items.jsonl line 1 has a list as `product_name`",
        "bundles.jsonl line 1 (bundle 'b') has {'1': 2} as `parts`",
        "interactions.parquet holds double values as `who`",
    ):
        assert part in message, message
    write_records(shop / "items.jsonl", [{"code": "1", "product_name": "a"}])
    message = refused(shop, tmp_path, {field: COLUMNS[field] for field in ("item_id", "title", "items", "user_id")})
    assert "line 1 has no `sku` (its columns: code, product_name): correct --columns item_id=sku" in message
    (shop / "bundles.jsonl").unlink()
    (shop / "interactions.parquet").unlink()
    write_records(shop / "items.jsonl", [{"sku": "1", "product_name": "a"}])
    write_records(shop / "orders.jsonl", [{"order_id": "1", "sku": "1", "pieces": [2], "who": ["u"]}])
    fields = ("item_id", "items.title", "quantity", "user_id")
    message = refused(shop, tmp_path, {field: COLUMNS[field.removeprefix("items.")] for field in fields})
    assert "orders.jsonl line 1 has a list as `who`" in message, message


def test_titles_that_are_no_text_are_problems_by_line(shop, tmp_path, items):
    (shop / "items.csv").unlink()
    titles = ["Infinity", '["a"]', '"half \\ud83d"', "7", "NaN"]
    (shop / "items.jsonl").write_text(
        "".join(f'{{"item_id": "{number}", "title": {title}}}\n' for number, title in enumerate(titles))
    )
    with pytest.raises(BundleMLLMError) as error:
        import_tabular(shop, tmp_path / "data")
    for part in (
        "3 problems",
        "items.jsonl line 1 has an infinite number as `title`",
        "items.jsonl line 2 has a list as `title`",
        "items.jsonl line 3 has half a character in `title`",
    ):
        assert part in str(error.value)
