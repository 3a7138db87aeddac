"""Metrics against figures worked out by hand, and their denominators."""

import math

import numpy as np
import pytest

from bundle_mllm.data import Question
from bundle_mllm.evaluation.metrics import (
    ScoredQuestion,
    as_scored,
    calibration_before_temperature,
    clustered_standard_error,
    compute_metrics,
    log_likelihood,
    paired_differences,
)

METRICS = {
    "hit_rate@1", "hit_rate@1_random_ties", "hit_rate@1_valid", "valid_ratio", "hit_rate@3", "hit_rate@5", "mrr",
    "ndcg", "mean_rank", "calibration_error",
}  # fmt: skip


def scored(answer, logits, bundle="b", free=0, name="q"):
    return ScoredQuestion(name, bundle, answer, tuple(logits), free)


def at_rank(rank, bundle, size=10):
    """A question of which the answer has a rank."""
    return scored(rank - 1, [-float(place) for place in range(size)], bundle, name=f"{bundle}-{rank}")


def test_hit_rate_counts_every_question_also_those_without_a_valid_unrestricted_choice():
    questions = [
        scored(0, [2.0, 1.0], "a", free=None),
        scored(1, [2.0, 1.0], "b"),
        scored(1, [0.0, 3.0, 1.0], "c", free=1),
        scored(2, [0.0, 3.0, 1.0], "c", free=None),
    ]
    metrics = compute_metrics(questions)
    assert metrics["hit_rate@1"] == 2 / 4
    assert metrics["hit_rate@1_valid"] == 1 / 2
    assert metrics["valid_ratio"] == 2 / 4
    assert (metrics["num_questions"], metrics["num_bundles"]) == (4, 3)


def test_without_a_valid_unrestricted_choice_the_official_metric_is_undefined():
    metrics = compute_metrics([scored(0, [2.0, 1.0], bundle, free=None) for bundle in "ab"])
    assert math.isnan(metrics["hit_rate@1_valid"]) and math.isnan(metrics["hit_rate@1_valid_se"])
    assert (metrics["hit_rate@1"], metrics["valid_ratio"]) == (1, 0)


def test_the_metrics_of_ranks_are_those_of_their_definitions():
    metrics = compute_metrics([at_rank(rank, str(rank)) for rank in (1, 3, 5, 8)])
    assert metrics["hit_rate@1"] == metrics["hit_rate@1_random_ties"] == 1 / 4
    assert (metrics["hit_rate@3"], metrics["hit_rate@5"]) == (2 / 4, 3 / 4)
    assert metrics["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 5 + 1 / 8) / 4)
    assert metrics["ndcg"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(6) + 1 / math.log2(9)) / 4)
    assert metrics["mean_rank"] == 17 / 4
    assert metrics.keys() == METRICS | {f"{name}_se" for name in METRICS} | {"num_questions", "num_bundles"}


def test_a_tie_is_a_miss_at_one_and_its_expectation_elsewhere():
    assert not scored(0, [1.0, 1.0]).hit
    assert scored(0, [1.0, 0.5]).hit
    tied = compute_metrics([scored(1, [5.0, 2.0, 2.0, 2.0, 0.0])])  # ranks 2, 3 and 4 are equally likely
    assert (tied["hit_rate@1"], tied["hit_rate@1_random_ties"], tied["hit_rate@5"]) == (0, 0, 1)
    assert tied["hit_rate@3"] == pytest.approx(2 / 3)
    assert tied["mrr"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert tied["mean_rank"] == 3
    nothing_known = compute_metrics([scored(3, [0.0] * 10)])
    assert (nothing_known["hit_rate@1"], nothing_known["mean_rank"]) == (0, 5.5)
    assert nothing_known["hit_rate@1_random_ties"] == pytest.approx(1 / 10)


def test_the_calibration_error_is_the_gap_between_confidence_and_hits_by_bin():
    def sure(probability, right):
        return scored(0 if right else 1, [math.log(probability), math.log(1 - probability)])

    # Bin of .9: five questions, three hits, gap .3. Bin of .6: five questions, four hits, gap .2 the other way.
    questions = [sure(0.9, n < 3) for n in range(5)] + [sure(0.6, n < 4) for n in range(5)]
    assert compute_metrics(questions)["calibration_error"] == pytest.approx((0.3 + 0.2) / 2)
    assert "calibration_error" not in compute_metrics(questions, probabilities=False)


def test_the_standard_error_takes_questions_of_a_bundle_as_one_observation():
    values = np.array([1.0, 1.0, 0.0, 0.0])
    # Two clusters with deviations +1 and -1: sqrt(2 / 1 * (1 + 1)) / 4 = 0.5. Alone: sqrt(4 / 3 * 1) / 4 = 0.2887.
    assert clustered_standard_error(values, ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert clustered_standard_error(values, list("abcd")) == pytest.approx(math.sqrt(4 / 3) / 4)
    assert math.isnan(clustered_standard_error(values, list("aaaa")))
    metrics = compute_metrics([at_rank(1, "a"), at_rank(1, "a"), at_rank(2, "b"), at_rank(2, "b")])
    assert metrics["hit_rate@1_se"] == pytest.approx(0.5)
    assert metrics["mean_rank_se"] == pytest.approx(0.5)


def test_the_standard_error_of_a_share_of_some_questions_ignores_the_others():
    counted = [scored(0, [1.0, 0.0], bundle, free=int(bundle in "ab")) for bundle in "aabbccdd"]
    others = [scored(0, [1.0, 0.0], bundle, free=None) for bundle in "abcd"]
    alone, among = compute_metrics(counted), compute_metrics(counted + others)
    assert alone["hit_rate@1_valid"] == among["hit_rate@1_valid"] == 1 / 2
    assert alone["hit_rate@1_valid_se"] == pytest.approx(among["hit_rate@1_valid_se"])


def test_paired_differences_are_those_of_the_questions_and_their_error_is_clustered():
    a = [at_rank(rank, bundle) for rank, bundle in ((1, "x"), (2, "y"), (3, "z"), (4, "z"))]
    b = [
        ScoredQuestion(q.question_id, q.bundle_id, q.answer_index, tuple(logits), q.unrestricted_choice)
        for q, logits in zip(a, ([0.0] + [1.0] * 9, a[1].scores, [0, 0, 9] + [0] * 7, range(10)), strict=True)
    ]
    result = paired_differences(a, b[::-1])
    rank = result["mean_rank"]
    assert (rank["a"], rank["b"]) == (2.5, (10 + 2 + 1 + 7) / 4)
    gaps = np.array([1 - 10, 2 - 2, 3 - 1, 4 - 7], dtype=float)
    assert rank["difference"] == pytest.approx(gaps.mean())
    assert rank["se"] == pytest.approx(clustered_standard_error(gaps, list("xyzz")))
    assert rank["z"] == pytest.approx(gaps.mean() / rank["se"])
    assert result["hit_rate@1"]["difference"] == 0


def test_a_method_compared_with_itself_differs_by_nothing():
    questions = [at_rank(1, "a"), at_rank(2, "b")]
    for entry in paired_differences(questions, questions).values():
        assert entry["difference"] == entry["se"] == 0
        assert math.isnan(entry["z"])


@pytest.mark.parametrize("other", [[at_rank(1, "a")], [at_rank(1, "a"), at_rank(3, "b")]])
def test_other_questions_cannot_be_paired(other):
    with pytest.raises(ValueError, match="not the same ones"):
        paired_differences([at_rank(1, "a"), at_rank(2, "b")], other)


def test_a_question_with_another_answer_cannot_be_paired():
    with pytest.raises(ValueError, match="another bundle, answer or number"):
        paired_differences([scored(0, [1.0, 0.0])], [scored(1, [1.0, 0.0])])


def test_plain_scores_of_any_method_take_all_metrics():
    questions = [Question("q0", "b0", ("x",), ("u", "v", "w"), 2), Question("q1", "b1", ("x",), ("u", "v"), 0)]
    made = as_scored(questions, [[1, 2, 3], [0, 0]])
    assert [question.hit for question in made] == [True, False]
    metrics = compute_metrics(made, probabilities=False)
    assert (metrics["valid_ratio"], metrics["hit_rate@1_random_ties"]) == (1, 0.75)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([[1, 2]], "2 questions but 1 lists"), ([[1, 2], [1]], "'q1' has 2 candidates but 1"),
     ([[1, 2], [1, math.nan]], "'q1' has scores that are not finite")],
)  # fmt: skip
def test_scores_that_do_not_fit_their_questions_are_refused(scores, message):
    questions = [Question(f"q{n}", "b", ("x",), ("u", "v"), 0) for n in range(2)]
    with pytest.raises(ValueError, match=message):
        as_scored(questions, scores)


def test_log_likelihood_is_that_of_the_answer_among_the_options():
    assert log_likelihood([scored(0, [0.0, 0.0]), scored(1, [0.0, math.log(3)])]) == pytest.approx(
        (math.log(1 / 2) + math.log(3 / 4)) / 2
    )


def test_no_question_has_no_metric():
    with pytest.raises(ValueError, match="no questions"):
        compute_metrics([])


def test_calibration_before_a_temperature_is_that_of_the_scores_it_divided():
    rng = np.random.default_rng(0)
    before = rng.normal(size=(400, 5)) * 3
    answers = [rng.choice(5, p=np.exp(row / 2 - np.logaddexp.reduce(row / 2))) for row in before]

    def scored(scores):
        return [
            ScoredQuestion(str(i), str(i), int(answer), tuple(row), int(row.argmax()))
            for i, (row, answer) in enumerate(zip(scores, answers, strict=True))
        ]

    after = scored(before / 2)
    expected = compute_metrics(scored(before))["calibration_error"]
    assert calibration_before_temperature(after, 2.0) == pytest.approx(expected)
    assert compute_metrics(after)["calibration_error"] < expected
