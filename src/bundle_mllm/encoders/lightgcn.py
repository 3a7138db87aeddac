"""LightGCN (He et al., SIGIR 2020): embed the two sides of a graph of groups (users or bundles) and items.

Knows nothing about what the groups are, their split, nor the items' titles and files.

The whole graph is propagated once per step, so large batches are what makes it fast. The normalized adjacency A is
symmetric: the gradient of the layer mean is the same layer mean of the gradient, and one sparse matrix serves both
directions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional as F  # noqa: N812

from bundle_mllm.data.memberships import ItemGroups
from bundle_mllm.errors import BundleMLLMError


@dataclass(frozen=True)
class LightGCN:
    """The method and how it is trained.

    Attributes:
        dim: Length of an embedding.
        num_layers: Number of propagations.
        steps: Optimizer steps; each propagates the whole graph and draws `batch_size` edges.
        batch_size: Edges per step, each with one negative item; at most all edges.
        learning_rate: Of Adam, for all steps.
        weight_decay: The L2 weight of eq. 15, on the layer-0 embeddings of the batch.
        seed: The same seed gives the same embeddings.
    """

    dim: int = 64
    num_layers: int = 3
    steps: int = 200
    batch_size: int = 65_536
    learning_rate: float = 0.03
    weight_decay: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("dim", 1), ("num_layers", 0), ("steps", 1), ("batch_size", 1)):
            if (value := getattr(self, name)) < least:
                raise BundleMLLMError(f"LightGCN cannot run with {name} = {value}: choose {least} or more.")

    @property
    def name(self) -> str:
        """Name, version and settings."""
        return "lightgcn-1" if self == LightGCN() else f"lightgcn-1 {self}"

    def fit(self, groups: ItemGroups, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Train the embeddings of a graph and return those of the items, propagated (eq. 8).

        They are `[num_items, dim]` float32, zero for items without an edge; `progress` counts steps.
        """
        if not len(groups):
            return np.zeros((groups.num_items, self.dim), dtype=np.float32)
        training = LightGCNTraining(groups, self)
        for number in range(self.steps):
            training.step()
            if progress is not None:
                progress(number + 1, self.steps)
        embeddings = training.item_embeddings()
        embeddings[groups.groups_per_node == 0] = 0.0
        return embeddings


class _LayerMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: torch.Tensor, adjacency: torch.Tensor, num_layers: int) -> torch.Tensor:
        ctx.adjacency, ctx.num_layers = adjacency, num_layers
        return _mean_of_powers(embeddings, adjacency, num_layers)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _mean_of_powers(gradients[0], ctx.adjacency, ctx.num_layers), None, None


def _mean_of_powers(values: torch.Tensor, adjacency: torch.Tensor, num_layers: int) -> torch.Tensor:
    total, layer = values.clone(), values
    for _ in range(num_layers):
        layer = adjacency @ layer
        total += layer
    return total.div_(num_layers + 1)


def propagate(embeddings: torch.Tensor, adjacency: torch.Tensor, num_layers: int) -> torch.Tensor:
    """Return the mean over layers 0 … L of A^k E, with the gradient that follows from A = A': `[num_nodes, dim]`.

    Eq. 7 of the paper, E^(k+1) = A E^(k), and eq. 8 (as eq. 4) with the paper's weights 1 / (L + 1).

    Args:
        embeddings: `[num_nodes, dim]`, layer 0.
        adjacency: `[num_nodes, num_nodes]` symmetric sparse CSR; see [`normalized_adjacency`].
        num_layers: L.
    """
    return _LayerMean.apply(embeddings, adjacency, num_layers)  # pyright: ignore[reportReturnType]


def normalized_adjacency(groups: ItemGroups) -> torch.Tensor:
    """Return D^(-1/2) A D^(-1/2) of the bipartite graph (eq. 6 and 7); nodes are groups, then items.

    It is `[num_nodes, num_nodes]` float32 CSR; the rows of nodes without an edge are empty.
    """
    of_group, of_item = (np.maximum(degrees, 1) ** -0.5 for degrees in (groups.group_sizes, groups.groups_per_node))
    edges = sparse.csr_array(sparse.diags_array(of_group) @ groups.csr().T @ sparse.diags_array(of_item))
    both = sparse.csr_array(sparse.block_array([[None, edges], [edges.T, None]]), dtype=np.float32)
    both.sort_indices()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(both.indptr.astype(np.int64)),
            torch.from_numpy(both.indices.astype(np.int64)),
            torch.from_numpy(both.data),
            size=both.shape,
            check_invariants=True,
        )


class LightGCNTraining:
    """The embeddings of one graph while they are trained with BPR (eq. 15) and Adam.

    Args:
        groups: The edges of items and groups, at least one; items without an edge are trained as negatives only.
        method: How to train.
    """

    def __init__(self, groups: ItemGroups, method: LightGCN):
        self.method, self.num_items, self.num_groups = method, groups.num_items, groups.num_groups
        self._keys = np.sort(groups.groups * self.num_items + groups.nodes)  # edges by group, then by item
        self.num_edges = len(self._keys)
        self.adjacency = normalized_adjacency(groups)
        self._rng = np.random.default_rng(method.seed)
        of_items = self._rng.normal(0, 0.1, (self.num_items, method.dim))  # first: the same in any graph over them
        of_groups = self._rng.normal(0, 0.1, (self.num_groups, method.dim))
        start = np.concatenate([of_groups, of_items]).astype(np.float32)
        self.embeddings = torch.nn.Parameter(torch.from_numpy(start))  # layer 0, [num_nodes, dim]
        self._optimizer = torch.optim.Adam([self.embeddings], lr=method.learning_rate)
        self._queue = np.empty(0, dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps that draw each edge once."""
        return -(-self.num_edges // self.method.batch_size)

    def step(self) -> float:
        """Draw a batch of edges and negatives, take one optimizer step and return the loss."""
        nodes = self._draw()
        self._optimizer.zero_grad(set_to_none=True)
        loss = self.loss(*nodes)
        loss.backward()
        self._optimizer.step()
        return loss.item()

    def loss(self, groups: torch.Tensor, items: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        """Return eq. 15 as a mean over a batch of triples, each `[batch]` numbers of groups or rows of items."""
        nodes = torch.stack([groups, items + self.num_groups, negatives + self.num_groups])  # [3, batch]
        propagated = propagate(self.embeddings, self.adjacency, self.method.num_layers)
        group, item, negative = F.embedding(nodes, propagated)  # indexing adds gradients up in any order of threads
        ranking = F.softplus((group * (negative - item)).sum(dim=1)).mean()  # -ln sigmoid(y_ui - y_uj)
        counts = torch.bincount(nodes.flatten(), minlength=len(self.embeddings)).to(torch.float32)
        penalty = counts @ self.embeddings.square().sum(dim=1) / len(groups)
        return ranking + self.method.weight_decay * penalty

    @torch.no_grad()
    def item_embeddings(self) -> np.ndarray:
        """Return the propagated embeddings of the items, `[num_items, dim]` float32."""
        propagated = propagate(self.embeddings, self.adjacency, self.method.num_layers)
        return propagated[self.num_groups :].numpy()

    def _draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Take the next edges of a random order and draw an item that the group lacks for each."""
        size = min(self.method.batch_size, self.num_edges)
        if not len(self._queue):
            self._queue = self._rng.permutation(self.num_edges)
        chosen, self._queue = self._queue[:size], self._queue[size:]
        groups, items = np.divmod(self._keys[chosen], self.num_items)
        negatives = self._rng.integers(self.num_items, size=len(chosen))
        for _ in range(10):  # a group that has (nearly) all items keeps one of its own, which cancels out
            keys = groups * self.num_items + negatives
            position = np.minimum(np.searchsorted(self._keys, keys), self.num_edges - 1)
            again = np.flatnonzero(self._keys[position] == keys)
            if not again.size:
                break
            negatives[again] = self._rng.integers(self.num_items, size=again.size)
        return torch.from_numpy(groups), torch.from_numpy(items), torch.from_numpy(negatives)
