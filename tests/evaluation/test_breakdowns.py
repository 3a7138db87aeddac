"""Metrics of parts of a question list, and position bias, against figures worked out by hand."""

import math

import pytest

from bundle_mllm.data import Question
from bundle_mllm.evaluation.breakdowns import compute_slices, position_bias
from bundle_mllm.evaluation.metrics import ScoredQuestion, as_scored


def question(number, partial=1, candidates=4, answer=0, bundle=None):
    items = tuple(f"i{n}" for n in range(candidates))
    return Question(f"q{number}", bundle or f"b{number}", tuple(f"p{n}" for n in range(partial)), items, answer)


def test_slices_are_the_questions_that_share_something():
    asked = [question(0, partial=2), question(1, partial=7, answer=1), question(2, partial=12, candidates=5, answer=1)]
    scored = as_scored(asked, [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0, 0]])
    slices = compute_slices(asked, scored, train_items={"i1", "p0"})
    shares = {name: {label: m["hit_rate@1"] for label, m in group.items()} for name, group in slices.items()}
    assert shares == {
        "answer": {"cold": 1.0, "warm": 0.5},
        "partial_length": {"2": 1.0, "6-10": 0.0, "11+": 1.0},
        "num_candidates": {"4": 0.5, "5": 1.0},
        "position": {"A": 1.0, "B": 0.5},
    }
    warm = slices["answer"]["warm"]
    assert (warm["num_questions"], warm["num_bundles"], warm["mrr"]) == (2, 2, pytest.approx((13 / 36 + 1) / 2))
    assert warm["hit_rate@1_se"] == pytest.approx(0.5)
    assert math.isnan(slices["answer"]["cold"]["hit_rate@1_se"])  # one bundle


def test_without_training_bundles_nothing_is_called_cold():
    asked = [question(0)]
    assert "answer" not in compute_slices(asked, as_scored(asked, [[1, 0, 0, 0]]))


def test_numbers_of_candidates_are_in_order_and_long_lists_have_no_letter():
    asked = [question(number, candidates=size) for number, size in enumerate((100, 9, 30))]
    slices = compute_slices(asked, as_scored(asked, [[0.0] * len(q.candidates) for q in asked]))
    assert list(slices["num_candidates"]) == ["9", "30", "100"]
    assert slices["position"]["A"]["num_questions"] == 1


def test_what_is_ranked_in_groups_has_other_letters_than_in_its_list():
    asked = [question(number, candidates=size, answer=1) for number, size in enumerate((12, 13))]
    scored = as_scored(asked, [[0.0] * len(q.candidates) for q in asked])
    assert compute_slices(asked, scored, max_options=12)["position"]["B"]["num_questions"] == 1
    assert compute_slices(asked, scored)["position"]["B"]["num_questions"] == 2
    assert position_bias(scored, max_options=12)["share_right"] == {"A": 0, "B": 1}
    assert position_bias(scored, max_options=11) == {}


def test_a_model_that_always_says_the_first_letter_is_biased():
    asked = [question(number, answer=number % 4) for number in range(8)]
    bias = position_bias(as_scored(asked, [[1, 0, 0, 0]] * 8))
    assert bias["accuracy_by_letter"] == {"A": 1, "B": 0, "C": 0, "D": 0}
    assert bias["share_of_answers"] == {"A": 1, "B": 0, "C": 0, "D": 0}
    assert bias["share_right"] == dict.fromkeys("ABCD", 0.25)
    assert bias["share_distance"] == 0.75
    right = position_bias(as_scored(asked, [[float(n == q.answer_index) for n in range(4)] for q in asked]))
    assert right["share_distance"] == 0
    assert "answer_change" not in right


def test_the_change_under_other_orders_compares_them_with_the_questions_own():
    log = math.log
    orders = ((log(0.6), log(0.4)), (log(0.6), log(0.4)), (log(0.1), log(0.9)))
    mean = tuple(sum(column) / 3 for column in zip(*orders, strict=True))
    bias = position_bias([ScoredQuestion("q", "b", 0, mean, 0, orders)])
    assert bias["probability_change"] == pytest.approx((0 + 0.5) / 2)
    assert bias["answer_change"] == 0.5
    assert bias["hit_rate@1_own_order"] == 1
    assert bias["accuracy_by_letter"] == {"A": 1}  # in the own order; the mean is wrong
    assert mean[1] > mean[0]


def test_lists_too_long_for_letters_have_no_position_bias():
    asked = [question(0, candidates=30)]
    assert position_bias(as_scored(asked, [[0.0] * 30])) == {}
