"""Baselines that compare contents: words, and features of any modality, by cosine.

They must not know any bundle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from bundle_mllm.baselines.base import Asked, UnavailableError
from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.words import words
from bundle_mllm.encoders.textual import tfidf

CENTERING_ROWS = 20_000
"""The mean of a modality is taken over at most so many items, at equal distances."""


class TfidfCosine:
    """Score a candidate by the mean cosine of its TF-IDF vector with those of the items shown.

    The words are those of title, category and description; see `bundle_mllm.encoders.textual.tfidf`.
    """

    reads_bundles = False

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Count words."""
        if not any(folder.catalog.titles) and not any(item.description for item in folder.catalog):
            raise UnavailableError(f"{folder.path} has no titles: give `title` to items, or leave it out.")
        self._vectors = tfidf([Counter(words(item.text)) for item in folder.catalog])

    def score(self, asked: Asked) -> np.ndarray:
        """Compare."""
        profile = (asked.shown @ self._vectors).tocsr()  # [questions, words]
        cosines = profile[asked.question].multiply(self._vectors[asked.candidate]).sum(axis=1)
        return np.asarray(cosines) / asked.num_shown[asked.question]


class FeatureCosine:
    """Score a candidate by the mean cosine of its features with those of the items shown.

    The catalog's mean is taken away first: features share a direction that tells nothing (histograms are all positive,
    and so are the cosines of most learned embeddings). An item without the modality is neither like nor unlike: 0.

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
            raise UnavailableError(
                f"{folder.path} has no {self.modality!r} features (it has {known}): encode them, or leave it out."
            )
        self._store = folder.features([self.modality])
        rows = np.linspace(0, len(folder.catalog) - 1, min(len(folder.catalog), CENTERING_ROWS)).astype(int)
        features, present = self._gather(rows)
        self._mean = features[present].mean(axis=0) if present.any() else 0.0

    def score(self, asked: Asked) -> np.ndarray:
        """Read the rows of the questions, and compare."""
        rows, place = np.unique(np.concatenate([asked.shown.indices, asked.candidate]), return_inverse=True)
        features, present = self._gather(rows)
        features = np.where(present[:, None], features - self._mean, 0.0)
        vectors = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)  # [rows, dim]
        shown = asked.shown.copy()
        shown.indices = place[: shown.nnz].astype(shown.indices.dtype)
        shown.resize(len(asked), len(rows))
        profile = shown @ vectors / asked.num_shown[:, None]  # [questions, dim]
        return np.einsum("nd,nd->n", profile[asked.question], vectors[place[shown.nnz :]])

    def _gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self._store is not None
        features, present = self._store.gather(torch.from_numpy(rows))
        return features[self.modality].double().numpy(), present[self.modality].numpy()
