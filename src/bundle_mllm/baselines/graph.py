"""LightGCN as a baseline: embed the graph of bundles (or users) and items, compare items by inner products.

It must not know words, features or how LightGCN is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bundle_mllm.baselines.base import Asked, bundle_edges, user_edges
from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.encoders.lightgcn import LightGCN


class BundleLightGCN:
    """Score a candidate by the mean inner product of its LightGCN embedding (He et al., SIGIR 2020) with those shown.

    The graph is that of training bundles and items. A bundle to complete is no node of it; the mean of its items'
    embeddings stands for it.

    Args:
        seed: The same seed gives the same embeddings.
        steps: Optimizer steps.
    """

    reads_bundles = True

    def __init__(self, seed: int = 0, steps: int = LightGCN.steps):
        self.method = LightGCN(seed=seed, steps=steps)

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Train the embeddings of items."""
        self._embeddings = self.method.fit(*self._edges(folder, bundles), len(folder.catalog)).astype(np.float64)

    def score(self, asked: Asked) -> np.ndarray:
        """Compare embeddings."""
        profile = asked.shown @ self._embeddings / asked.num_shown[:, None]  # [questions, dim]
        return np.einsum("nd,nd->n", profile[asked.question], self._embeddings[asked.candidate])

    def _edges(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> tuple[np.ndarray, np.ndarray]:
        return bundle_edges(folder.catalog, bundles)


class UserLightGCN(BundleLightGCN):
    """[`BundleLightGCN`] on the graph of users and items."""

    reads_bundles = False

    def _edges(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> tuple[np.ndarray, np.ndarray]:
        return user_edges(folder)
