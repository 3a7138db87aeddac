"""What a report in a model folder adds to the repository: its page, figures and numbers, and tables for the card.

Knows nothing about uploading, and measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.places import Places
from bundle_mllm.hub.repository import link_or_copy, read_json, write_json
from bundle_mllm.model_folder import fingerprint
from bundle_mllm.report import REPORT
from bundle_mllm.report.page import SECTIONS, table_rows, write_page

FOLDER = "report"
"""Where the report lies in a model folder, and in its repository."""
FILES = (f"{FOLDER}/{REPORT}", f"{FOLDER}/report.html", f"{FOLDER}/figures/*.png")
ON_CARD = ("by_stage", "baselines", "bayes_optimal", "by_length", "ablation", "backbones")
"""The sections that the card shows; the page has all."""


def read_report(model_dir: Path) -> dict[str, Any] | None:
    """Read the report in a model folder; `None` if there is none.

    Raises:
        BundleMLLMError: It is malformed, incomplete, or on other weights than the folder holds.
    """
    path = model_dir / FOLDER / REPORT
    if not path.is_file():
        return None
    report = read_json(path)
    try:
        measured, sections = report["models"][0]["fingerprint"], dict(report["sections"])
        figures = {name: section["figure"] for name, section in sections.items()}
        tables = {name: table_rows(name, section["rows"]) for name, section in sections.items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BundleMLLMError(
            f"{path} was not written by this version of `bundle-mllm report` ({type(error).__name__}: {error}): make "
            f"it again, or remove {path.parent}."
        ) from error
    if measured != fingerprint(model_dir):
        raise BundleMLLMError(
            f"{path} is about other weights, items or wording than {model_dir} has, so the card might report another "
            f"model: run `bundle-mllm report --model {model_dir}` again, or remove {path.parent}."
        )
    for name in tables:
        if figures[name] != f"figures/{name}.png" or not (path.parent / figures[name]).is_file():
            raise BundleMLLMError(
                f"{path.parent} lacks the figure {figures[name]!r}: run `bundle-mllm report --model {model_dir}` "
                "again; what was measured is kept."
            )
    return report


def metrics_files(model_dir: Path, report: Mapping[str, Any] | None) -> list[Path]:
    """Return the metrics files of the model as it is that a report wrote."""
    if report is None:
        return []
    return [model_dir / FOLDER / asked["metrics"] for asked in report["questions"]]


def card_sections(report: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return title, caption, figure and table of each section that the card shows."""
    found = {} if report is None else report["sections"]
    return [
        {
            "title": SECTIONS[name].title,
            "caption": SECTIONS[name].caption,
            "figure": f"{FOLDER}/{found[name]['figure']}",
            "head": [column.title for column in SECTIONS[name].columns],
            "rows": table_rows(name, found[name]["rows"]),
        }
        for name in ON_CARD
        if name in found
    ]


def write_report(report: Mapping[str, Any] | None, model_dir: Path, target: Path, places: Places) -> None:
    """Write the report into a repository folder; its page is rendered again, from what names no folder of here."""
    if report is None:
        return
    reduced = places.reduce(dict(report))
    for section in reduced["sections"].values():
        link_or_copy(model_dir / FOLDER / section["figure"], target / FOLDER / section["figure"])
    write_json(target / FOLDER / REPORT, reduced)
    write_page(reduced, target / FOLDER)
