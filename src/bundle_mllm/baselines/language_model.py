"""Score questions by a stock language model, zero-shot, from titles alone.

Knows nothing about bundles of any split: nothing is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundle_mllm.baselines.base import UnavailableError
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.questions import Question
from bundle_mllm.device import choose_device
from bundle_mllm.evaluation.metrics import ScoredQuestion
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.training.backbone import load_backbone, wrap_backbone


def score_by_language_model(
    name: str,
    catalog: ItemCatalog,
    questions: Sequence[Question],
    *,
    device: str | None = None,
    **options: Any,
) -> list[ScoredQuestion]:
    """Score questions by the letters' logits of a causal language model that was not trained on bundles.

    The prompts are those of stage one: titles only, in the model's own chat template if it has one, one forward pass
    per question.

    Args:
        name: Hub name or folder of a model that `AutoModelForCausalLM` loads.
        catalog: The items.
        questions: The questions.
        device: Where it runs; by default the GPU if there is one.
        **options: Of `score_questions`.

    Returns:
        The scored questions, with log-probabilities up to a constant.

    Raises:
        UnavailableError: If the items have no titles.
        BundleMLLMError: If the model cannot be loaded.
    """
    if not any(catalog.titles):
        raise UnavailableError("The items have no titles, so the prompts would be empty", "give `title` to items")
    model, processor = wrap_backbone(*load_backbone(name), catalog, {})
    processor.show_items = False
    model.to(choose_device(device))  # pyright: ignore[reportArgumentType]  # the stub lacks `self`
    return score_questions(model, processor, questions, **options)
