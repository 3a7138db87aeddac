"""Write a report as one HTML page that needs nothing else: figures are inside it, every number is in a table.

Knows nothing about models: it shows what `report.json` holds.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bundle_mllm import pages
from bundle_mllm.completion.media import ItemMedia
from bundle_mllm.completion.page import shown_answers

Row = Mapping[str, Any]


class Section(NamedTuple):
    """What stands around the numbers of a section: heading, fields of a row that are columns, how to read it."""

    title: str
    columns: str
    caption: str


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
    "coverage": "hold the answer",
    "size": "candidates in a set",
    "nothing_fits": "nothing fits",
    "nothing_fits_without_answer": "nothing fits, answer left out",
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
    ),
    "training": Section(
        "Training",
        "stage step loss validation_hit_rate@1",
        "Loss of the answer's letter, and hit_rate@1 on the validation questions that chose the checkpoint.",
    ),
    "position": Section(
        "By letter",
        "questions letter share_right share_of_answers accuracy share_distance",
        "Where the answer stands, where the ranker's best option stands, and how often the ranker is right when the "
        "answer stands there. Without position bias each letter is chosen as often as it is right.",
    ),
    "prediction_sets": Section(
        "Sets with a guarantee",
        "questions asked coverage size nothing_fits nothing_fits_without_answer num_questions",
        "The smallest set of candidates that holds the answer with the probability asked for (split conformal "
        "prediction), calibrated on other bundles than these. Where the set is empty, nothing fits: a false alarm "
        "where the answer was among the candidates, and right where it was left out.",
    ),
    "backbones": Section(
        "By size of the model",
        "questions name base_model parameters hit_rate@1 difference z num_questions",
        "Parameters of ranker and retriever; item features do not count. Differences are to the first model, paired "
        "by question.",
    ),
}
"""The sections of a report, in the order of the page."""


class ReportDict(dict[str, Any]):
    """What `report.json` holds, a dictionary that a notebook shows: what was found, and the first table."""

    def _repr_html_(self) -> str:
        labels, rows = question_labels(self["questions"]), self["sections"]["by_stage"]["rows"]
        shown = {"head": table_head("by_stage"), "rows": table_rows("by_stage", labelled(rows, labels))}
        caption = "report.html in the report's folder has the figures"
        return pages.notebook_cell("table.html", title=" ".join(findings(self)), caption=caption, **shown)


def write_page(report: Mapping[str, Any], folder: Path, media: ItemMedia | None = None) -> Path:
    """Write `report.html` from what `report.json` holds into the report's folder, with the figures in it.

    Args:
        report: The report; without `examples` the page has none.
        folder: The report's folder.
        media: Pictures and sounds of the examples.
    """
    labels, sections = question_labels(report["questions"]), []
    for name, text in SECTIONS.items():
        if (section := report["sections"].get(name)) is not None:
            png = base64.b64encode((folder / section["figure"]).read_bytes()).decode()
            rows = table_rows(name, labelled(section["rows"], labels))
            about = {"name": name, "text": text, "png": png, "alt": section["alt"]}
            sections.append({**about, "head": table_head(name), "rows": rows})
    values = {
        "report": report,
        "sections": sections,
        "findings": findings(report),
        "examples": [_example(example, labels, media) for example in report.get("examples", ())],
        "about_models": [_about_model(model) for model in report["models"]],
        "about_questions": [_about_questions(file, labels) for file in report["questions"]],
    }
    return pages.write_page(folder / "report.html", "report.html", **values)


def findings(report: Mapping[str, Any]) -> list[str]:
    """Return what was found, in sentences: how often the model is right, which part of it, and by what."""
    rows = report["sections"].get("by_stage", {}).get("rows")
    if not rows or not (labels := question_labels(report["questions"])):
        return []
    whole = {name: _answer_row(rows, name) for name in labels}
    first, *others = labels
    files = {file["name"]: file for file in report["questions"]}
    sizes = "–".join(str(size) for size in dict.fromkeys(files[first]["num_candidates"]))
    sentences = [
        f"Of {sizes} candidates, the model finds the item that was left out in {_percent(whole[first])} of "
        f"{whole[first]['num_questions']:,} questions with {labels[first]}; guessing finds "
        f"{files[first]['chance']:.1%}."
    ]
    sentences += [f"With {labels[name]} it finds {_percent(whole[name])}." for name in others]
    of_first = {row["variant"]: row for row in rows if row["questions"] == first}
    alone = [part for part in ("ranker", "retriever") if part in of_first and part != whole[first]["variant"]]
    if alone:
        parts = " and ".join(f"the {part} {_percent(of_first[part])}" for part in alone)
        sentences.append(f"Alone, {parts} with {labels[first]}.")
    if shuffled := of_first.get(f"{whole[first]['variant']}, features permuted"):
        sentences.append(f"When items have the features of others, it finds {_percent(shuffled)}.")
    return sentences


def _answer_row(rows: Sequence[Row], questions: str) -> Row:
    """Return the row of the model's answer: of both parts joined, or of the only one."""
    known = {row["variant"]: row for row in rows if row["questions"] == questions}
    return next(known[part] for part in ("both", "ranker", "retriever") if part in known)


def _percent(row: Row) -> str:
    error = row.get("hit_rate@1_se")
    return f"{row['hit_rate@1']:.1%}" + ("" if error is None else f" (± {100 * error:.1f})")


def question_labels(files: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what readers call the question files: by their negatives, if that tells them apart; else their names."""
    made = {file["name"]: (file.get("made") or {}).get("negatives") for file in files}
    by_negatives = {name: f"{negatives} negatives" for name, negatives in made.items()}
    is_enough = None not in made.values() and len(set(made.values())) == len(made)
    return by_negatives if is_enough else {name: name.replace("_", " ") for name in made}


def labelled(rows: Sequence[Row], labels: Mapping[str, str]) -> list[Row]:
    """Return the rows with the label of their question file in place of its name."""
    return [{**row, "questions": labels[row["questions"]]} if "questions" in row else row for row in rows]


def _example(example: Row, labels: Mapping[str, str], media: ItemMedia | None) -> dict[str, Any]:
    """Return what the page shows of an example."""
    found = shown_answers(example["partial"], example["answers"], media=media, right=example["answer"])
    title = " + ".join(item["title"] or item["item_id"] for item in example["partial"])
    return {**example, "questions": labels[example["questions"]], "title": title, "found": found}


def _about_model(model: Row) -> list[str]:
    modalities = ", ".join(model["modalities"]) or "none"
    base_model = model["base_model"] or "not recorded"
    return [model["name"], base_model, modalities, f"{model['parameters']:,}", model["fingerprint"][:16]]


def _about_questions(file: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    made = ", ".join(f"{key} {value}" for key, value in (file["made"] or {}).items()) or "not recorded"
    counts = f"{file['num_questions']:,} ({file['num_bundles']:,})"
    sizes = "–".join(map(str, dict.fromkeys(file["num_candidates"])))
    return [labels[file["name"]], counts, sizes, f"{file['chance']:.3f}", made, file["sha256"]]


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
    return f"{SECTIONS[section].title}: {' | '.join(first)}{more}; all numbers are in the table below it."


def _cell(row: Row, name: str) -> str:
    """Return a value as text: a fraction with its standard error, if it has one."""
    value, error = row.get(name), row.get(f"{name}_se")
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int):
        return f"{value:,}"
    form = _FORMS.get(name, ".3f")
    return f"{value:{form}}" + ("" if error is None else f" ± {error:{form.removeprefix('+')}}")
