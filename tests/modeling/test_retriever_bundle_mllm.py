"""The retriever: the formulas item by item, the same scores from `forward` and `retrieve`, saving and loading."""

import math

import pytest
import torch
from tiny_models import make_pairs
from transformers import AutoConfig, AutoModel

from bundle_mllm.modeling import BundleRetriever, BundleRetrieverConfig
from bundle_mllm.modeling.groups_bundle_mllm import ItemPairs

MODALITIES = {"bundle_item": 3, "textual": 4, "visual": 5}
NUM_ITEMS = 40
QUESTIONS = [([0, 5], [2, 3, 1]), ([4], [6, 0, 5, 7, 1]), ([7, 8, 9, 10], [20, 39])]


def group_lists(seed, number=30, largest=5):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, largest + 1, (number,), generator=generator).tolist()
    return [torch.randperm(NUM_ITEMS // 2, generator=generator)[:size].tolist() for size in sizes]


GROUPS = {"bundle_item": group_lists(0), "textual": group_lists(1), "user_item": group_lists(2, largest=9)}
NODE_OF_ITEM = torch.tensor([row % 5 - 1 for row in range(NUM_ITEMS)])  # 4 categories; a fifth of the items has none
CATEGORY_GROUPS = [[0, 1], [1], [2, 3], [3, 0], [3]]


def make_retriever(memberships=("bundle_category", "bundle_item", "textual", "user_item"), **config):
    torch.manual_seed(0)
    model = BundleRetriever(
        BundleRetrieverConfig(
            modalities=MODALITIES, memberships=dict.fromkeys(memberships, 0), hidden_size=8, **config
        )
    )
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    model.towers.logit_scale.data.fill_(5.0)
    features = {name: torch.randn(NUM_ITEMS, width, generator=generator) for name, width in MODALITIES.items()}
    present = {name: torch.rand(NUM_ITEMS, generator=generator) < 0.8 for name in MODALITIES}
    all_pairs = {name: make_pairs(groups) for name, groups in GROUPS.items()}
    all_pairs["bundle_category"] = make_pairs(CATEGORY_GROUPS, node_of_item=NODE_OF_ITEM)
    model.set_catalog(features, present, {name: all_pairs[name] for name in memberships}, fit_statistics=True)
    if model.stacker is not None:
        model.stacker.mean.copy_(0.3 * torch.randn(model.stacker.mean.shape, generator=generator))
        model.stacker.std.copy_(0.5 + torch.rand(model.stacker.std.shape, generator=generator))
    return model.eval()


def rows_of(lists):
    longest = max(map(len, lists))
    return torch.tensor([rows + [-1] * (longest - len(rows)) for rows in lists])


def batch(questions=QUESTIONS):
    return {"partial_rows": rows_of([p for p, _ in questions]), "option_rows": rows_of([c for _, c in questions])}


def groups_of(name, row):
    if name == "bundle_category":
        node = int(NODE_OF_ITEM[row])
        return {number for number, nodes in enumerate(CATEGORY_GROUPS) if node in nodes}
    return {number for number, rows in enumerate(GROUPS[name]) if row in rows}


def co_occurrence_by_hand(partial, option, memberships):
    """The formulas of `co_occurrence`, over Python sets."""
    columns = []
    for name in memberships:
        groups = CATEGORY_GROUPS if name == "bundle_category" else GROUPS[name]
        own = groups_of(name, option)
        overlap = [
            sum(len(set(groups[g])) ** -0.5 for g in groups_of(name, p) & own)
            / math.sqrt(max(1, len(groups_of(name, p))) * max(1, len(own)))
            for p in partial
        ]
        largest = max((sum(g in groups_of(name, p) for p in partial) / len(partial) for g in own), default=0.0)
        columns += [] if name in ("bundle_category", "textual") else [math.log1p(len(own))]
        columns += [sum(overlap) / len(partial), largest]
    return [*columns, math.log(len(partial))]


def towers_by_hand(model, partial, option):
    """The formula of `BundleRetrieverTowers`, item by item."""
    towers, catalog = model.towers, model.catalog

    def standardized(name, row):
        return (catalog.features[name][row] - towers.statistics.mean[name]) / towers.statistics.std[name]

    def vectors(row):
        total = torch.zeros(2 * 8 + 1)
        for column, (name, encode) in enumerate(towers.maps.items()):
            if catalog.present[row, column]:
                total = total + encode(standardized(name, row))
        return total[:8], total[8:16], total[16]

    queries = [vectors(row)[0] for row in partial]
    bundle = sum(query / query.norm().clamp(min=1e-12) for query in queries)
    _, key, bias = vectors(option)
    score = towers.logit_scale[0] * torch.cosine_similarity(bundle, key, dim=0) + bias
    for column, (name, weight) in enumerate(zip(MODALITIES, towers.cosine_weight, strict=True)):
        for row in partial:
            if catalog.present[row, column] and catalog.present[option, column]:
                cosine = torch.cosine_similarity(standardized(name, row), standardized(name, option), dim=0)
                score = score + weight * cosine / len(partial)
    return score


@torch.no_grad()
def test_scores_of_towers_are_those_of_the_formula():
    model = make_retriever()
    found = model.tower_scores(**batch())
    for number, (partial, options) in enumerate(QUESTIONS):
        expected = torch.stack([towers_by_hand(model, partial, option) for option in options])
        assert torch.allclose(found[number, : len(options)], expected, atol=1e-4)
    assert torch.isinf(found[0, 3:]).all()


@torch.no_grad()
def test_co_occurrence_is_counted_as_the_formulas_say():
    model = make_retriever()
    table, shares = model.co_occurrence(**batch())
    for number, (partial, options) in enumerate(QUESTIONS):
        for place, option in enumerate(options):
            expected = torch.tensor(co_occurrence_by_hand(partial, option, model.config.memberships))
            assert torch.allclose(table[number, place], expected, atol=1e-6)
            shared = any(
                groups_of(name, option) & set().union(*(groups_of(name, p) for p in partial))
                for name in model.config.memberships
            )
            assert bool(shares[number, place]) == shared
    assert shares.any() and not shares.all()


@torch.no_grad()
def test_the_stacker_adds_slope_popularity_and_where_groups_are_shared_co_occurrence():
    model = make_retriever()
    table, shares = model.co_occurrence(**batch())
    towers, stacker = model.tower_scores(**batch()), model.stacker
    table = (table - stacker.mean) / stacker.std
    slope = (stacker.slope.weight[0, 0] * table[..., -1] + stacker.slope.bias[0]).exp()
    popularity = stacker.popularity(table[..., [2, 7]])[..., 0]  # of bundle_item and user_item
    network = stacker.co_occurrence(torch.cat([table, towers.unsqueeze(-1)], dim=-1))[..., 0]
    expected = slope * towers + popularity + torch.where(shares, network, 0.0)
    is_option = batch()["option_rows"] >= 0
    assert torch.allclose(model(**batch()).scores[is_option], expected[is_option], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("memberships", [(), ("textual",), ("bundle_category", "bundle_item", "textual", "user_item")])
@pytest.mark.parametrize("masked", [False, True])
def test_retrieve_gives_the_scores_of_forward_best_first(memberships, masked):
    model = make_retriever(memberships)
    partial = batch()["partial_rows"]
    allowed = torch.rand(len(partial), NUM_ITEMS, generator=torch.Generator().manual_seed(9)) < 0.5 if masked else None
    every = torch.arange(NUM_ITEMS).expand(len(partial), -1)
    expected = model(partial, every).scores
    for number, (rows, _) in enumerate(QUESTIONS):
        expected[number, rows] = -torch.inf
    if masked:
        expected = expected.masked_fill(~allowed, -torch.inf)
    found = model.retrieve(partial, top_k=7, allowed=allowed)
    assert torch.allclose(found.scores, expected.topk(7).values, atol=1e-5)
    assert torch.equal(found.rows, expected.topk(7).indices)
    assert torch.allclose(found.log_normalizer, expected.logsumexp(-1), atol=1e-5)


@torch.no_grad()
def test_a_whole_catalog_is_scored_as_item_by_item_by_the_formulas():
    model = make_retriever()
    generator = torch.Generator().manual_seed(5)
    partials = [torch.randperm(NUM_ITEMS, generator=generator)[: 1 + number % 6].tolist() for number in range(12)]
    stacker, names = model.stacker, model.config.memberships
    found = model.catalog_scores(rows_of(partials))
    num_shared = 0
    for partial, scores in zip(partials, found, strict=True):
        for item in set(range(NUM_ITEMS)) - set(partial):
            tower = model.tower_scores(torch.tensor([partial]), torch.tensor([[item]]))[0, 0]
            table = (torch.tensor(co_occurrence_by_hand(partial, item, names)) - stacker.mean) / stacker.std
            expected = stacker.slope_of(table[-1]) * tower + stacker.item_term(table[stacker.popularity_columns])
            if any(groups_of(name, item) & groups_of(name, other) for name in names for other in partial):
                expected, num_shared = expected + stacker.shared_term(table, tower), num_shared + 1
            assert float(scores[item]) == pytest.approx(float(expected), rel=1e-6, abs=1e-5)
        assert torch.isinf(scores[partial]).all()
    assert 50 < num_shared < int(found.isfinite().sum()) - 50


@torch.no_grad()
def test_terms_sum_to_the_scores():
    model = make_retriever()
    output = model(**batch(), return_terms=True)
    assert set(output.terms) == {"towers", "bias", "co_occurrence", *(f"cosine_{name}" for name in MODALITIES)}
    is_option = batch()["option_rows"] >= 0
    assert torch.allclose(sum(output.terms.values())[is_option], output.scores[is_option], atol=1e-4)


@torch.no_grad()
def test_a_new_item_is_scored_by_its_features_at_once():
    model = make_retriever()
    features = {name: model.catalog.features[name][[3]] for name in MODALITIES}
    extra = {"features": features, "present": model.catalog.present[[3]]}
    towers = model.tower_scores(torch.tensor([[0, 5]]), torch.tensor([[3, NUM_ITEMS]]), extra)
    assert torch.allclose(towers[0, 0], towers[0, 1], atol=1e-5)
    table, shares = model.co_occurrence(torch.tensor([[0, 5]]), torch.tensor([[NUM_ITEMS]]))
    assert not shares.any() and (table[0, 0, :-1] == 0).all()
    every = torch.arange(NUM_ITEMS)[None]
    partial = torch.tensor([[0, NUM_ITEMS]])  # one item of the partial bundle is new
    expected = model(partial, every, extra).scores
    expected[0, 0] = -torch.inf
    found = model.retrieve(partial, top_k=5, extra_items=extra)
    assert torch.allclose(found.scores, expected.topk(5).values, atol=1e-5)


@torch.no_grad()
def test_a_new_item_with_the_features_and_groups_of_an_old_one_has_its_scores():
    model, row = make_retriever(), 2
    features = {name: model.catalog.features[name][[row]] for name in MODALITIES}
    groups = {}
    for name, each in model.memberships.items():
        _, node, group, _ = each.gather(torch.tensor([row]), NUM_ITEMS)
        groups[name] = ItemPairs(node, group)
    extra = {"features": features, "present": model.catalog.present[[row]], "groups": groups}
    every = torch.arange(NUM_ITEMS)[None]
    old, new = model(torch.tensor([[0, row]]), every), model(torch.tensor([[0, NUM_ITEMS]]), every, extra)
    assert torch.allclose(new.scores, old.scores, atol=1e-5)
    options = torch.tensor([[row, NUM_ITEMS]])
    scores = model(torch.tensor([[0, 5]]), options, extra).scores
    assert torch.allclose(scores[0, 0], scores[0, 1], atol=1e-5)
    old.scores[0, 0] = -torch.inf
    found = model.retrieve(torch.tensor([[0, NUM_ITEMS]]), top_k=5, extra_items=extra)
    assert torch.allclose(found.scores, old.scores.topk(5).values, atol=1e-5)


@torch.no_grad()
def test_the_index_follows_a_new_catalog():
    model = make_retriever()
    model.retrieve(torch.tensor([[0]]), top_k=3)
    features, _ = model.catalog.rows()
    model.set_catalog({name: matrix[:10].flip(0) for name, matrix in features.items()})
    assert model.config.num_items == 10 and set(model.config.memberships.values()) == {0}
    found = model.retrieve(torch.tensor([[0]]), top_k=99)
    assert sorted(found.rows[0].tolist()) == [-1, *range(1, 10)]


@torch.no_grad()
def test_a_catalog_can_be_searched_while_the_model_trains():
    model = make_retriever()
    expected = model.retrieve(torch.tensor([[0, 5]]), top_k=5)
    model.train()
    for scale in (1.0, -1.0):  # weights change between two searches
        model.towers.maps["visual"].linear.weight.mul_(scale)
        found = model.retrieve(torch.tensor([[0, 5]]), top_k=5)
        assert model.training
        assert torch.allclose(found.scores, expected.scores, atol=1e-5) == (scale == 1)


@torch.no_grad()
def test_the_index_follows_weights_that_are_loaded():
    model, other = make_retriever(), make_retriever()
    model.retrieve(torch.tensor([[0]]), top_k=3)
    other.towers.logit_scale.neg_()
    model.load_state_dict(other.state_dict())
    found, expected = (m.retrieve(torch.tensor([[0]]), top_k=3) for m in (model, other))
    assert torch.allclose(found.scores, expected.scores, atol=1e-5)


@torch.no_grad()
def test_half_precision_gives_nearly_the_same_scores():
    model = make_retriever()
    expected = model.retrieve(batch()["partial_rows"], top_k=5).scores
    found = model.to(torch.bfloat16).retrieve(batch()["partial_rows"], top_k=5).scores
    assert found.dtype == torch.float32 and torch.allclose(found, expected, rtol=0.1, atol=0.2)


@torch.no_grad()
def test_rows_of_a_fold_have_its_features_and_not_its_groups():
    model = make_retriever(("bundle_item", "textual"))
    folds = torch.arange(len(GROUPS["bundle_item"])) % 2
    features, present = model.catalog.rows()
    model.set_catalog(
        features,
        present,
        {
            "bundle_item": make_pairs(GROUPS["bundle_item"], fold_of_group=folds),
            "textual": make_pairs(GROUPS["textual"]),
        },
    )
    other = torch.randn(2, NUM_ITEMS, 3)
    model.catalog.set_folds("bundle_item", other, torch.ones(2, NUM_ITEMS, dtype=torch.bool))
    rows = torch.arange(NUM_ITEMS)
    gathered, _ = model.catalog.gather(rows + 2 * NUM_ITEMS)
    assert torch.equal(gathered["bundle_item"], other[1])
    assert torch.equal(gathered["visual"], model.catalog.features["visual"])
    table, _ = model.co_occurrence(rows[:2][None] + NUM_ITEMS, rows[None] + NUM_ITEMS)  # fold 0
    kept = [groups if number % 2 else [] for number, groups in enumerate(GROUPS["bundle_item"])]
    degrees = torch.tensor([sum(row in groups for groups in kept) for row in range(NUM_ITEMS)])
    assert torch.allclose(table[0, :, 0], degrees.float().log1p())
    assert "fold_features" not in model.state_dict() and model.config.num_items == NUM_ITEMS
    model.catalog.clear_folds()
    assert model.catalog.num_rows == NUM_ITEMS


@torch.no_grad()
def test_a_saved_retriever_loads_with_the_auto_classes_and_answers_the_same(tmp_path):
    model = make_retriever()
    model.save_pretrained(tmp_path / "out" / "retriever")
    for arguments in ({"subfolder": "retriever"}, {}):
        folder = tmp_path / "out" if arguments else tmp_path / "out" / "retriever"
        loaded = AutoModel.from_pretrained(folder, **arguments).eval()
        assert isinstance(loaded, BundleRetriever)
        assert torch.allclose(loaded(**batch()).scores, model(**batch()).scores, atol=1e-5)
        assert torch.equal(
            loaded.retrieve(batch()["partial_rows"], 5).rows, model.retrieve(batch()["partial_rows"], 5).rows
        )
    config = AutoConfig.from_pretrained(tmp_path / "out" / "retriever")
    assert config.memberships == model.config.memberships


def test_what_a_catalog_does_not_fit_is_refused():
    model = make_retriever(("textual",))
    features, before = {n: m[:9] for n, m in model.catalog.rows()[0].items()}, model.state_dict()
    with pytest.raises(ValueError, match=r"memberships \['user_item'\]"):
        model.set_catalog(features, memberships={"user_item": make_pairs(GROUPS["user_item"])})
    with pytest.raises(ValueError, match="some pairs have no item"):
        model.set_catalog(features, memberships={"textual": make_pairs([[9]])})
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(ValueError, match=r"format_version 99.*update"):
        BundleRetrieverConfig(format_version=99)


def test_outputs_are_a_tuple_where_that_is_asked_for():
    model, rows = make_retriever(), {"partial_rows": torch.tensor([[0, 1]]), "option_rows": torch.tensor([[2, 3, 4]])}
    (scores,) = model(**rows, return_dict=False)
    assert torch.equal(scores, model(**rows).scores)
