"""The numbers of each section of a report, as rows of a table: figures, page and card all show these.

Knows nothing about models, and nothing about how the numbers look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bundle_mllm.evaluation.breakdowns import compute_slices, position_bias
from bundle_mllm.evaluation.metrics import ScoredQuestion, compute_metrics, paired_differences
from bundle_mllm.report.baselines import Baseline
from bundle_mllm.report.measure import FULL, Measured
from bundle_mllm.report.questions import QuestionSet

Row = dict[str, Any]
RANDOM = "random"
TIES_BROKEN = "hit_rate@1_random_ties"
SHOWN = ("hit_rate@1", "hit_rate@1_se", "mrr", "mrr_se", "valid_ratio", "num_questions", "num_bundles")
"""The metrics of a row."""


def by_stage(sets: Sequence[QuestionSet], stages: Mapping[str, Measured]) -> list[Row]:
    """Compare guessing, the stages and the model with shuffled features (Fig. 3 of the paper).

    Args:
        sets: The question sets.
        stages: What each variant said; `FULL` is among them.

    Returns:
        For each question set one row per variant, with its difference to `FULL`, paired by question.
    """
    rows: list[Row] = []
    for asked in sets:
        rows.append({"questions": asked.name, "variant": RANDOM, "hit_rate@1": asked.chance})
        for variant, measured in stages.items():
            against = None if variant == FULL else stages[FULL][asked.name]
            rows.append({"questions": asked.name, "variant": variant, **_metrics(measured[asked.name], against)})
    return rows


def ablation(
    sets: Sequence[QuestionSet], full: Measured, ablated: Mapping[str, tuple[Sequence[str], Measured]]
) -> list[Row]:
    """Compare the model with what is left of it when sources of knowledge are masked.

    Returns:
        For each question set the model as it is ("nothing masked"), and one row per ablation, with its difference to
        that, paired by question.
    """
    rows: list[Row] = []
    for asked in sets:
        whole = full[asked.name]
        rows.append({"questions": asked.name, "variant": "nothing masked", **_metrics(whole)})
        for label, (kept, measured) in ablated.items():
            row = {"questions": asked.name, "variant": label, "kept": list(kept)}
            rows.append(row | _metrics(measured[asked.name], whole))
    return rows


def training(history: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """List the logged losses and validations of each stage, by step (Fig. 5 of the paper)."""
    wanted = ("loss", "validation_hit_rate@1", "validation_hit_rate@1_se", "validation_num_questions")
    return [
        {"stage": stage.replace("_", " "), "step": entry["step"], **{n: entry[n] for n in wanted if n in entry}}
        for stage, entries in history.items()
        for entry in entries
        if "step" in entry
    ]


def cold_start(
    sets: Sequence[QuestionSet], stages: Mapping[str, Measured], train_items: frozenset[str] | None
) -> list[Row]:
    """Compare questions whose answer is in some training bundle with those whose answer is in none; and by length.

    Returns:
        For each question set and stage one row per value of the slices `answer` (warm, cold; not without training
        bundles) and `partial_length`.
    """
    rows: list[Row] = []
    for asked in sets:
        for variant, measured in stages.items():
            slices = compute_slices(asked.questions, measured[asked.name], train_items)
            rows += [
                {"questions": asked.name, "variant": variant, "slice": name, "value": value, **metrics}
                for name in ("answer", "partial_length")
                for value, metrics in slices.get(name, {}).items()
            ]
    return rows


def position(sets: Sequence[QuestionSet], full: Measured, max_options: int) -> list[Row]:
    """Say for each letter how often the answer and the model's choice stand there, and how often it is then right."""
    rows: list[Row] = []
    for asked in sets:
        bias = position_bias(full[asked.name], max_options=max_options)
        for letter in bias.get("share_right", {}):
            rows.append(
                {
                    "questions": asked.name,
                    "letter": letter,
                    "share_right": bias["share_right"][letter],
                    "share_of_answers": bias["share_of_answers"][letter],
                    "accuracy": bias["accuracy_by_letter"].get(letter),
                    "share_distance": bias["share_distance"],
                }
            )
    return rows


def backbones(sets: Sequence[QuestionSet], models: Sequence[tuple[Mapping[str, Any], Measured]]) -> list[Row]:
    """Compare models by their number of parameters; the first one is what the others are compared with."""
    rows: list[Row] = []
    for asked in sets:
        first = models[0][1][asked.name]
        for number, (info, measured) in enumerate(models):
            against = first if number else None
            row = {"questions": asked.name, **{name: info[name] for name in ("name", "base_model", "parameters")}}
            rows.append(row | _metrics(measured[asked.name], against))
    return rows


def baselines(sets: Sequence[QuestionSet], full: Measured, others: Sequence[Baseline]) -> list[Row]:
    """Compare the model with other methods, whose metrics files are of the same questions.

    Returns:
        For each question set the model and one row per method, with its difference to the model, paired by question.
        Both are of `hit_rate@1_random_ties`, which breaks ties at random: simple methods give many equal scores.
    """
    rows: list[Row] = []
    for asked in sets:
        whole = full[asked.name]
        these = [other for other in others if other.sha256 == asked.sha256 and other.bayes_optimal is None]
        if these:
            rows.append({"questions": asked.name, "variant": "this model", **_metrics(whole, of=TIES_BROKEN)})
        for other in these:
            row = {"questions": asked.name, "variant": other.name}
            rows.append(row | _metrics(other.scored, whole, of=TIES_BROKEN))
    return rows


def bayes_optimal(
    sets: Sequence[QuestionSet], stages: Mapping[str, Measured], others: Sequence[Baseline]
) -> list[Row]:
    """Compare each stage with the best possible answers, where a metrics file says how good these are.

    Returns:
        For each such question set and each stage one row with `expected`, the hit rate at 1 of the best possible
        answers, and `share`, what the stage reaches of it.
    """
    best = {other.sha256: other.bayes_optimal for other in others if other.bayes_optimal is not None}
    rows: list[Row] = []
    for asked in sets:
        for variant, measured in stages.items():
            if (expected := best.get(asked.sha256)) is not None:
                row = {"questions": asked.name, "variant": variant, **_metrics(measured[asked.name])}
                share = {
                    name: row[f"hit_rate@1{end}"] / expected for name, end in (("share", ""), ("share_se", "_se"))
                }
                rows.append(row | {"expected": expected, **share})
    return rows


def _metrics(
    scored: Sequence[ScoredQuestion], against: Sequence[ScoredQuestion] | None = None, of: str = "hit_rate@1"
) -> Row:
    """Return the metrics of a row and, where there is something to compare with, the paired difference of one."""
    metrics = compute_metrics(scored, probabilities=False)
    row = {name: metrics[name] for name in dict.fromkeys((of, f"{of}_se", *SHOWN))}
    if against is not None:
        paired = paired_differences(scored, against, probabilities=False)[of]
        row |= {"difference": paired["difference"], "difference_se": paired["se"], "z": paired["z"]}
    return row
