"""The table of a benchmark: methods by sets of questions, with standard errors and paired differences.

Knows nothing about how anything was measured: it reads metrics files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bundle_mllm.evaluation.metrics import RANDOM_TIES
from bundle_mllm.evaluation.results import compare_metrics, is_catalog, load_metrics

METRICS = {False: (RANDOM_TIES,), True: ("recall@20", "ndcg@20")}
"""The metrics of given candidates, and of whole catalogs."""
MARK = 2.0
"""From so many standard errors a difference is marked."""


class Measured(NamedTuple):
    """The metrics file of a method on a set of questions."""

    method: str
    questions: str
    file: Path
    is_answer: bool
    """Whether it is the answer of a model: of both its models, or of the only one."""


class BenchmarkDict(dict[str, Any]):
    """What `run_benchmark` returns, a dictionary that a notebook shows as the table."""

    def _repr_markdown_(self) -> str:
        return self["table"]


def make_table(about: Mapping[str, Any], measured: Sequence[Measured]) -> tuple[list[dict[str, Any]], str]:
    """Return the rows, and the table as Markdown.

    The reference, with which all others are compared, is the answer of the first model or, without one, the best
    baseline of the column.
    """
    rows: list[dict[str, Any]] = []
    for questions in dict.fromkeys(each.questions for each in measured):
        of_set = [each for each in measured if each.questions == questions]
        values = {each: load_metrics(each.file) for each in of_set}
        for metric in METRICS[is_catalog(of_set[0].file)]:
            best = max(of_set, key=lambda each: values[each][metric])
            reference = next((each for each in of_set if each.is_answer), best)
            for each in of_set:
                row = {"method": each.method, "questions": questions, "metric": metric}
                row |= {"value": values[each][metric], "se": values[each][f"{metric}_se"]}
                if each is not reference:
                    paired = compare_metrics(each.file, reference.file)[metric]
                    row |= {"reference": reference.method, "difference": paired["difference"]}
                    row |= {"difference_se": paired["se"]}
                rows.append(row)
    return rows, _to_markdown(about, rows)


def _to_markdown(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys((row["questions"], row["metric"]) for row in rows))
    cells = {(row["method"], row["questions"], row["metric"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    data, settings = about["data"], about["settings"]
    bundles = ", ".join(f"{number} {split}" for split, number in data["bundles"].items())
    heads = [f"{'hit_rate@1' if 'hit_rate' in metric else metric}, {questions}" for questions, metric in columns]
    lines = [
        f"# {data['name']}",
        "",
        f"{data['num_items']} items; bundles: {bundles}. Questions about the {settings['split']} bundles, "
        f"{settings['num_candidates']} candidates, seed {settings['seed']}; half of a bundle is shown. A cell: value "
        "± standard error with bundles as clusters; ties are broken at random, in expectation. In brackets: paired "
        f"difference to the reference (marked R), with ↓ or ↑ from {MARK:.0f} standard errors. Best in bold.",
        "",
        "| | " + " | ".join(heads) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    best = {column: max(row["value"] for key, row in cells.items() if key[1:] == column) for column in columns}
    for method in methods:
        of_method = [_cell(cells.get((method, *column)), best[column]) for column in columns]
        lines.append(f"| {method} | " + " | ".join(of_method) + " |")
    lines += ["", "| questions | number | SHA-256 |", "|---|---|---|"]
    lines += [f"| {name} | {each['number']} | {each['sha256']} |" for name, each in about["questions"].items()]
    lines += ["", f"bundle-mllm {about['version']}."]
    notes = [f"- {warning}" for warning in about["leakage"]] or ["- Nothing was found."]
    lines += ["", "Leakage check:", *notes]
    if about["left_out"]:
        lines += ["", "Left out:", *(f"- {name}: {reason}" for name, reason in about["left_out"].items())]
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any] | None, best: float) -> str:
    if row is None:
        return "–"
    value = f"{row['value']:.3f}".removeprefix("0")
    text = f"{f'**{value}**' if row['value'] == best else value} ± {_error(row['se'])}"
    if "difference" not in row:
        return f"{text} (R)"
    difference, paired = row["difference"], row["difference_se"]
    is_clear = paired > 0 and abs(difference) >= MARK * paired
    arrow = " ↓" if is_clear and difference < 0 else " ↑" if is_clear else ""
    return f"{text} ({difference:+.3f} ± {_error(paired)}{arrow})"


def _error(value: float | None) -> str:
    """Return a standard error; that of a single bundle is not defined."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}".removeprefix("0")
