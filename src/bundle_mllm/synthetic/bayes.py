"""The Bayes-optimal accuracy on questions about a synthetic catalog, and a model's share of it.

Knows nothing about models or pictures.

It is the accuracy of an observer who knows how bundles and questions were drawn and reads the theme of every item
without error; a model has to learn both and stays below. Each question is taken by itself, without the others about
the same bundle, and without the rule that no bundle is drawn twice.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.manifest import read_question_manifest
from bundle_mllm.data.questions import Question, load_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.evaluate import describe, load_train_items
from bundle_mllm.evaluation.metrics import RANDOM_TIES, ScoredQuestion, as_scored
from bundle_mllm.evaluation.results import check_writable, load_results, save_results
from bundle_mllm.synthetic.process import GenerativeProcess
from bundle_mllm.synthetic.settings import Signal

REALIZED = RANDOM_TIES
"""The metric that is the realized hit rate of Bayes-optimal scores: many are equal, and any of these is as good."""
IMPOSSIBLE = -1e3
"""Score of a candidate that cannot be the answer: scores are finite log-probabilities."""


def bayes_scores(
    process: GenerativeProcess, questions: Sequence[Question], partial: str | None = None
) -> tuple[float, list[ScoredQuestion]]:
    """Score questions (of uniform negatives) as well as anyone can; `partial` as in `GenerativeProcess.posterior`.

    Returns:
        The expected hit rate at 1, which is the mean over questions of the greatest posterior; and the questions,
        scored by the logarithm of the posterior of each candidate.
    """
    posteriors = [process.posterior(question.partial, question.candidates, partial) for question in questions]
    expected = math.fsum(max(posterior) for posterior in posteriors) / len(questions)
    scores = [[math.log(chance) if chance else IMPOSSIBLE for chance in posterior] for posterior in posteriors]
    return expected, as_scored(questions, scores)


def bayes_optimal(
    data: Path, questions_path: Path, output: Path | None = None, *, signals: Collection[Signal] | None = None
) -> dict[str, Any]:
    """Compute the Bayes-optimal metrics on a question file.

    Args:
        data: A folder that `make_synthetic` wrote.
        questions_path: A question file about its bundles, with uniform negatives.
        output: Where to write the metrics, if anywhere, in the form of `evaluate`: `compare_metrics` reads them.
        signals: The signals that the observer knows; all that carry the theme if not given.

    Returns:
        The metrics of the Bayes-optimal scores, as `evaluate` returns them, and `bayes_optimal`: `expected`, the exact
        expectation of the hit rate at 1, given the questions without their answers, and `realized`, the hit rate with
        their answers (ties broken at random).

    Raises:
        BundleMLLMError: If the folder is of another kind, the note beside the questions does not record uniform
            negatives, or the questions are about training bundles without cold items.
    """
    if output is not None:
        check_writable(output, questions_path)
    manifest = read_question_manifest(questions_path)
    made = manifest.get("made", {})
    negatives = made.get("negatives", "unknown")
    if negatives != "uniform" or made.get("split") == "train":
        raise BundleMLLMError(
            f"{questions_path} has {negatives} negatives and split {made.get('split', 'unknown')} (by the note beside "
            "it): make questions with `bundle-mllm questions --negatives uniform --split test`."
        )
    process = GenerativeProcess.load(data, signals)
    catalog = ItemCatalog.load(data)
    questions = load_questions(questions_path, catalog)
    expected, scored = bayes_scores(process, questions, made.get("partial"))
    metrics = describe(manifest, questions, scored, load_train_items(data, catalog))
    metrics |= {"model": "Bayes-optimal scores", "data": str(data)}
    metrics["bayes_optimal"] = {"expected": expected, "realized": metrics[REALIZED]}
    if output is not None:
        save_results(output, metrics, scored)
    return metrics


def share_of_bayes_optimal(metrics: str | os.PathLike, best: str | os.PathLike) -> dict[str, float]:
    """Compute how much of the Bayes-optimal accuracy a model reached.

    `best` is the metrics file that `bayes_optimal` wrote on the same question file.

    Returns:
        `accuracy` (hit rate at 1; a tie of n counts 1/n, as in the optimum); `share`, which is `accuracy` by the
        expected Bayes-optimal one, and its `share_se`; and `share_of_realized`, which varies less with the questions.

    Raises:
        BundleMLLMError: If a file is missing or malformed, `best` is of another kind, or the question files differ.
    """
    (of_model, _), (of_best, _) = load_results(metrics), load_results(best)
    if "bayes_optimal" not in of_best:
        raise BundleMLLMError(f"{best} has no Bayes-optimal accuracy: give what `bundle-mllm best-accuracy` wrote.")
    used = [results["questions"]["sha256"] for results in (of_model, of_best)]
    if used[0] != used[1]:
        raise BundleMLLMError(
            f"{metrics} and {best} are about different question files ({used[0][:12]}…, {used[1][:12]}…): use one."
        )
    accuracy, best_of = of_model[REALIZED], of_best["bayes_optimal"]
    return {
        "accuracy": accuracy,
        "share": accuracy / best_of["expected"],
        "share_se": of_model[f"{REALIZED}_se"] / best_of["expected"],
        "share_of_realized": accuracy / best_of["realized"],
    }
