"""Evaluate a model folder on a question file and write metrics files: of ranker, retriever and both.

Knows nothing about training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from bundle_mllm.data.bundles import BundleSplits, find_bundles
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.files import check_unchanged, file_states
from bundle_mllm.data.folder import DatasetFolder, tables_of
from bundle_mllm.data.manifest import manifest_path, read_question_manifest
from bundle_mllm.data.questions import MAX_OPTIONS, Question, load_questions
from bundle_mllm.device import choose_device
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.ablation import masked, permuted
from bundle_mllm.evaluation.breakdowns import compute_slices, position_bias
from bundle_mllm.evaluation.catalog import CatalogQuestion, RankedQuestion, catalog_questions, rank_catalog
from bundle_mllm.evaluation.catalog_metrics import compute_catalog_metrics, compute_catalog_slices
from bundle_mllm.evaluation.catalog_scoring import catalog_scorer
from bundle_mllm.evaluation.metrics import RANDOM_TIES, ScoredQuestion, calibration_before_temperature, compute_metrics
from bundle_mllm.evaluation.results import check_writable, part_path, save_results
from bundle_mllm.evaluation.scoring import score_questions, score_sets
from bundle_mllm.evaluation.settings import EvaluationSettings, ScoringOptions
from bundle_mllm.evaluation.tables import OF_CATALOGS, MetricsDict
from bundle_mllm.model_folder import fingerprint, load_completer, model_files
from bundle_mllm.modeling.ranking_bundle_mllm import GROUP_SIZE
from bundle_mllm.settings import configured_by

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter

_MAIN = ("hit_rate@1", RANDOM_TIES, "hit_rate@3", "hit_rate@5", "mrr", "valid_ratio", "calibration_error")
OF_FREE_ANSWERS = ("valid_ratio", "hit_rate@1_valid")
"""Metrics of what a ranker answers when it may say anything."""
CATALOG = "catalog"
"""Value of `protocol` in the metrics of a whole-catalog evaluation."""


@configured_by(EvaluationSettings)
def evaluate(settings: EvaluationSettings) -> MetricsDict:
    """Score a question file and compute its metrics.

    Where the folder holds a ranker and a retriever, all metrics are those of both joined, and the main ones of each
    part stand beside them under `parts`. With `catalog` the whole catalog is ranked instead of the candidates. With
    `output` the metrics of each part are written, too (`metrics.ranker.json`), and `compare_metrics` reads any two of
    these files.

    Returns:
        See [`describe`] or, with `catalog`, [`describe_catalog`]; `prediction_sets` of `score_sets`, where `coverage`
        asks for them; and `part` ("both", or the only one), `parts`,
        `options` (of the scoring, and what was masked or permuted), `model` and its `fingerprint` (none if something
        was masked or permuted), `data`. A notebook shows it as a table of the parts.

    Raises:
        BundleMLLMError: If a path is wrong, `output` cannot be written, an option is out of range, a question is
            malformed, a prompt is too long, a score is not finite, a file is changed meanwhile, the model's catalog
            lacks an item or, with `catalog`, has others or another order.
    """
    if settings.ranker is not None and (settings.mask or settings.permute):
        raise BundleMLLMError(
            "mask and permute change features, and the items of a served ranker are fixed tokens, so it would see "
            "them all the same: leave out ranker."
        )
    if settings.coverage and settings.catalog:
        raise BundleMLLMError("Sets with a guarantee are measured among candidates: leave out coverage, or catalog.")
    if settings.output is not None:
        for path in (settings.output, *(part_path(settings.output, part) for part in ("ranker", "retriever"))):
            check_writable(path, settings.questions)
    files = [*model_files(settings.model), *tables_of(settings.data), settings.questions]
    states = file_states([*files, manifest_path(settings.questions)])
    manifest = read_question_manifest(settings.questions)
    folder = DatasetFolder.open(settings.data) if settings.catalog else None
    catalog = ItemCatalog.load(settings.data) if folder is None else folder.catalog
    questions = load_questions(settings.questions, catalog)
    open_questions = [] if folder is None else catalog_questions(questions, folder)
    train_items = load_train_items(settings.data, catalog)
    completer = load_completer(settings.model, str(choose_device(settings.device)), settings.ranker)
    check_items(completer, questions, settings.questions, settings.model)
    if differences := catalog.differences(completer.processor.item_ids, completer.processor.titles):
        there = ", ".join(differences)
        if folder is not None and catalog.item_ids != tuple(completer.processor.item_ids):
            raise BundleMLLMError(
                f"{settings.data} has other items than {settings.model}: {there}. The model scores its own catalog, "
                "so rows would be mixed up: give the data that it was made for, or evaluate without --catalog."
            )
        logger.warning(f"{settings.data} has other items than {settings.model}, which answers by its own: {there}.")
    options = resolved(settings, completer)
    scored: Any
    with ExitStack() as stack:
        altered = completer
        if settings.permute:
            altered = stack.enter_context(permuted(altered, settings.permute, seed=settings.seed))
        if settings.mask:
            altered = stack.enter_context(masked(altered, settings.mask))
        if folder is None:
            scored = score_questions(altered, questions, settings, progress=True)
        else:
            score = catalog_scorer(altered, settings, options["max_options"])
            scored = rank_catalog(score, open_questions, folder, progress=True)
    changes = {name: list(getattr(settings, name)) for name in ("mask", "permute") if getattr(settings, name)}
    shared = {
        "options": options | changes | ({} if settings.ranker is None else {"ranker": settings.ranker}),
        "fingerprint": None if changes else fingerprint(settings.model),
        "model": str(settings.model),
        "data": str(settings.data),
    }
    if folder is None:
        about = {"max_options": options["max_options"], "reads_letters": completer.reads_letters}
        metrics = describe_parts(manifest, questions, scored, train_items, shared, **about)
        longest = max(len(question.candidates) for question in questions)
        if "both" in metrics and longest <= options["max_options"]:  # the temperature concerns all candidates
            before = calibration_before_temperature(scored["both"], completer.combination.temperature)
            metrics["both"]["calibration_error_before_temperature"] = before
        if settings.coverage:
            metrics[answer_part(metrics)]["prediction_sets"] = score_sets(
                altered, questions, settings.coverage, settings, progress=True
            )
    else:
        metrics = {
            part: {
                "part": part,
                **describe_catalog(manifest, open_questions, ranked, train_items, len(catalog)),
                **shared,
            }
            for part, ranked in scored.items()
        }
        _add_parts(metrics, OF_CATALOGS)
    check_unchanged(states)
    if settings.output is not None:
        save_parts(settings.output, metrics, scored)
    return MetricsDict(metrics[answer_part(metrics)])


def answer_part(parts: Iterable[str]) -> str:
    """Return the part whose scores count: both models joined, or the only one."""
    return list(parts)[-1]


def describe_parts(
    manifest: Mapping[str, Any],
    questions: Sequence[Question],
    scored: Mapping[str, Sequence[ScoredQuestion]],
    train_items: Collection[str] | None,
    shared: Mapping[str, Any],
    *,
    max_options: int,
    reads_letters: bool,
) -> dict[str, dict[str, Any]]:
    """Return the metrics of each part: [`describe`], `part` and what is shared; the answer's also hold `parts`.

    Without a ranker that answers by letters, the metrics of free answers are left out: there are none.
    """
    metrics = {
        part: {"part": part, **describe(manifest, questions, answers, train_items, max_options=max_options), **shared}
        for part, answers in scored.items()
    }
    if not reads_letters:
        for values in metrics.values():
            for name in OF_FREE_ANSWERS:
                del values[name], values[f"{name}_se"]
    _add_parts(metrics, [name for name in _MAIN if reads_letters or name not in OF_FREE_ANSWERS])
    return metrics


def _add_parts(metrics: Mapping[str, dict[str, Any]], main: Sequence[str]) -> None:
    """Put the main metrics of each part, with standard errors, into those of the answer."""
    names = [name for metric in main for name in (metric, f"{metric}_se")]
    parts = {part: {name: values[name] for name in names} for part, values in metrics.items()}
    metrics[answer_part(metrics)]["parts"] = parts


def save_parts(
    output: Path,
    metrics: Mapping[str, Mapping[str, Any]],
    scored: Mapping[str, Sequence[ScoredQuestion | RankedQuestion]],
) -> None:
    """Write the metrics of the answer to `output`, and those of each part beside it, with the scores."""
    for part, values in metrics.items():
        path = output if part == answer_part(metrics) else part_path(output, part)
        save_results(path, values, scored[part])


def resolved(options: ScoringOptions, completer: BundleCompleter) -> dict[str, int]:
    """Return the options that decide the scores, with the values that are used where none is given."""
    max_options = options.max_options or getattr(completer.processor, "max_options", MAX_OPTIONS)
    return {
        "permutations": options.permutations,
        "max_options": max_options,
        "group_size": options.group_size or min(GROUP_SIZE, max_options),
        "seed": options.seed,
    }


def check_items(completer: BundleCompleter, questions: Sequence[Question], file: str | Path, model: Path) -> None:
    """Check that every item of a question file is in a model's catalog.

    Raises:
        BundleMLLMError: If one is not.
    """
    named = {item_id for question in questions for item_id in (*question.partial, *question.candidates)}
    if unknown := sorted(named - set(completer.processor.item_ids)):
        raise BundleMLLMError(
            f"{len(unknown)} items of {file} are not in the catalog of {model} (such as {unknown[:3]}), so their "
            "questions cannot be scored: evaluate on the catalog it was trained with, or set its catalog."
        )


def describe(
    manifest: Mapping[str, Any],
    questions: Sequence[Question],
    scored: Sequence[ScoredQuestion],
    train_items: Collection[str] | None = None,
    *,
    max_options: int = MAX_OPTIONS,
    probabilities: bool = True,
) -> dict[str, Any]:
    """Compute all figures of a method, a model or a baseline, on a list of questions.

    Args:
        manifest: What `read_question_manifest` returns for the question file.
        questions: The questions.
        scored: The scores of each, in the same order (`as_scored` makes it of plain scores).
        train_items: The items of all training bundles, for the slice `answer`; see [`load_train_items`].
        max_options: Longest list in one prompt; figures by letter are of these.
        probabilities: Whether the scores are log-probabilities up to a constant.

    Returns:
        `questions` (path and SHA-256 of the file, fewest and most candidates of a question and, where a note beside
        the file holds it, how it was made), the metrics of `compute_metrics`, `random_hit_rate@1` (what guessing would
        reach), `slices` of `compute_slices` and `position` of `position_bias`.
    """
    sizes = [len(question.candidates) for question in questions]
    return {
        "questions": {**manifest, "num_candidates": [min(sizes), max(sizes)]},
        **compute_metrics(scored, probabilities=probabilities),
        "random_hit_rate@1": sum(1 / size for size in sizes) / len(sizes),
        "slices": compute_slices(questions, scored, train_items, max_options=max_options),
        "position": position_bias(scored, max_options=max_options),
    }


def describe_catalog(
    manifest: Mapping[str, Any],
    questions: Sequence[CatalogQuestion],
    ranked: Sequence[RankedQuestion],
    train_items: Collection[str] | None,
    num_items: int,
) -> dict[str, Any]:
    """Compute all figures of a method on the whole catalog.

    Returns:
        `protocol` ("catalog"), `questions` (path and SHA-256 of the file and, if known, how it was made), `num_items`
        of the catalog, `num_relevant` (mean number of relevant items), the metrics of `compute_catalog_metrics` and
        `slices` of `compute_catalog_slices`.
    """
    return {
        "protocol": CATALOG,
        "questions": dict(manifest),
        "num_items": num_items,
        "num_relevant": sum(len(question.relevant) for question in questions) / len(questions),
        **compute_catalog_metrics(ranked, num_items),
        "slices": compute_catalog_slices(questions, ranked, num_items, train_items),
    }


def load_train_items(data: Path, catalog: ItemCatalog) -> frozenset[str] | None:
    """Return the items of all training bundles of a dataset folder; `None` if it has none: no item is cold then."""
    return warm_items(BundleSplits.load(data, catalog)) if find_bundles(data) else None


def warm_items(bundles: BundleSplits) -> frozenset[str] | None:
    """Return the items of all training bundles; `None` if there are none."""
    return frozenset(item_id for bundle in bundles.train for item_id in bundle.items) or None
