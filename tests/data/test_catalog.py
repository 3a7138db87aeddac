import pickle

import pytest

from bundle_mllm.data import Item, ItemCatalog, write_records
from bundle_mllm.data.tables import SUFFIXES
from bundle_mllm.errors import BundleMLLMError

RECORDS = [
    {"item_id": 7, "title": "red hat", "category": "Hats", "image": "images/7.png", "color": "red"},
    {"item_id": "b", "title": None, "description": "a long text"},
    {"item_id": "c", "title": float("nan"), "category": "", "audio": "audio/c.wav"},
]


@pytest.fixture
def small():
    return ItemCatalog.from_records(RECORDS)


def test_rows_follow_the_records_and_missing_texts_are_empty(small):
    assert small.item_ids == ("7", "b", "c")
    assert small.titles == ("red hat", "", "")
    assert small.categories == ("Hats", None, None)
    assert small[0] == Item("7", "red hat", None, "Hats", "images/7.png", None, {"color": "red"})
    assert small[-1] == Item("c", audio="audio/c.wav")


def test_a_catalog_is_a_sequence_of_items_and_contains_ids(small):
    assert len(small) == 3
    assert list(small) == [small[0], small[1], small[2]]
    assert small[1:] == (small[1], small[2])
    assert small.index(small[2]) == 2
    assert "b" in small
    assert 7 not in small
    assert ["b"] not in small
    with pytest.raises(IndexError):
        small[3]


def test_other_columns_have_a_cell_for_each_item(small):
    assert small.other_columns == ("color",)
    assert small.cells("color") == ("red", None, None)


def test_ids_are_found_by_row_and_back(small):
    assert small.row("c") == 2
    assert small.rows(["c", "7", "c"]) == [2, 0, 2]
    assert small.rows([]) == []


def test_unknown_ids_are_named_up_to_three(small):
    with pytest.raises(
        BundleMLLMError, match=r"no item 'v', 'w', 'x', … \(4 unknown of 5\): use the ids of its 3 items"
    ):
        small.rows(["v", "b", "w", "x", "y"])
    with pytest.raises(BundleMLLMError, match="t row 9: The catalog has no item 'z'"):
        small.rows(["z"], where="t row 9")


def test_an_integer_id_is_refused_with_its_text(small):
    with pytest.raises(BundleMLLMError, match="ids are text, so 7 names no item: write '7'"):
        small.row(7)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "shop holds no item"),
        ([{"id": 1, "title": "x"}], r"shop row 1 has no `item_id` \(its fields: id, title\)"),
        ([{"item_id": "a"}, {"item_id": ""}], "shop row 2 has the id ''"),
        ([{"item_id": None}], "shop row 1 has the id None"),
        ([{"item_id": 1.5}], "shop row 1 has the id 1.5"),
        ([{"item_id": 1}, {"item_id": "x"}, {"item_id": "1"}], "shop has the item id '1' in row 1 and in row 3"),
        ([{"item_id": "a", "title": ["x"]}], "shop row 1 has a list as `title`"),
    ],
)
def test_bad_records_are_refused_by_row(records, message):
    with pytest.raises(BundleMLLMError, match=message):
        ItemCatalog.from_records(records, source="shop")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_and_loading_keeps_everything(small, tmp_path, suffix):
    small.save(tmp_path / f"items{suffix}")
    assert ItemCatalog.load(tmp_path / f"items{suffix}").item_ids == small.item_ids
    loaded = ItemCatalog.load(tmp_path)
    assert loaded.content_hash == small.content_hash
    assert [item.extra.get("color") for item in loaded] == ["red", None, None]
    if suffix.startswith(".jsonl"):
        assert loaded == small


def test_the_hash_depends_on_ids_titles_and_order_alone(small):
    described = ItemCatalog.from_records([{**record, "description": "new"} for record in RECORDS])
    retitled = ItemCatalog.from_records([{**RECORDS[0], "title": "blue hat"}, *RECORDS[1:]])
    shifted = ItemCatalog.from_records([{"item_id": "7r", "title": "ed hat"}, *RECORDS[1:]])
    assert described.content_hash == small.content_hash
    assert described != small
    others = {catalog.content_hash for catalog in (small, retitled, shifted, ItemCatalog.from_records(RECORDS[::-1]))}
    assert len(others) == 4
    assert len(small.content_hash) == 64


def test_loading_names_what_is_missing(tmp_path):
    with pytest.raises(BundleMLLMError, match="There is no file or folder"):
        ItemCatalog.load(tmp_path / "missing")
    with pytest.raises(BundleMLLMError, match=r"holds no items file: add items\.jsonl"):
        ItemCatalog.load(tmp_path)
    write_records(tmp_path / "items.csv", [{"title": "x"}])
    with pytest.raises(BundleMLLMError, match=r"items\.csv row 1 has no `item_id`"):
        ItemCatalog.load(tmp_path)


def test_a_catalog_travels_to_worker_processes(small):
    assert pickle.loads(pickle.dumps(small)) == small


def test_catalogs_differ_by_items_titles_and_order():
    catalog = ItemCatalog.from_records({"item_id": name, "title": name.upper()} for name in "abcd")
    assert catalog.differences("abcd", "ABCD") == []
    assert catalog.differences("dabc", "DABC") == ["4 at another place (such as 'a')"]
    assert catalog.differences("abc", "ABX") == ["1 new (such as 'd')", "1 with another title (such as 'c')"]
    assert catalog.differences("abcde", "ABCDE") == ["1 gone (such as 'e')"]
