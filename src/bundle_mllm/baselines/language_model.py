"""Score questions by a stock language model, zero-shot, from titles alone.

Knows nothing about bundles of any split: nothing is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence

from bundle_mllm.baselines.base import UnavailableError
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.questions import Question
from bundle_mllm.device import choose_device
from bundle_mllm.evaluation.evaluate import resolved
from bundle_mllm.evaluation.metrics import ScoredQuestion
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.evaluation.settings import ScoringOptions
from bundle_mllm.interop.backbone import load_backbone, wrap_backbone
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter


def score_by_language_model(
    name: str, catalog: ItemCatalog, questions: Sequence[Question], options: ScoringOptions
) -> tuple[list[ScoredQuestion], dict[str, int]]:
    """Score questions by the letters' logits of a causal language model that was not trained on bundles.

    The prompts are those of stage one: titles only, in the model's own chat template if it has one, one forward pass
    per question.

    Args:
        name: Hub name or folder of a model that `AutoModelForCausalLM` loads.
        catalog: The items.
        questions: The questions.
        options: How candidates are scored, and where.

    Returns:
        The scored questions, and the options that decide the scores, with the values of defaults.

    Raises:
        UnavailableError: If the items have no titles.
        BundleMLLMError: If the model cannot be loaded.
    """
    if not any(catalog.titles):
        raise UnavailableError("The items have no titles, so the prompts would be empty", "give `title` to items")
    model, processor = wrap_backbone(*load_backbone(name), catalog, {})
    processor.show_items = False
    completer = BundleCompleter(processor, ranker=model).to(choose_device(options.device))
    scored = score_questions(completer, questions, options, progress=True)["ranker"]
    return scored, resolved(options, completer)
