"""Metrics against figures worked out by hand, and their denominators."""

import math

import numpy as np
import pytest

from bundle_mllm.evaluation.metrics import ScoredQuestion, clustered_standard_error, compute_metrics, log_likelihood


def scored(answer, logits, bundle="b", free=0):
    return ScoredQuestion("q", bundle, answer, tuple(logits), free)


def test_hit_rate_counts_every_question_also_those_without_a_valid_free_answer():
    questions = [
        scored(0, [2.0, 1.0], "a", free=None),
        scored(1, [2.0, 1.0], "b"),
        scored(1, [0.0, 3.0, 1.0], "c", free=1),
        scored(2, [0.0, 3.0, 1.0], "c", free=None),
    ]
    metrics = compute_metrics(questions)
    assert metrics["hit_rate@1"] == 2 / 4
    assert metrics["valid_ratio"] == 2 / 4
    assert (metrics["num_questions"], metrics["num_bundles"]) == (4, 3)


def test_a_tie_is_a_miss():
    assert not scored(0, [1.0, 1.0]).hit
    assert scored(0, [1.0, 0.5]).hit


def test_the_standard_error_takes_questions_of_a_bundle_as_one_observation():
    values = np.array([1.0, 1.0, 0.0, 0.0])
    # Two clusters with deviations +1 and -1: sqrt(2 / 1 * (1 + 1)) / 4 = 0.5. Alone: sqrt(4 / 3 * 1) / 4 = 0.2887.
    assert clustered_standard_error(values, ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert clustered_standard_error(values, list("abcd")) == pytest.approx(math.sqrt(4 / 3) / 4)
    assert math.isnan(clustered_standard_error(values, list("aaaa")))


def test_log_likelihood_is_that_of_the_answer_among_the_options():
    assert log_likelihood([scored(0, [0.0, 0.0]), scored(1, [0.0, math.log(3)])]) == pytest.approx(
        (math.log(1 / 2) + math.log(3 / 4)) / 2
    )


def test_no_question_has_no_metric():
    with pytest.raises(ValueError, match="no questions"):
        compute_metrics([])
