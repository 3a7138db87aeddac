"""Ask a stock language model, zero-shot, from titles alone.

It must not know bundles of any split: nothing is fitted.
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

    It is asked as a model of stage one is: titles only, in its own chat template if it has one, one forward pass per
    question; its free answer is its most likely next token of all.

    Args:
        name: Hub name or folder of a model that `AutoModelForCausalLM` loads.
        catalog: The items.
        questions: The questions.
        device: Where it runs; the GPU if there is one, unless told otherwise.
        **options: Of `score_questions`.

    Returns:
        What it said, with log-probabilities up to a constant.

    Raises:
        UnavailableError: The items have no titles.
        BundleMLLMError: The model cannot be loaded.
    """
    if not any(catalog.titles):
        raise UnavailableError("The items have no titles, which is all that a language model is told: leave it out.")
    model, processor = wrap_backbone(*load_backbone(name), catalog, {})
    processor.show_items = False
    model.to(choose_device(device))
    return score_questions(model, processor, questions, **options)
