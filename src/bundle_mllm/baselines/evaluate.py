"""Fit baselines to the training bundles of a dataset folder and measure them on a question file.

Knows nothing about how a baseline works; no baseline gets an answer or a bundle of another split.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from bundle_mllm.baselines.base import QuestionBatch, UnavailableError, score_in_parts
from bundle_mllm.baselines.registry import LLM, make_baseline, reads_users, resolve_names
from bundle_mllm.data.bundles import BundleSplits
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.leakage import check_interactions
from bundle_mllm.data.manifest import read_question_manifest
from bundle_mllm.data.questions import Question, load_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.evaluate import describe, warm_items
from bundle_mllm.evaluation.metrics import ScoredQuestion, as_scored
from bundle_mllm.evaluation.results import check_writable, save_results
from bundle_mllm.modeling.ranking_bundle_mllm import GROUP_SIZE, MAX_OPTIONS

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class BaselineResult:
    """The measurement of one baseline.

    Attributes:
        name: Its name.
        metrics: Its metrics; `None` if it was skipped.
        skipped: The reason, if it was skipped.
        seconds: Time of fitting and scoring.
        path: The metrics file, if one was written.
    """

    name: str
    metrics: dict[str, Any] | None
    skipped: str | None = None
    seconds: float = 0.0
    path: Path | None = None


def evaluate_baselines(
    data: Path,
    questions_path: Path,
    names: Sequence[str],
    output: Path | None = None,
    *,
    batch_size: int = 32,
    permutations: int = 1,
    max_options: int | None = None,
    group_size: int | None = None,
    seed: int = 0,
    device: str | None = None,
    report: Callable[[BaselineResult], None] | None = None,
) -> list[BaselineResult]:
    """Measure baselines.

    Args:
        data: The dataset folder with the items of the questions; baselines learn from its training bundles.
        questions_path: A question file over these items.
        names: Names of `BASELINES`, `similarity:MODALITY`, `llm:MODEL`, or `all`: everything but language models.
        output: The metrics file of a model, such as `metrics.json`; those of a baseline go beside it (see
            [`baseline_path`]), with its scores, as `compare_metrics` reads them. By default nothing is written.
        batch_size: Prompts per forward pass of a language model; as the next three, see `score_questions`.
        permutations: Number of candidate orders in which it scores each question.
        max_options: Longest list of candidates in one prompt.
        group_size: Most candidates of a group of a longer list.
        seed: Of chance, weights and folds.
        device: Where a language model runs; by default the GPU if there is one.
        report: Called with each result as soon as it is measured and written.

    Returns:
        One result for each baseline. Its metrics are those of [`describe`], `questions` as in `evaluate`, `baseline`
        (its name), `seed`, `train_bundles` (their number) and `data`.

    Raises:
        BundleMLLMError: If a path is wrong, a question is malformed, a name is unknown, or a baseline that was named
            (rather than included by `all`) needs data that the folder lacks.
    """
    manifest = read_question_manifest(questions_path)
    folder = DatasetFolder.open(data)
    selected = resolve_names(names, folder)
    paths = _paths(output, list(selected), questions_path)
    questions = load_questions(questions_path, folder.catalog)
    train = folder.bundles.train
    known = warm_items(folder.bundles)
    leaked = check_interactions(folder, allow_leakage=True) if any(map(reads_users, selected)) else None
    if leaked is not None and leaked.is_refused:
        logger.warning(
            f"Scores of baselines that read users are no predictions: the log of {data} has the answers. {leaked}"
        )
    folder = replace(folder, bundles=BundleSplits(train=train))  # so that no baseline can read others
    common = {
        "seed": seed,
        "train_bundles": len(train),
        "data": str(data),
    }
    max_options = max_options or MAX_OPTIONS
    group_size = group_size or min(GROUP_SIZE, max_options)
    scoring = {"permutations": permutations, "max_options": max_options, "group_size": group_size, "seed": seed}
    results = []
    for name, named in selected.items():
        start = time.perf_counter()
        is_llm = name.startswith(f"{LLM}:")
        try:
            if is_llm:
                from bundle_mllm.baselines.language_model import score_by_language_model

                model = name.partition(":")[2]
                scored = score_by_language_model(
                    model, folder.catalog, questions, device=device, batch_size=batch_size, progress=True, **scoring
                )
            else:
                scored = _score(name, folder, questions, seed)
        except UnavailableError as error:
            if named:
                raise BundleMLLMError(f"The baseline {name!r} cannot be measured: {error}") from error
            result = BaselineResult(name, None, skipped=str(error))
        else:
            kind: dict[str, Any] = {"probabilities": is_llm, **({"max_options": max_options} if is_llm else {})}
            metrics = {"baseline": name} | describe(manifest, questions, scored, known, **kind) | common
            if is_llm:
                metrics["scoring"] = scoring
            if (path := paths.get(name)) is not None:
                save_results(path, metrics, scored)
            result = BaselineResult(name, metrics, seconds=time.perf_counter() - start, path=path)
        results.append(result)
        if report is not None:
            report(result)
    return results


def baseline_path(output: Path, name: str) -> Path:
    """Return where the metrics of a baseline go: `metrics.popularity.json` beside `metrics.json`.

    For a language model, the last part of its name counts: `metrics.llm-Qwen3-0.6B.json`.
    """
    kind, _, argument = name.partition(":")
    parts = [kind, *([re.split(r"[/\\]", argument.rstrip("/\\"))[-1]] if argument else [])]
    slug = "-".join(re.sub(r"[^\w.-]+", "-", part) for part in parts)
    return output.with_name(f"{output.name.removesuffix('.json')}.{slug}.json")


def _score(name: str, folder: DatasetFolder, questions: Sequence[Question], seed: int) -> list[ScoredQuestion]:
    baseline = make_baseline(name, folder, seed)
    if baseline.reads_bundles and not folder.bundles.train:
        raise UnavailableError(f"{folder.path} has no training bundles", "add some")
    baseline.fit(folder, folder.bundles.train)
    batch = QuestionBatch.of(questions, folder.catalog)
    return as_scored(questions, [row.tolist() for row in batch.split(score_in_parts(baseline, batch))])


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
