"""Accuracy against the number of candidates: one prompt for up to 26 of them, groups beside it and beyond.

Knows nothing about how the model was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.questions import Negatives, make_questions, spread
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import compute_metrics
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.modeling.ranking_bundle_mllm import GROUP_SIZE, MAX_OPTIONS, num_questions

if TYPE_CHECKING:
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

SIZES = (2, 5, 10, 15, 20, 26, 50, 100, 1000)
"""Numbers of candidates that are measured by default."""


def accuracy_by_num_candidates(
    model: BundleMLLMForCausalLM,
    processor: BundleMLLMProcessor,
    folder: DatasetFolder,
    split: str = "validation",
    *,
    sizes: Sequence[int] = SIZES,
    negatives: Negatives = "uniform",
    max_questions: int | None = None,
    group_size: int = GROUP_SIZE,
    batch_size: int = 32,
    seed: int = 42,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Measure a model on questions of growing length, by both ways to ask them.

    Args:
        model: The model.
        processor: Its processor.
        folder: The dataset folder.
        split: Whose bundles are asked about, one question each.
        sizes: Numbers of candidates; those that the catalog is too small for are left out.
        negatives: As in `make_questions`.
        max_questions: Ask at most this many questions of each size, of bundles at equal distances.
        group_size: Most candidates of a group.
        batch_size: Prompts per forward pass.
        seed: Of questions and groups.
        progress: Whether to show progress bars.

    Returns:
        One row for each size and method: `num_candidates`, `method` (`one prompt` up to 26 candidates, `groups` above
        `group_size`), `prompts` (what one question costs), and the metrics of `compute_metrics`.

    Raises:
        BundleMLLMError: There is no bundle to ask about, or an option is out of range.
    """
    rows: list[dict[str, Any]] = []
    bundles = folder.bundles[split]
    bundles = spread(bundles, len(bundles) if max_questions is None else max_questions)
    if not bundles:
        raise BundleMLLMError(f"{folder.path} has no {split} bundle of two items: there is nothing to ask.")
    room = len(folder.catalog) - max(len(bundle.items) for bundle in bundles) + 1
    for size in sorted(size for size in set(sizes) if size <= room):
        questions = make_questions(
            bundles,
            folder.catalog,
            folder.bundles,
            num_candidates=size,
            negatives=negatives,
            questions_per_bundle=1,
            seed=seed,
        )
        for method, limit, prompts in (("one prompt", MAX_OPTIONS, 1), ("groups", group_size, None)):
            if (method == "groups") == (size <= limit):
                continue
            scored = score_questions(
                model,
                processor,
                questions,
                batch_size=batch_size,
                max_options=limit,
                group_size=group_size,
                seed=seed,
                progress=progress,
            )
            prompts = prompts or num_questions(size, group_size)
            rows.append({"num_candidates": size, "method": method, "prompts": prompts} | compute_metrics(scored))
    return rows
