"""Conditions: what they hold for, and one line for what is none; nothing is executed."""

import pytest

from bundle_mllm.completion.columns import ItemColumns
from bundle_mllm.completion.conditions import MAX_LENGTH, Condition
from bundle_mllm.completion.item_table import write_item_table
from bundle_mllm.errors import BundleMLLMError

ITEMS = [
    {"item_id": "1", "price": 10, "list_price": 12, "in_stock": True, "category": "shoes", "tags": ["sale", "new"]},
    {"item_id": "2", "price": "60.5", "list_price": 50, "in_stock": "FALSE", "category": "gift card", "tags": []},
    {"item_id": "3", "category": "linen shirt", "Variant Price": "7", "released": "2026-05-01", "tags": '["sale"]'},
]


@pytest.fixture(scope="module")
def columns():
    return ItemColumns.from_records(ITEMS, ["1", "2", "3"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('in_stock == true and price <= 50 and category != "gift card"', [1]),
        ("in_stock", [1]),
        ("not in_stock", [2, 3]),
        ("in_stock == false", [2]),
        ("in_stock == True or price > 60", [1, 2]),
        ("price == null", [3]),
        ("price != null", [1, 2]),
        ("price != 10", [2, 3]),
        ("not (price > 20)", [1, 3]),
        ("not price > 20", [1, 3]),
        ("5 < price <= 10", [1]),
        ("50 <= price", [2]),
        ("price < list_price", [1]),
        ("price > -1", [1, 2]),
        ("price in [10, 60.5]", [1, 2]),
        ("price in []", []),
        ('category in ["shoes", "hats"]', [1]),
        ('category not in ("shoes",)', [2, 3]),
        ('"sale" in tags', [1, 3]),
        ('"sale" not in tags', [2]),
        ("tags == null", [2]),
        ('"linen" in category', [3]),
        ("`Variant Price` < 8", [3]),
        ('category == "`Variant Price`"', []),
        ('released >= "2026-01-01"', [3]),
        ('item_id == "2"', [2]),
        (' category == "shoes"\n', [1]),
        ('category == "no such"', []),
        ('category > "h"', [1, 3]),
    ],
)
def test_a_condition_holds_for_the_items_that_it_describes(columns, text, expected):
    assert (Condition.parse(text).mask(columns).nonzero()[0] + 1).tolist() == expected


def test_numbers_with_one_unit_are_numbers_and_ids_and_mixed_units_are_texts():
    items = [
        {"item_id": "1", "price": "12,50 EUR", "cost": "12 EUR", "sku": "007", "in_stock": "true", "size": "36 37"},
        {"item_id": "2", "price": "1.299,00 EUR", "cost": "9 USD", "sku": "7", "in_stock": "False", "size": "38 39"},
    ]
    columns = ItemColumns.from_records(items, ["1", "2"])
    kinds = {name: columns[name].kind for name in columns.names}
    assert kinds == {
        "item_id": "text",
        "price": "number",
        "cost": "text",
        "sku": "text",
        "in_stock": "boolean",
        "size": "text",
    }
    assert Condition.parse('in_stock and price <= 20 and sku == "007"').mask(columns).tolist() == [True, False]


def test_the_columns_of_a_condition_and_the_parts_that_and_joins():
    condition = Condition.parse('in_stock and (price <= 5 or `a b` == "x") and not price > 3')
    assert condition.columns == ["in_stock", "price", "a b"]
    assert [part.text for part in condition.parts] == ["in_stock", "price <= 5 or `a b` == 'x'", "not price > 3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pirce < 3", "no column 'pirce'.*did you mean 'price'?"),
        ("xyz < 3", "no column 'xyz'.*its columns are 'item_id', 'price'"),
        ("price = 3", "cannot be read: join comparisons such as"),
        ("", "cannot be read"),
        ('class == "x"', "in backticks"),
        ("price", "holds numbers such as 10 and is no condition by itself"),
        ("price and true", "no condition by itself"),
        ("true == true", "compares no column"),
        ("price is null", "write == or !="),
        ('price < "50"', "holds numbers such as 10 and cannot be compared with the text '50': write numbers"),
        ("category < 4", "holds texts such as 'gift card' and cannot be compared with the number 4"),
        ("in_stock < true", "cannot be compared with true by <"),
        ("price < null", "use == null or != null"),
        ("category == price", "compare like with like"),
        ('tags == "x"', "ask for a member"),
        ('"x" in price', "looks for no text"),
        ("price in [1, 'a']", "cannot be compared with the text 'a'"),
        ("tags in ['a']", "asks for no single value"),
        ('__import__("os").system("touch executed")', "is no part of one"),
        ("(lambda: price)() == 1", "is no part of one"),
        ("price.__class__ == 1", "is no part of one"),
        ("price[0] == 1", "is no part of one"),
        ("price + 1 == 2", "is no part of one"),
        ('f"{price}" == category', "is no part of one"),
        ("[price for price in category] == 1", "is no part of one"),
        ("price == (x := 3)", "is no part of one"),
        ("price < 1j", "is no part of one"),
        ("price < 99999999999999999999999", "is no part of one"),
        ("price < 1 if true else false", "is no part of one"),
        ("x\0y", "cannot be read"),
        ("(" * 300 + "price < 1" + ")" * 300, "cannot be read"),
        ("not " * 2_000 + "in_stock", "cannot be read"),
        ("price < 1 or " * 1_000 + "price < 1", f"of at most {MAX_LENGTH}"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(columns, text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleMLLMError, match=message) as error:
        Condition.parse(text).mask(columns)
    assert "\n" not in str(error.value).replace(repr(text), "")
    assert not list(tmp_path.iterdir())


def test_a_column_of_numbers_and_texts_holds_texts_and_is_not_compared_with_numbers():
    columns = ItemColumns.from_records(
        [{"item_id": "a", "price": "from 12"}, {"item_id": "b", "price": "3"}], ["a", "b"]
    )
    with pytest.raises(BundleMLLMError, match="such as 'from 12' and cannot be compared with the number 5"):
        Condition.parse("price < 5").mask(columns)


def test_items_are_found_by_id_and_those_that_a_table_lacks_have_no_values(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,price\nb,3\nx,9\n")
    columns = ItemColumns.load(tmp_path, ["a", "b"])
    assert Condition.parse("price == 3").mask(columns).tolist() == [False, True]
    assert columns.num_unknown == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item_id,price\nb,3\nb,4\n", "row 2 lists the item 'b' a second time"),
        ("item_id,price\nx,3\n", "lists none of the 2 items"),
        ("sku,price\nb,3\n", "no `item_id`"),
    ],
)
def test_a_table_of_other_items_is_refused(tmp_path, text, message):
    (tmp_path / "items.csv").write_text(text)
    with pytest.raises(BundleMLLMError, match=message):
        ItemColumns.load(tmp_path, ["a", "b"])


def test_the_items_of_a_model_are_those_given_or_of_its_folder_or_ids_and_titles_alone(tmp_path):
    def prices(model, items=None):
        columns = ItemColumns.of_model(model, ["a", "b"], ["red hat", ""], items)
        assert columns.record(0)["item_id"] == "a"
        return columns.record(0).get("price"), columns.record(0).get("title")

    (tmp_path / "given.csv").write_text("item_id,price\na,3\n")
    write_item_table(tmp_path / "model", [{"item_id": "a", "title": "hat", "price": 4}])
    assert prices(tmp_path / "model", tmp_path / "given.csv") == ("3", None)
    assert prices(tmp_path / "model") == (4, "hat")
    assert prices("owner/repository") == (None, "red hat")
    with pytest.raises(BundleMLLMError, match=r"repository \(no table of its items was given\) has no column"):
        ItemColumns.of_model("owner/repository", ["a"], ["red hat"])["price"]
