"""Score candidates by the ranker: short lists in one prompt, in several orders if wanted, longer lists in groups.

Knows nothing about the retriever, metrics or devices.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .questions_bundle_mllm import check_scores, field
from .ranking_bundle_mllm import rank_in_groups

PROMPTS_AT_ONCE = 4096
"""Prompts of long lists that are tokenized together."""


@dataclass(frozen=True)
class RankerScores:
    """What the ranker answers to one question.

    Attributes:
        log_probabilities: `[num_candidates]` float64, among the candidates, in the order of the question; with several
            orders their mean (not normalized again).
        orders: `[num_orders, num_candidates]`, the same under each order.
        unrestricted_choice: The candidate whose letter is the most likely token of the whole vocabulary after the
            question in its own order; `None` if no letter is. For a list that was ranked in groups the best candidate.
    """

    log_probabilities: torch.Tensor
    orders: torch.Tensor
    unrestricted_choice: int | None


@dataclass(frozen=True)
class RankerScorer:
    """Scores candidates by a ranker, batched by length so that little is padded.

    Attributes:
        ranker: A `BundleMLLMForCausalLM`, or an adapter of one.
        processor: Its `BundleMLLMProcessor`.
        batch_size: Prompts per forward pass.
        progress: Wraps the batches, for a progress bar.
    """

    ranker: Any
    processor: Any
    batch_size: int
    progress: Callable[[Iterable[int]], Iterable[int]] = iter

    def in_one_prompt(self, questions: Sequence[Any], permutations: int = 1, seed: int = 0) -> list[RankerScores]:
        """Score questions of up to 26 candidates each, in `permutations` orders; see `candidate_orders`."""
        orders = [
            candidate_orders(len(field(q, "candidates")), permutations, seed, str(field(q, "question_id")))
            for q in questions
        ]
        prompts = [select(q, order) for q, of_question in zip(questions, orders, strict=True) for order in of_question]
        answers = iter(self._letter_logits(prompts))
        scored = []
        for question_orders in orders:
            table = torch.empty(len(question_orders), len(question_orders[0]), dtype=torch.float64)
            choices = []
            for number, order in enumerate(question_orders):
                logits, choice = next(answers)
                table[number, order] = logits.double().log_softmax(dim=-1)
                choices.append(choice)
            scored.append(RankerScores(table.mean(dim=0), table, choices[0]))
        return scored

    def in_groups(
        self, questions: Sequence[Any], group_size: int, permutations: int = 1, seed: int = 0
    ) -> list[RankerScores]:
        """Rank questions of any number of candidates by prompts of a few of them; see `rank_in_groups`."""
        scored = []
        for chunk in _chunks(questions, group_size):

            def score(groups: list[tuple[int, list[int]]], chunk: Sequence[Any] = chunk) -> list[list[float]]:
                prompts = [select(chunk[index], members) for index, members in groups]
                return [logits.tolist() for logits, _ in self._letter_logits(prompts)]

            sizes = [len(field(question, "candidates")) for question in chunk]
            runs = [rank_in_groups(score, sizes, group_size=group_size, seed=seed + n) for n in range(permutations)]
            for rows in zip(*runs, strict=True):
                table = torch.tensor(rows, dtype=torch.float64)
                mean = table.mean(dim=0)
                scored.append(RankerScores(mean, table, int(mean.argmax())))
        return scored

    @torch.inference_mode()
    def _letter_logits(self, prompts: Sequence[dict[str, Any]]) -> list[tuple[torch.Tensor, int | None]]:
        """Return the letters' logits of each prompt `[K]`, and the letter that is the most likely token, if any."""
        if not prompts:
            return []
        encoded = self.processor(list(prompts))
        input_ids, extra_items = encoded["input_ids"], encoded.get("extra_items")
        order = sorted(range(len(prompts)), key=lambda i: len(input_ids[i]))
        answers: dict[int, tuple[torch.Tensor, int | None]] = {}
        for start in self.progress(range(0, len(order), self.batch_size)):
            chosen = order[start : start + self.batch_size]
            batch = self.processor.tokenizer.pad({"input_ids": [input_ids[i] for i in chosen]}, return_tensors="pt")
            inputs = {name: tensor.to(self.ranker.device) for name, tensor in batch.items()}
            logits = self.ranker.last_logits(**inputs, extra_items=extra_items).float().cpu()  # [batch, vocab_size]
            most_likely = logits.argmax(dim=-1).tolist()
            for row, i in enumerate(chosen):
                letters = self.processor.answer_token_ids(len(prompts[i]["candidates"]))
                letter_logits = logits[row, letters]
                check_scores(prompts[i], letter_logits.tolist())
                answers[i] = letter_logits, letters.index(most_likely[row]) if most_likely[row] in letters else None
        return [answers[i] for i in range(len(prompts))]


@dataclass(frozen=True)
class OptionScorer:
    """Scores candidates by a ranker without letters: each item is read once, and a list may have any length.

    Attributes:
        ranker: A `BundleMLLMForOptionScoring`, or an adapter of one.
        processor: Its `BundleMLLMProcessor`.
        batch_size: A prompt's worth of items: so many times ten items are read per forward pass.
        progress: Wraps the batches, for a progress bar.
    """

    ranker: Any
    processor: Any
    batch_size: int
    progress: Callable[[Iterable[int]], Iterable[int]] = iter

    @torch.inference_mode()
    def score(self, questions: Sequence[Any]) -> list[RankerScores]:
        """Score the candidates of each question; their order has no effect."""
        entries: dict[Any, tuple[int, Any]] = {}  # of each different item: its number, and the item

        def numbers(items: Sequence[Any]) -> list[int]:
            keys = [item if isinstance(item, str) else id(item) for item in items]
            return [entries.setdefault(key, (len(entries), i))[0] for key, i in zip(keys, items, strict=True)]

        lists = [(numbers(field(q, "partial")), numbers(field(q, "candidates"))) for q in questions]
        states = self._states([item for _, item in entries.values()])
        scored = []
        for question, (partial, candidates) in zip(questions, lists, strict=True):
            indices = (torch.tensor([each], device=states.device) for each in (partial, candidates))
            scores = self.ranker.matching(states, *indices)[0].double().cpu()
            check_scores(question, scores.tolist())
            logs = scores.log_softmax(dim=-1)
            scored.append(RankerScores(logs, logs[None], int(logs.argmax())))
        return scored

    def _states(self, entries: Sequence[Any]) -> torch.Tensor:
        """Return the state of each item, `[n, hidden_size]`."""
        tokens, extra_items = self.processor.item_tokens(entries)
        order, size = sorted(range(len(tokens)), key=lambda i: len(tokens[i])), 10 * self.batch_size
        states: list[torch.Tensor] = []
        for start in self.progress(range(0, len(order), size)):
            batch = pad_right([tokens[i] for i in order[start : start + size]])
            inputs = {name: tensor.to(self.ranker.device) for name, tensor in batch.items()}
            states.append(self.ranker.item_states(**inputs, extra_items=extra_items))
        return torch.cat(states)[torch.tensor(order).argsort().to(self.ranker.device)]


def pad_right(tokens: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask` `[n, length]` of lists of tokens, padded on the right by token 0."""
    length = max(map(len, tokens))
    return {
        "input_ids": torch.tensor([[*each, *[0] * (length - len(each))] for each in tokens]),
        "attention_mask": torch.tensor([[1] * len(each) + [0] * (length - len(each)) for each in tokens]),
    }


def certain(permutations: int) -> RankerScores:
    """Return the scores of a question with one candidate, of which no prompt could be asked."""
    return RankerScores(torch.zeros(1, dtype=torch.float64), torch.zeros(permutations, 1, dtype=torch.float64), 0)


def candidate_orders(num_candidates: int, permutations: int, seed: int, question_id: str) -> list[list[int]]:
    """Return orders of the candidates of a question, so that the effect of a position averages out.

    The first is the question's own. Up to K orders (`num_candidates`) are cyclic shifts by equal steps, which spread
    each candidate evenly over the positions; all K put it at each position exactly once, so that anything a position
    adds to a log-probability cancels exactly, which random orders do only on average. Measured on two trained models
    (150 questions, 10 candidates), the mean of 2 shifts is nearer to that of 20 orders than the mean of 2 random
    orders (root mean square .55 and .64, 1.16 and 1.32). Beyond K, shifts of a shuffled list follow, another for every
    K and, by `question_id`, for every question.

    Returns:
        `permutations` lists; `order[position]` is the candidate at that position.
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


def select(question: Any, order: Sequence[int]) -> dict[str, Any]:
    """Return a question with some of its candidates, in another order."""
    fields = {name: field(question, name) for name in ("question_id", "partial", "candidates")}
    return {**fields, "candidates": [fields["candidates"][i] for i in order]}


def _chunks(questions: Sequence[Any], group_size: int) -> list[list[Any]]:
    """Cut a list of questions so that the prompts of one round are not too many to hold."""
    chunks: list[list[Any]] = []
    room = 0
    for question in questions:
        cost = -(-len(field(question, "candidates")) // group_size)
        if cost > room:
            chunks.append([])
            room = max(PROMPTS_AT_ONCE, cost)
        chunks[-1].append(question)
        room -= cost
    return chunks
