"""The sets of a calibration hold the answer as often as they say, whatever the scores are worth."""

import math

import numpy as np
import pytest
import torch

from bundle_mllm.modeling.conformal_bundle_mllm import BundleCalibration


def calibration(known, num_candidates=4):
    return BundleCalibration(num_candidates, {"retriever": [float(value) for value in known]})


def fit(*values):
    return {"retriever": torch.tensor(values, dtype=torch.float64)}


def test_a_p_value_is_the_share_of_known_answers_that_fit_no_better():
    known = calibration([0.0, 1.0, 2.0, 3.0])
    values = known.p_values(fit(-math.inf, 0.5, 1.0, 9.0))
    assert values.tolist() == [1 / 5, 2 / 5, 3 / 5, 5 / 5]  # a tie counts as no better


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("number", [19, 200])
def test_sets_hold_the_answer_as_often_as_stated_averaged_over_calibrations(coverage, number):
    rng = np.random.default_rng(0)
    draws, answers = rng.gumbel(size=(4_000, number)), rng.gumbel(size=4_000)
    held = [
        known.holds_answer(known.p_values(fit(answer)), coverage).item()
        for known, answer in ((calibration(draw), answer) for draw, answer in zip(draws, answers, strict=True))
    ]
    error = math.sqrt(coverage * (1 - coverage) / 4_000)
    assert coverage - 3 * error <= np.mean(held) <= coverage + 1 / (number + 1) + 3 * error


def test_scores_that_are_all_alike_cost_no_coverage():
    known = calibration([1.0] * 30)
    assert known.holds_answer(known.p_values(fit(1.0, 1.0, 1.0)), 0.9).all()


@pytest.mark.parametrize("coverage", [0, 1, 0.99, -0.5, float("nan"), True, "much", None])
def test_a_coverage_that_cannot_be_promised_is_refused_with_the_highest_that_can(coverage):
    known = calibration(range(30))
    with pytest.raises(ValueError, match=r"30 known answers can promise probabilities above 0 and up to 0\.967"):
        known.holds_answer(torch.ones(2), coverage)


def test_long_lists_are_tested_by_the_retriever_whose_scores_do_not_depend_on_what_else_is_offered():
    known = BundleCalibration(3, {"ranker": [0.0], "retriever": [10.0], "both": [20.0]})
    offered = {"ranker": torch.zeros(3), "retriever": torch.full((3,), 15.0), "both": torch.full((3,), 15.0)}
    assert known.p_values(offered).tolist() == [1 / 2] * 3
    longer = {part: values.repeat(2) for part, values in offered.items()}
    assert known.p_values(longer).tolist() == [1.0] * 6
    partly_shown = {**offered, "both": torch.tensor([15.0, 15.0, -math.inf])}
    assert known.p_values(partly_shown).tolist() == [1.0] * 3
    assert known.p_values({"ranker": torch.zeros(3)}).tolist() == [1.0] * 3
    with pytest.raises(ValueError, match="calibrated with 3 candidates, and among 6"):
        known.p_values({"ranker": torch.zeros(6)})


@pytest.mark.parametrize(
    ("num_candidates", "conformity", "message"),
    [
        (1, {"ranker": [0.5]}, "num_candidates"),
        (True, {"ranker": [0.5]}, "num_candidates"),
        (10, {}, "of no model"),
        (10, [0.5], "of no model"),
        (10, {"ranker": []}, "the ranker is no list"),
        (10, {"ranker": [0.5, None]}, "the ranker is no list"),
        (10, {"ranker": [math.nan]}, "the ranker is no list"),
    ],
)
def test_what_is_no_calibration_is_refused(num_candidates, conformity, message):
    with pytest.raises(ValueError, match=message):
        BundleCalibration(num_candidates, conformity)
