"""Rank lists that are too long for one prompt: groups of candidates, scored in rounds, on one common scale.

Knows nothing about prompts, models or devices: a function scores the groups.
"""

import random
from collections.abc import Callable, Generator, Sequence

import torch

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_OPTIONS = len(LETTERS)
"""Longest list that fits one prompt: its options are lettered A to Z."""
GROUP_SIZE = 10
"""Candidates of one group: the paper's number of options, which the default recipes train on."""
KEEP = 1 / 3
"""Share of the candidates that go on to the next round."""
FINAL_ORDERS = 2
"""How often the last group is scored, each time in another order."""

MAX_STEPS, TOLERANCE = 500, 1e-3  # of the fit; 100 steps are usual for 1,000 candidates


def round_sizes(num_candidates: int, group_size: int = GROUP_SIZE) -> list[int]:
    """Return how many candidates take part in each round of a ranking.

    A round of `n` candidates costs `ceil(n / group_size)` prompts, each a row of a forward pass; all rounds together
    about `1.5 * num_candidates / group_size + 3` of them.

    Raises:
        ValueError: If the group size is not 3 to 26.
    """
    if not 3 <= group_size <= MAX_OPTIONS:
        raise ValueError(
            f"group_size is {group_size}, but a group is a prompt of lettered options: give 3 to {MAX_OPTIONS}."
        )
    sizes = [num_candidates]
    while sizes[-1] > group_size:
        sizes.append(max(group_size, round(KEEP * sizes[-1])))
    return sizes + sizes[-1:] * (FINAL_ORDERS - 1)


def num_prompts(num_candidates: int, group_size: int = GROUP_SIZE) -> int:
    """Return how many prompts a ranking needs: 18 for 100 candidates in groups of 10, 154 for 1,000."""
    return sum(-(-size // group_size) for size in round_sizes(num_candidates, group_size))


def rank_in_groups(
    score: Callable[[list[tuple[int, list[int]]]], Sequence[Sequence[float]]],
    num_candidates: Sequence[int],
    *,
    group_size: int = GROUP_SIZE,
    seed: int = 0,
) -> list[list[float]]:
    """Rank long lists by prompts of few options (ours).

    In each round the candidates that are left are shuffled and dealt into groups of equal size, and each group is one
    prompt. The logit of a candidate is modeled as its strength plus a constant of its prompt; least squares over all
    prompts so far separates the two, since every round mixes the groups anew. The strongest third goes on, until one
    group is left, which is scored twice, in two orders. So most prompts go to the candidates that may win, and every
    candidate has a strength on one scale.

    Args:
        score: Scores groups: given `(list, candidates)` pairs, the positions of lists in `num_candidates` and of
            candidates in their lists, it returns one logit per candidate of each.
        num_candidates: How many candidates each list has; the rounds of all lists run together.
        group_size: Most candidates of a group, 3 to 26; see `round_sizes` for what a ranking costs.
        seed: Orders the candidates; the same seed gives the same groups.

    Returns:
        For each list one log-probability per candidate: the softmax of the strengths.
    """
    rankings = [_rank(number, group_size, random.Random(seed)) for number in num_candidates]
    groups = [next(ranking) for ranking in rankings]
    results: list[list[float]] = [[] for _ in rankings]
    while any(groups):
        logits = iter(score([(index, group) for index, members in enumerate(groups) for group in members]))
        for index, members in enumerate(groups):
            if members:
                try:
                    groups[index] = rankings[index].send([next(logits) for _ in members])
                except StopIteration as finished:
                    groups[index], results[index] = [], finished.value
    return results


def _rank(
    number: int, group_size: int, rng: random.Random
) -> Generator[list[list[int]], list[Sequence[float]], list[float]]:
    """Yield the groups of each round, take their logits, and return the log-probabilities."""
    left = list(range(number))
    scored: list[list[int]] = []
    logits: list[Sequence[float]] = []
    strengths = torch.zeros(number, dtype=torch.float64)
    for size in round_sizes(number, group_size):
        left = sorted(left, key=strengths.tolist().__getitem__, reverse=True)[:size]
        rng.shuffle(left)
        num_groups = -(-size // group_size)
        groups = [left[start::num_groups] for start in range(num_groups)]
        scored += groups
        logits += yield groups
        strengths = _fit(number, scored, logits)
    return strengths.log_softmax(dim=0).tolist()


def _fit(number: int, scored: list[list[int]], logits: list[Sequence[float]]) -> torch.Tensor:
    """Fit logit = strength of the candidate + constant of the question, by least squares (alternating means)."""
    members = torch.tensor([member for group in scored for member in group])
    question = torch.repeat_interleave(torch.arange(len(scored)), torch.tensor([len(group) for group in scored]))
    values = torch.tensor([value for group in logits for value in group], dtype=torch.float64)
    strengths = torch.zeros(number, dtype=torch.float64)

    def mean(index: torch.Tensor, size: int, terms: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(size, dtype=torch.float64).index_add_(0, index, terms)
        return total / torch.bincount(index, minlength=size).clamp(min=1)

    for _ in range(MAX_STEPS):
        constants = mean(question, len(scored), values - strengths[members])
        before, strengths = strengths, mean(members, number, values - constants[question])
        if (strengths - before).abs().max() < TOLERANCE:
            break
    return strengths
