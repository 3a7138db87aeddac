import os

import pytest

from bundle_mllm.data import DatasetFolder, make_questions, write_records
from bundle_mllm.data.splitting import held_out_near_duplicates
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers import import_dataset, import_tabular, parse_pairs


def long_format(bundles):
    return [{"bundle_id": b["bundle_id"], "item_id": item} for b in bundles for item in b["items"]]


def members(folder):
    return {bundle.bundle_id: bundle.items for bundle in folder.bundles}


def test_tables_become_a_dataset_folder_with_questions(shop, tmp_path, items, bundles):
    summary = import_tabular(shop, tmp_path / "data", seed=1)
    folder = DatasetFolder.open(tmp_path / "data")
    assert [(item.item_id, item.title, item.category) for item in folder.catalog] == [tuple(i.values()) for i in items]
    assert members(folder) == {bundle["bundle_id"]: tuple(bundle["items"]) for bundle in bundles}
    assert summary.num_bundles == {split: len(folder.bundles[split]) for split in ("train", "validation", "test")}
    assert summary.num_bundles == {"train": 32, "validation": 4, "test": 4}
    assert (summary.num_items, summary.num_interactions, summary.num_users) == (60, 3, 2)
    assert [folder.interactions.users[user] for user in folder.interactions.user_index] == ["u1", "u1", "u2"]
    assert len(make_questions(folder.bundles.test, folder.catalog, folder.bundles, seed=0)) == 8
    assert summary.path == tmp_path / "data"
    assert sorted(os.listdir(tmp_path)) == ["data", "shop"]


def test_near_duplicates_are_in_one_split(shop, tmp_path):
    import_tabular(shop, tmp_path / "data")
    folder = DatasetFolder.open(tmp_path / "data")
    split_of = {bundle.bundle_id: bundle.split for bundle in folder.bundles}
    assert all(split_of[f"b{n}"] == split_of[f"b{n + 1}"] for n in range(0, 40, 2))


def test_the_seed_decides_the_bytes(shop, tmp_path, same_tree):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        import_tabular(shop, tmp_path / name, seed=seed)
    assert same_tree(tmp_path / "a", tmp_path / "b")
    assert not same_tree(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("form", [list, long_format])
def test_every_format_and_form_gives_the_same_folder(shop, tmp_path, bundles, same_tree, suffix, form):
    import_tabular(shop, tmp_path / "expected")
    (shop / "bundles.jsonl").unlink()
    write_records(shop / f"bundles{suffix}", form(bundles))
    import_tabular(shop, tmp_path / "data")
    assert same_tree(tmp_path / "expected", tmp_path / "data")


def test_columns_and_files_can_have_any_name(shop, tmp_path, items, bundles, same_tree):
    import_tabular(shop, tmp_path / "expected")
    other = tmp_path / "other"
    items = [{"sku": i["item_id"], "product_name": i["title"], "category": i["category"]} for i in items]
    write_records(other / "products.parquet", items)
    rows = [{"outfit": row["bundle_id"], "article": row["item_id"]} for row in long_format(bundles)]
    write_records(other / "looks" / "outfits.csv", rows)
    (other / "log.csv").write_text((shop / "interactions.csv").read_text().replace("item_id", "sku"))
    import_tabular(
        other,
        tmp_path / "data",
        tables={"items": "products.parquet", "bundles": "looks/outfits.csv", "interactions": "log.csv"},
        columns=parse_pairs(
            "--columns", ["item_id=sku", "title=product_name", "bundle_id=outfit", "bundles.item_id=article"]
        ),
    )
    assert same_tree(tmp_path / "expected", tmp_path / "data")


def test_a_mapped_column_takes_the_name_of_a_field_and_other_columns_stay(shop, tmp_path):
    write_records(
        shop / "items.csv", [{"item_id": f"{n:03d}", "title": "old", "name": f"n{n}", "": n} for n in range(60)]
    )
    summary = import_tabular(shop, tmp_path / "data", columns={"title": "name"})
    assert DatasetFolder.open(tmp_path / "data").catalog[3].title == "n3"
    assert any("another column took were left out: title" in warning for warning in summary.warnings)
    assert any("left out: (no name)" in warning for warning in summary.warnings)
    assert dict(DatasetFolder.open(tmp_path / "data").catalog[3].extra) == {}


def test_a_semicolon_can_separate_cells(shop, tmp_path, same_tree):
    import_tabular(shop, tmp_path / "expected")
    for name in ("items.csv", "interactions.csv"):
        (shop / name).write_text((shop / name).read_text().replace(",", ";"))
    import_tabular(shop, tmp_path / "data", delimiter=";")
    assert same_tree(tmp_path / "expected", tmp_path / "data")


def test_given_splits_are_kept_and_near_duplicates_across_them_reported(shop, tmp_path, bundles):
    splits = ["Train", "valid", "train", "train", "TEST", "test", *["training"] * 34]
    write_records(shop / "bundles.jsonl", [{**b, "split": s} for b, s in zip(bundles, splits, strict=True)])
    summary = import_tabular(shop, tmp_path / "data")
    folder = DatasetFolder.open(tmp_path / "data")
    assert [bundle.bundle_id for bundle in folder.bundles.validation] == ["b1"]
    assert [bundle.bundle_id for bundle in folder.bundles.test] == ["b4", "b5"]
    split_of = {bundle.bundle_id: bundle.split for bundle in folder.bundles}
    assert held_out_near_duplicates(members(folder), split_of) == ["b1"]
    assert "1 bundles of validation and test have one in another split ('b1')" in summary.warnings[0]


def test_what_is_unknown_too_small_or_repeated_is_counted_named_and_left_out(shop, tmp_path, bundles):
    bundles[0]["items"] += ["gone", bundles[0]["items"][0]]
    bundles[2]["items"] = ["000", "lost", "lost2"]
    bundles[3]["items"] += ["gone"]
    bundles[4]["items"] = ["001", "001"]
    bundles[6]["items"] = []
    write_records(shop / "bundles.jsonl", bundles)
    with open(shop / "interactions.csv", "a") as log:
        log.write("u9,gone,4\n,001,3\nu9,002,\nu8,gone,5\n")
    summary = import_tabular(shop, tmp_path / "data")
    folder = DatasetFolder.open(tmp_path / "data")
    assert members(folder)["b0"] == tuple(bundles[0]["items"][:3])
    assert not {"b2", "b4", "b6"} & members(folder).keys()
    assert summary.dropped == {
        "entries of bundles whose item the catalog lacks, taken out of them": 4,
        "bundles of fewer than two items, left out": 3,
        "interactions with an item that the catalog lacks, left out": 2,
        "interactions that lack a user or an item, left out": 1,
        "items repeated in their bundle, counted once": 2,
        "interactions that repeat a pair of user and item, counted once": 1,
    }
    text = str(summary)
    taken_out = "4 entries of bundles whose item the catalog lacks, taken out of them (3 different items)"
    assert f"{taken_out}: 'gone' in 'b0', 'lost' in 'b2', 'lost2' in 'b2', …\n" in text
    left_out = "2 interactions with an item that the catalog lacks, left out (1 item)"
    assert f"{left_out}: interactions.csv row 5: item 'gone', …\n" in text
    assert "3 bundles of fewer than two items, left out: bundle 'b2', bundle 'b4', bundle 'b6'" in text

    with pytest.raises(BundleMLLMError, match=r"2 interactions with an item.*4 entries of bundles .*'gone' in 'b0'"):
        import_tabular(shop, tmp_path / "strict", strict=True)
    assert sorted(os.listdir(tmp_path)) == ["data", "shop"]


def test_repetitions_do_not_stop_a_strict_import(shop, tmp_path, items):
    write_records(shop / "items.csv", [*items, items[7]])
    summary = import_tabular(shop, tmp_path / "data", strict=True)
    assert summary.dropped == {
        "rows that repeat an item, counted once": 1,
        "interactions that repeat a pair of user and item, counted once": 1,
    }
    assert len(DatasetFolder.open(tmp_path / "data").catalog) == 60


def test_pictures_and_sounds_are_copied_and_what_is_no_file_is_left_out(shop, tmp_path, items):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    (shop / "photos").mkdir()
    (shop / "images").mkdir()
    (shop / "photos" / "a.jpg").write_bytes(b"picture a")
    (shop / "images" / "b.jpg").write_bytes(b"picture b")
    (shop / "photos" / "empty.jpg").write_bytes(b"")
    (shop / "photos" / "link.jpg").symlink_to(secret)
    (shop / "c.wav").write_bytes(b"sound c")
    cells = {
        0: {"image": "photos/a.jpg", "audio": "c.wav"},
        1: {"image": "images/b.jpg"},
        2: {"image": str(shop / "photos" / "a.jpg")},
        3: {"image": "photos/empty.jpg"},
        4: {"image": "../secret.jpg"},
        5: {"image": str(secret)},
        6: {"image": "photos/link.jpg"},
        7: {"image": "photos/none.jpg"},
        8: {"image": "https://localhost/a.jpg?v=1"},
        9: {"image": "photos/\0.jpg"},
        10: {"image": 7},
        11: {"image": ""},
        12: {"image": "photos"},
    }
    (shop / "items.csv").unlink()
    write_records(shop / "items.jsonl", [{**item, **cells.get(n, {})} for n, item in enumerate(items)])
    summary = import_tabular(shop, tmp_path / "data")
    catalog = DatasetFolder.open(tmp_path / "data").catalog
    assert [item.image for item in catalog[:13]] == [
        *("images/photos/a.jpg", "images/b.jpg", "images/photos/a.jpg"),
        *[None] * 10,
    ]
    assert catalog[0].audio == "audio/c.wav"
    assert (tmp_path / "data" / "images" / "photos" / "a.jpg").read_bytes() == b"picture a"
    assert (tmp_path / "data" / "images" / "b.jpg").read_bytes() == b"picture b"
    assert (tmp_path / "data" / "audio" / "c.wav").read_bytes() == b"sound c"
    reasons = {
        what.removeprefix("pictures ").removeprefix("whose file "): n
        for what, n in summary.dropped.items()
        if "picture" in what
    }
    assert reasons == {
        "has no bytes, left out": 1,
        "lies outside of the source folder, left out": 3,
        "does not exist, left out": 2,
        "that are web addresses, kept as image_url": 1,
        "is no path of a file, left out": 1,
        "is no path, left out": 1,
    }
    assert catalog[8].extra == {"image_url": "https://localhost/a.jpg?v=1"}
    assert str(summary).startswith("WARNING: 8 of 11 pictures were left out (most: the file lies outside")
    stored = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert not any(path.read_bytes() == b"secret" for path in stored)
    with pytest.raises(BundleMLLMError, match="pictures whose file has no bytes"):
        import_tabular(shop, tmp_path / "strict", strict=True)


def test_pictures_can_lie_elsewhere(shop, tmp_path, items):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"picture")
    write_records(shop / "items.csv", [{**items[0], "photo": "a.jpg"}, *items[1:]])
    import_tabular(shop, tmp_path / "data", media_dir=tmp_path / "photos", columns={"image": "photo"})
    assert DatasetFolder.open(tmp_path / "data").catalog[0].image == "images/a.jpg"


def test_a_second_picture_of_an_item_is_reported(shop, tmp_path, items):
    for name in ("a.jpg", "b.jpg"):
        (shop / name).write_bytes(b"picture")
    write_records(shop / "items.csv", [*({**items[0], "image": p} for p in ("a.jpg", "b.jpg", "a.jpg")), *items[1:]])
    summary = import_tabular(shop, tmp_path / "data")
    assert summary.dropped["further pictures or sounds of an item, left out"] == 1
    assert summary.dropped["rows that repeat an item, counted once"] == 1
    assert DatasetFolder.open(tmp_path / "data").catalog[0].image == "images/a.jpg"


BAD = {
    "an item in two ways": (
        "items.csv",
        "item_id,title\n1,a\n2,b\n1,c\n",
        "items.csv line 4 contradicts line 2 about the item '1'",
    ),
    "a cell too few": ("items.csv", "item_id,title\n1,a\n2\n", "items.csv line 3 has 1 cells for 2 columns"),
    "no id column": ("items.csv", "sku,title\n1,a\n", r"no `item_id` \(its columns: sku, title\): map the column"),
    "no item": ("items.csv", "item_id,title\n", "holds no item"),
    "a bundle twice": (
        "bundles.jsonl",
        '{"bundle_id": 1, "items": ["000", "001"]}\n' * 2,
        "line 2 .* repeats it",
    ),
    "no items": ("bundles.jsonl", '{"bundle_id": 1}\n', "line 1 .*has no `items` or `item_id`"),
    "a list that is none": ("bundles.jsonl", '{"bundle_id": 1, "items": "a, b"}\n', "line 1 .*has 'a, b' as `items`"),
    "an expression": (
        "bundles.jsonl",
        '{"bundle_id": 1, "items": "[__import__(\'os\').mkdir(\'ran\')]"}\n',
        "`items`, is not JSON",
    ),
    "a null in a list": ("bundles.jsonl", '{"bundle_id": 1, "items": ["000", null]}\n', "line 1 .*has the id None"),
    "a foreign split": (
        "bundles.jsonl",
        '{"bundle_id": 1, "items": ["000", "001"], "split": "all"}\n',
        "line 1 .*has the split 'all'",
    ),
    "some splits": (
        "bundles.jsonl",
        '{"bundle_id": 1, "items": ["000", "001"], "split": "test"}\n{"bundle_id": 2, "items": ["002", "001"]}\n',
        "none for 1, as '2'",
    ),
    "two splits of a bundle": (
        "bundles.jsonl",
        '{"bundle_id": 1, "item_id": "000", "split": "test"}\n{"bundle_id": 1, "item_id": "001", "split": "train"}\n',
        "line 2 .*has split 'train'.*earlier row .* 'test'",
    ),
    "only unknown items": (
        "bundles.jsonl",
        '{"bundle_id": 1, "items": ["a", "b"]}\n',
        "no bundle of two known items to learn from: ids such as 'a', where the items have ids such as '000'",
    ),
    "no bundle": ("bundles.jsonl", "", "no bundle of two known items"),
    "a log row cut off": ("interactions.csv", "user_id,item_id\nu,000\nu\n", "interactions.csv row 2 has 1 cells"),
    "a log without users": ("interactions.csv", "user,item_id\nu,000\n", "interactions.csv has no `user_id`"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_table_is_refused_by_file_and_row_and_leaves_nothing(shop, tmp_path, monkeypatch, name):
    file, content, message = BAD[name]
    (shop / file).write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleMLLMError, match=message):
        import_tabular(shop, tmp_path / "data")
    assert os.listdir(tmp_path) == ["shop"], "something was left behind, or an expression was run"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"titel": "name"}}, "no field 'titel' to map"),
        ({"columns": {"interactions.title": "name"}}, "no field 'interactions.title' to map"),
        ({"columns": {"title": "name"}}, r"items.csv has no column 'name', which the mapping title=name names"),
        ({"columns": {"title": "c", "category": "c"}}, "Two fields of the items are mapped to one column"),
        ({"columns": {"timestamp": "when"}}, "interactions.csv has no `when`"),
        ({"tables": {"users": "u.csv"}}, "no table 'users'"),
        ({"tables": {"items": "products.csv"}}, "no file .*products.csv"),
        ({"delimiter": ";;"}, "not one character"),
        ({"fractions": (0.5, 0.2, 0.2)}, "are not shares"),
        ({"media_dir": "nowhere"}, "no folder nowhere"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(shop, tmp_path, options, message):
    with pytest.raises(BundleMLLMError, match=message):
        import_tabular(shop, tmp_path / "data", **options)
    assert os.listdir(tmp_path) == ["shop"]


def test_a_missing_table_or_folder_is_refused(shop, tmp_path):
    with pytest.raises(BundleMLLMError, match=r"There is no folder .*nowhere"):
        import_tabular(tmp_path / "nowhere", tmp_path / "data")
    (shop / "items.csv").unlink()
    with pytest.raises(BundleMLLMError, match="holds no table items"):
        import_tabular(shop, tmp_path / "data")


def test_an_output_folder_that_is_not_empty_is_refused_and_kept(shop, tmp_path):
    (tmp_path / "data").mkdir()
    import_tabular(shop, tmp_path / "data")
    (tmp_path / "data" / "other").write_text("kept")
    with pytest.raises(BundleMLLMError, match="is not empty"):
        import_tabular(shop, tmp_path / "data")
    assert (tmp_path / "data" / "other").read_text() == "kept"


def test_large_groups_of_near_duplicates_are_mentioned(shop, tmp_path, items):
    write_records(
        shop / "bundles.jsonl", [{"bundle_id": n, "items": ["000", "001", f"{n:03d}"]} for n in range(2, 12)]
    )
    summary = import_tabular(shop, tmp_path / "data")
    assert summary.num_bundles == {"train": 10, "validation": 0, "test": 0}
    assert "near-duplicates, which stay together" in summary.warnings[0]
    assert summary.warnings[1] == "there is no bundle in validation and test."


def test_an_import_goes_by_the_name_of_its_format(shop, tmp_path, same_tree):
    import_tabular(shop, tmp_path / "expected", seed=2)
    import_dataset("tabular", shop, tmp_path / "data", seed=2, columns=None, revision=None)
    assert same_tree(tmp_path / "expected", tmp_path / "data")
    with pytest.raises(
        BundleMLLMError, match=r"format must be one of 'official', 'bundlerec', .*'tabular'.*, not 'excel'"
    ):
        import_dataset("excel", shop, tmp_path / "other")
    with pytest.raises(
        BundleMLLMError, match=r"tabular has no option `revision` \(formats that have it: huggingface\)"
    ):
        import_dataset("tabular", shop, tmp_path / "other", revision="main")


def test_only_the_first_equals_sign_parts_a_pair():
    assert parse_pairs("--columns", ["a=b=c"]) == {"a": "b=c"}


@pytest.mark.parametrize("pair", ["sku", "=sku", "item_id=", "title=other"])
def test_a_pair_that_is_none_is_refused(pair):
    with pytest.raises(BundleMLLMError, match=r"--columns has .*: write NAME=VALUE"):
        parse_pairs("--columns", ["title=name", pair])


def test_pictures_of_one_name_stay_those_of_their_items(shop, tmp_path, items):
    (shop / "images").mkdir(exist_ok=True)
    (shop / "a.jpg").write_bytes(b"of one")
    (shop / "images" / "a.jpg").write_bytes(b"of two")
    paths = ("a.jpg", "images/a.jpg", "a.jpg")
    shown = [{**item, "image": path} for item, path in zip(items, paths, strict=False)]
    write_records(shop / "items.csv", [*shown, *items[3:]])
    import_tabular(shop, tmp_path / "data")
    catalog = DatasetFolder.open(tmp_path / "data").catalog
    images = [(tmp_path / "data" / catalog[row].image).read_bytes() for row in range(3)]
    assert images == [b"of one", b"of two", b"of one"]
