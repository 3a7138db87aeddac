"""Ask a model questions: one forward pass per batch, last hidden state times the letter rows.

Knows nothing about how the model was trained or which metric is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from bundle_mllm.evaluation.metrics import ScoredQuestion

if TYPE_CHECKING:
    from bundle_mllm.data.questions import Question
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor


@torch.inference_mode()
def score_questions(
    model: BundleMLLMForCausalLM,
    processor: BundleMLLMProcessor,
    questions: Sequence[Question],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> list[ScoredQuestion]:
    """Score the options of every question.

    Questions are batched by length, so that little is padded; the order of the result is that of `questions`.

    Args:
        model: The model; put into evaluation mode for the call and back.
        processor: Its processor.
        questions: Questions over the processor's items.
        batch_size: Questions per forward pass.
        progress: Whether to show a progress bar.

    Returns:
        One `ScoredQuestion` per question.
    """
    prompts = processor(list(questions))["input_ids"]
    order = sorted(range(len(questions)), key=lambda i: len(prompts[i]))
    scored: dict[int, ScoredQuestion] = {}
    was_training = model.training
    model.eval()
    try:
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc="Scoring", unit="batch", disable=not progress):
            chosen = order[start : start + batch_size]
            batch = processor.tokenizer.pad(
                {"input_ids": [prompts[i] for i in chosen]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            logits = model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1].float()  # [b, vocab]
            free = logits.argmax(dim=-1).tolist()
            for row, i in enumerate(chosen):
                letters = processor.answer_token_ids(len(questions[i].candidates))
                scored[i] = ScoredQuestion(
                    question_id=questions[i].question_id,
                    bundle_id=questions[i].bundle_id,
                    answer_index=questions[i].answer_index,
                    option_logits=tuple(logits[row, letters].tolist()),
                    free_answer=letters.index(free[row]) if free[row] in letters else None,
                )
    finally:
        model.train(was_training)
    return [scored[i] for i in range(len(questions))]
