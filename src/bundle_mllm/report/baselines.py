"""Metrics files of other methods, and of the best possible one, to stand beside the model's own in a report.

Knows nothing about how these methods work: it reads what was said to each question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import ScoredQuestion
from bundle_mllm.evaluation.results import load_results
from bundle_mllm.report.questions import QuestionSet


@dataclass(frozen=True)
class Baseline:
    """What another method said to one question file.

    Attributes:
        name: What it is called.
        sha256: Of its question file.
        scored: What it said.
        bayes_optimal: The hit rate at 1 that is expected of the best possible answers, if the file is about these.
    """

    name: str
    sha256: str
    scored: list[ScoredQuestion]
    bayes_optimal: float | None


def load_baselines(paths: Sequence[Path], sets: Sequence[QuestionSet]) -> list[Baseline]:
    """Read metrics files.

    Args:
        paths: What `bundle-mllm evaluate` wrote, with the scores beside them.
        sets: The question sets of the report.

    Returns:
        One entry for each file, called by its `baseline` or, without that, by the name of its model.

    Raises:
        BundleMLLMError: A file is missing or malformed, is of other questions, or two are of the same method.
    """
    asked = {one.sha256: one for one in sets}
    found: dict[tuple[str, str], Baseline] = {}
    for path in paths:
        metrics, scored = load_results(path)
        sha256 = metrics["questions"]["sha256"]
        if sha256 not in asked:
            raise BundleMLLMError(
                f"{path} was measured on questions with the SHA-256 {sha256[:12]}…, which this report does not ask "
                f"({', '.join(f'{one.name}: {one.sha256[:12]}…' for one in sets)}), so it would not compare: give "
                "these by --questions, or evaluate again on those of the report."
            )
        name = _name(metrics, path)
        if (name, sha256) in found:
            raise BundleMLLMError(
                f"{path} is a second metrics file of {name!r} on the questions {asked[sha256].name!r}: give one."
            )
        if {q.question_id for q in scored} != {q.question_id for q in asked[sha256].questions}:
            raise BundleMLLMError(f"{path} has scores of other questions than it names: evaluate again.")
        bayes_optimal = metrics["bayes_optimal"]["expected"] if "bayes_optimal" in metrics else None
        found[name, sha256] = Baseline(name, sha256, scored, bayes_optimal)
    return list(found.values())


def _name(metrics: Mapping[str, Any], path: Path) -> str:
    """Return what a method is called, without the path of a model on this machine."""
    if "baseline" not in metrics:
        return Path(str(metrics.get("model") or path.stem)).name
    kind, colon, which = str(metrics["baseline"]).partition(":")
    return kind + colon + Path(which).name
