"""Metrics files: read back as written, and compared only where the question file was the same."""

import json
import math

import pytest

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import ScoredQuestion, compute_metrics
from bundle_mllm.evaluation.results import compare_metrics, load_results, save_results


def save(path, ranks, manifest="m" * 64, **options):
    scored = [
        ScoredQuestion(f"q{n}", f"b{n}", 0, (0.1, *([1.0] * (rank - 1)), *([0.0] * (5 - rank))), None)
        for n, rank in enumerate(ranks)
    ]
    metrics = compute_metrics(scored, **options) | {"questions": {"path": "q.jsonl", "sha256": manifest}}
    save_results(path, metrics, scored)
    return metrics, scored


def test_results_read_back_as_they_were_written_and_nan_is_null(tmp_path):
    metrics, scored = save(tmp_path / "metrics.json", [1, 3])
    assert math.isnan(metrics["hit_rate@1_valid"])
    assert json.loads((tmp_path / "metrics.json").read_text())["hit_rate@1_valid"] is None
    rows = [json.loads(line) for line in (tmp_path / "metrics.questions.jsonl").read_text().splitlines()]
    assert [row["rank"] for row in rows] == [1, 3]
    loaded, again = load_results(tmp_path / "metrics.json")
    assert again == scored
    assert loaded["mrr"] == metrics["mrr"] == compute_metrics(again)["mrr"]


def test_two_runs_on_one_question_file_are_compared_by_question(tmp_path):
    save(tmp_path / "a.json", [1, 1, 2])
    save(tmp_path / "b.json", [1, 2, 4])
    result = compare_metrics(tmp_path / "a.json", tmp_path / "b.json")
    assert result["hit_rate@1"]["difference"] == pytest.approx(1 / 3)
    assert result["mean_rank"]["difference"] == pytest.approx(-1)
    assert result["mean_rank"]["se"] == pytest.approx(math.sqrt(3 / 2 * 2) / 3)
    assert result["questions"]["sha256"] == "m" * 64


def test_runs_on_different_question_files_are_not_compared(tmp_path):
    save(tmp_path / "a.json", [1, 2])
    save(tmp_path / "b.json", [1, 2], manifest="n" * 64)
    with pytest.raises(BundleMLLMError, match=r"measured on q\.jsonl \(SHA-256 mmmmmmmmmmmm.*nnnnnnnnnnnn"):
        compare_metrics(tmp_path / "a.json", tmp_path / "b.json")


def test_calibration_is_compared_only_between_probabilities(tmp_path):
    save(tmp_path / "a.json", [1, 2])
    save(tmp_path / "b.json", [1, 2], probabilities=False)
    assert "calibration_error" in compare_metrics(tmp_path / "a.json", tmp_path / "a.json")
    assert "calibration_error" not in compare_metrics(tmp_path / "a.json", tmp_path / "b.json")


def test_scores_of_another_run_or_none_are_refused(tmp_path):
    save(tmp_path / "a.json", [1, 2])
    rows = tmp_path / "a.questions.jsonl"
    rows.write_text(rows.read_text() + "\n")
    with pytest.raises(BundleMLLMError, match="another file than the scores"):
        load_results(tmp_path / "a.json")
    rows.unlink()
    with pytest.raises(BundleMLLMError, match="is missing"):
        load_results(tmp_path / "a.json")


@pytest.mark.parametrize("text", [None, "{", "[]", '{"hit_rate@1": 0.5}'])
def test_what_is_no_metrics_file_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(BundleMLLMError, match="no metrics file that can be compared"):
        load_results(tmp_path / "a.json")
