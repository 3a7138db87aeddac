"""Baselines that compare vectors of items: words, features of any modality, LightGCN embeddings.

Knows nothing about how features and embeddings are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from bundle_mllm.baselines.base import QuestionBatch, UnavailableError, count_shared, user_groups
from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.memberships import ItemGroups
from bundle_mllm.data.words import words
from bundle_mllm.encoders.lightgcn import LightGCN
from bundle_mllm.encoders.textual import fit_tfidf, tfidf

CENTERING_ROWS = 20_000
"""The mean of a modality is taken over at most so many items, evenly spaced in the catalog."""


class TfidfCosine:
    """Score a candidate by the mean cosine of its TF-IDF vector with those of the items shown.

    The words are those of title, category and description; see `bundle_mllm.encoders.textual.tfidf`.
    """

    reads_bundles = False

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Count words."""
        if not any(folder.catalog.titles) and not any(item.description for item in folder.catalog):
            raise UnavailableError(f"{folder.path} has no titles", "give `title` to items")
        counts = [Counter(words(item.text)) for item in folder.catalog]
        self._vectors = tfidf(counts, *fit_tfidf(counts))

    def score(self, batch: QuestionBatch) -> np.ndarray:
        """Compare."""
        return count_shared(self._vectors, batch) / batch.num_shown[batch.question_index]


class FeatureCosine:
    """Score a candidate by the mean cosine of its features with those of the items shown.

    The catalog's mean is subtracted first: features share a direction without information (histograms are all
    positive, and so are the cosines of most learned embeddings). Cosines with an item without the modality are 0.

    Args:
        modality: A modality of the folder's features.
    """

    reads_bundles = False

    def __init__(self, modality: str):
        self.modality = modality

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Open the features."""
        store = folder.features()
        if store is None or self.modality not in store.modalities:
            known = ", ".join(store.modalities) if store else "none"
            raise UnavailableError(f"{folder.path} has no {self.modality!r} features (it has {known})", "encode them")
        self._store = folder.features([self.modality])
        rows = np.linspace(0, len(folder.catalog) - 1, min(len(folder.catalog), CENTERING_ROWS)).astype(int)
        features, present = self._gather(rows)
        self._mean = features[present].mean(axis=0) if present.any() else 0.0

    def score(self, batch: QuestionBatch) -> np.ndarray:
        """Read the rows of the questions, and compare."""
        shown = batch.shown.copy()
        rows, position = np.unique(np.concatenate([shown.indices, batch.candidate_rows]), return_inverse=True)
        features, present = self._gather(rows)
        features = np.where(present[:, None], features - self._mean, 0.0)
        vectors = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)  # [rows, dim]
        shown.indices = position[: shown.nnz].astype(shown.indices.dtype)
        shown.resize(len(batch), len(rows))
        profile = shown @ vectors / batch.num_shown[:, None]  # [questions, dim]
        return np.einsum("nd,nd->n", profile[batch.question_index], vectors[position[shown.nnz :]])

    def _gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self._store is not None
        features, present = self._store.gather(torch.from_numpy(rows))
        return features[self.modality].double().numpy(), present[self.modality].numpy()


class BundleLightGCN:
    """Score a candidate by the mean inner product of its LightGCN embedding (He et al., SIGIR 2020) with those shown.

    The graph is that of training bundles and items. A partial bundle is no node of it; the mean of its items'
    embeddings represents it.

    Args:
        seed: The same seed gives the same embeddings.
        steps: Optimizer steps.
    """

    reads_bundles = True

    def __init__(self, seed: int = 0, steps: int = LightGCN.steps):
        self.method = LightGCN(seed=seed, steps=steps)

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Train the embeddings of items."""
        self._embeddings = self.method.fit(self._groups(folder, bundles)).astype(np.float64)

    def score(self, batch: QuestionBatch) -> np.ndarray:
        """Compare embeddings."""
        profile = batch.shown @ self._embeddings / batch.num_shown[:, None]  # [questions, dim]
        return np.einsum("nd,nd->n", profile[batch.question_index], self._embeddings[batch.candidate_rows])

    def _groups(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> ItemGroups:
        return ItemGroups.of_bundles(bundles, folder.catalog)


class UserLightGCN(BundleLightGCN):
    """[`BundleLightGCN`] on the graph of users and items."""

    reads_bundles = False

    def _groups(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> ItemGroups:
        return user_groups(folder)
