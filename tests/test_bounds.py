"""Bounds: adjustable, and documented one by one."""

from dataclasses import fields
from pathlib import Path

import pytest

from bundle_mllm.bounds import Bounds, bounds, check
from bundle_mllm.errors import BundleMLLMError


@pytest.fixture(autouse=True)
def fresh():
    bounds.cache_clear()
    yield
    bounds.cache_clear()


def test_each_bound_is_documented_with_its_default():
    page = (Path(__file__).parents[1] / "docs" / "guides" / "bounds.md").read_text(encoding="utf-8")
    for field in fields(Bounds):
        assert f"| `{field.name}` | {field.default:,} |" in page


def test_a_variable_changes_bounds(monkeypatch):
    monkeypatch.setenv("BUNDLE_MLLM_BOUNDS", "table_rows=5, id_characters=7")
    assert (bounds().table_rows, bounds().id_characters, bounds().yaml_bytes) == (5, 7, Bounds().yaml_bytes)
    check("table_rows", 5, "t.csv")
    with pytest.raises(BundleMLLMError, match=r"t\.csv has 6 table rows, above the bound of 5: check .*=table_rows=6"):
        check("table_rows", 6, "t.csv")


@pytest.mark.parametrize(
    "text", ["rows=5", "table_rows", "table_rows=", "table_rows=0", "table_rows=-1", "table_rows=9e9"]
)
def test_a_variable_that_makes_no_sense_is_refused(monkeypatch, text):
    monkeypatch.setenv("BUNDLE_MLLM_BOUNDS", text)
    with pytest.raises(
        BundleMLLMError, match=rf"BUNDLE_MLLM_BOUNDS has '{text}': write NAME=NUMBER, NAME being one of"
    ):
        bounds()
