"""Baselines that compare vectors of items: words, features of any modality, LightGCN embeddings.

Knows nothing about how features and embeddings are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse

from bundle_mllm.baselines.base import InnerProductBaseline, QuestionBatch, UnavailableError, user_groups
from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.memberships import ItemGroups
from bundle_mllm.data.words import words
from bundle_mllm.encoders.lightgcn import LightGCN
from bundle_mllm.encoders.textual import fit_tfidf, tfidf

CENTERING_ROWS = 20_000
"""The mean of a modality is taken over at most so many items, evenly spaced in the catalog."""


class TfidfCosine(InnerProductBaseline):
    """Score a candidate by the mean cosine of its TF-IDF vector with those of the items shown.

    The words are those of title, category and description; see `bundle_mllm.encoders.textual.tfidf`.
    """

    reads_bundles = False

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Count words.

        Raises:
            UnavailableError: If the folder has nothing of the kind.
        """
        if not any(folder.catalog.titles) and not any(item.description for item in folder.catalog):
            raise UnavailableError(f"{folder.path} has no titles", "give `title` to items")
        counts = [Counter(words(item.text)) for item in folder.catalog]
        self.vectors = tfidf(counts, *fit_tfidf(counts))

    def profile(self, batch: QuestionBatch) -> sparse.csr_array:
        """Average the vectors of the items shown."""
        return sparse.csr_array(sparse.diags_array(1 / batch.num_shown) @ batch.shown @ self.vectors)


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
        """Open the features.

        Raises:
            UnavailableError: If the folder has nothing of the kind.
        """
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
        rows, position = np.unique(np.concatenate([batch.shown.indices, batch.candidate_rows]), return_inverse=True)
        vectors, num_shown = self._vectors(rows), batch.shown.nnz
        profile = self._profile(batch, vectors[position[:num_shown]])
        return np.einsum("nd,nd->n", profile[batch.question_index], vectors[position[num_shown:]])

    def score_catalog(self, batch: QuestionBatch) -> np.ndarray:
        """Read all rows, some thousand at a time, and compare."""
        profile = self._profile(batch, self._vectors(batch.shown.indices))
        chunks = np.array_split(np.arange(batch.num_items), 1 + batch.num_items // CENTERING_ROWS)
        return np.concatenate([profile @ self._vectors(rows).T for rows in chunks], axis=1)

    def _profile(self, batch: QuestionBatch, vectors: np.ndarray) -> np.ndarray:
        """Average the vectors of the items shown, which are given one question after the other."""
        position = sparse.csr_array((batch.shown.data, np.arange(len(vectors)), batch.shown.indptr))
        return position @ vectors / batch.num_shown[:, None]  # [questions, dim]

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the centered features of items with length 1, zero for those that have none: `[rows, dim]`."""
        features, present = self._gather(rows)
        features = np.where(present[:, None], features - self._mean, 0.0)
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

    def _gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self._store is not None
        features, present = self._store.gather(torch.from_numpy(rows))
        return features[self.modality].double().numpy(), present[self.modality].numpy()


class BundleLightGCN(InnerProductBaseline):
    """Score a candidate by the mean inner product of its LightGCN embedding (He et al., SIGIR 2020) with those shown.

    The graph is that of training bundles and items. A partial bundle is no node of it; the mean of its items'
    embeddings represents it.

    Args:
        seed: The same seed gives the same embeddings.
        steps: Optimizer steps.
    """

    def __init__(self, seed: int = 0, steps: int = LightGCN.steps):
        self.method = LightGCN(seed=seed, steps=steps)

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Train the embeddings of items."""
        self.vectors = self.method.fit(self._groups(folder, bundles)).astype(np.float64)

    def profile(self, batch: QuestionBatch) -> np.ndarray:
        """Average the embeddings of the items shown."""
        return batch.shown @ self.vectors / batch.num_shown[:, None]

    def _groups(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> ItemGroups:
        return ItemGroups.of_bundles(bundles, folder.catalog)


class UserLightGCN(BundleLightGCN):
    """[`BundleLightGCN`] on the graph of users and items."""

    reads_bundles = False

    def _groups(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> ItemGroups:
        return user_groups(folder)
