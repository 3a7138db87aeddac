"""Results show themselves in a notebook as tables, and stay the dictionaries that they are."""

import json

import pytest

from bundle_mllm.evaluation.tables import ComparisonDict, MetricsDict, Row, better_baseline

PART = {"hit_rate@1": 0.5, "hit_rate@1_se": 0.1, "mrr": 0.7, "mrr_se": 0.05}
METRICS = {**PART, "part": "both", "num_questions": 1200, "num_bundles": 600}


def test_metrics_are_a_table_of_the_parts():
    metrics = MetricsDict({**METRICS, "parts": {"<b>ranker": {**PART, "hit_rate@1": 0.25}, "both": PART}})
    html = metrics._repr_html_()
    assert "<td>hit_rate@1</td><td>0.2500 ± 0.1000</td><td>0.5000 ± 0.1000</td>" in html
    assert "&lt;b&gt;ranker" in html and "<b>ranker" not in html
    assert "1,200 questions about 600 bundles" in html
    assert json.loads(json.dumps(metrics)) == metrics
    assert "<td>mrr</td><td>0.7000 ± 0.0500</td>" in MetricsDict(METRICS)._repr_html_()


def test_a_comparison_is_a_table_of_differences():
    row = {"a": 0.5, "b": 0.25, "difference": 0.25, "se": 0.125, "z": 2.0}
    html = ComparisonDict({"a": "one.json", "b": "<i>two", "questions": {"path": "q"}, "mrr": row})._repr_html_()
    assert "<td>mrr</td><td>0.5000</td><td>0.2500</td><td>+0.2500 ± 0.1250</td>" in html
    assert "a: one.json; b: &lt;i&gt;two" in html


@pytest.mark.parametrize(
    ("differences", "best"),
    [
        ({"ease": (-0.03, 0.01), "tfidf": (-0.05, 0.02), "random": (0.4, 0.01)}, "tfidf"),
        ({"ease": (-0.03, 0.01), "tfidf": (-0.05, 0.03)}, "ease"),
        ({"ease": (-0.019, 0.01), "tfidf": (0.0, 0.0)}, None),
        ({"ease": (-0.01, 0.0)}, "ease"),
        ({}, None),
    ],
)
@pytest.mark.parametrize("metric", ["hit_rate@1_random_ties", "recall@20"])
def test_the_baseline_that_is_ahead_by_two_standard_errors_or_more_is_found(differences, best, metric):
    rows = {"both": Row({metric: 0.5})}
    for name, (difference, error) in differences.items():
        rows[name] = Row({metric: 0.5}, 1.0, {metric: {"difference": difference, "se": error}})
    found = better_baseline(rows)
    assert (found and found[0]) == best
