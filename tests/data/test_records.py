import pytest

from bundle_mllm.bounds import bounds
from bundle_mllm.data.records import require_fields, to_id, to_ids, to_text
from bundle_mllm.errors import BundleMLLMError


def test_a_missing_field_is_named_with_the_fields_that_are_there():
    require_fields({"a": None}, ("a",), "t row 1")
    with pytest.raises(BundleMLLMError, match=r"t row 1 has no `b` \(its fields: a, c\)"):
        require_fields({"a": 1, "c": 2}, ("a", "b"), "t row 1")


def test_ids_are_text_and_integers_become_text():
    assert [to_id("07", "t"), to_id(7, "t"), to_id(0, "t")] == ["07", "7", "0"]


@pytest.mark.parametrize("value", ["", " ", None, 1.0, True, ["1"], float("nan")])
def test_what_is_no_id_is_refused(value):
    with pytest.raises(BundleMLLMError, match="t row 4 has the id"):
        to_id(value, "t row 4")


def test_id_lists_come_as_lists_or_as_json_text():
    assert to_ids(["a", 2], "items", "t") == to_ids('["a", 2]', "items", "t") == ["a", "2"]
    assert to_ids(None, "items", "t") == []


@pytest.mark.parametrize(
    ("value", "ids"),
    [("a|b|c", ["a", "b", "c"]), (" a 1 | b|", ["a 1", "b"]), ("3", ["3"]), ("007", ["007"]), ('["x|y"]', ["x|y"])],
)
def test_id_lists_in_text_have_bars_between_them_or_a_single_id(value, ids):
    assert to_ids(value, "items", "t") == ids


@pytest.mark.parametrize("value", ["a b", "a, b", "a;b", "", 3, {"a": 1}])
def test_what_is_no_list_of_ids_is_refused(value):
    with pytest.raises(BundleMLLMError, match="as `items`: write a list of ids"):
        to_ids(value, "items", "t")


def test_an_empty_id_within_a_list_is_refused():
    with pytest.raises(BundleMLLMError, match="t row 1, `items`, has the id ''"):
        to_ids(["a", ""], "items", "t row 1")


def test_missing_texts_are_none_and_numbers_become_text():
    assert [to_text(value, "title", "t") for value in (None, float("nan"), "", "x", 300)] == [None] * 3 + ["x", "300"]
    assert [to_text(value, "category", "t") for value in (3.0, 1234567.0, 0.1)] == ["3", "1234567", "0.1"]
    with pytest.raises(BundleMLLMError, match="t row 2 has a list as `title`"):
        to_text(["x"], "title", "t row 2")


def test_an_infinite_title_is_refused_by_row():
    with pytest.raises(BundleMLLMError, match="t row 2 has an infinite number as `title`"):
        to_text(float("inf"), "title", "t row 2")


def test_what_is_too_long_is_refused_by_row_and_field_and_the_bound_can_be_raised(monkeypatch):
    with pytest.raises(BundleMLLMError, match=r"t row 2, `title`, has 40,000 title characters, above .* 2,000"):
        to_text("word " * 8_000, "title", "t row 2")
    with pytest.raises(BundleMLLMError, match=r"t row 2, its id, has 1,001 id characters"):
        to_id("x" * 1_001, "t row 2")
    with pytest.raises(BundleMLLMError, match="an integer of hundreds of digits"):
        to_id(10**5_000, "t row 2")
    assert len(to_text("word " * 8_000, "description", "t") or "") == 40_000
    monkeypatch.setenv("BUNDLE_MLLM_BOUNDS", "title_characters=50000")
    bounds.cache_clear()
    assert len(to_text("word " * 8_000, "title", "t") or "") == 40_000
    bounds.cache_clear()


def test_half_a_character_is_refused_by_row():
    for call in (lambda: to_text("nice \ud83d", "title", "t row 4"), lambda: to_id("\ud83d", "t row 4")):
        with pytest.raises(BundleMLLMError, match="t row 4 has half a character"):
            call()
    assert to_text("nice \U0001f600", "title", "t") == "nice \U0001f600"
