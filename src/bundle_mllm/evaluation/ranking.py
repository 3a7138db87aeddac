"""Rank any number of candidates with questions of a limited size.

Knows nothing about how the model was trained, nor about metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bundle_mllm.modeling.pipeline_bundle_mllm import BundleCompletionPipeline

if TYPE_CHECKING:
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

GROUP = 20
"""Candidates per question (ours; the longest list of the paper's evaluation)."""
KEEP = 5
"""Candidates of a group that go on to the next round."""


def rank_candidates(
    model: BundleMLLMForCausalLM,
    processor: BundleMLLMProcessor,
    partial: Sequence[str],
    candidates: Sequence[str],
    *,
    top_k: int = 5,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """Rank candidates for a partial bundle; more than 26 of them by knock-out rounds (ours).

    Up to `GROUP` candidates are one question. More are split into groups, one question each, of which the best `KEEP`
    (or `top_k`, if more) go on, until one question holds all that are left: about `n / 15` questions for `n`
    candidates.

    Args:
        model: The model.
        processor: Its processor.
        partial: Ids of the items that the bundle has so far.
        candidates: Ids to choose from.
        top_k: How many to return.
        batch_size: Questions per forward pass.

    Returns:
        The best candidates as `{"item_id", "title", "letter", "score"}`, best first; the scores are probabilities
        among the candidates of the last question.

    Raises:
        ValueError: An id is unknown, or there are fewer than two candidates.
    """
    completer = BundleCompletionPipeline(model=model, tokenizer=processor.tokenizer, processor=processor)
    keep, left = max(KEEP, top_k), list(candidates)
    group = max(GROUP, min(26, 2 * keep))
    while len(left) > 26:
        num_groups = -(-len(left) // group)
        groups = [left[start::num_groups] for start in range(num_groups)]
        asked = [{"partial": list(partial), "candidates": members} for members in groups]
        ranked = completer(asked, batch_size=batch_size)
        survivors = [[entry["item_id"] for entry in answers[:keep]] for answers in ranked]
        following = [item_id for members in survivors for item_id in members]
        if len(following) >= len(left):
            raise ValueError(f"top_k is {top_k}, too many to rank by questions of {group}: ask for at most 13.")
        left = following
    return completer({"partial": list(partial), "candidates": left})[:top_k]
