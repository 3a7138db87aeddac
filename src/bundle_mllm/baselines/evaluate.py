"""Fit baselines to the training bundles of a dataset folder and measure them on a question file.

Knows nothing about how a baseline works; no baseline gets an answer or a bundle of another split.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers.utils import logging

from bundle_mllm.baselines.base import Baseline, CatalogBaseline, QuestionBatch, UnavailableError, score_in_parts
from bundle_mllm.baselines.registry import BASELINES, LLM, make_baseline, resolve_names
from bundle_mllm.baselines.settings import BaselineSettings
from bundle_mllm.data.bundles import BundleSplits
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.leakage import check_interactions
from bundle_mllm.data.manifest import read_question_manifest
from bundle_mllm.data.questions import Question, load_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.catalog import CatalogQuestion, RankedQuestion, catalog_questions, rank_catalog
from bundle_mllm.evaluation.evaluate import describe, describe_catalog, warm_items
from bundle_mllm.evaluation.metrics import ScoredQuestion, as_scored
from bundle_mllm.evaluation.results import check_writable, part_path, save_results
from bundle_mllm.evaluation.tables import Row, methods_table
from bundle_mllm.pages import notebook_cell
from bundle_mllm.settings import configured_by

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class BaselineResult:
    """The metrics of one baseline or the reason why it was skipped, the time of fitting and scoring, and its file."""

    name: str
    metrics: dict[str, Any] | None
    skipped: str | None = None
    seconds: float = 0.0
    path: Path | None = None


class BaselineResults(list[BaselineResult]):
    """The results of several baselines, a list that a notebook shows as a table, the best first."""

    def _repr_html_(self) -> str:
        rows = {each.name: Row(each.metrics, each.seconds) for each in self if each.metrics is not None}
        skipped = "; ".join(f"{each.name}: {each.skipped}" for each in self if each.metrics is None)
        head, *cells = methods_table(rows) if rows else [["no baseline was measured"]]
        caption = "± is one standard error" + (f". Skipped: {skipped}" if skipped else "")
        return notebook_cell("table.html", title=None, head=head, rows=cells, caption=caption)


@configured_by(BaselineSettings)
def evaluate_baselines(settings: BaselineSettings) -> BaselineResults:
    """Measure baselines.

    With `output`, the metrics and scores of each baseline are written beside it (see [`baseline_path`]), and
    `compare_metrics` reads any two of these files.

    Returns:
        One result for each baseline. Its metrics are those of [`describe`] or, with `catalog`, [`describe_catalog`],
        `questions` as in `evaluate`, `baseline` (its name), `seed`, `train_bundles` (their number), `data` and, of a
        language model, `options` of the scoring. A notebook shows the list as a table.

    Raises:
        BundleMLLMError: If a path is wrong, a question is malformed, a name is unknown, or a baseline that was named
            (rather than included by `all`) needs data that the folder lacks.
    """
    manifest = read_question_manifest(settings.questions)
    folder = DatasetFolder.open(settings.data)
    selected = resolve_names(settings.baselines, folder)
    paths = _paths(settings.output, list(selected), settings.questions)
    questions = load_questions(settings.questions, folder.catalog)
    open_questions = catalog_questions(questions, folder) if settings.catalog else []
    train_items = warm_items(folder.bundles)
    reads_users = any(BASELINES[name].reads_users for name in selected if name in BASELINES)
    leaked = check_interactions(folder, allow_leakage=True) if reads_users else None
    if leaked is not None and leaked.is_refused:
        logger.warning(
            f"Scores of baselines that read users are no predictions: the log of {settings.data} has the answers. "
            f"{leaked}"
        )
    folder = replace(folder, bundles=BundleSplits(train=folder.bundles.train))  # so that no baseline can read others
    shared = {"seed": settings.seed, "train_bundles": len(folder.bundles.train), "data": str(settings.data)}
    results = BaselineResults()
    for name, is_named in selected.items():
        start = time.perf_counter()
        options: dict[str, Any] = {}
        scored: Any
        try:
            if settings.catalog:
                scored = _rank(name, folder, open_questions, settings)
            elif name.startswith(f"{LLM}:"):
                from bundle_mllm.baselines.language_model import score_by_language_model

                model = name.partition(":")[2]
                scored, options = score_by_language_model(model, folder.catalog, questions, settings)
            else:
                scored = _score(name, folder, questions, settings)
        except UnavailableError as error:
            if is_named:
                raise BundleMLLMError(f"The baseline {name!r} cannot be measured: {error}") from error
            result = BaselineResult(name, None, skipped=str(error))
        else:
            if settings.catalog:
                figures = describe_catalog(manifest, open_questions, scored, train_items, len(folder.catalog))
            else:
                kind: dict[str, Any] = {"max_options": options["max_options"]} if options else {"probabilities": False}
                figures = describe(manifest, questions, scored, train_items, **kind)
            metrics = {"baseline": name, **figures, **shared}
            metrics |= {"options": options} if options else {}
            if (path := paths.get(name)) is not None:
                save_results(path, metrics, scored)
            result = BaselineResult(name, metrics, seconds=time.perf_counter() - start, path=path)
        results.append(result)
        if settings.report is not None:
            settings.report(result)
    return results


def baseline_path(output: Path, name: str) -> Path:
    """Return where the metrics of a baseline go: `metrics.popularity.json` beside `metrics.json`.

    For a language model, the last part of its name counts: `metrics.llm-Qwen3-0.6B.json`.
    """
    kind, _, argument = name.partition(":")
    parts = [kind, *([re.split(r"[/\\]", argument.rstrip("/\\"))[-1]] if argument else [])]
    slug = "-".join(re.sub(r"[^\w.-]+", "-", part) for part in parts)
    return part_path(output, slug)


def _score(
    name: str, folder: DatasetFolder, questions: Sequence[Question], settings: BaselineSettings
) -> list[ScoredQuestion]:
    baseline = _fit(name, folder, settings)
    batch = QuestionBatch.of(questions, folder.catalog)
    return as_scored(questions, [row.tolist() for row in batch.split(score_in_parts(baseline, batch))])


def _rank(
    name: str, folder: DatasetFolder, questions: Sequence[CatalogQuestion], settings: BaselineSettings
) -> list[RankedQuestion]:
    if name.startswith(f"{LLM}:") or (name in BASELINES and not BASELINES[name].catalogs):
        raise UnavailableError(f"{name} ranks given candidates, not whole catalogs", "measure it without --catalog")
    baseline, num_items = cast(CatalogBaseline, _fit(name, folder, settings)), len(folder.catalog)

    def score(partials: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        return {name: baseline.score_catalog(QuestionBatch.of_catalog(partials, num_items))}

    return rank_catalog(score, questions, folder)[name]


def _fit(name: str, folder: DatasetFolder, settings: BaselineSettings) -> Baseline:
    if name in settings.fitted:
        return settings.fitted[name]
    baseline = make_baseline(name, folder, settings.seed)
    if baseline.reads_bundles and not folder.bundles.train:
        raise UnavailableError(f"{folder.path} has no training bundles", "add some")
    baseline.fit(folder, folder.bundles.train)
    settings.fitted[name] = baseline
    return baseline


def _paths(output: Path | None, names: Sequence[str], questions_path: Path) -> dict[str, Path]:
    if output is None:
        return {}
    name_of: dict[Path, str] = {}
    for name in names:
        path = baseline_path(output, name)
        if (other := name_of.setdefault(path, name)) != name:
            raise BundleMLLMError(
                f"The baselines {other!r} and {name!r} would write the same file {path}: measure them one after the "
                "other, with another --output."
            )
        check_writable(path, questions_path)
    return {name: path for path, name in name_of.items()}
