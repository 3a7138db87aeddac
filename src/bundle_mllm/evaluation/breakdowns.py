"""Metrics of parts of a question list, and how much the place of a candidate matters.

Knows nothing about models, prompts or files.
"""

from __future__ import annotations

import dataclasses
import string
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle_mllm.data.questions import MAX_OPTIONS
from bundle_mllm.evaluation.metrics import ScoredQuestion, compute_metrics

if TYPE_CHECKING:
    from bundle_mllm.data.questions import Question

SLICE_METRICS = ("hit_rate@1", "hit_rate@1_se", "mrr", "mrr_se", "num_questions", "num_bundles")
"""What is reported of a slice."""


def compute_slices(
    questions: Sequence[Question],
    scored: Sequence[ScoredQuestion],
    train_items: Collection[str] | None = None,
    *,
    max_options: int = MAX_OPTIONS,
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Compute metrics of the questions that have something in common.

    Args:
        questions: The questions.
        scored: Their scores, in the same order.
        train_items: The items of all training bundles; without them there is no slice `answer`.
        max_options: Longest list in one prompt.

    Returns:
        `{slice: {value: metrics}}`, with the metrics named in `SLICE_METRICS`:

        - `answer`: `cold` (the answer is in no training bundle) or `warm`;
        - `partial_length`: how many items are shown: `1` to `5`, `6-10`, `11+`;
        - `num_candidates`: how many candidates there are;
        - `position`: the letter of the answer in the question's own order (questions in one prompt: in groups a
          candidate has other letters than in its list).
    """
    labels: dict[str, Sequence[str | None]] = {
        "partial_length": [length_label(len(question.partial)) for question in questions],
        "num_candidates": [str(len(question.candidates)) for question in questions],
        "position": [
            string.ascii_uppercase[question.answer_index] if len(question.candidates) <= max_options else None
            for question in questions
        ],
    }
    if train_items is not None:
        known = frozenset(train_items)
        labels = {"answer": ["warm" if q.candidates[q.answer_index] in known else "cold" for q in questions]} | labels
    return {name: _by_label(values, scored) for name, values in labels.items()}


def position_bias(scored: Sequence[ScoredQuestion], *, max_options: int = MAX_OPTIONS) -> dict[str, Any]:
    """Measure how much the place of a candidate in its list matters, where only the candidate should.

    It is measured on the scores of each question's own order, since the mean over orders hides it. Questions that were
    ranked in groups, where a candidate has other letters than in its list, are left out.

    Args:
        scored: The scored questions.
        max_options: Longest list in one prompt.

    Returns:
        - `accuracy_by_letter`: by letter, the share of hits among the questions whose answer stands there;
        - `share_of_answers`: by letter, how often the model's best option stands there;
        - `share_right`: by letter, how often the right option does;
        - `share_distance`: half the sum of their absolute differences (total variation): 0 without bias, 1 at most;

        and for questions that were scored in several orders, comparing each further order with the question's own:

        - `probability_change`: half the sum of absolute differences of the options' probabilities, on average;
        - `answer_change`: how often another candidate is best;
        - `hit_rate@1_own_order`: the share of hits in the question's own order alone.

        Empty if no question was scored in one prompt.
    """
    lettered = [question for question in scored if len(question.scores) <= max_options]
    if not lettered:
        return {}
    own = [_own_order(question) for question in lettered]
    chosen = Counter(int(np.argmax(question.scores)) for question in own)
    right = Counter(question.answer_index for question in own)
    hits = Counter(question.answer_index for question in own if question.hit)
    accuracy = {string.ascii_uppercase[i]: hits[i] / right[i] for i in sorted(right)}
    shares = {
        name: {string.ascii_uppercase[i]: counts[i] / len(lettered) for i in range(max(chosen | right) + 1)}
        for name, counts in (("share_of_answers", chosen), ("share_right", right))
    }
    distance = sum(abs(chosen[i] - right[i]) for i in chosen | right) / (2 * len(lettered))
    return {"accuracy_by_letter": accuracy, **shares, "share_distance": distance, **_changes(lettered)}


def _changes(scored: Sequence[ScoredQuestion]) -> dict[str, float]:
    repeated = [question for question in scored if len(question.per_order_scores) > 1]
    if not repeated:
        return {}
    distances, changed = [], []
    for question in repeated:
        logits = np.asarray(question.per_order_scores, dtype=float)  # [orders, K]
        probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        distances.append(np.abs(probabilities[1:] - probabilities[0]).sum(axis=1).mean() / 2)
        changed.append((probabilities[1:].argmax(axis=1) != probabilities[0].argmax()).mean())
    return {
        "probability_change": float(np.mean(distances)),
        "answer_change": float(np.mean(changed)),
        "hit_rate@1_own_order": sum(_own_order(question).hit for question in repeated) / len(repeated),
    }


def _own_order(question: ScoredQuestion) -> ScoredQuestion:
    """Return the question with the scores of its own order alone."""
    own = next(iter(question.per_order_scores), question.scores)
    return dataclasses.replace(question, scores=own, per_order_scores=())


def _by_label(labels: Sequence[str | None], scored: Sequence[ScoredQuestion]) -> dict[str, dict[str, float | int]]:
    members: dict[str, list[ScoredQuestion]] = defaultdict(list)
    for label, question in zip(labels, scored, strict=True):
        if label is not None:
            members[label].append(question)
    computed = {label: compute_metrics(members[label], probabilities=False) for label in sorted(members, key=_order)}
    return {label: {name: metrics[name] for name in SLICE_METRICS} for label, metrics in computed.items()}


def _order(label: str) -> tuple[int, str]:
    """Sort numbers and ranges of numbers by their first number."""
    digits = label.rstrip("+").partition("-")[0]
    return (int(digits) if digits.isdigit() else 0), label


def length_label(number: int) -> str:
    """Return the label of a number of items shown."""
    return str(number) if number <= 5 else "6-10" if number <= 10 else "11+"
