"""Masking and permuting what models know of items: really done, only for a while, and only what was named."""

import pytest
import torch
from tiny_models import (
    ITEM_IDS,
    TITLES,
    make_completer,
    make_features,
    make_model,
    make_pairs,
    make_processor,
    make_retriever,
)

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.ablation import ablations, masked, permuted, restored, sources
from bundle_mllm.modeling import BundleCompleter

QUESTION = {"partial": ["i0", "i1"], "candidates": ["i2", "i3", "i4", "i5", "i7"]}
BUNDLES, CATEGORIES = [[0, 1, 2], [3, 4]], [[0, 2], [1, 5, 7]]


@pytest.fixture
def completer():
    return make_completer()


def scores(completer):
    [completion] = completer.score([QUESTION])
    return completion.scores


def same(one, other, parts=("ranker", "retriever", "both")):
    return {part for part in parts if torch.allclose(one[part], other[part], atol=1e-4)}


def state_of(completer):
    tensors = {f"{n} {name}": t.clone() for n, m in enumerate(completer.models) for name, t in m.state_dict().items()}
    return tensors, [model.config.to_dict() for model in completer.models], completer.processor.titles


def assert_unchanged(completer, state):
    tensors, *rest = state_of(completer)
    assert tensors.keys() == state[0].keys() and rest == list(state[1:])
    assert all(torch.equal(tensor, state[0][name]) for name, tensor in tensors.items())


def test_the_sources_are_the_titles_and_the_modalities_of_both_models():
    completer = BundleCompleter(
        make_processor(), make_model(), make_retriever(modalities={"textual": 4, "visual": 12}, groups={})
    )
    assert sources(completer) == ["titles", "textual", "user_item", "visual"]
    assert sources(make_completer(ranker=False)) == ["user_item", "visual"]


def test_each_source_is_dropped_and_each_is_alone():
    assert ablations(("titles", "visual", "user_item")) == {
        "without titles": ("visual", "user_item"),
        "without visual": ("titles", "user_item"),
        "without user_item": ("titles", "visual"),
        "titles alone": ("titles",),
        "visual alone": ("visual",),
        "user_item alone": ("user_item",),
    }


def test_of_two_sources_the_one_that_is_left_is_there_once_and_one_source_cannot_be_dropped():
    assert ablations(("titles", "visual")) == {"visual alone": ("visual",), "titles alone": ("titles",)}
    assert ablations(("titles",)) == {}


@pytest.mark.parametrize("mask", [["visual"], ["user_item"], ["user_item", "visual"]])
def test_a_masked_modality_and_its_groups_are_as_absent_as_if_no_item_ever_had_them(completer, mask):
    whole, before = scores(completer), state_of(completer)
    with masked(completer, mask) as changed:
        found = scores(changed)
    never_had = make_completer()
    features = {name: torch.full_like(m, 9.0) if name in mask else m for name, m in make_features().items()}
    present = {name: torch.tensor([name not in mask] * 8) for name in features}
    groups = {"textual": make_pairs([[0, 7], [1, 2, 5]]), "user_item": make_pairs([[0, 1, 2], [2, 3], [4, 7, 0]])}
    groups = {name: pairs for name, pairs in groups.items() if name not in mask}
    never_had.set_catalog(ITEM_IDS, TITLES, features, present, groups)
    assert same(found, scores(never_had)) == {"ranker", "retriever", "both"}
    assert same(found, whole) == set()
    assert_unchanged(completer, before)


def test_groups_of_bundles_and_of_categories_are_hidden_with_the_features_of_bundles():
    def make(bundles=BUNDLES, categories=CATEGORIES):
        groups = {"bundle_category": categories, "bundle_item": bundles, "textual": [[0, 7]]}
        retriever = make_retriever(modalities={"bundle_item": 6, "visual": 12}, groups=groups)
        return BundleCompleter(make_processor(), retriever=retriever)

    completer, without = make(), make(bundles=[], categories=[])
    rows = without.retriever.catalog_rows()
    present = rows["present"] | {"bundle_item": torch.zeros(8, dtype=torch.bool)}
    without.retriever.set_catalog(rows["features"], present, rows["memberships"])
    with masked(completer, ["bundle_item"]) as changed:
        assert same(scores(changed), scores(without), ["retriever"]) == {"retriever"}
    assert same(scores(completer), scores(without), ["retriever"]) == set()


def test_a_hidden_title_is_in_no_prompt_and_concerns_the_ranker_alone(completer):
    whole, before = scores(completer), state_of(completer)
    with masked(completer, ["titles"]) as changed:
        prompt = changed.processor.render(QUESTION)
        assert same(scores(changed), whole) == {"retriever"}
    assert "jeans" not in prompt and "<|item_1|>" in prompt
    assert prompt.startswith("Which item completes the bundle?")
    assert "jeans" in completer.processor.render(QUESTION)
    assert_unchanged(completer, before)


def test_permuting_gives_items_features_masks_and_groups_of_one_other_item_in_both_models():
    completer = make_completer(present={"user_item": torch.arange(8) != 3})
    completer.ranker.set_catalog(make_features(), {"user_item": torch.arange(8) != 3})
    features, before = make_features(), state_of(completer)
    degrees = completer.retriever.groups["user_item"].degree(torch.arange(8))
    with permuted(completer, ["user_item"], seed=1) as changed:
        for model in changed.models:
            rows = model.catalog_rows()
            assert torch.equal(rows["features"]["visual"], features["visual"])
            moved = rows["features"]["user_item"]
            given = [[torch.equal(new, old) for old in features["user_item"]] for new in moved]
            order = [row.index(True) if any(row) else 3 for row in given]  # the absent item's features are zeros
            assert sorted(order) == list(range(8)) and order != list(range(8))
            assert [row for row in range(8) if not rows["present"]["user_item"][row]] == [order.index(3)]
            if model is changed.retriever:
                assert torch.equal(model.groups["user_item"].degree(torch.arange(8)), degrees[order])
                assert torch.equal(model.groups["textual"].sizes, before[0]["1 groups.textual.sizes"])
        ranker, retriever = (model.catalog_rows()["features"]["user_item"] for model in changed.models)
        assert torch.equal(ranker, retriever)
    assert_unchanged(completer, before)


def test_all_modalities_are_permuted_unless_some_are_named(completer):
    whole = scores(completer)
    with permuted(completer, seed=1) as changed:
        every = scores(changed)
    with permuted(completer, ["user_item", "visual"], seed=1) as changed:
        named = scores(changed)
    with permuted(completer, seed=2) as changed:
        other = scores(changed)
    assert same(every, named) == {"ranker", "retriever", "both"}
    assert same(every, whole) == same(every, other) == set()


def test_catalogs_are_put_back_even_after_an_error(completer):
    before = state_of(completer)
    for block in (permuted(completer, seed=3), masked(completer, ["visual"]), restored(completer)):
        with pytest.raises(KeyError), block:
            completer.models[-1].set_catalog(make_features(seed=9, num_items=3))
            raise KeyError
        assert_unchanged(completer, before)


def test_what_is_unknown_is_refused(completer):
    with (
        pytest.raises(BundleMLLMError, match=r"\['smell'\] cannot be hidden.*'titles', 'user_item', 'visual'"),
        masked(completer, ["smell"]),
    ):
        pass
    with (
        pytest.raises(BundleMLLMError, match=r"\['titles'\] cannot be permuted.*'user_item', 'visual'"),
        permuted(completer, ["titles"], seed=0),
    ):
        pass
