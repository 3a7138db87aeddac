"""What the sources contributed to an answer: Shapley values, against the definition on masked catalogs, and sums."""

import math
from itertools import permutations

import pytest
import torch
from tiny_models import make_completer, make_features, make_pairs, make_retriever

from bundle_mllm.completion.complete import RuledCompleter
from bundle_mllm.completion.contributions import shapley_values
from bundle_mllm.modeling import BundleCombination

HAT = {"title": "new hat", "features": {"visual": [0.5] * 12}}
MODALITIES = {"textual": 5, "visual": 12, "user_item": 6, "smell": 3}
GROUPS = {
    "textual": [[0, 7], [1, 2, 5]],
    "user_item": [[0, 1, 2], [2, 3], [4, 7, 0]],
    "bundle_item": [[0, 5], [1, 6]],
    "bundle_category": [[0, 3], [5, 6]],
}
SOURCES = {
    "title": ("textual",),
    "picture": ("visual",),
    "users": ("user_item",),
    "bundles": ("bundle_item", "bundle_category"),
    "smell": ("smell",),
}
QUESTIONS = [
    {"partial": ["i3"], "candidates": ["i5", "i2", "i7", "i4"]},
    {"partial": ["i0", HAT], "candidates": ["i1", {**HAT, "title": "another hat"}, "i6"]},
    {"partial": ["i0", "i1"]},
]


def make_masked(known):
    """The retriever over a catalog without the features and groups of all sources but the known ones."""
    present = {name: torch.full((8,), name in known) for name in MODALITIES}
    model = make_retriever(make_features(modalities=MODALITIES), None, GROUPS, MODALITIES)
    groups = {name: make_pairs(rows) for name, rows in GROUPS.items() if name in known}
    model.set_catalog(make_features(modalities=MODALITIES), present, groups)
    return model


def test_each_source_has_the_mean_of_what_it_adds_over_all_orders():
    partial, options = torch.tensor([[0, 4]]), torch.tensor([[5, 2, 7, 6, 1]])
    scores = {}
    for order in permutations(SOURCES):
        for number in range(len(order) + 1):
            known = frozenset(order[:number])
            if known not in scores:
                model = make_masked({name for source in known for name in SOURCES[source]})
                scores[known] = model(partial, options).scores[0].detach().double()
    expected = {source: torch.zeros(5, dtype=torch.float64) for source in SOURCES}
    for order in permutations(SOURCES):
        for number, source in enumerate(order):
            gain = scores[frozenset(order[: number + 1])] - scores[frozenset(order[:number])]
            expected[source] += gain / math.factorial(len(SOURCES))
    model = make_retriever(make_features(modalities=MODALITIES), None, GROUPS, MODALITIES)
    found = shapley_values(model, partial, options)
    assert list(found) == list(SOURCES)
    for source, values in expected.items():
        torch.testing.assert_close(found[source], values, atol=1e-5, rtol=0)
    assert all(values.abs().max() > 0.01 for values in found.values())


@pytest.mark.parametrize("parts", [(True, True), (False, True), (True, False)], ids=["both", "retriever", "ranker"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_sums_differ_by_the_logarithm_of_the_ratio_of_two_scores(parts, question):
    combination = BundleCombination(ranker_weight=0.6, temperature=1.7) if all(parts) else None
    completer = RuledCompleter(make_completer(*parts, combination=combination))
    [answers] = completer.complete([question], top_k=4, explain=True)
    sums = [sum(item["explanation"]["contributions"].values()) for item in answers.items]
    logs = [math.log(item["score"]) for item in answers.items]
    assert len(sums) > 1
    for one, log in zip(sums[1:], logs[1:], strict=True):
        assert one - sums[0] == pytest.approx(log - logs[0], abs=1e-4)


def test_the_llm_contributes_nothing_where_it_guesses_and_is_left_out_where_it_was_not_shown():
    completer = make_completer()
    completer.combination = BundleCombination(num_ranked=2).bind(completer.ranker, completer.retriever)
    [answers] = RuledCompleter(completer).complete([{"partial": ["i0"]}], top_k=7, explain=True)
    explained = [item["explanation"] for item in answers.items]
    assert sum("ranker" in each for each in explained) == 2
    for each in explained:
        assert ("LLM" in each["contributions"]) == ("ranker" in each)
        if "ranker" in each:
            assert each["contributions"]["LLM"] == pytest.approx(math.log(each["ranker"]) - math.log(1 / 2), abs=1e-5)


def test_a_source_that_says_nothing_about_question_and_answer_contributes_exactly_nothing():
    present = {"visual": torch.tensor([True] * 8), "user_item": torch.tensor([False] * 8)}
    model = make_retriever(present=present, groups={"textual": [[0, 7]]})
    values = shapley_values(model, torch.tensor([[0]]), torch.tensor([[7, 2]]))
    assert values["users"].tolist() == [0.0, 0.0]
    assert values["title"][0] != 0 and values["title"][1] == 0  # item 7 shares a word, item 2 does not
