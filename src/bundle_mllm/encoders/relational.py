"""Describe items by who meets them: the user log or the training bundles, by truncated SVD or LightGCN.

It must not know any edge outside the training split, nor the items' titles and files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import svds

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import OutOfFoldFeatures, assign_folds
from bundle_mllm.encoders.base import Encoded, Progress
from bundle_mllm.encoders.cross_fitting import cross_fit, edges
from bundle_mllm.encoders.lightgcn import LightGCN
from bundle_mllm.errors import BundleMLLMError

NUM_FOLDS = 10


class GraphMethod(Protocol):
    """Turns a graph of groups and items into one vector per item.

    Attributes:
        name: Name, version and settings.
        dim: Length of a vector.
    """

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def fit(
        self, groups: np.ndarray, items: np.ndarray, num_items: int, progress: Progress | None = None
    ) -> np.ndarray:
        """Return `[num_items, dim]` float32, zero for items without an edge; the same edges give the same bytes."""
        ...


@dataclass(frozen=True)
class TruncatedSVD:
    """The fast method; see [`item_svd`].

    Attributes:
        dim: Length of a vector; columns beyond the rank of the graph are zero.
    """

    dim: int = 63  # one less than the vectors that are stored: beside it stands the popularity

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise BundleMLLMError(f"A truncated SVD of {self.dim} columns says nothing: choose 1 or more.")

    @property
    def name(self) -> str:
        """Name, version and settings."""
        return "svd-2" if self == TruncatedSVD() else f"svd-2 {self}"

    def fit(
        self, groups: np.ndarray, items: np.ndarray, num_items: int, progress: Progress | None = None
    ) -> np.ndarray:
        """Factor a graph."""
        features = item_svd(groups, items, num_items, self.dim)
        if progress is not None:
            progress(num_items, num_items)
        return features


class UserItemEncoder:
    """Describe each item by the users who meet it, and by how many they are; an item that no user meets is absent.

    Args:
        method: What makes vectors of the user log.
    """

    modality = "user_item"

    def __init__(self, method: GraphMethod):
        self.method = method
        self.dim = method.dim + 1
        self.name = f"user-item {method.name}"

    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Encode the user log of a folder."""
        log = folder.interactions
        if log is None:
            raise BundleMLLMError(
                f"{folder.path} has no interactions table, so no user tells anything about an item: "
                'add interactions.csv (user_id, item_id), or leave "user_item" out.'
            )
        num_items = len(folder.catalog)
        factors = self.method.fit(log.user_index, log.rows, num_items, _in_items(progress, num_items))
        return _with_popularity(factors, np.bincount(log.rows, minlength=num_items))


class BundleItemEncoder:
    """Describe each item by the *training* bundles it is in, and by how many they are; one in none is absent.

    These vectors know the bundles that training questions are asked about: a model that trains on them as they are
    learns to trust them more than it may at test time. [`~BundleItemEncoder.cross_fit`] makes those to train on.

    Args:
        method: What makes vectors of the bundles.
        num_folds: Number of cross-fitted versions; more of them cost more and are closer to what is seen at test
            time.
        seed: Chooses the folds.
    """

    modality = "bundle_item"

    def __init__(self, method: GraphMethod, num_folds: int = NUM_FOLDS, seed: int = 0):
        self.method, self.num_folds, self.seed = method, num_folds, seed
        self.dim = method.dim + 1
        self.name = f"bundle-item {method.name}, {num_folds} folds"

    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Encode the training bundles of a folder."""
        rows, num_items = _rows_of_bundles(folder), len(folder.catalog)
        factors = self.method.fit(*edges(rows), num_items, _in_items(progress, num_items))
        return _with_popularity(factors, _counts(rows, num_items))

    def cross_fit(
        self, folder: DatasetFolder, features: np.ndarray, progress: Progress | None = None
    ) -> OutOfFoldFeatures | None:
        """Fit again without each fold of the training bundles.

        Args:
            folder: The folder.
            features: `[num_items, dim]`, what `encode` made of all its training bundles.
            progress: Called with (versions done, versions in all).

        Returns:
            The versions, in the space of `features`; `None` if there are too few bundles to cut into folds.
        """
        rows, num_items = _rows_of_bundles(folder), len(folder.catalog)
        if len(rows) < self.num_folds:
            return None
        bundles = {bundle.bundle_id: bundle.items for bundle in folder.bundles.train}
        fold_of_bundle = assign_folds(bundles, self.num_folds, seed=self.seed)
        folds = list(fold_of_bundle.values())
        fit = partial(self.method.fit, num_items=num_items)
        factors = cross_fit(fit, rows, folds, features[:, :-1], progress)
        versions = []
        for fold, version in enumerate(factors):
            kept = [items for items, other in zip(rows, folds, strict=True) if other != fold]
            versions.append(_with_popularity(version, _counts(kept, num_items)))
        return OutOfFoldFeatures(
            self.modality,
            fold_of_bundle,
            torch.from_numpy(np.stack([version.features for version in versions])),
            torch.from_numpy(np.stack([version.present for version in versions])),
        )


class UserItemSVD(UserItemEncoder):
    """[`UserItemEncoder`] by truncated SVD; its vectors are `dim` long, the popularity included."""

    def __init__(self, dim: int = 64):
        super().__init__(TruncatedSVD(dim - 1))


class UserItemLightGCN(UserItemEncoder):
    """[`UserItemEncoder`] by LightGCN."""

    def __init__(self, method: LightGCN | None = None):
        super().__init__(method or LightGCN())


class BundleItemSVD(BundleItemEncoder):
    """[`BundleItemEncoder`] by truncated SVD; its vectors are `dim` long, the popularity included."""

    def __init__(self, dim: int = 64, num_folds: int = NUM_FOLDS):
        super().__init__(TruncatedSVD(dim - 1), num_folds)


class BundleItemLightGCN(BundleItemEncoder):
    """[`BundleItemEncoder`] by LightGCN."""

    def __init__(self, method: LightGCN | None = None, num_folds: int = NUM_FOLDS):
        super().__init__(method or LightGCN(), num_folds)


def _rows_of_bundles(folder: DatasetFolder) -> list[np.ndarray]:
    return [np.array(folder.catalog.rows(bundle.items)) for bundle in folder.bundles.train]


def _in_items(progress: Progress | None, num_items: int) -> Progress | None:
    """Report steps of a method as items, which is what users of an encoder expect."""
    return None if progress is None else lambda done, total: progress(num_items * done // total, num_items)


def _counts(groups: Sequence[np.ndarray], num_items: int) -> np.ndarray:
    return np.bincount(edges(groups)[1], minlength=num_items)


def _with_popularity(factors: np.ndarray, counts: np.ndarray) -> Encoded:
    """Append the popularity as a column of its own, which no rotation mixes with the factors.

    It is a quarter of log(1 + count / mean count): small enough to leave cosines what they were, and there for
    whoever gives it a weight. It needs no statistics that a version fitted without a fold would have to share.
    """
    popularity = np.log1p(counts / max(counts.mean(), 1e-9)) / 4
    features = np.concatenate([factors, popularity[:, None].astype(factors.dtype)], axis=1)
    present = counts > 0
    features[~present] = 0.0
    return Encoded(features, present)


def item_svd(groups: np.ndarray, items: np.ndarray, num_items: int, dim: int) -> np.ndarray:
    """Factor the normalized incidence matrix of groups (users or bundles) and items.

    With edges R, the matrix is D_g^(-1/2) R D_i^(-1/4) = U S V'; an item's vector is its row of sqrt(num_items) V S,
    over the largest singular value. The power of the items' degrees is ours: with -1/2, as in LightGCN, the first
    columns are small groups that share no item with others, and on real bundles more questions stay unanswered.
    Signs are fixed: in each column, the entry of largest size is positive.

    Args:
        groups: `[num_edges]` number of the user or bundle, from 0.
        items: `[num_edges]` row of the item. Repeated pairs count once.
        num_items: Length of the catalog.
        dim: Number of columns.

    Returns:
        `[num_items, dim]` float32; zero rows for items without an edge, zero columns beyond the rank.
    """
    features = np.zeros((num_items, dim), dtype=np.float32)
    if groups.size == 0:
        return features
    num_groups = int(groups.max()) + 1
    edges = sparse.csr_array((np.ones(groups.size), (groups, items)), shape=(num_groups, num_items))
    edges.data[:] = 1.0  # csr_array adds repeated pairs up; here they count once.
    of_group, of_item = (np.maximum(edges.sum(axis=axis), 1) for axis in (1, 0))
    by_group, by_item = sparse.diags_array(of_group**-0.5), sparse.diags_array(of_item**-0.25)
    values, vectors = truncated_svd(sparse.csr_array(by_group @ edges @ by_item), dim)
    features[:, : len(values)] = np.sqrt(num_items) * (vectors * (values / values[0])[:, None]).T
    return features


def truncated_svd(matrix: sparse.csr_array, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest singular values and their right vectors; the same matrix gives the same bytes.

    In each vector, the entry of largest size is positive.

    Args:
        matrix: `[rows, columns]`.
        dim: How many at most; values that are zero are left out.

    Returns:
        Values `[kept]`, falling, and vectors `[kept, columns]`.
    """
    smaller = min(matrix.shape)  # pyright: ignore[reportArgumentType]  # two dimensions
    kept = min(dim, smaller)
    if smaller <= 2 * dim + 1:  # svds finds a small part of all vectors; here numpy is as fast.
        _, values, vectors = np.linalg.svd(matrix.toarray(), full_matrices=False)
    else:
        start = np.random.default_rng(0).standard_normal(smaller)
        _, values, vectors = svds(matrix, k=kept, v0=start, solver="arpack")
    vectors = np.asarray(vectors)
    order = np.argsort(-values, kind="stable")[:kept]
    values, vectors = values[order], vectors[order]  # [kept], [kept, columns]
    kept = int((values > 1e-9).sum())
    values, vectors = values[:kept], vectors[:kept]
    signs = np.sign(vectors[np.arange(kept), np.abs(vectors).argmax(axis=1)])
    return values, vectors * signs[:, None]
