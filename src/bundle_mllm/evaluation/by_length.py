"""Accuracy against the number of candidates, of each part and of each way to rank them.

Knows nothing about how the model was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.questions import Negatives, make_questions, spread
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import compute_metrics
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.evaluation.settings import SIZES, ScoringOptions
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.ranking_bundle_mllm import GROUP_SIZE, MAX_OPTIONS, num_prompts


def accuracy_by_num_candidates(
    completer: BundleCompleter,
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
    """Measure models on questions of growing length.

    Args:
        completer: The models.
        folder: The dataset folder.
        split: Whose bundles the questions are about, one each.
        sizes: Numbers of candidates; those that the catalog is too small for are left out.
        negatives: As in `make_questions`.
        max_questions: At most this many questions of each size, about bundles at equal distances.
        group_size: Most candidates of a group.
        batch_size: Prompts per forward pass.
        seed: Of questions and groups.
        progress: Whether to show progress bars.

    Returns:
        One row for each size and method: `num_candidates`, `method`, `prompts` (what one question costs), and the
        metrics of `compute_metrics`. Methods are "one prompt" (the ranker, up to 26 candidates), "groups" (the ranker,
        above `group_size`), "retriever" and "both".

    Raises:
        BundleMLLMError: If there is no bundle of two items, or an option is out of range.
    """
    rows: list[dict[str, Any]] = []
    bundles = folder.bundles[split]
    bundles = spread(bundles, len(bundles) if max_questions is None else max_questions)
    if not bundles:
        raise BundleMLLMError(f"{folder.path} has no {split} bundle of two items: no question can be made.")
    room = len(folder.catalog) - max(len(bundle.items) for bundle in bundles) + 1
    for size in sorted(size for size in set(sizes) if size <= room):
        how: dict[str, Any] = {"num_candidates": size, "negatives": negatives, "questions_per_bundle": 1, "seed": seed}
        questions = make_questions(bundles, folder.catalog, folder.bundles, **how)
        for method, part, limit, prompts, applies in (
            ("one prompt", "ranker", MAX_OPTIONS, 1, size <= MAX_OPTIONS),
            ("groups", "ranker", group_size, num_prompts(size, group_size), size > group_size),
            ("retriever", "retriever", MAX_OPTIONS, 0, True),
            ("both", "both", MAX_OPTIONS, 1, True),
        ):
            if part not in completer.parts or not applies:
                continue
            alone = {} if part == "both" else {part: getattr(completer, part)}
            scorer = BundleCompleter(completer.processor, **alone) if alone else completer
            options = ScoringOptions(batch_size=batch_size, max_options=limit, group_size=group_size, seed=seed)
            scored = score_questions(scorer, questions, options, progress=progress)[part]
            rows.append({"num_candidates": size, "method": method, "prompts": prompts} | compute_metrics(scored))
    return rows
