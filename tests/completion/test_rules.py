"""Rules: read from files, applied to a catalog once, contradictions and mistakes refused in one line."""

import json

import numpy as np
import pytest

from bundle_mllm.completion.columns import ItemColumns
from bundle_mllm.completion.rules import Rules
from bundle_mllm.completion.selection import Limits, select
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.settings import as_dict

IDS = [f"i{row}" for row in range(6)]
ITEMS = [
    {
        "item_id": f"i{row}",
        "title": f"shirt {row // 2}",
        "price": 10.0 * (row + 1),
        "category": "shirt" if row < 4 else "shoe",
        "in_stock": row != 5,
        "margin": float(row),
        "same": 1,
    }
    for row in range(6)
]


def apply(**rules):
    return Rules.from_dict(rules).apply(IDS, ItemColumns.from_records(ITEMS, IDS))


def allowed(**rules):
    return np.flatnonzero(apply(**rules).allowed).tolist()


def test_filters_say_which_items_are_allowed_and_how_many_each_removes():
    applied = apply(where="in_stock and price <= 50", excluded=["i0", "gone"], allowed=["i0", "i1", "i4", "i5"])
    assert np.flatnonzero(applied.allowed).tolist() == [1, 4]
    assert applied.removed() == {"allowed": 2, "excluded": 1, "where in_stock": 1, "where price <= 50": 0}
    assert applied.notes == ("excluded lists 1 ids that are not in the catalog, such as 'gone'",)
    assert allowed(budget=25) == [0, 1]


def test_json_and_yaml_hold_the_same_rules_and_files_of_ids_are_relative_to_them(tmp_path):
    (tmp_path / "only.txt").write_text("i1\n\n i2 \n")
    (tmp_path / "never.csv").write_text("item_id,why\ni2,broken\n")
    values = {
        "where": "price < 60",
        "allowed_file": "only.txt",
        "excluded_file": "never.csv",
        "boost": {"margin": 0.5},
    }
    (tmp_path / "rules.json").write_text(json.dumps(values))
    (tmp_path / "rules.yaml").write_text(
        "where: price < 60\nallowed_file: only.txt\nexcluded_file: never.csv\nboost: {margin: 0.5}\n"
    )
    loaded = Rules.load(tmp_path / "rules.json")
    assert loaded == Rules.load(tmp_path / "rules.yaml")
    applied = loaded.apply(IDS, ItemColumns.from_records(ITEMS, IDS))
    assert np.flatnonzero(applied.allowed).tolist() == [1]
    (tmp_path / "again.json").write_text(json.dumps(as_dict(loaded)))
    assert Rules.load(tmp_path / "again.json") == loaded


def test_boost_adds_the_standardized_column_or_a_constant():
    offsets = apply(boost={"margin": 2.0, "not in_stock": -1.0}).offsets
    margins = np.arange(6.0)
    expected = 2 * (margins - margins.mean()) / margins.std() - (np.arange(6) == 5)
    np.testing.assert_allclose(offsets, expected, rtol=1e-6)


def test_variants_are_of_the_category_of_the_first_of_them():
    items = [{**item, "category": None if row == 1 else item["category"]} for row, item in enumerate(ITEMS)]
    rules = Rules(variant_column="title", max_per_category=1)
    applied = rules.apply(IDS, ItemColumns.from_records(items, IDS))
    assert applied.variant.tolist() == [0, 0, 1, 1, 2, 2]
    assert applied.category.tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("first", [1234567, 1234567890123, 123456789012345678, "123456789012345678", 0.1])
def test_numbers_name_variants_and_categories_and_distinct_numbers_are_distinct(first):
    step = 1e-9 if isinstance(first, float) else 1
    values = [first, int(first) + 1 if isinstance(first, str) else first + step, first, None]
    columns = ItemColumns.from_records(
        [{"item_id": i, "parent": value} for i, value in zip("abcd", values, strict=True)], "abcd"
    )
    assert Rules(variant_column="parent").apply("abcd", columns).variant.tolist() == [0, 1, 0, -1]
    applied = Rules(category_column="parent", required_categories=(str(first),)).apply("abcd", columns)
    assert applied.category.tolist() == [0, 1, 0, -1] and applied.required == (0,)


def test_whole_numbers_and_booleans_are_categories_as_people_write_them():
    assert apply(category_column="in_stock", required_categories=["true"]).category_names == ("false", "true")
    assert apply(category_column="price", required_categories=["20"]).required == (1,)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"max_per_categry": 1}, "'max_per_categry', which is no rule: did you mean 'max_per_category'"),
        ({"where": "prise < 3"}, "did you mean 'price'"),
        ({"promoted": "promo", "promoted_share": 0.5}, "no column 'promo'"),
        ({"boost": {"marginn": 1}}, "did you mean 'margin'"),
        ({"boost": {"same": 1}}, "same value for all items"),
        ({"boost": {"margin": "much"}}, r"boost\['margin'\] must be a number, not 'much'"),
        ({"boost": {"margin": float("inf")}}, "give a finite number"),
        ({"boost": 3}, "boost must be of type Mapping"),
        ({"budget": -5}, "budget is -5, which no item costs"),
        ({"budget": 0}, "budget is 0"),
        ({"budget": float("nan")}, "budget must be a number, not nan"),
        ({"budget": 5, "price_column": "title"}, "holds 'shirt 0', which is no number"),
        ({"budget": 5, "price_column": "prices"}, "did you mean 'price'"),
        ({"budget": 5}, r"leave none of the 6 items \(no price, or one above the budget removes 6"),
        ({"max_per_category": 0}, "max_per_category is 0"),
        ({"max_per_category": 1, "category_column": "kind"}, "no column 'kind'"),
        ({"required_categories": ["shoes"]}, "no item of the catalog has it.*did you mean 'shoe'"),
        (
            {"required_categories": ["shoe"], "where": "price < 50"},
            "but the other rules leave none of its",
        ),
        ({"required_categories": ["shoe", "shoe"]}, "one of them twice"),
        ({"allowed": []}, "leave none of the 6 items"),
        ({"allowed": ["i0"], "excluded": ["i0"]}, r"\(allowed removes 5, excluded removes 1\)"),
        ({"allowed": ["a", "b"]}, "allowed lists 2 ids that are not in the catalog, such as 'a'"),
        ({"where": "price < 0 and in_stock"}, "where price < 0 removes 6, where in_stock removes 0"),
        ({"where": "price <"}, "cannot be read"),
        ({"promoted": "price > 99", "promoted_share": 0.5}, "No allowed item is promoted"),
        ({"promoted": "price > 9"}, "promoted_share how many"),
        ({"promoted_share": 0.5}, "promoted_share how many"),
        ({"promoted_share": 1.5, "promoted": "in_stock"}, "promoted_share is 1.5"),
        ({"diversity": 2}, "diversity is 2"),
        ({"max_similarity": -1}, "max_similarity is -1"),
        ({"relax": ["budget"]}, "there is no such rule"),
        ({"relax": ["budget", "budget"], "budget": 50}, "twice"),
        ({"relax": ["where"]}, "must be one of"),
        ({"allowed_file": "no such file"}, "There is no file no such file"),
    ],
)
def test_mistakes_and_contradictions_are_refused_in_one_line(rules, message):
    with pytest.raises(BundleMLLMError, match=message) as error:
        apply(**rules)
    assert "\n" not in str(error.value)


def test_a_price_that_is_negative_is_refused():
    items = [{**ITEMS[0], "price": -1}, *ITEMS[1:]]
    with pytest.raises(BundleMLLMError, match="holds the price -1"):
        Rules(budget=50).apply(IDS, ItemColumns.from_records(items, IDS))


# Selection

SCORES = np.array([6.0, 5, 4, 3, 2, 1])


def take(number, **rules):
    applied = apply(**rules)
    return select(np.where(applied.allowed, SCORES, -np.inf), applied.limits, number)


def test_a_budget_is_spent_so_that_all_places_are_filled():
    assert take(3, budget=60).rows == [0, 1, 2]
    assert take(2, budget=40).rows == [0, 1]
    items = [{**item, "price": 70.0 - item["price"]} for item in ITEMS]  # the best is the dearest
    applied = Rules(budget=60).apply(IDS, ItemColumns.from_records(items, IDS))
    found = select(SCORES, applied.limits, 3)
    assert found.rows == [3, 4, 5]  # 30 + 20 + 10: no dearer item leaves enough for two others


def test_prices_in_cents_add_up_exactly():
    items = [{"item_id": "a", "price": 19.99}, {"item_id": "b", "price": 5.01}]
    applied = Rules(budget=25).apply(["a", "b"], ItemColumns.from_records(items, ["a", "b"]))
    assert select(np.array([2.0, 1.0]), applied.limits, 2).rows == [0, 1]


def test_prices_with_a_currency_add_up():
    items = [
        {"item_id": i, "price": price} for i, price in zip("abc", ["12,50 EUR", "8 EUR", "1.299,00 EUR"], strict=True)
    ]
    applied = Rules(budget=20.5).apply("abc", ItemColumns.from_records(items, "abc"))
    assert select(np.array([1.0, 2, 3]), applied.limits, 2).rows == [1, 0]


def test_a_required_category_gets_the_last_place_at_the_latest():
    assert take(2, required_categories=["shoe"]).rows == [0, 4]
    assert take(1, required_categories=["shoe"]).rows == [4]


def test_if_too_few_are_left_the_causes_are_counted_and_limits_are_relaxed_in_order():
    found = take(4, max_per_category=1)
    assert found.rows == [0, 4] and found.blocked == {"max_per_category": 4}
    relaxed = take(4, max_per_category=1, variant_column="title", relax=["variants", "max_per_category"])
    assert relaxed.rows == [0, 4, 1, 2] and relaxed.relaxed == ("variants", "max_per_category")
    assert take(2, max_per_category=1, relax=["max_per_category"]).relaxed == ()


def test_variants_of_an_answer_and_of_the_bundle_are_no_answers():
    applied = apply(variant_column="title")
    assert select(np.array([-np.inf, 5, 4, 3, 2, 1]), applied.limits, 3, shown=[0]).rows == [2, 4]


def test_promoted_items_have_their_share_of_every_beginning():
    found = take(4, promoted="price > 30", promoted_share=0.5)
    assert found.rows == [0, 3, 1, 4]
    assert take(6, promoted="price > 50", promoted_share=0.5).missing_promoted == 2


def test_diversity_prefers_what_is_unlike_the_items_taken_so_far():
    vectors = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [1, 1]])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def similarity(rows, others):
        return unit[rows] @ unit[others].T

    def rows(**limits):
        return select(SCORES, Limits(**limits), 3, similarity=similarity).rows

    assert rows() == rows(diversity=0.01) == [0, 1, 2]
    assert rows(diversity=0.6)[:2] == [0, 3]
    assert rows(max_similarity=0.9) == [0, 3, 5]


SIMILAR = np.eye(4) + 0.9 * np.array([[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])


def take_unlike(prices, groups, shown=(), **rules):
    """Select 3 of four items, of which the second and the third are too similar."""
    items = [
        {"item_id": i, "price": price, "group": group} for i, price, group in zip("abcd", prices, groups, strict=True)
    ]
    limits = Rules(max_similarity=0.5, **rules).apply("abcd", ItemColumns.from_records(items, "abcd")).limits
    scores = np.array([10.0, 9, 8, 7])
    scores[list(shown)] = -np.inf
    return select(scores, limits, 3, shown=shown, similarity=lambda a, b: SIMILAR[np.ix_(a, b)])


def test_a_limit_that_an_item_meets_stays_when_a_near_duplicate_leaves_more_of_the_budget():
    """`a` is too dear at first. `c`, too similar to `b`, leaves its money to others, but not to `a`."""
    assert take_unlike([90, 10, 10, 10], ["p", "p", None, None], budget=100, variant_column="group").rows == [1, 3]
    of_category = {"budget": 100, "category_column": "group", "max_per_category": 1}
    assert take_unlike([90, 10, 10, 10], ["p", "p", "q", "r"], **of_category).rows == [1, 3]


def test_a_required_category_is_met_when_a_more_important_one_turns_out_to_be_too_similar():
    rules = {"budget": 80, "category_column": "group", "required_categories": ("shoe", "bag")}
    found = take_unlike([40, 10, 70, 50], ["hat", "hat", "shoe", "bag"], shown=[1], **rules)
    assert found.rows == [3] and found.unmet == (2,)  # of bag, hat, shoe
