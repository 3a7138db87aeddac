"""Write a report as one HTML page that needs nothing else: figures are inside it, every number is in a table.

Knows nothing about models: it shows what `report.json` holds.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from bundle_mllm.data.files import atomic_path

Row = Mapping[str, Any]


class Section(NamedTuple):
    """What stands around the numbers of a section: heading, fields of a row that are columns, how to read it."""

    title: str
    columns: str
    caption: str
    long: bool = False
    """Whether the table is folded away at first."""


_TITLES = {
    "name": "model",
    "base_model": "base model",
    "num_candidates": "candidates",
    "num_questions": "n",
    "prompts": "prompts per question",
    "mrr": "MRR",
    "expected": "best possible",
    "share": "share of it",
    "chance": "guessing",
    "validation_hit_rate@1": "validation hit_rate@1",
    "share_right": "answer stands there",
    "share_of_answers": "ranker chooses it",
    "accuracy": "hit_rate@1 there",
    "share_distance": "total variation of the two shares",
}
"""Titles of the columns that have another name in a row."""
_FORMS = {"difference": "+.3f", "z": "+.1f", "loss": ".4f"}

SECTIONS = {
    "by_stage": Section(
        "By part and stage",
        "questions variant hit_rate@1 mrr valid_ratio difference z num_questions",
        "The ranker is the language model, the retriever compares features and co-occurrence, and both joined are the "
        "model's answer. Stage one reads titles alone. With features permuted among items, each item has those of "
        "another: what is lost then came from features. Differences are to the answer, paired by question.",
    ),
    "baselines": Section(
        "Beside other methods",
        "questions variant hit_rate@1_random_ties mrr difference z num_questions",
        "From metrics files of the same questions. Ties are broken at random here, in expectation, since simple "
        "methods give many equal scores. Differences are paired by question; below zero is worse than the answer of "
        "this model.",
    ),
    "bayes_optimal": Section(
        "Beside the best possible answers",
        "questions variant hit_rate@1 expected share num_questions",
        "These data were invented, so the best possible accuracy is known (Bayes-optimal; marked in the figure). It "
        "takes the rules by which bundles were drawn and the true theme of every item as known; a model has to infer "
        "both.",
    ),
    "by_length": Section(
        "By number of candidates",
        "negatives num_candidates method hit_rate@1 mrr chance prompts num_questions",
        "One prompt shows up to 26 lettered candidates; the ranker alone ranks longer lists in groups, in rounds, and "
        "both joined rank the retriever's best 26. A prompt is one row of a forward pass. Each number of candidates "
        "has questions of its own about the same bundles; long lists have fewer, since they cost more.",
    ),
    "ablation": Section(
        "What the model relies on",
        "questions part variant hit_rate@1 mrr difference z num_questions",
        "Titles and modalities masked at evaluation, as for items that never had them; nothing was trained again, so "
        "a model trained without them may do better than is shown. Where all modalities are masked, one learned "
        "vector represents every item. The figure shows the answer. Differences are to nothing masked, paired by "
        "question.",
    ),
    "cold_start": Section(
        "Cold items and short bundles",
        "questions slice value variant hit_rate@1 num_questions",
        "Questions whose answer is in some training bundle (warm) or in none (cold), and by how many items are shown. "
        "The negatives differ between breakdowns, too, so compare variants within one.",
        long=True,
    ),
    "training": Section(
        "Training",
        "stage step loss validation_hit_rate@1",
        "Loss of the answer's letter, and hit_rate@1 on the validation questions that chose the checkpoint.",
        long=True,
    ),
    "position": Section(
        "By letter",
        "questions letter share_right share_of_answers accuracy share_distance",
        "Where the answer stands, where the ranker's best option stands, and how often the ranker is right when the "
        "answer stands there. Without position bias each letter is chosen as often as it is right.",
        long=True,
    ),
    "backbones": Section(
        "By size of the model",
        "questions name base_model parameters hit_rate@1 difference z num_questions",
        "Parameters of ranker and retriever; item features do not count. Differences are to the first model, paired "
        "by question.",
    ),
}
"""The sections of a report, in the order of the page."""


def write_page(report: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.html` from what `report.json` holds into the report's folder, with the figures in it."""
    sections = []
    for name, text in SECTIONS.items():
        if (section := report["sections"].get(name)) is not None:
            png = base64.b64encode((folder / section["figure"]).read_bytes()).decode()
            table = {"head": table_head(name), "rows": table_rows(name, section["rows"])}
            sections.append({"name": name, "text": text, "png": png, "alt": section["alt"], "table": table})
    blocks: Any = {"trim_blocks": True, "lstrip_blocks": True}
    loader, undefined = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=undefined, **blocks)
    page = folder / "report.html"
    with atomic_path(page) as temporary:
        text = environment.get_template("page.html").render(report=report, sections=sections)
        temporary.write_text(text, encoding="utf-8")
    return page


def table_head(section: str) -> list[str]:
    """Return the titles of a section's columns."""
    return [_TITLES.get(name, name) for name in SECTIONS[section].columns.split()]


def table_rows(section: str, rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of a section's table; empty where a row has no such number."""
    return [[_cell(row, name) for name in SECTIONS[section].columns.split()] for row in rows]


def describe_figure(section: str, rows: Sequence[Row]) -> str:
    """Return the alternative text of a figure: what it draws, and its first numbers."""
    head, shown = table_head(section), table_rows(section, rows[:8])
    first = ["; ".join(f"{title} {cell}" for title, cell in zip(head, row, strict=True) if cell) for row in shown]
    more = f" and {len(rows) - len(first)} more rows" if len(rows) > len(first) else ""
    return f"{SECTIONS[section].title}: {' | '.join(first)}{more}; all numbers are in the table below."


def _cell(row: Row, name: str) -> str:
    """Return a value as text: a fraction with its standard error, if it has one."""
    value, error = row.get(name), row.get(f"{name}_se")
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int):
        return f"{value:,}"
    form = _FORMS.get(name, ".3f")
    return f"{value:{form}}" + ("" if error is None else f" ± {error:{form.removeprefix('+')}}")
