"""LightGCN computes the formulas of the paper, and the same embeddings each time."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from bundle_mllm.data.memberships import BUNDLE_ITEM, ItemGroups
from bundle_mllm.encoders.lightgcn import LightGCN, LightGCNTraining, normalized_adjacency, propagate
from bundle_mllm.errors import BundleMLLMError

ROOT = math.sqrt(0.5)


def graph(groups, items, num_items):
    return ItemGroups(BUNDLE_ITEM, np.array(items, dtype=np.int64), np.array(groups, dtype=np.int64), num_items)


def small_graph(num_items=2):
    """4 nodes: group 0 has both items, group 1 has item 1."""
    return graph([0, 0, 1], [0, 1, 1], num_items)


def random_graph(num_groups=30, num_items=20, seed=0):
    return graph(*np.nonzero(np.random.default_rng(seed).random((num_groups, num_items)) < 0.2), num_items)


def dense(adjacency):
    return adjacency.to_dense().double()


def test_the_normalized_adjacency_of_four_nodes_by_hand():
    expected = [[0, 0, ROOT, 0.5], [0, 0, 0, ROOT], [ROOT, 0, 0, 0], [0.5, ROOT, 0, 0]]
    np.testing.assert_allclose(normalized_adjacency(small_graph()).to_dense(), expected, atol=1e-6)


def test_two_propagations_over_four_nodes_by_hand():
    layers = [
        [1, 2, 3, 4],
        [3 * ROOT + 4 / 2, 4 * ROOT, 1 * ROOT, 1 / 2 + 2 * ROOT],
        # group 0: .7071 * ROOT + 1.9142 / 2; group 1: 1.9142 * ROOT; item 0: 4.1213 * ROOT; item 1: 4.1213 / 2 + 2
        [1.457107, 1.353553, 2.914214, 4.060660],
    ]
    start = torch.tensor(layers[0], dtype=torch.float32)[:, None]
    result = propagate(start, normalized_adjacency(small_graph()), num_layers=2)
    np.testing.assert_allclose(result[:, 0], np.mean(layers, axis=0), atol=1e-5)


def test_the_loss_of_one_triple_by_hand():
    training = LightGCNTraining(small_graph(), LightGCN(dim=1, num_layers=0, weight_decay=0.1))
    training.embeddings.data[:] = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    loss = training.loss(torch.tensor([1]), torch.tensor([1]), torch.tensor([0]))
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(-(2 * 4 - 2 * 3)))) + 0.1 * (4 + 16 + 9))


def test_the_hand_written_gradient_is_that_of_the_dense_formula():
    training = LightGCNTraining(random_graph(), LightGCN(dim=4, num_layers=3))
    nodes = training._draw()
    training.loss(*nodes).backward()
    start = training.embeddings.detach().double().requires_grad_()
    layers = [start]
    for _ in range(3):
        layers.append(dense(training.adjacency) @ layers[-1])
    mean = torch.stack(layers).mean(dim=0)
    group, item, negative = nodes[0], nodes[1] + training.num_groups, nodes[2] + training.num_groups
    ranking = -torch.nn.functional.logsigmoid((mean[group] * (mean[item] - mean[negative])).sum(1)).mean()
    penalty = sum(start[index].square().sum() for index in (group, item, negative)) / len(group)
    (ranking + training.method.weight_decay * penalty).backward()
    np.testing.assert_allclose(training.embeddings.grad, start.grad, rtol=1e-4, atol=1e-6)


def test_embeddings_loss_and_gradient_agree_with_pytorch_geometric():
    models = pytest.importorskip("torch_geometric.nn.models", exc_type=ImportError)
    groups = random_graph()
    training = LightGCNTraining(groups, LightGCN(dim=8, num_layers=3, weight_decay=1e-3))
    theirs = models.LightGCN(training.num_groups + 20, 8, num_layers=3)
    theirs.embedding.weight.data = training.embeddings.detach().clone()
    one_way = torch.from_numpy(np.stack([groups.groups, groups.nodes + training.num_groups]))
    edge_index = torch.cat([one_way, one_way.flip(0)], dim=1)
    embeddings = theirs.get_embedding(edge_index)
    np.testing.assert_allclose(training.item_embeddings(), embeddings[training.num_groups :].detach(), atol=1e-6)

    nodes = training._draw()
    group, item, negative = nodes[0], nodes[1] + training.num_groups, nodes[2] + training.num_groups
    scores = [(embeddings[group] * embeddings[other]).sum(dim=1) for other in (item, negative)]
    expected = theirs.recommendation_loss(*scores, torch.cat([group, item, negative]), lambda_reg=1e-3)
    loss = training.loss(*nodes)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    np.testing.assert_allclose(training.embeddings.grad, theirs.embedding.weight.grad, atol=1e-7)


def test_the_seed_decides_and_neither_order_nor_repetition_of_edges():
    groups = random_graph()
    order = np.random.default_rng(1).permutation(len(groups))
    repeated = [np.concatenate([column, column[order]]) for column in (groups.groups, groups.nodes)]
    first = LightGCN(dim=8, steps=5).fit(groups)
    np.testing.assert_array_equal(first, LightGCN(dim=8, steps=5).fit(graph(*repeated, 20)))
    assert not np.array_equal(first, LightGCN(dim=8, steps=5, seed=1).fit(groups))


@pytest.mark.slow
def test_the_number_of_threads_changes_no_bit():
    """In a process of its own: a pool of threads must not be inherited by children that other tests fork."""
    program = (
        "import sys, numpy, torch; torch.set_num_threads(2)\n"
        "from bundle_mllm.data.memberships import ItemGroups\n"
        "from bundle_mllm.encoders.lightgcn import LightGCN\n"
        "groups, items = numpy.nonzero(numpy.random.default_rng(0).random((400, 300)) < 0.2)\n"
        "graph = ItemGroups('bundle_item', items, groups, 300)\n"
        "sys.stdout.buffer.write(LightGCN(dim=16, steps=3).fit(graph).tobytes())"
    )
    with_two = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert LightGCN(dim=16, steps=3).fit(random_graph(400, 300)).tobytes() == with_two


def test_items_of_one_community_come_to_lie_together():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 4)
    items = (groups % 2) * 10 + rng.integers(10, size=len(groups))  # even groups have items 0-9, odd ones 10-19
    vectors = LightGCN(dim=8, steps=60).fit(graph(groups, items, 20))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    assert cosines[:10, :10].mean() > cosines[:10, 10:].mean() + 0.5


def test_an_epoch_draws_each_edge_once_and_no_edge_is_a_negative():
    groups = random_graph()
    training = LightGCNTraining(groups, LightGCN(dim=2, batch_size=50))
    batches = [training._draw() for _ in range(training.steps_per_epoch)]
    drawn = [pair for batch in batches for pair in zip(batch[0].tolist(), batch[1].tolist(), strict=True)]
    edges = set(zip(groups.groups.tolist(), groups.nodes.tolist(), strict=True))
    assert len(drawn) == len(edges)
    assert set(drawn) == edges
    negatives = {pair for batch in batches for pair in zip(batch[0].tolist(), batch[2].tolist(), strict=True)}
    assert not negatives & edges


def test_a_group_that_has_every_item_does_not_stop_training():
    result = LightGCN(dim=2, steps=2).fit(graph([0] * 5, range(5), 5))
    assert np.isfinite(result).all()


def test_items_and_graphs_without_an_edge_get_zeros():
    assert (LightGCN(dim=3).fit(graph([], [], 4)) == 0).all()
    result = LightGCN(dim=3, steps=1).fit(small_graph(4))
    assert (result[2:] == 0).all()
    assert (result[:2] != 0).all()


def test_progress_counts_steps():
    calls = []
    LightGCN(dim=2, steps=3).fit(small_graph(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("setting", [{"dim": 0}, {"steps": 0}, {"num_layers": -1}, {"batch_size": 0}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(BundleMLLMError, match=f"{next(iter(setting))} = "):
        LightGCN(**setting)
