"""The item table of a model folder holds every column, in the order of the catalog, whatever its cells are."""

import pytest

from bundle_mllm.completion.item_table import (
    read_categories,
    read_group_names,
    read_item_table,
    save_items,
    write_item_table,
)
from bundle_mllm.data.words import words
from bundle_mllm.encoders.fitted import read_encoders
from bundle_mllm.errors import BundleMLLMError

ITEMS = [
    {"item_id": "b", "title": "two", "tags": ["x", "y"], "price": 3},
    {"item_id": "a", "price": 2.5, "size": 40},
    {"item_id": "c", "category": "hats", "size": "XL", "facts": {"wool": True}},
]


def test_what_is_written_is_read_and_columns_of_several_kinds_become_text(tmp_path):
    write_item_table(tmp_path, ITEMS)
    first, second, third = read_item_table(tmp_path)
    assert first == {**ITEMS[0], "price": 3.0}
    assert second == {"item_id": "a", "price": 2.5, "size": "40"}
    assert third == {"item_id": "c", "category": "hats", "size": "XL", "facts": {"wool": True}}
    assert read_categories(tmp_path) == [("b", None), ("a", None), ("c", "hats")]


def test_a_folder_without_a_table_says_so(tmp_path):
    with pytest.raises(BundleMLLMError, match=r"has no catalog\.parquet, so only ids and titles .* train the model"):
        read_item_table(tmp_path)
    assert read_categories(tmp_path) == [] and read_group_names(tmp_path) == {}


def test_a_model_folder_gets_the_encoders_that_it_reads_and_words_where_it_counts_them(pictured, tmp_path):
    save_items(tmp_path / "a", pictured, ["textual", "visual"], ["textual"])
    assert set(read_encoders(tmp_path / "a" / "encoders")) == {"textual", "visual"}
    expected = sorted({word for item in pictured.catalog for word in words(item.text)})
    assert read_group_names(tmp_path / "a") == {"textual": expected}
    save_items(tmp_path / "b", pictured, ["visual"], ["bundle_item"])
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["catalog.parquet", "encoders"]
