"""Score questions by a stock language model, zero-shot, from titles alone.

Knows nothing about bundles of any split: nothing is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence

from bundle_mllm.baselines.base import UnavailableError
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.questions import Question
from bundle_mllm.device import choose_device
from bundle_mllm.evaluation.metrics import ScoredQuestion
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.evaluation.settings import ScoringOptions
from bundle_mllm.modeling.ranking_bundle_mllm import GROUP_SIZE
from bundle_mllm.training.backbone import load_backbone, wrap_backbone


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
    model.to(choose_device(options.device))  # pyright: ignore[reportArgumentType]  # the stub lacks `self`
    max_options = options.max_options or processor.max_options
    resolved = {
        "permutations": options.permutations,
        "max_options": max_options,
        "group_size": options.group_size or min(GROUP_SIZE, max_options),
        "seed": options.seed,
    }
    return score_questions(
        model, processor, questions, batch_size=options.batch_size, progress=True, **resolved
    ), resolved
