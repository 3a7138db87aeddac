"""Score candidates by the ranker: short lists in one prompt, in several orders if wanted, longer lists in groups.

Knows nothing about the retriever, metrics or devices.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from .prefix_bundle_mllm import LEAST_PROMPTS, last_logits
from .questions_bundle_mllm import check_scores, field
from .ranking_bundle_mllm import rank_in_groups
from .titles_bundle_mllm import pad_right

PROMPTS_AT_ONCE = 4096
"""Prompts of long lists that are tokenized together."""
ITEMS_PER_PROMPT = 10
"""Items that a ranker without letters reads in place of a prompt: the paper's number of options."""


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
class Unanswered:
    """Says why a ranker that runs elsewhere did not answer a question."""

    reason: str


LetterLogits = tuple[torch.Tensor, int | None]
"""Of a prompt: the logits of its letters `[K]`, up to a constant; the letter that is the most likely token, if any."""


@dataclass(frozen=True)
class RankerScorer:
    """Scores candidates by a ranker, batched by length so that little is padded.

    Attributes:
        ranker: A `BundleMLLMForCausalLM` or an adapter of one; or, if it is no module, one that runs elsewhere, whose
            `letter_logits(prompts, processor)` returns `LetterLogits` or `Unanswered` for each prompt.
        processor: Its `BundleMLLMProcessor`.
        batch_size: Prompts per forward pass, or that are sent at once.
        progress: Wraps the batches, for a progress bar.
    """

    ranker: Any
    processor: Any
    batch_size: int
    progress: Callable[[Iterable[int]], Iterable[int]] = iter

    def score(
        self, questions: Sequence[Any], max_options: int, group_size: int, permutations: int = 1, seed: int = 0
    ) -> list[RankerScores | Unanswered]:
        """Score questions of up to `max_options` candidates in one prompt each, and longer ones in groups.

        Raises:
            ValueError: If a prompt is too long, a score is not finite, or a prompt of a group was not answered.
        """
        numbers = [len(field(question, "candidates")) for question in questions]
        short = [i for i, number in enumerate(numbers) if 2 <= number <= max_options]
        long = [i for i, number in enumerate(numbers) if number > max_options]
        found = self.in_one_prompt([questions[i] for i in short], permutations, seed)
        found += self.in_groups([questions[i] for i in long], group_size, permutations, seed)
        scored: list[RankerScores | Unanswered]
        scored = [_certain(permutations)] * len(questions)  # a single candidate, of which no prompt could be asked
        for i, scores in zip(short + long, found, strict=True):
            scored[i] = scores
        return scored

    def in_one_prompt(
        self, questions: Sequence[Any], permutations: int = 1, seed: int = 0
    ) -> list[RankerScores | Unanswered]:
        """Score questions of up to 26 candidates each, in `permutations` orders; see `candidate_orders`."""
        orders = [
            candidate_orders(len(field(q, "candidates")), permutations, seed, str(field(q, "question_id")))
            for q in questions
        ]
        prompts = [select(q, order) for q, of_question in zip(questions, orders, strict=True) for order in of_question]
        answers = iter(self._letter_logits(prompts))
        return [_of_orders(question_orders, answers) for question_orders in orders]

    def in_groups(
        self, questions: Sequence[Any], group_size: int, permutations: int = 1, seed: int = 0
    ) -> list[RankerScores]:
        """Rank questions of any number of candidates by prompts of a few of them; see `rank_in_groups`."""
        scored = []
        for chunk in _chunks(questions, group_size):

            def score(groups: list[tuple[int, list[int]]], chunk: Sequence[Any] = chunk) -> list[list[float]]:
                prompts = [select(chunk[index], members) for index, members in groups]
                lists = [index for index, _ in groups]
                return [_answered(answer)[0].tolist() for answer in self._letter_logits(prompts, lists)]

            sizes = [len(field(question, "candidates")) for question in chunk]
            runs = [rank_in_groups(score, sizes, group_size=group_size, seed=seed + n) for n in range(permutations)]
            for rows in zip(*runs, strict=True):
                table = torch.tensor(rows, dtype=torch.float64)
                mean = table.mean(dim=0)
                scored.append(RankerScores(mean, table, int(mean.argmax())))
        return scored

    @torch.inference_mode()
    def _letter_logits(
        self, prompts: Sequence[dict[str, Any]], lists: Sequence[int] = ()
    ) -> list[LetterLogits | Unanswered]:
        """Return the answer to each prompt; `lists` is the list of each, where prompts are about groups of lists."""
        if not prompts:
            return []
        ranker: Any = self.ranker
        encoded = self.processor(list(prompts))  # refuses prompts that are too long, whoever reads them
        if not isinstance(self.ranker, torch.nn.Module):
            starts = self.progress(range(0, len(prompts), self.batch_size))
            sent = (prompts[start : start + self.batch_size] for start in starts)
            return [answer for chunk in sent for answer in ranker.letter_logits(chunk, self.processor)]
        input_ids, extra_items = encoded["input_ids"], encoded.get("extra_items")
        batches = _batches(list(map(len, input_ids)), lists, self.batch_size)
        answers: dict[int, LetterLogits | Unanswered] = {}
        for number in self.progress(range(len(batches))):
            chosen = batches[number]
            tokens = [input_ids[i] for i in chosen]
            logits = last_logits(ranker, self.processor.tokenizer, tokens, extra_items).float().cpu()
            most_likely = logits.argmax(dim=-1).tolist()
            for row, i in enumerate(chosen):
                letters = self.processor.answer_token_ids(len(prompts[i]["candidates"]))
                letter_logits = logits[row, letters]
                check_scores(prompts[i], letter_logits.tolist())
                answers[i] = letter_logits, letters.index(most_likely[row]) if most_likely[row] in letters else None
        return [answers[i] for i in range(len(prompts))]


def _batches(lengths: Sequence[int], lists: Sequence[int], size: int) -> list[list[int]]:
    """Cut prompts into batches of similar lengths; those of one list, which share their beginning, by themselves."""
    counts = Counter(lists)
    alone = [i if counts[i] >= LEAST_PROMPTS else -1 for i in lists] or [-1] * len(lengths)
    order = sorted(range(len(lengths)), key=lambda i: (alone[i], lengths[i]))
    groups = [list(members) for _, members in groupby(order, key=alone.__getitem__)]
    return [members[start : start + size] for members in groups for start in range(0, len(members), size)]


def _answered(answer: LetterLogits | Unanswered) -> LetterLogits:
    if isinstance(answer, Unanswered):
        raise ValueError(answer.reason)
    return answer


def _of_orders(orders: Sequence[list[int]], answers: Iterator[LetterLogits | Unanswered]) -> RankerScores | Unanswered:
    """Join the answers to one question under several orders of its candidates."""
    table = torch.empty(len(orders), len(orders[0]), dtype=torch.float64)
    choices, failed = [], None
    for number, order in enumerate(orders):
        answer = next(answers)
        if isinstance(answer, Unanswered):
            failed = answer
            continue
        table[number, order] = answer[0].double().log_softmax(dim=-1)
        choices.append(answer[1])
    return failed or RankerScores(table.mean(dim=0), table, choices[0])


@dataclass(frozen=True)
class OptionScorer:
    """Scores candidates by a ranker without letters: each item is read once, and a list may have any length.

    Attributes:
        ranker: A `BundleMLLMForOptionScoring`, or an adapter of one.
        processor: Its `BundleMLLMProcessor`.
        batch_size: So many times `ITEMS_PER_PROMPT` titles are read per forward pass.
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
            scores = self.ranker.compare(states, *indices)[0].double().cpu()
            check_scores(question, scores.tolist())
            logs = scores.log_softmax(dim=-1)
            scored.append(RankerScores(logs, logs[None], int(logs.argmax())))
        return scored

    def _states(self, entries: Sequence[Any]) -> torch.Tensor:
        """Return what the ranker compares of each item, a row each."""
        tokens, extra_items = self.processor.item_tokens(entries)
        words = [self.processor.title_tokens(of_item) for of_item in tokens]
        titles = self.ranker.kept_titles.read(self.ranker, words, ITEMS_PER_PROMPT * self.batch_size, self.progress)
        items = {name: tensor.to(self.ranker.device) for name, tensor in pad_right(tokens).items()}
        return self.ranker.item_states(**items, extra_items=extra_items, titles=titles)


def _certain(permutations: int) -> RankerScores:
    """Return the scores of a question with one candidate."""
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
