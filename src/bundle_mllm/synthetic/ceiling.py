"""The best possible accuracy on questions about a studio of known ceiling, and a model's share of it.

Knows nothing about models or pictures: it reads how bundles were drawn, questions, and metrics files.

The ceiling is that of one who knows how bundles and questions were drawn and reads every item's theme from its
modality without error; who must learn the one, and may misread the other, stays below it. Each question is taken by
itself: another one about the same bundle would tell more of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.manifest import read_question_manifest
from bundle_mllm.data.questions import Question, load_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.evaluate import describe, load_train_items
from bundle_mllm.evaluation.metrics import ScoredQuestion, as_scored
from bundle_mllm.evaluation.results import check_writable, load_results, save_results
from bundle_mllm.synthetic.planted import PlantedBundles

REALIZED = "hit_rate@1_expected"
"""The metric that is the realized hit rate of the best possible scores: many are equal, and any of these as good."""


def bayes_scores(planted: PlantedBundles, questions: Sequence[Question]) -> tuple[float, list[ScoredQuestion]]:
    """Answer questions as well as anyone can.

    Args:
        planted: How bundles were drawn.
        questions: Questions with uniform negatives.

    Returns:
        The expected hit rate at 1, which is the mean over questions of the greatest posterior; and the questions,
        scored by the logarithm of the posterior of each candidate.
    """
    posteriors = [planted.posterior(question.partial, question.candidates) for question in questions]
    expected = math.fsum(max(posterior) for posterior in posteriors) / len(questions)
    return expected, as_scored(questions, [[math.log(chance) for chance in posterior] for posterior in posteriors])


def bayes_optimal(data: Path, questions_path: Path, output: Path | None = None) -> dict[str, Any]:
    """Compute the best possible metrics on a question file.

    Args:
        data: A folder that `make_ceiling_studio` wrote.
        questions_path: A question file about its bundles, with uniform negatives; how much of a bundle is shown does
            not matter.
        output: Where to write the metrics, if anywhere, in the form of `evaluate`: `compare_metrics` reads them.

    Returns:
        The metrics of the best possible scores, as `evaluate` returns them, and `ceiling`: `expected`, the exact
        expectation of the hit rate at 1, given the questions without their answers, and `realized`, the hit rate with
        their answers (ties broken at random).

    Raises:
        BundleMLLMError: The folder is of another kind, or no note beside the questions says that their negatives are
            uniform: the distribution of others is unknown.
    """
    if output is not None:
        check_writable(output, questions_path)
    manifest = read_question_manifest(questions_path)
    negatives = manifest.get("made", {}).get("negatives", "unknown")
    if negatives != "uniform":
        raise BundleMLLMError(
            f"{questions_path} has {negatives} negatives (by the note beside it), and the best possible answer is "
            "known for uniform ones only: make the questions with `bundle-mllm questions --negatives uniform`."
        )
    planted = PlantedBundles.load(data)
    catalog = ItemCatalog.load(data)
    questions = load_questions(questions_path, catalog)
    expected, scored = bayes_scores(planted, questions)
    metrics = describe(manifest, questions, scored, load_train_items(data, catalog)) | {
        "model": "the best possible scores",
        "data": str(data),
    }
    metrics["ceiling"] = {"expected": expected, "realized": metrics[REALIZED]}
    if output is not None:
        save_results(output, metrics, scored)
    return metrics


def share_of_ceiling(metrics: str | os.PathLike, ceiling: str | os.PathLike) -> dict[str, float]:
    """Say how much of the best possible accuracy a model reached.

    Args:
        metrics: A metrics file of `evaluate`.
        ceiling: The metrics file that [`bayes_optimal`] wrote on the same question file.

    Returns:
        `accuracy` (hit rate at 1) and its `accuracy_se`; `expected` and `realized` of the ceiling; `share`, which is
        `accuracy` by `expected`, and its `share_se`; and `share_of_realized`, which varies less with the questions.

    Raises:
        BundleMLLMError: A file is missing or malformed, `ceiling` is no ceiling, or the question files differ.
    """
    (of_model, _), (of_ceiling, _) = load_results(metrics), load_results(ceiling)
    if "ceiling" not in of_ceiling:
        raise BundleMLLMError(f"{ceiling} holds no ceiling: give what `bundle-mllm ceiling` wrote.")
    used = [found["questions"]["sha256"] for found in (of_model, of_ceiling)]
    if used[0] != used[1]:
        raise BundleMLLMError(
            f"{metrics} and {ceiling} are about different question files (SHA-256 {used[0][:12]}… and {used[1][:12]}…"
            "), so one says nothing of the other: use one question file for both."
        )
    accuracy, error = of_model["hit_rate@1"], of_model["hit_rate@1_se"]
    expected, realized = of_ceiling["ceiling"]["expected"], of_ceiling["ceiling"]["realized"]
    return {
        "accuracy": accuracy,
        "accuracy_se": error,
        "expected": expected,
        "realized": realized,
        "share": accuracy / expected,
        "share_se": error / expected,
        "share_of_realized": accuracy / realized,
    }
