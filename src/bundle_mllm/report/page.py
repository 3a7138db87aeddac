"""Write a report as one HTML page that needs nothing else: figures are inside it, every number is in a table.

Knows nothing about models: it shows what `report.json` holds.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from bundle_mllm.data.files import atomic_path

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its head.
        name: The field of a row.
        error: The field of its standard error, if it has one.
        digits: Decimal places; None for text and whole numbers.
        signed: Whether a plus is written.
    """

    title: str
    name: str
    error: str | None = None
    digits: int | None = None
    signed: bool = False


@dataclass(frozen=True)
class SectionText:
    """What stands around the numbers of a section.

    Attributes:
        title: Its heading.
        caption: How to read it.
        columns: Those of its table.
        long: Whether the table is folded away at first.
    """

    title: str
    caption: str
    columns: tuple[Column, ...]
    long: bool = False


QUESTIONS = Column("questions", "questions")
HIT_RATE = Column("hit_rate@1", "hit_rate@1", "hit_rate@1_se", 3)
RANDOM_TIES = Column("hit_rate@1_random_ties", "hit_rate@1_random_ties", "hit_rate@1_random_ties_se", 3)
MRR = Column("MRR", "mrr", "mrr_se", 3)
COUNT = Column("n", "num_questions")
VALID = Column("valid_ratio", "valid_ratio", None, 3)


def _difference(to: str) -> tuple[Column, Column]:
    return Column(f"difference to {to}", "difference", "difference_se", 3, True), Column("z", "z", None, 1, True)


SECTIONS: dict[str, SectionText] = {
    "by_stage": SectionText(
        "By part and stage",
        "The ranker is the language model, the retriever compares features and co-occurrence, and both joined are the "
        "model's answer. Stage one reads titles alone. With features permuted among items, each item has those of "
        "another: what is lost then came from features. Differences are paired by question.",
        (QUESTIONS, Column("variant", "variant"), HIT_RATE, MRR, VALID, *_difference("the answer"), COUNT),
    ),
    "baselines": SectionText(
        "Beside other methods",
        "From metrics files of the same questions. Ties are broken at random here, in expectation, since simple "
        "methods give many equal scores. Differences are paired by question; below zero is worse than the answer of "
        "this model.",
        (QUESTIONS, Column("method", "variant"), RANDOM_TIES, MRR, *_difference("the answer"), COUNT),
    ),
    "bayes_optimal": SectionText(
        "Beside the best possible answers",
        "These data were invented, so the best possible accuracy is known (Bayes-optimal; marked in the figure). It "
        "takes the rules by which bundles were drawn and the true theme of every item as known; a model has to infer "
        "both.",
        (
            QUESTIONS,
            Column("variant", "variant"),
            HIT_RATE,
            Column("best possible", "expected", None, 3),
            Column("share of it", "share", "share_se", 3),
            COUNT,
        ),
    ),
    "by_length": SectionText(
        "By number of candidates",
        "One prompt shows up to 26 lettered candidates; the ranker alone ranks longer lists in groups, in rounds, and "
        "both joined rank the retriever's best 26. A prompt is one row of a forward pass. Each number of candidates "
        "has questions of its own about the same bundles; long lists have fewer, since they cost more.",
        (
            Column("negatives", "negatives"),
            Column("candidates", "num_candidates"),
            Column("method", "method"),
            HIT_RATE,
            MRR,
            Column("guessing", "chance", None, 3),
            Column("prompts per question", "prompts"),
            COUNT,
        ),
    ),
    "ablation": SectionText(
        "What the model relies on",
        "Titles and modalities masked at evaluation, as for items that never had them; nothing was trained again, so "
        "a model trained without them may do better than is shown. Where all modalities are masked, one learned "
        "vector represents every item. The figure shows the answer. Differences are paired by question.",
        (
            QUESTIONS,
            Column("part", "part"),
            Column("variant", "variant"),
            HIT_RATE,
            MRR,
            *_difference("nothing masked"),
            COUNT,
        ),
    ),
    "cold_start": SectionText(
        "Cold items and short bundles",
        "Questions whose answer is in some training bundle (warm) or in none (cold), and by how many items are shown. "
        "The negatives differ between breakdowns, too, so compare variants within one.",
        (QUESTIONS, Column("slice", "slice"), Column("value", "value"), Column("variant", "variant"), HIT_RATE, COUNT),
        long=True,
    ),
    "training": SectionText(
        "Training",
        "Loss of the answer's letter, and hit_rate@1 on the validation questions that chose the checkpoint.",
        (
            Column("stage", "stage"),
            Column("step", "step"),
            Column("loss", "loss", None, 4),
            Column("validation hit_rate@1", "validation_hit_rate@1", "validation_hit_rate@1_se", 3),
        ),
        long=True,
    ),
    "position": SectionText(
        "By letter",
        "Where the answer stands, where the ranker's best option stands, and how often the ranker is right when the "
        "answer stands there. Without position bias each letter is chosen as often as it is right.",
        (
            QUESTIONS,
            Column("letter", "letter"),
            Column("answer stands there", "share_right", None, 3),
            Column("ranker chooses it", "share_of_answers", None, 3),
            Column("hit_rate@1 there", "accuracy", None, 3),
            Column("total variation of the two shares", "share_distance", None, 3),
        ),
        long=True,
    ),
    "backbones": SectionText(
        "By size of the model",
        "Parameters of ranker and retriever; item features do not count. Differences are paired by question.",
        (
            QUESTIONS,
            Column("model", "name"),
            Column("base model", "base_model"),
            Column("parameters", "parameters"),
            HIT_RATE,
            *_difference("the first model"),
            COUNT,
        ),
    ),
}
"""The sections of a report, in the order of the page."""


def write_page(report: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.html`.

    Args:
        report: What `report.json` holds.
        folder: The report's folder, with its figures; it receives the page.

    Returns:
        The page.
    """
    sections = []
    for name, text in SECTIONS.items():
        if (section := report["sections"].get(name)) is not None:
            png = base64.b64encode((folder / section["figure"]).read_bytes()).decode()
            table = {"head": [column.title for column in text.columns], "rows": table_rows(name, section["rows"])}
            sections.append({"name": name, "text": text, "png": png, "alt": section["alt"], "table": table})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = folder / "report.html"
    with atomic_path(page) as temporary:
        text = environment.get_template("page.html").render(report=report, sections=sections)
        temporary.write_text(text, encoding="utf-8")
    return page


def table_rows(section: str, rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of a section's table; empty where a row has no such number."""
    return [[cell(row, column) for column in SECTIONS[section].columns] for row in rows]


def describe_figure(section: str, rows: Sequence[Row]) -> str:
    """Return the alternative text of a figure: what it draws, and its first numbers."""
    text = SECTIONS[section]
    shown = [column for column in text.columns if column.name != "num_questions"]
    first = ["; ".join(f"{c.title} {cell(row, c)}" for c in shown if cell(row, c)) for row in rows[:8]]
    more = f" and {len(rows) - len(first)} more rows" if len(rows) > len(first) else ""
    return f"{text.title}: {' | '.join(first)}{more}; all numbers are in the table below."


def cell(row: Row, column: Column) -> str:
    """Return one cell as text: a number with its standard error, if it has one."""
    value = row.get(column.name)
    if value is None:
        return ""
    if column.digits is None:
        return f"{value:,}" if isinstance(value, int) else str(value)
    sign = "+" if column.signed else ""
    error = row.get(column.error) if column.error else None
    return f"{value:{sign}.{column.digits}f}" + (f" ± {error:.{column.digits}f}" if error is not None else "")
