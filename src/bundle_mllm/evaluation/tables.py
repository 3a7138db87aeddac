"""Results as tables of text, for the terminal and for notebooks, in which they show themselves.

Knows nothing about how they were computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bundle_mllm.evaluation.metrics import RANDOM_TIES
from bundle_mllm.pages import notebook_cell

Metrics = Mapping[str, Any]
OF_CANDIDATES = ("hit_rate@1", "hit_rate@3", "hit_rate@5", "mrr")
OF_CATALOGS = ("recall@20", "ndcg@20", "hit_rate@20", "mrr", "coverage@20", "novelty@20", "diversity@20")
"""The metrics in tables, of given candidates and of whole catalogs."""


class MetricsDict(dict[str, Any]):
    """The metrics of `evaluate`, a dictionary that a notebook shows as a table of the parts."""

    def _repr_html_(self) -> str:
        head, *rows = parts_table(self.get("parts") or {self.get("part", "model"): self})
        counts = f"{self['num_questions']:,} questions about {self['num_bundles']:,} bundles; ± is one standard error"
        return notebook_cell("table.html", title=None, head=head, rows=rows, caption=counts)


class ComparisonDict(dict[str, Any]):
    """The comparison of `compare_metrics`, a dictionary that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        head, *rows = comparison_table(self)
        caption = f"a: {self['a']}; b: {self['b']}; paired by question, ± is one standard error"
        return notebook_cell("table.html", title=None, head=head, rows=rows, caption=caption)


def parts_table(values: Mapping[str, Metrics]) -> list[list[str]]:
    """Return the metrics of ranker, retriever and both, side by side; the first row is the head."""
    values = {part: numbers for part, numbers in values.items() if "mrr" in numbers}
    table = [["", *values]]
    for name in dict.fromkeys((*OF_CANDIDATES, "valid_ratio", *OF_CATALOGS)):
        cells = [value_text(numbers, name) for numbers in values.values()]
        table += [[name, *cells]] if any(cells) else []
    return table


class Row(NamedTuple):
    """A method in a table: its metrics, what it cost, and how much the model is better, from `compare_metrics`."""

    metrics: Metrics
    seconds: float | None = None
    differences: Mapping[str, Any] = {}


def main_metric(rows: Mapping[str, Row]) -> str:
    """Return the metric that methods are sorted by."""
    return "recall@20" if any("recall@20" in row.metrics for row in rows.values()) else RANDOM_TIES


def methods_table(rows: Mapping[str, Row]) -> list[list[str]]:
    """Return the metrics and seconds of several methods, the best first, and how much better the model is.

    The first row is the head.
    """
    main = main_metric(rows)
    names = OF_CATALOGS if main in OF_CATALOGS else ("hit_rate@1", main, "hit_rate@3", "mrr")
    compared = any(row.differences for row in rows.values())
    table = [["", *names, *([f"model better by ({main})"] if compared else []), "seconds"]]
    for name, row in sorted(rows.items(), key=lambda row: -row[1].metrics[main]):
        cells = [name, *(value_text(row.metrics, metric) for metric in names)]
        if compared:
            paired = row.differences.get(main)
            cells.append(f"{paired['difference']:+.4f} ± {paired['se']:.4f}" if paired else "")
        table.append([*cells, "" if row.seconds is None else f"{row.seconds:.1f}"])
    return table


def better_baseline(rows: Mapping[str, Row]) -> tuple[str, Mapping[str, float]] | None:
    """Return the baseline that beats the model most, by two standard errors of the paired difference or more.

    Returns:
        Its name, and the `difference` (negative) with its `se`; `None` if there is no such baseline.
    """
    paired = {name: row.differences.get(main_metric(rows)) for name, row in rows.items()}
    worse = {name: pair for name, pair in paired.items() if pair and 0 > pair["difference"] <= -2 * pair["se"]}
    return min(worse.items(), key=lambda pair: pair[1]["difference"], default=None)


def comparison_table(differences: Metrics) -> list[list[str]]:
    """Return each metric of two runs, and the difference with its standard error; the first row is the head."""
    rows = {name: row for name, row in differences.items() if isinstance(row, dict) and "difference" in row}
    return [
        ["", "a", "b", "difference"],
        *(
            [name, f"{row['a']:.4f}", f"{row['b']:.4f}", f"{row['difference']:+.4f} ± {row['se']:.4f}"]
            for name, row in rows.items()
        ),
    ]


def value_text(numbers: Metrics, name: str, digits: int = 4) -> str:
    """Return a metric with its standard error, as far as they are known."""
    values = (numbers.get(name), numbers.get(f"{name}_se"))
    return " ± ".join(f"{value:.{digits}f}" for value in values if value is not None)
