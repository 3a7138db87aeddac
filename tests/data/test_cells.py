"""Cells: what people write as numbers, true, false and lists; ids stay as they are."""

import math
from decimal import Decimal

import pytest

from bundle_mllm.data.cells import as_text, is_id_name, plain, to_boolean, to_number, unit_of


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        (3, 3.0),
        (Decimal("2.50"), 2.5),
        ("1299", 1299.0),
        ("1,299.00", 1299.0),
        ("1.299,00", 1299.0),
        ("1,299", 1299.0),
        ("12,5", 12.5),
        ("$ 12.99", 12.99),
        ("US$12.99", 12.99),
        ("Rs. 499", 499.0),
        ("1\u202f299,50 €", 1299.5),
        ("12.50 EUR", 12.5),
        ("30%", 30.0),
        ("-4", -4.0),
        (" 7\n", 7.0),
        (".5", 0.5),
        ("1.5e-3", 0.0015),
    ],
)
def test_numbers_and_prices_are_read(cell, number):
    assert to_number(cell) == number


@pytest.mark.parametrize(
    "cell",
    [None, "", "n/a", "abc", "A12", "12 in a row", "2010-01-02", True, math.inf, "inf", 10**400, "1.2.3", "1_000"],
)
def test_what_is_no_number_is_missing(cell):
    assert math.isnan(to_number(cell))


@pytest.mark.parametrize("cell", ["36 37 38", "36,37,38", "555 1234", 2**53 + 1, str(2**53 + 1), "5_901234_123457"])
def test_lists_of_numbers_telephone_numbers_and_long_ids_are_no_numbers(cell):
    assert math.isnan(to_number(cell))


def test_the_unit_is_what_stands_beside_a_number():
    cells = ["12,50 EUR", "EUR 3", "$ 12", "Rs. 1 299", "30%", "12.50", 12, "two pairs"]
    assert list(map(unit_of, cells)) == ["EUR", "EUR", "$", "Rs", "%", "", "", ""]


def test_true_and_false_are_read_in_any_case_and_nothing_else():
    assert [to_boolean(cell) for cell in (True, "FALSE", " true ")] == [1, 0, 1]
    assert all(math.isnan(to_boolean(cell)) for cell in (1, "yes", "", None))


def test_cells_of_csv_that_hold_json_are_read_and_empty_ones_are_missing():
    assert plain('["a", 1]') == ["a", 1] and plain((1, 2)) == [1, 2] and plain('{"a": 1}') == {"a": 1}
    assert plain("[sale] hat") == "[sale] hat" and plain(" hat") == " hat"
    assert plain(" ") is None and plain(math.nan) is None and plain(0) == 0


def test_numbers_become_texts_that_tell_them_apart():
    cells = [1234567.0, 1234568, 0.1, 0.1000000000000001, True, Decimal("2.50"), ["é"], "x"]
    assert list(map(as_text, cells)) == [
        "1234567",
        "1234568",
        "0.1",
        "0.1000000000000001",
        "true",
        "2.50",
        '["é"]',
        "x",
    ]


def test_ids_are_known_by_the_name_of_their_column():
    assert all(map(is_id_name, ["id", "item_id", "Variant SKU", "productId", "color_code", "ean13", "id_marca"]))
    assert not any(map(is_id_name, ["price", "no_of_pages", "idea", "parent", "2020", ""]))
