"""Complete one bundle: the pipeline as a function of a loaded model.

Knows nothing about how the model was trained, nor about metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bundle_mllm.modeling.pipeline_bundle_mllm import BundleCompletionPipeline

if TYPE_CHECKING:
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor


def rank_candidates(
    model: BundleMLLMForCausalLM,
    processor: BundleMLLMProcessor,
    partial: Sequence[str],
    candidates: Sequence[str] | None = None,
    *,
    top_k: int | None = 5,
    group_size: int | None = None,
) -> list[dict[str, Any]]:
    """Rank candidates for a partial bundle; see `BundleCompletionPipeline`, also for lists too long for one prompt.

    Args:
        model: The model.
        processor: Its processor.
        partial: Ids of the items that the bundle has so far.
        candidates: Ids to choose from; the whole catalog except the partial bundle if not given.
        top_k: How many to return; `None` for all.
        group_size: Most candidates of one question of a long list.

    Returns:
        The best candidates as `{"item_id", "title", "letter", "score"}`, best first; the scores are probabilities
        among all candidates, and `letter` is `None` where they did not fit one prompt.

    Raises:
        ValueError: An id is unknown or there twice, there are fewer than two candidates, an option is out of range, or
            a score is not finite.
    """
    completer = BundleCompletionPipeline(model=model, tokenizer=processor.tokenizer, processor=processor)
    given = {"group_size": group_size, "top_k": top_k}
    options = {name: value for name, value in given.items() if value is not None}
    question = {"partial": list(partial), "candidates": None if candidates is None else list(candidates)}
    return completer(question, **options)
