"""Publish the report in a model folder: its page, figures and numbers, and tables for the card.

Knows nothing about uploading, and measures nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from bundle_mllm.data.files import read_json, write_json
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.records import BASE_MODEL, INPUTS, MADE, MODALITIES, VERSIONS
from bundle_mllm.hub.repository import link_or_copy
from bundle_mllm.hub.schema import NAME, Schema, digest, either, label, matching, number, numbers, rebuild
from bundle_mllm.model_folder import fingerprint
from bundle_mllm.report import REPORT
from bundle_mllm.report.page import SECTIONS, describe_figure, table_head, table_rows, write_page

FOLDER = "report"
"""Where the report lies in a model folder, and in its repository."""
FILES = (f"{FOLDER}/{REPORT}", f"{FOLDER}/report.html", f"{FOLDER}/figures/*.png")
ON_CARD = ("by_stage", "baselines", "bayes_optimal", "by_length", "ablation", "backbones")
"""The sections that the card shows; the page has all."""

_TEXTS = ("questions", "variant", "negatives", "method", "part", "slice", "value", "stage", "letter", "name")
_ROW: Schema = {**dict.fromkeys(_TEXTS, either(number, label)), "base_model": either(BASE_MODEL, number), NAME: number}
_REPORT: Schema = {
    "models": [
        {"name": label, "fingerprint": digest, "base_model": BASE_MODEL, "modalities": MODALITIES, NAME: number}
    ],
    "data": {"num_items": number, "bundles": {NAME: number}, "tables": INPUTS},
    "questions": [{"name": label, "sha256": digest, "made": MADE, NAME: numbers}],
    "sections": {re.compile("|".join(SECTIONS)): {"rows": [_ROW]}},
    "settings": {"split": matching("train|validation|test"), NAME: numbers},
    "versions": VERSIONS,
    "seconds": {"total": number},
}


def read_report(model_dir: Path) -> dict[str, Any] | None:
    """Return what is published of the report in a model folder, if it has one; refuse one of other weights.

    Raises:
        BundleMLLMError: If it is of other weights, malformed, or lacks a figure.
    """
    path = model_dir / FOLDER / REPORT
    if not path.is_file():
        return None
    report = rebuild(read_json(path), _REPORT)
    try:
        measured = report["models"][0]["fingerprint"]
        report["models"] = [{"name": "model", "base_model": None, **model} for model in report["models"]]
        report["questions"] = [{"made": None, **each} for each in report["questions"]]
        report |= {"data": {"name": "its data set", **report["data"]}, "left_out": {}}
        for name, section in report["sections"].items():
            section |= {"figure": f"figures/{name}.png", "alt": describe_figure(name, section["rows"])}
            table_rows(name, section["rows"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _malformed(path, error) from error
    if measured != fingerprint(model_dir):
        raise BundleMLLMError(
            f"{path} is about other weights, items or wording than {model_dir} has: run `bundle-mllm report --model "
            f"{model_dir}` again, or remove {path.parent}."
        )
    for section in report["sections"].values():
        if not (path.parent / section["figure"]).is_file():
            raise BundleMLLMError(
                f"{path.parent} lacks the figure {section['figure']!r}: run `bundle-mllm report --model {model_dir}`."
            )
    return report


def metrics_files(model_dir: Path) -> list[Path]:
    """Return the metrics files of the model as it is that a report in its folder wrote."""
    if read_report(model_dir) is None:
        return []
    folder = model_dir / FOLDER
    paths = [folder / str(each.get("metrics")) for each in read_json(folder / REPORT)["questions"]]
    return [path for path in paths if path.is_file()]  # a download has none


def card_sections(report: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return title, caption, figure and table of each section that the card shows."""
    sections = {} if report is None else report["sections"]
    return [
        {
            "title": SECTIONS[name].title,
            "caption": SECTIONS[name].caption,
            "figure": f"{FOLDER}/{sections[name]['figure']}",
            "head": table_head(name),
            "rows": table_rows(name, sections[name]["rows"]),
        }
        for name in ON_CARD
        if name in sections
    ]


def write_report(report: Mapping[str, Any], model_dir: Path, target: Path) -> None:
    """Write a report of `read_report` into a repository folder: figures, numbers, and a page rendered from these.

    Raises:
        BundleMLLMError: If the report is malformed.
    """
    first, *others = report["models"]
    report = {**report, "models": [{**first, "fingerprint": fingerprint(target) or first["fingerprint"]}, *others]}
    for section in report["sections"].values():
        link_or_copy(model_dir / FOLDER / section["figure"], target / FOLDER / section["figure"])
    write_json(target / FOLDER / REPORT, report)
    try:
        write_page(report, target / FOLDER)
    except (UndefinedError, LookupError, StopIteration, TypeError, ValueError) as error:  # a number is missing
        raise _malformed(model_dir / FOLDER / REPORT, error) from error


def _malformed(path: Path, error: Exception) -> BundleMLLMError:
    return BundleMLLMError(
        f"{path} was not written by this version of `bundle-mllm report` ({type(error).__name__}: {error}): make it "
        f"again, or remove {path.parent}."
    )
