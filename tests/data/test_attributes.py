"""Columns of the items table: what their cells say, and which of them say nothing."""

import math
from datetime import date, datetime

import numpy as np
import pytest

from bundle_mllm.data import ItemCatalog, write_records
from bundle_mllm.data.attributes import AttributeColumn, choose_columns, to_year
from bundle_mllm.errors import BundleMLLMError


def catalog_of(**columns):
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return ItemCatalog.from_records({"item_id": f"i{number}", **row} for number, row in enumerate(rows))


def kinds_of(**columns):
    return {column.name: column.kind for column in choose_columns(catalog_of(**columns)).columns}


@pytest.mark.parametrize(
    ("cell", "order", "year"),
    [
        ("2010-07-02", "year first", 2010.5),
        ("2010-07-02T10:00:00Z", "year first", 2010.5),
        ("20100702", "year first", 2010.5),
        ("2010-07", "year first", 2010.5),
        ("2010", "year first", 2010.0),
        (1999, "year first", 1999.0),
        ("02.07.2010", "day first", 2010.5),
        ("7/2/2010", "month first", 2010.5),
        (date(2010, 7, 2), "year first", 2010.5),
        (datetime(2010, 7, 2, 10), "year first", 2010.5),
    ],
)
def test_dates_become_years(cell, order, year):
    assert to_year(cell, order) == pytest.approx(year, abs=0.01)


@pytest.mark.parametrize("cell", [None, "", "soon", "2010-13-01", "2010-02-30", 12, 1999.5, True])
def test_what_is_no_date_is_missing(cell):
    assert math.isnan(to_year(cell, "year first"))


def test_the_kind_of_a_column_follows_from_its_cells():
    assert kinds_of(
        price=["$ 1.00", "$ 2.50", None, "$ 3.00"],
        rating=[1, 2, 3, 2],
        released=["2001-02-03", "1999", "2003-04", None],
        ordered=["13/02/2020", "01/02/2020", "20/12/2021", "02/03/2020"],
        year=[1999, 2001, 1999, 2003],
        brand=["Acme", "acme ", "Bolt", None],
        color_code=[9, 9, 12, 12],
        tags=[["a", "b"], ["a"], [], ["b", "c"]],
        materials=["wool|silk", "silk", "wool", "wool|silk"],
        colors=["red, blue", "blue, red", "red", "blue"],
        shelf=["Shoes > Boots", "Shoes > Pumps", "Shoes > Boots", "Bags"],
        paths=[[["x", "y"]], [["x", "z"]], [["x", "y"]], [["x"]]],
        is_new=[True, False, True, True],
    ) == {
        "price": "number",
        "rating": "number",
        "released": "date",
        "ordered": "date",
        "year": "date",
        "brand": "category",
        "color_code": "category",
        "tags": "list",
        "materials": "list",
        "colors": "list",
        "shelf": "path",
        "paths": "path",
        "is_new": "category",
    }


def test_names_are_compared_in_normal_form_and_a_path_is_in_all_above_it():
    assert AttributeColumn("b", "category").names(["Acme ", "ＡＣＭＥ", 3.0, None, "N/A"]) == [
        ("acme",),
        ("acme",),
        ("3",),
        (),
        (),
    ]
    assert AttributeColumn("t", "list", "|").names(["b| a |b", '["x", "Y"]', None]) == [("b", "a"), ("x", "y"), ()]
    shoes = ("shoes", "shoes > boots")
    column = AttributeColumn("p", "path")
    assert column.names(["Shoes > Boots", [["Shoes", "Boots"], ["Sale"]], '[["Shoes"]]']) == [
        shoes,
        (*shoes, "sale"),
        ("shoes",),
    ]


def test_unreadable_numbers_are_missing():
    numbers = AttributeColumn("price", "number").numbers(["1", "free", None, 3])
    np.testing.assert_array_equal(numbers, [1, np.nan, np.nan, 3])


def test_columns_that_say_nothing_are_left_out_with_the_reason():
    rows = range(20)
    choice = choose_columns(
        catalog_of(
            asin=[f"B00{row:03d}" for row in rows],
            product_id=[100 + row * row for row in rows],
            row=list(rows),
            subtitle=[f"a text, number {row}" for row in rows],
            url=["https://shop.example/a"] * 10 + ["https://shop.example/b"] * 10,
            currency=["EUR"] * 20,
            tax=[19] * 20,
            nothing=[None] * 20,
            details=[{"weight": 1}] * 20,
            price=[row + 0.5 for row in reversed(rows)][::2] * 2,
            brand=["acme", "bolt"] * 10,
        )
    )
    assert [column.name for column in choice.columns] == ["price", "brand"]
    own = "values of which nearly every item has its own"
    same = "the same value everywhere"
    assert choice.left_out == {
        "asin": own,
        "product_id": own,
        "row": "running numbers",
        "subtitle": own,
        "url": "addresses of pages or files",
        "currency": same,
        "tax": same,
        "nothing": "no values",
        "details": "objects as values",
    }


def test_named_columns_are_taken_although_nearly_unique_and_others_are_not():
    catalog = catalog_of(asin=[f"B{row}" for row in range(9)], brand=["a", "b", "c"] * 3, tax=[1] * 9)
    assert [column.name for column in choose_columns(catalog, ["asin"]).columns] == ["asin"]
    with pytest.raises(BundleMLLMError, match="'tax' has the same value everywhere"):
        choose_columns(catalog, ["tax"])
    with pytest.raises(BundleMLLMError, match=r"no column 'colour' .* asin, brand, tax"):
        choose_columns(catalog, ["colour"])


def test_a_csv_table_says_the_same_as_json_lines(tmp_path):
    records = [
        {"item_id": "1", "price": 9.5, "tags": ["a", "b"], "released": "2001-01-01", "brand": None},
        {"item_id": "2", "price": 12, "tags": ["a"], "released": "2002-01-01", "brand": "x"},
        {"item_id": "3", "price": 12, "tags": ["b"], "released": None, "brand": "x"},
    ]
    read = []
    for suffix in ("jsonl", "csv", "parquet"):
        write_records(tmp_path / f"items.{suffix}", records)
        catalog = ItemCatalog.load(tmp_path / f"items.{suffix}")
        choice = choose_columns(catalog)
        assert [column.name for column in choice.columns] == ["price", "tags", "released", "brand"]
        numbers = [c.numbers(catalog.cells(c.name)).tolist() for c in choice.columns if c.is_quantity]
        read.append((str(numbers), [c.names(catalog.cells(c.name)) for c in choice.columns]))
    assert read[0] == read[1] == read[2]
