"""Ranking in groups: what it costs, and that it finds the order that the scores of groups have in common."""

import random
from itertools import pairwise

import pytest
import torch

from bundle_mllm.modeling.ranking_bundle_mllm import num_prompts, rank_in_groups, round_sizes


def scorer(strengths, noise=0.0, seen=None):
    """Score groups as a model would: strengths, and a constant that every prompt has of its own."""
    rng = random.Random(1)

    def score(groups):
        if seen is not None:
            seen.append(groups)
        answers = []
        for index, members in groups:
            constant = rng.gauss(0, 5)
            answers.append([strengths[index][m] + constant + rng.gauss(0, noise) for m in members])
        return answers

    return score


def shuffled(number, seed=0):
    order = list(range(number))
    random.Random(seed).shuffle(order)
    return [float(value) for value in order]


@pytest.mark.parametrize(("number", "group_size"), [(27, 10), (50, 10), (100, 10), (100, 26), (1000, 10), (7, 3)])
def test_a_ranking_costs_as_many_prompts_as_its_rounds_need(number, group_size):
    seen = []
    rank_in_groups(scorer([shuffled(number)], seen=seen), [number], group_size=group_size)
    assert [sum(len(members) for _, members in groups) for groups in seen] == round_sizes(number, group_size)
    assert sum(map(len, seen)) == num_prompts(number, group_size)
    assert all(2 <= len(members) <= group_size for groups in seen for _, members in groups)


def test_the_cost_of_the_documented_examples():
    assert [num_prompts(n) for n in (50, 100, 1000)] == [9, 18, 154]


@pytest.mark.parametrize("number", [27, 100, 1000])
def test_the_best_candidate_of_consistent_scores_is_found_and_leads_a_distribution(number):
    strengths = shuffled(number)
    (scores,) = rank_in_groups(scorer([strengths]), [number])
    assert scores.index(max(scores)) == strengths.index(max(strengths))
    assert torch.tensor(scores, dtype=torch.float64).exp().sum() == pytest.approx(1)
    best = sorted(range(number), key=strengths.__getitem__)[-5:]
    assert sorted(range(number), key=scores.__getitem__)[-5:] == best


def test_candidates_of_different_groups_are_on_one_scale():
    """Each prompt adds a constant of its own; the fit must take it out of all that are connected."""
    strengths = shuffled(12)
    (scores,) = rank_in_groups(scorer([strengths]), [12], group_size=6)
    order = sorted(range(12), key=strengths.__getitem__)[-6:]
    assert [scores[b] - scores[a] for a, b in pairwise(order)] == pytest.approx([1] * 5, abs=0.02)


def test_rounds_make_a_ranking_robust_to_noise():
    hits = single = 0
    for seed in range(24):
        strengths = shuffled(100, seed)
        strengths[strengths.index(99.0)] = 103.0
        score = scorer([strengths], noise=4)
        answer = strengths.index(103.0)
        (scores,) = rank_in_groups(score, [100], seed=seed)
        hits += scores[answer] == max(scores)
        groups = [(0, list(range(start, 100, 10))) for start in range(10)]
        centered = {}
        for (_, members), row in zip(groups, score(groups), strict=True):
            centered |= {m: value - sum(row) / len(row) for m, value in zip(members, row, strict=True)}
        single += max(centered, key=centered.__getitem__) == answer
    assert hits > single + 3


def test_lists_share_rounds_and_are_ranked_apart():
    lists = [shuffled(40, 1), shuffled(90, 2), shuffled(30, 3)]
    seen = []
    together = rank_in_groups(scorer(lists, seen=seen), [40, 90, 30])
    for strengths, scores in zip(lists, together, strict=True):
        assert scores.index(max(scores)) == strengths.index(max(strengths))
    assert {index for index, _ in seen[0]} == {0, 1, 2}
    assert len(seen) == max(len(round_sizes(n)) for n in (40, 90, 30))


def test_the_groups_depend_on_the_seed_alone():
    runs = []
    for seed in (0, 0, 1):
        seen = []
        rank_in_groups(scorer([shuffled(60)], seen=seen), [60], seed=seed)
        runs.append(seen)
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("group_size", [2, 27])
def test_a_group_size_out_of_range_is_refused(group_size):
    with pytest.raises(ValueError, match=f"group_size is {group_size}"):
        rank_in_groups(scorer([shuffled(60)]), [60], group_size=group_size)
