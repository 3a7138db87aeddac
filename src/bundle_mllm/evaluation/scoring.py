"""Ask a model questions: one forward pass per batch, last hidden state times the letter rows.

Knows nothing about how the model was trained or which metric is wanted.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import ScoredQuestion
from bundle_mllm.modeling.questions_bundle_mllm import check_scores
from bundle_mllm.modeling.ranking_bundle_mllm import GROUP_SIZE, MAX_OPTIONS, rank_in_groups

if TYPE_CHECKING:
    from bundle_mllm.data.questions import Question
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

PROMPTS_AT_ONCE = 4096
"""Prompts of long questions that are tokenized together."""


@torch.inference_mode()
def score_questions(
    model: BundleMLLMForCausalLM,
    processor: BundleMLLMProcessor,
    questions: Sequence[Question],
    *,
    batch_size: int = 32,
    permutations: int = 1,
    max_options: int | None = None,
    group_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[ScoredQuestion]:
    """Score the options of every question.

    Questions are batched by length, so that little is padded; the order of the result is that of `questions`.

    A question with more than `max_options` candidates is ranked in groups (see `rank_in_groups`, which also says what
    that costs), and its `option_logits` are log-probabilities among all candidates. Since no single prompt shows it,
    its free answer is its best candidate.

    Args:
        model: The model; put into evaluation mode for the call and back.
        processor: Its processor.
        questions: Questions over the processor's items.
        batch_size: Prompts per forward pass.
        permutations: How many candidate orders each question is asked in (see [`candidate_orders`]), at as many times
            the cost. With more than one, `option_logits` are the means of each candidate's log-probabilities; the
            free answer is that to the question's own order.
        max_options: Longest list of candidates that is asked in one prompt, 3 to 26; by default the processor's.
        group_size: Most candidates of a group of a longer list; by default 10, or `max_options` if that is less.
        seed: Orders the candidates beyond the first K permutations, and deals the groups.
        progress: Whether to show a progress bar.

    Returns:
        One `ScoredQuestion` per question.

    Raises:
        BundleMLLMError: `permutations`, `batch_size` or `max_options` is out of range.
        ValueError: The group size is out of range, a prompt is too long, an item is unknown or there twice, or a
            score is not finite.
    """
    if permutations < 1:
        raise BundleMLLMError(f"permutations is {permutations}, so nothing would be asked: choose 1 or more.")
    if batch_size < 1:
        raise BundleMLLMError(f"batch_size is {batch_size}, so no prompt would ever be asked: choose 1 or more.")
    max_options = max_options or processor.max_options
    group_size = group_size or min(GROUP_SIZE, max_options)
    if not 3 <= max_options <= MAX_OPTIONS:
        raise BundleMLLMError(
            f"max_options is {max_options}, but options are lettered A to Z: choose 3 to {MAX_OPTIONS}."
        )
    was_training = model.training
    model.eval()
    try:
        asker = _Asker(model, processor, batch_size, progress)
        scored: dict[int, ScoredQuestion] = {}
        short = [i for i, question in enumerate(questions) if len(question.candidates) <= max_options]
        told = _score_short([questions[i] for i in short], asker, permutations, seed)
        scored |= zip(short, told, strict=True)
        long = [i for i in range(len(questions)) if i not in scored]
        for chunk in _chunks(long, [len(questions[i].candidates) for i in long], group_size):
            asked = [questions[i] for i in chunk]
            scored |= zip(chunk, _score_long(asked, asker, permutations, group_size, seed), strict=True)
    finally:
        model.train(was_training)
    return [scored[i] for i in range(len(questions))]


def candidate_orders(num_candidates: int, permutations: int, seed: int, question_id: str) -> list[list[int]]:
    """Return orders to ask a question in, so that what a place adds to a score averages out.

    The first is the question's own. Up to K orders (`num_candidates`) are cyclic shifts by equal steps, which spread
    each candidate evenly over the places; all K put it at each place exactly once, so that anything a place adds to a
    log-probability cancels exactly, which random orders do only on average. Measured on two trained models (150
    questions, 10 candidates), the mean of 2 shifts is nearer to that of 20 orders than the mean of 2 random orders
    (root mean square .55 and .64, 1.16 and 1.32). Beyond K, shifts of a shuffled list follow, another for every K.

    Args:
        num_candidates: K.
        permutations: How many orders.
        seed: Of the shuffled lists.
        question_id: So that every question is shuffled on its own.

    Returns:
        `permutations` lists; `order[place]` is the candidate shown there.
    """
    orders: list[list[int]] = []
    base = list(range(num_candidates))
    rng = random.Random(f"{seed} {question_id}")
    while len(orders) < permutations:
        if orders:
            rng.shuffle(base)
        number = min(num_candidates, permutations - len(orders))
        shifts = [round(step * num_candidates / number) for step in range(number)]
        orders += [base[shift:] + base[:shift] for shift in shifts]
    return orders


def _score_short(questions: list[Question], asker: _Asker, permutations: int, seed: int) -> list[ScoredQuestion]:
    orders = [candidate_orders(len(q.candidates), permutations, seed, q.question_id) for q in questions]
    answers = iter(
        asker(
            [
                _asked(question, order)
                for question, question_orders in zip(questions, orders, strict=True)
                for order in question_orders
            ]
        )
    )
    scored = []
    for question, question_orders in zip(questions, orders, strict=True):
        told = [next(answers) for _ in question_orders]
        own_logits, free_answer = told[0]
        if permutations == 1:
            scored.append(_scored(question, own_logits, free_answer))
            continue
        logs = np.empty((permutations, len(question.candidates)))
        for row, order, (logits, _) in zip(logs, question_orders, told, strict=True):
            row[order] = logits - np.logaddexp.reduce(logits)
        scored.append(_scored(question, logs.mean(axis=0).tolist(), free_answer, logs.tolist()))
    return scored


def _score_long(
    questions: list[Question], asker: _Asker, permutations: int, group_size: int, seed: int
) -> list[ScoredQuestion]:
    def ask(groups: list[tuple[int, list[int]]]) -> list[list[float]]:
        return [logits for logits, _ in asker([_asked(questions[i], members) for i, members in groups])]

    sizes = [len(question.candidates) for question in questions]
    runs = [rank_in_groups(ask, sizes, group_size=group_size, seed=seed + number) for number in range(permutations)]
    scored = []
    for question, logs in zip(questions, zip(*runs, strict=True), strict=True):
        means = np.mean(logs, axis=0)
        scored.append(_scored(question, means.tolist(), int(means.argmax()), logs if permutations > 1 else ()))
    return scored


def _asked(question: Question, order: Sequence[int]) -> dict[str, Any]:
    """Return a question with some of its candidates, in another order."""
    candidates = [question.candidates[i] for i in order]
    return {"question_id": question.question_id, "partial": question.partial, "candidates": candidates}


def _scored(
    question: Question, logits: Sequence[float], free_answer: int | None, orders: Sequence[Sequence[float]] = ()
) -> ScoredQuestion:
    return ScoredQuestion(
        question_id=question.question_id,
        bundle_id=question.bundle_id,
        answer_index=question.answer_index,
        option_logits=tuple(logits),
        free_answer=free_answer,
        orders=tuple(map(tuple, orders)),
    )


def _chunks(indices: list[int], sizes: list[int], group_size: int) -> list[list[int]]:
    """Cut a list of questions so that the prompts of one round are not too many to hold."""
    chunks: list[list[int]] = []
    room = 0
    for index, size in zip(indices, sizes, strict=True):
        cost = -(-size // group_size)
        if cost > room:
            chunks.append([])
            room = max(PROMPTS_AT_ONCE, cost)
        chunks[-1].append(index)
        room -= cost
    return chunks


class _Asker:
    """Answers prompts: the logits of their letters, and the letter that is the most likely token of all, if any."""

    def __init__(self, model: BundleMLLMForCausalLM, processor: BundleMLLMProcessor, batch_size: int, progress: bool):
        self.model, self.processor = model, processor
        self.batch_size, self.progress = batch_size, progress

    def __call__(self, asked: Sequence[Mapping[str, Any]]) -> list[tuple[list[float], int | None]]:
        prompts = self.processor(list(asked))["input_ids"] if asked else []
        order = sorted(range(len(asked)), key=lambda i: len(prompts[i]))
        answers: dict[int, tuple[list[float], int | None]] = {}
        starts = range(0, len(order), self.batch_size)
        for start in tqdm(starts, desc="Scoring", unit="batch", disable=not self.progress or not asked):
            chosen = order[start : start + self.batch_size]
            batch = self.processor.tokenizer.pad(
                {"input_ids": [prompts[i] for i in chosen]}, padding_side="left", return_tensors="pt"
            ).to(self.model.device)
            logits = self.model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1].float()  # [b, vocab]
            free = logits.argmax(dim=-1).tolist()
            for row, i in enumerate(chosen):
                letters = self.processor.answer_token_ids(len(asked[i]["candidates"]))
                valid = letters.index(free[row]) if free[row] in letters else None
                answers[i] = logits[row, letters].tolist(), valid
                check_scores(asked[i], answers[i][0])
        return [answers[i] for i in range(len(asked))]
