"""Evaluate a model folder on a question file and write a metrics file.

Knows nothing about training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle_mllm.data.bundles import BundleSplits, find_bundles
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.manifest import read_question_manifest
from bundle_mllm.data.questions import MAX_OPTIONS, Question, load_questions
from bundle_mllm.device import choose_device
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.ablation import TITLES, only
from bundle_mllm.evaluation.ablation import shuffled as shuffled_features
from bundle_mllm.evaluation.breakdowns import compute_slices, position_bias
from bundle_mllm.evaluation.metrics import ScoredQuestion, compute_metrics
from bundle_mllm.evaluation.results import check_writable, save_results
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.evaluation.settings import EvaluationSettings
from bundle_mllm.model_folder import fingerprint, load_model
from bundle_mllm.modeling.ranking_bundle_mllm import GROUP_SIZE
from bundle_mllm.settings import configured_by

if TYPE_CHECKING:
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor


@configured_by(EvaluationSettings)
def evaluate(settings: EvaluationSettings) -> dict[str, Any]:
    """Score a question file and compute its metrics.

    Args:
        settings: Whose fields are the arguments: see `EvaluationSettings`.

    Returns:
        See [`describe`]; and `asked` (permutations, max_options, group_size, seed,
        and what was hidden or shuffled), `model` and its `fingerprint` (none if something was hidden or shuffled: it
        was not this model that answered), `data`.

    Raises:
        BundleMLLMError: A path is wrong, `output` cannot be written, an option is out of range, a question is
            malformed, or the model's catalog lacks an item.
        ValueError: A prompt is too long, or a score is not finite.
    """
    if settings.output is not None:
        check_writable(settings.output, settings.questions)
    manifest = read_question_manifest(settings.questions)
    catalog = ItemCatalog.load(settings.data)
    questions = load_questions(settings.questions, catalog)
    train_items = load_train_items(settings.data, catalog)
    model, processor = load_model(settings.model)
    model.to(choose_device(settings.device))
    asked = {item_id for q in questions for item_id in (*q.partial, *q.candidates)}
    if unknown := sorted(asked - set(processor.item_ids)):
        raise BundleMLLMError(
            f"{len(unknown)} items of {settings.questions} are not in the catalog of {settings.model} (such as "
            f"{unknown[:3]}), so their questions cannot be scored: evaluate on the catalog it was trained with, or "
            "set its catalog."
        )
    max_options = settings.max_options or processor.max_options
    asked_as = {
        "permutations": settings.permutations,
        "max_options": max_options,
        "group_size": settings.group_size or min(GROUP_SIZE, max_options),
        "seed": settings.seed,
    }
    with _altered(model, processor, settings.mask, settings.permute, settings.seed) as asked_of:
        scored = score_questions(*asked_of, questions, batch_size=settings.batch_size, progress=True, **asked_as)
    altered = {name: list(names) for name, names in (("mask", settings.mask), ("permute", settings.permute)) if names}
    metrics = describe(manifest, questions, scored, train_items, max_options=max_options) | {
        "asked": asked_as | altered,
        "fingerprint": None if altered else fingerprint(settings.model),
        "model": str(settings.model),
        "data": str(settings.data),
    }
    if settings.output is not None:
        save_results(settings.output, metrics, scored)
    return metrics


@contextmanager
def _altered(
    model: BundleMLLMForCausalLM,
    processor: BundleMLLMProcessor,
    hidden: Sequence[str],
    shuffled: Sequence[str],
    seed: int,
) -> Iterator[tuple[BundleMLLMForCausalLM, BundleMLLMProcessor]]:
    """Take from a model what is to be hidden, and shuffle what is to be shuffled."""
    known = [TITLES, *model.model.catalog.modalities]
    if unknown := sorted(set(hidden) - set(known)):
        raise BundleMLLMError(f"{unknown} cannot be hidden, since this model knows {known}: choose among these.")
    with ExitStack() as stack:
        pair = model, processor
        if shuffled:
            pair = stack.enter_context(shuffled_features(*pair, seed, shuffled))
        if hidden:
            pair = stack.enter_context(only(*pair, [name for name in known if name not in hidden]))
        yield pair


def describe(
    manifest: Mapping[str, Any],
    questions: Sequence[Question],
    scored: Sequence[ScoredQuestion],
    train_items: Collection[str] | None = None,
    *,
    max_options: int = MAX_OPTIONS,
    probabilities: bool = True,
) -> dict[str, Any]:
    """Compute everything that is reported of a method, a model or a baseline, on a list of questions.

    Args:
        manifest: What `read_question_manifest` says of the question file.
        questions: The questions.
        scored: What was said to each, in the same order (`as_scored` makes it of plain scores).
        train_items: The items of all training bundles, for the slice `answer`; see [`load_train_items`].
        max_options: Longest list that was asked in one prompt; what is said of letters is of these.
        probabilities: Whether the scores are log-probabilities up to a constant.

    Returns:
        `questions` (path and SHA-256 of the file, fewest and most candidates of a question and, where a note beside
        the file says so, how it was made), the metrics of `compute_metrics`, `random_hit_rate@1` (what guessing would
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


def load_train_items(data: Path, catalog: ItemCatalog) -> frozenset[str] | None:
    """Return the items of all training bundles of a dataset folder; `None` if it has none: no item is cold then."""
    if not find_bundles(data):
        return None
    return warm_items(BundleSplits.load(data, catalog))


def warm_items(bundles: BundleSplits) -> frozenset[str] | None:
    """Return the items of all training bundles; `None` if there are none."""
    return frozenset(item_id for bundle in bundles.train for item_id in bundle.items) or None
