"""An epoch of LightGCN against a straightforward loop: PyTorch Geometric if it is installed, else plain autograd.

    python benchmarks/lightgcn.py [--users 50000 --items 20000 --edges 500000 --rounds 3]

d 64, 3 layers, two threads. Ours takes batches of 65,536 edges (target: an epoch in at most 10 s). The straightforward
loop is timed step by step, in turn with ours, and an epoch of it is computed from that: at the same batch, and at the
2,048 edges of the paper. Prints seconds and ratios of medians within this run; resident memory is what an epoch adds.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable

import numpy as np
import torch
from common import paired, peak_memory_mib, ratio

from bundle_mllm.data.memberships import USER_ITEM, ItemGroups
from bundle_mllm.encoders.lightgcn import LightGCN, LightGCNTraining

PAPER_BATCH = 2_048


def make_graph(num_users: int, num_items: int, num_edges: int) -> tuple[np.ndarray, np.ndarray]:
    """Users alike, items of very unequal popularity; distinct edges."""
    rng = np.random.default_rng(0)
    keys = np.empty(0, dtype=np.int64)
    while len(keys) < num_edges:
        users = rng.integers(num_users, size=num_edges)
        items = (num_items * rng.random(num_edges) ** 2).astype(np.int64)
        keys = np.unique(np.concatenate([keys, users * num_items + items]))
    return np.divmod(rng.permutation(keys)[:num_edges], num_items)


class PlainLightGCN(torch.nn.Module):
    """What a straightforward implementation does: gather, scale and add up each edge in each layer, by autograd."""

    def __init__(self, num_nodes: int, dim: int, num_layers: int):
        super().__init__()
        self.embedding = torch.nn.Embedding(num_nodes, dim)
        self.num_layers = num_layers

    def get_embedding(self, edge_index: torch.Tensor) -> torch.Tensor:
        """Return the mean over layers."""
        source, target = edge_index
        degree = torch.bincount(target, minlength=self.embedding.num_embeddings).clamp(min=1).float()
        weight = (degree[source] * degree[target]).rsqrt()[:, None]
        layer = total = self.embedding.weight
        for _ in range(self.num_layers):
            layer = torch.zeros_like(layer).index_add(0, target, layer[source] * weight)
            total = total + layer
        return total / (self.num_layers + 1)


def make_reference(
    training: LightGCNTraining, users: np.ndarray, items: np.ndarray
) -> tuple[str, Callable[[int], Callable[[], None]]]:
    """Return the name of the straightforward loop, and what makes a step of it for a batch size."""
    name, maker = "plain autograd", PlainLightGCN
    if importlib.util.find_spec("torch_geometric") is not None:
        from torch_geometric.nn import models

        name, maker = "PyTorch Geometric", models.LightGCN
    method = training.method
    model = maker(training.num_groups + training.num_items, method.dim, num_layers=method.num_layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=method.learning_rate)
    one_way = torch.from_numpy(np.stack([users, items + training.num_groups]))
    edge_index = torch.cat([one_way, one_way.flip(0)], dim=1)

    def make_step(batch_size: int) -> Callable[[], None]:
        def step() -> None:
            chosen = torch.randint(one_way.shape[1], (batch_size,))
            user, item = one_way[:, chosen]
            negative = training.num_groups + torch.randint(training.num_items, (batch_size,))
            optimizer.zero_grad()
            embeddings = model.get_embedding(edge_index)
            user_vectors = embeddings[user]
            difference = (user_vectors * embeddings[item]).sum(1) - (user_vectors * embeddings[negative]).sum(1)
            penalty = model.embedding.weight[torch.cat([user, item, negative])].square().sum() / batch_size
            (method.weight_decay * penalty - torch.nn.functional.logsigmoid(difference).mean()).backward()
            optimizer.step()

        return step

    return name, make_step


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--edges", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    users, items = make_graph(args.users, args.items, args.edges)
    training = LightGCNTraining(ItemGroups(USER_ITEM, items, users, args.items), LightGCN())
    batch_size = min(training.method.batch_size, args.edges)

    def epoch() -> None:
        for _ in range(training.steps_per_epoch):
            training.step()

    epoch()
    memory = peak_memory_mib(epoch)
    name, make_step = make_reference(training, users, items)
    calls = {
        "epoch": epoch,
        "step": training.step,
        "same batch": make_step(batch_size),
        "paper's batch": make_step(min(PAPER_BATCH, args.edges)),
    }
    seconds = paired(calls, args.rounds, warmup=1)
    ours = statistics.median(seconds["epoch"])
    print(f"{args.users:,} users x {args.items:,} items, {args.edges:,} edges, batch {batch_size:,}")
    print(f"ours              {ours:8.2f} s per epoch   ({training.steps_per_epoch} steps; adds {memory:.0f} MiB)")
    for label, size in (("same batch", batch_size), ("paper's batch", min(PAPER_BATCH, args.edges))):
        steps = -(-args.edges // size)
        print(
            f"{name}, batch {size:<6,} {statistics.median(seconds[label]) * steps:8.2f} s per epoch   ({steps} steps)"
        )
    print(f"step: {name} / ours, same batch  {ratio(seconds, 'same batch', 'step'):.2f}")


if __name__ == "__main__":
    main()
