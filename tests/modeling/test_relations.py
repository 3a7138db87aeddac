"""Relations: what the matching counts of shared groups, exactly, and that the groups travel with the catalog."""

import math

import pytest
import torch
from tiny_models import MODALITIES, make_features, make_model, make_processor

from bundle_mllm.evaluation.ablation import only, shuffled
from bundle_mllm.model_folder import load_model, save_model
from bundle_mllm.modeling import BundleMLLMConfig
from bundle_mllm.modeling.items_bundle_mllm import BundleMLLMRelation

RELATION = sorted(MODALITIES)[0]
GROUPS = [{0, 1, 2}, {1, 2}, {0, 5}, {3}, {2, 4, 5, 6}, {1, 2}]
QUESTIONS = [([0, 5], [2, 3, 1]), ([4], [6, 0, 5, 7, 1])]  # partial bundle and options, as rows


def pairs(groups=GROUPS):
    edges = [(row, number) for number, items in enumerate(groups) for row in sorted(items)]
    return tuple(torch.tensor(edges).T)


def make_pair(**fields):
    processor = make_processor(marks_options=True, max_length=512)
    model = make_model(
        separator_token_id=processor.separator_token_id,
        standardize_features=True,
        matching_hidden_size=8,
        relations={RELATION: 0},
        **processor.matching_fields(),
    )
    present = {name: torch.ones(8, dtype=torch.bool) for name in MODALITIES} | fields
    model.set_catalog(make_features(), present, fit_statistics=True, relations={RELATION: pairs()})
    return model.eval(), processor


def places(questions=QUESTIONS):
    shown = [(number, row) for number, (partial, _) in enumerate(questions) for row in partial]
    options = [(number, row) for number, (_, candidates) in enumerate(questions) for row in candidates]
    rows = torch.arange(8)
    of_shown, shown = torch.tensor(shown).T
    of_option, options = torch.tensor(options).T
    return rows, shown, options, of_shown, of_option


def by_hand(groups, questions=QUESTIONS):
    """The formulas of `compare`, over Python sets."""
    of = {row: [number for number, items in enumerate(groups) if row in items] for row in range(8)}
    table = []
    for partial, candidates in questions:
        for option in candidates:
            like = [
                sum(len(groups[g]) ** -0.5 for g in of[p] if g in of[option])
                / math.sqrt(max(1, len(of[p])) * max(1, len(of[option])))
                for p in partial
            ]
            most = max((sum(p in groups[g] for p in partial) / len(partial) for g in of[option]), default=0.0)
            table.append([math.log1p(len(of[option])), sum(like) / len(partial), most, math.log(len(partial))])
    return torch.tensor(table)


@torch.no_grad()
def test_shared_groups_are_counted_as_the_formulas_say():
    model, _ = make_pair()
    rows, *where = places()
    present = torch.ones(8, len(MODALITIES), dtype=torch.bool)
    found = model.model.compare(rows, present, *where)
    assert torch.allclose(found, by_hand(GROUPS), atol=1e-6)
    assert (found[:, 1] > 0).any() and (found[:, 1] == 0).any()
    present[2, 0] = False  # an item without the modality is in no group
    assert torch.allclose(model.model.compare(rows, present, *where)[0, :3], torch.zeros(3), atol=1e-6)


@torch.no_grad()
def test_nothing_is_shared_where_no_item_is_in_a_group():
    model, _ = make_pair()
    model.set_catalog(make_features())  # new rows, of which no group is known
    assert model.config.relations == {RELATION: 0}
    rows, *where = places()
    found = model.model.compare(rows, torch.ones(8, len(MODALITIES), dtype=torch.bool), *where)
    assert not found[:, :3].any()


@torch.no_grad()
def test_the_answer_depends_on_the_groups():
    model, processor = make_pair()
    asked = processor({"partial": ["i0"], "candidates": ["i1", "i3"]}, return_tensors="pt")
    before = model.last_logits(**asked)
    others = [*GROUPS, {0, 3}]
    features, present = make_features(), {name: torch.ones(8, dtype=torch.bool) for name in MODALITIES}
    model.set_catalog(features, present, relations={RELATION: pairs(others)})
    assert not torch.allclose(model.last_logits(**asked), before)
    model.set_catalog(features, present, relations={RELATION: pairs()})
    assert torch.equal(model.last_logits(**asked), before)


@torch.no_grad()
def test_the_groups_are_saved_and_an_item_of_a_call_has_none(tmp_path):
    model, processor = make_pair()
    save_model(model, processor, tmp_path)
    loaded, reader = load_model(tmp_path)
    assert loaded.config.relations == {RELATION: sum(map(len, GROUPS))}
    question = {"partial": ["i0"], "candidates": ["i1", "i3"]}
    expected = model.last_logits(**processor(question, return_tensors="pt"))
    assert torch.equal(loaded.last_logits(**reader(question, return_tensors="pt")), expected)
    features = {name: model.model.catalog.features[name][7].tolist() for name in MODALITIES}  # i7 is in no group
    new = {"partial": ["i0"], "candidates": ["i1", {"title": "red sandals", "features": features}]}
    known = {"partial": ["i0"], "candidates": ["i1", "i7"]}
    asked = [reader(question, return_tensors="pt") for question in (known, new)]
    letters = torch.tensor(reader.answer_token_ids(2))
    differences = [loaded.option_logits(**inputs, option_token_ids=letters) for inputs in asked]
    matching, loaded.model.matching = loaded.model.matching, None
    plain = [loaded.option_logits(**inputs, option_token_ids=letters) for inputs in asked]
    loaded.model.matching = matching
    spoken = [d - 0.25 * p for d, p in zip(differences, plain, strict=True)]
    assert torch.allclose(*spoken, atol=1e-4)


@torch.no_grad()
def test_hiding_a_modality_hides_its_groups_and_shuffling_moves_them_with_the_features():
    model, processor = make_pair()
    rows, *where = places()

    def compared():
        return model.model.compare(rows, model.model.catalog.gather(rows)[1], *where)

    before = compared()
    with only(model, processor, [name for name in MODALITIES if name != RELATION]):
        assert not compared()[:, :3].any()
    with shuffled(model, processor, seed=0):
        moved = {int(row): int(i) for i, row in enumerate(_order(model))}
        expected = [{moved[row] for row in items} for items in GROUPS]
        assert torch.allclose(compared(), by_hand(expected), atol=1e-6)
        assert not torch.allclose(compared(), before)
    assert torch.equal(compared(), before)


@torch.no_grad()
def test_groups_move_with_their_own_modality_alone():
    model, processor = make_pair()
    other = next(name for name in MODALITIES if name != RELATION)
    rows, *where = places()

    def compared():
        return model.model.compare(rows, model.model.catalog.gather(rows)[1], *where)

    before, features = compared(), make_features()
    with shuffled(model, processor, 0, [other]):
        assert torch.equal(compared(), before)
        assert torch.equal(model.model.catalog.features[RELATION], features[RELATION].to(model.dtype))
        assert not torch.equal(model.model.catalog.features[other], features[other].to(model.dtype))
    with shuffled(model, processor, 0, [RELATION]):
        assert not torch.equal(compared(), before)
        assert torch.equal(model.model.catalog.features[other], features[other].to(model.dtype))


def _order(model):
    """Which item's features each row has now."""
    now, name = model.model.catalog.features[RELATION], RELATION
    original = make_features()[name].to(now.dtype)
    return torch.cdist(now.float(), original.float()).argmin(dim=1)


def test_pairs_count_once_and_rows_beyond_the_catalog_are_in_no_group():
    relation = BundleMLLMRelation(3, 0)
    relation.replace(3, torch.tensor([2, 0, 2, 2]), torch.tensor([1, 1, 0, 1]))
    owner, group, size = relation.gather(torch.tensor([2, 3, 0, 9, 1]))
    assert (owner.tolist(), group.tolist(), size.tolist()) == ([0, 0, 2], [0, 1, 1], [1, 2, 2])


def test_items_of_one_node_are_in_the_same_groups_and_items_of_none_in_none():
    relation = BundleMLLMRelation(4, 0)
    edges = (torch.tensor([0, 1, 1]), torch.tensor([0, 0, 2]), torch.tensor([1, -1, 0, 1]))
    relation.replace(4, *edges)
    owner, group, size = relation.gather(torch.tensor([0, 1, 2, 3, 4]))
    assert (owner.tolist(), group.tolist(), size.tolist()) == ([0, 0, 2, 3, 3], [0, 2, 0, 0, 2], [2, 1, 2, 2, 1])
    assert all(torch.equal(*pair) for pair in zip(relation.edges(), edges, strict=True))
    with pytest.raises(ValueError, match="one node per item"):
        relation.replace(4, *edges[:2], torch.tensor([1, -1, 0]))
    with pytest.raises(ValueError, match="one node per item"):
        relation.replace(4, *edges[:2], torch.tensor([1, -1, 0, 4]))


@torch.no_grad()
def test_bundles_of_categories_are_compared_without_popularity_and_go_with_those_of_items():
    """Items 0 and 3 are of one category, 1 of another, 5 of none."""
    processor = make_processor(marks_options=True, max_length=512)
    model = make_model(
        separator_token_id=processor.separator_token_id,
        standardize_features=True,
        matching_hidden_size=8,
        modalities=MODALITIES | {"bundle_item": 3},
        relations={"bundle_category": 0},
        **processor.matching_fields(),
    )
    features = make_features() | {"bundle_item": torch.randn(8, 3)}
    category = torch.tensor([0, 1, 1, 0, 1, -1, 0, 1])
    pairs = (torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 2]), category)
    present = {"bundle_item": torch.zeros(8, dtype=torch.bool)}  # a cold item's category is known all the same
    model.set_catalog(features, present, fit_statistics=True, relations={"bundle_category": pairs})

    def compared():
        rows, *where = places([([0], [1, 3, 5])])
        return model.model.compare(rows, model.model.catalog.gather(rows)[1], *where)

    by_hand = [[2**-0.5 / 2, 1.0, 0.0], [(2**-0.5 + 1) / 2, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert torch.allclose(compared(), torch.tensor(by_hand), atol=1e-6)
    with only(model, processor, list(MODALITIES)):
        assert not compared().any()
    before = compared()
    with shuffled(model, processor, seed=0):
        assert not torch.equal(compared(), before)
        nodes = model.model.catalog.relations["bundle_category"].node_of_item
        assert sorted(nodes.tolist()) == sorted(category.tolist())
    assert torch.equal(compared(), before)


def test_what_no_item_or_no_model_has_is_refused():
    model, _ = make_pair()
    with pytest.raises(ValueError, match="some edges have no item"):
        model.set_catalog(make_features(), relations={RELATION: (torch.tensor([8]), torch.tensor([0]))})
    with pytest.raises(ValueError, match="does not read"):
        model.set_catalog(make_features(), relations={"friends": pairs()})
    with pytest.raises(ValueError, match="only a matching reads"):
        BundleMLLMConfig(modalities=MODALITIES, relations={RELATION: 0})


@torch.no_grad()
def test_long_lists_of_groups_do_not_mix_questions():
    """A group number and a question number share one integer."""
    big = [set() for _ in range(40_000)] + [{0, 1}]
    model, _ = make_pair()
    model.set_catalog(make_features(), relations={RELATION: pairs(big)})
    questions = [([0], [1, 2]), ([3], [1, 2])]
    rows, *where = places(questions)
    found = model.model.compare(rows, torch.ones(8, len(MODALITIES), dtype=torch.bool), *where)
    assert found[:, 2].tolist() == [1.0, 0.0, 0.0, 0.0]
