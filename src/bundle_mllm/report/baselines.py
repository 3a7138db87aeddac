"""Metrics files of other methods, and of the best possible one, to show beside the model's own in a report.

Knows nothing about how these methods work: it reads their scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import ScoredQuestion
from bundle_mllm.evaluation.results import load_results
from bundle_mllm.report.questions import QuestionSet


class OtherMethod(NamedTuple):
    """The scores of another method on one question file."""

    name: str
    sha256: str
    """SHA-256 of the question file."""
    scored: list[ScoredQuestion]
    bayes_optimal: float | None
    """The Bayes-optimal hit rate at 1, if the file is about that."""


def load_baselines(paths: Sequence[Path], sets: Sequence[QuestionSet]) -> list[OtherMethod]:
    """Read metrics files of `bundle-mllm evaluate` on the question sets, with the scores beside them.

    Raises:
        BundleMLLMError: If a file is missing or malformed, is of other questions, or two are of the same method.
    """
    known = {one.sha256: one for one in sets}
    methods: dict[tuple[str, str], OtherMethod] = {}
    for path in paths:
        metrics, scored = load_results(path)
        sha256, name = metrics["questions"]["sha256"], _name(metrics, path)
        if sha256 not in known:
            raise BundleMLLMError(
                f"{path} was measured on questions with the SHA-256 {sha256[:12]}…, which this report does not have "
                f"({', '.join(f'{one.name}: {one.sha256[:12]}…' for one in sets)}), so it would not compare: give "
                "that file by --questions, or evaluate again on those of the report."
            )
        if (name, sha256) in methods:
            raise BundleMLLMError(
                f"{path} is a second metrics file of {name!r} on the questions {known[sha256].name!r}: give one."
            )
        if {q.question_id for q in scored} != {q.question_id for q in known[sha256].questions}:
            raise BundleMLLMError(f"{path} has scores of other questions than it names: evaluate again.")
        bayes_optimal = metrics.get("bayes_optimal", {}).get("expected")
        methods[name, sha256] = OtherMethod(name, sha256, scored, bayes_optimal)
    return list(methods.values())


def _name(metrics: Mapping[str, Any], path: Path) -> str:
    """Return the name of a method, without the path of a model on this machine."""
    if "baseline" in metrics:
        kind, colon, which = str(metrics["baseline"]).partition(":")
        return kind + colon + Path(which).name
    name = Path(str(metrics.get("model") or path.stem)).name
    return f"{name}: {metrics['part']}" if "parts" not in metrics and "part" in metrics else name
