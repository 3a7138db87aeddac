"""The numbers of each section of a report, as rows of a table: figures, page and card all show these.

Where variants are compared, rows have the paired `difference` of their hit rate to that of one of them, and its `z`.

Knows nothing about models, and nothing about how the numbers look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bundle_mllm.evaluation.breakdowns import compute_slices, position_bias
from bundle_mllm.evaluation.metrics import RANDOM_TIES, ScoredQuestion, compute_metrics, paired_differences
from bundle_mllm.report.baselines import OtherMethod
from bundle_mllm.report.measure import WHOLE, Measured
from bundle_mllm.report.questions import QuestionSet

Row = dict[str, Any]
SHOWN = ("hit_rate@1", "hit_rate@1_se", "mrr", "mrr_se", "valid_ratio", "num_questions", "num_bundles")
"""The metrics of a row."""


def by_stage(sets: Sequence[QuestionSet], stages: Mapping[str, Measured]) -> list[Row]:
    """Compare guessing, each part and stage, and permuted features with the whole model's answer (Fig. 3)."""
    rows: list[Row] = []
    for each in sets:
        rows.append({"questions": each.name, "variant": "random", "hit_rate@1": each.chance})
        for label, scored in _labelled(stages, each):
            metrics = _metrics(scored, answers(stages[WHOLE], each))
            rows.append({"questions": each.name, "variant": label, **metrics})
    return rows


def ablation(
    sets: Sequence[QuestionSet], whole: Measured, ablated: Mapping[str, tuple[Sequence[str], Measured]]
) -> list[Row]:
    """Compare each part of the model ("nothing masked") with what is left of it when sources of items are masked."""
    rows: list[Row] = []
    for each in sets if ablated else ():
        for part, scored in whole[each.name].items():
            row = {"questions": each.name, "part": part}
            rows.append(row | {"variant": "nothing masked", **_metrics(scored)})
            for label, (kept, measured) in ablated.items():
                metrics = _metrics(measured[each.name][part], scored)
                rows.append(row | {"variant": label, "kept": list(kept), **metrics})
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
    """Compare warm answers (in some training bundle) with cold ones (in none), and questions by their length."""
    return [
        {"questions": each.name, "variant": label, "slice": name, "value": value, **metrics}
        for each in sets
        for label, scored in _labelled(stages, each)
        for name, values in compute_slices(each.questions, scored, train_items).items()
        if name in ("answer", "partial_length")
        for value, metrics in values.items()
    ]


def position(sets: Sequence[QuestionSet], whole: Measured, max_options: int) -> list[Row]:
    """List for each letter how often the answer and the ranker's choice stand there, and its accuracy there."""
    rows: list[Row] = []
    for each in sets:
        bias = position_bias(whole[each.name].get("ranker", ()), max_options=max_options)
        for letter, share_right in bias.get("share_right", {}).items():
            shares = {"share_right": share_right, "share_of_answers": bias["share_of_answers"][letter]}
            accuracy = bias["accuracy_by_letter"].get(letter)
            row = {"questions": each.name, "letter": letter, **shares, "accuracy": accuracy}
            rows.append(row | {"share_distance": bias["share_distance"]})
    return rows


def prediction_sets(sets: Sequence[QuestionSet], measured: Sequence[Sequence[Mapping[str, Any]]]) -> list[Row]:
    """List how often sets with a guarantee hold the answer, how large they are, and how often they are empty."""
    return [
        {"questions": each.name, **figures} for each, of_set in zip(sets, measured, strict=True) for figures in of_set
    ]


def backbones(sets: Sequence[QuestionSet], models: Sequence[tuple[Mapping[str, Any], Measured]]) -> list[Row]:
    """Compare models by their number of parameters; the first one is what the others are compared with."""
    return [
        {"questions": each.name, **{name: about[name] for name in ("name", "base_model", "parameters")}}
        | _metrics(answers(measured, each), answers(models[0][1], each))
        for each in sets
        for about, measured in models
    ]


def baselines(sets: Sequence[QuestionSet], whole: Measured, others: Sequence[OtherMethod]) -> list[Row]:
    """Compare the parts of the model with other methods, with ties at random: simple ones give many equal scores."""
    rows: list[Row] = []
    for each in sets:
        methods = {o.name: o.scored for o in others if o.sha256 == each.sha256 and o.bayes_optimal is None}
        parts = {f"this model: {part}": scored for part, scored in whole[each.name].items()} if methods else {}
        for name, scored in (parts | methods).items():
            metrics = _metrics(scored, answers(whole, each), of=RANDOM_TIES)
            rows.append({"questions": each.name, "variant": name, **metrics})
    return rows


def bayes_optimal(
    sets: Sequence[QuestionSet], stages: Mapping[str, Measured], others: Sequence[OtherMethod]
) -> list[Row]:
    """Compare each variant and part with the Bayes-optimal hit rate at 1, where a metrics file holds it."""
    best = {other.sha256: other.bayes_optimal for other in others if other.bayes_optimal is not None}
    rows: list[Row] = []
    for each in sets:
        if (expected := best.get(each.sha256)) is not None:
            for label, scored in _labelled(stages, each):
                row = {"questions": each.name, "variant": label, **_metrics(scored), "expected": expected}
                row |= {"share": row["hit_rate@1"] / expected, "share_se": row["hit_rate@1_se"] / expected}
                rows.append(row)
    return rows


def answers(measured: Measured, questions: QuestionSet) -> Sequence[ScoredQuestion]:
    """Return the scored questions that count: of both models joined, or of the only one."""
    return list(measured[questions.name].values())[-1]


def _labelled(stages: Mapping[str, Measured], questions: QuestionSet) -> list[tuple[str, Sequence[ScoredQuestion]]]:
    """Return the scored questions of each variant and part, with a label such as "ranker, stage one"."""
    return [
        (part if variant == WHOLE else f"{part}, {variant}", scored)
        for variant, measured in stages.items()
        for part, scored in measured[questions.name].items()
    ]


def _metrics(
    scored: Sequence[ScoredQuestion], against: Sequence[ScoredQuestion] | None = None, of: str = "hit_rate@1"
) -> Row:
    """Return the metrics of a row and, if it is compared with other scores, the paired difference of one metric."""
    metrics = compute_metrics(scored, probabilities=False)
    row = {name: metrics[name] for name in dict.fromkeys((of, f"{of}_se", *SHOWN))}
    if against is not None and against is not scored:
        paired = paired_differences(scored, against, probabilities=False)[of]
        row |= {"difference": paired["difference"], "difference_se": paired["se"], "z": paired["z"]}
    return row
