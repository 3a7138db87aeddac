"""Describe items by their users or training bundles: truncated SVD or LightGCN of the membership graph.

Knows nothing about bundles outside the training split, nor the items' titles and files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import svds

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import OutOfFoldFeatures, assign_folds
from bundle_mllm.data.memberships import BUNDLE_ITEM, USER_ITEM, ItemGroups
from bundle_mllm.encoders.base import Encoded, Progress
from bundle_mllm.encoders.cross_fitting import cross_fit
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

    def fit(self, groups: ItemGroups, progress: Progress | None = None) -> np.ndarray:
        """Return `[num_items, dim]` float32, zero for items without a group; the same graph gives the same bytes."""
        ...


@dataclass(frozen=True)
class TruncatedSVD:
    """The fast method; see [`item_svd`].

    Attributes:
        dim: Length of a vector; columns beyond the rank of the graph are zero.
    """

    dim: int = 63  # with the popularity, 64 are stored

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise BundleMLLMError(f"A truncated SVD of {self.dim} columns is empty: choose 1 or more.")

    @property
    def name(self) -> str:
        """Name, version and settings."""
        return "svd-2" if self == TruncatedSVD() else f"svd-2 {self}"

    def fit(self, groups: ItemGroups, progress: Progress | None = None) -> np.ndarray:
        """Factor a graph."""
        features = item_svd(groups, self.dim)
        if progress is not None:
            progress(groups.num_items, groups.num_items)
        return features


class UserItemEncoder:
    """Describe each item by its users and their number; an item without a user is absent.

    Args:
        method: Makes vectors of the user log.
    """

    modality = USER_ITEM

    def __init__(self, method: GraphMethod):
        self.method = method
        self.dim = method.dim + 1
        self.name = f"user-item {method.name}"

    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Encode the user log of a folder."""
        log = folder.interactions
        if log is None:
            raise BundleMLLMError(
                f"{folder.path} has no interactions table, so there are no users to describe an item by: "
                'add interactions.csv (user_id, item_id), or leave "user_item" out.'
            )
        return _encode(self.method, ItemGroups.of_users(log, len(folder.catalog)), progress)


class BundleItemEncoder:
    """Describe each item by its *training* bundles and their number; an item in no training bundle is absent.

    These vectors contain the answers of training questions: a model that trains on them learns to trust them more than
    it may at test time. [`~BundleItemEncoder.cross_fit`] makes the vectors to train on.

    Args:
        method: Makes vectors of the bundles.
        num_folds: Number of folds; more of them cost more and come closer to the conditions at test time.
        seed: Chooses the folds.
    """

    modality = BUNDLE_ITEM

    def __init__(self, method: GraphMethod, num_folds: int = NUM_FOLDS, seed: int = 0):
        self.method, self.num_folds, self.seed = method, num_folds, seed
        self.dim = method.dim + 1
        self.name = f"bundle-item {method.name}, {num_folds} folds"

    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Encode the training bundles of a folder."""
        return _encode(self.method, ItemGroups.of_bundles(folder.bundles.train, folder.catalog), progress)

    def cross_fit(
        self, folder: DatasetFolder, features: np.ndarray, progress: Progress | None = None
    ) -> OutOfFoldFeatures | None:
        """Fit again without each fold of the training bundles.

        Args:
            folder: The folder.
            features: `[num_items, dim]`, the result of `encode` for all its training bundles.
            progress: Called with (folds done, folds in all).

        Returns:
            The out-of-fold features, in the space of `features`; `None` if there are fewer bundles than folds.
        """
        bundles = {bundle.bundle_id: bundle.items for bundle in folder.bundles.train}
        if len(bundles) < self.num_folds:
            return None
        fold_of_bundle = assign_folds(bundles, self.num_folds, seed=self.seed)
        fold_of_group = np.array([fold_of_bundle[bundle_id] for bundle_id in sorted(bundles)])
        groups = ItemGroups.of_bundles(folder.bundles.train, folder.catalog)
        fitted = cross_fit(self.method.fit, groups, fold_of_group, features[:, :-1], progress)
        encoded = [_with_popularity(factors, others.groups_per_node) for others, factors in fitted]
        return OutOfFoldFeatures(
            self.modality,
            fold_of_bundle,
            torch.from_numpy(np.stack([fold.features for fold in encoded])),
            torch.from_numpy(np.stack([fold.present for fold in encoded])),
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


def _encode(method: GraphMethod, groups: ItemGroups, progress: Progress | None) -> Encoded:
    def in_items(done: int, total: int) -> None:
        """Report steps of the method as items, as all encoders do."""
        assert progress is not None
        progress(groups.num_items * done // total, groups.num_items)

    return _with_popularity(method.fit(groups, progress and in_items), groups.groups_per_node)


def _with_popularity(factors: np.ndarray, counts: np.ndarray) -> Encoded:
    """Append the popularity as a column of its own, which no rotation mixes with the factors.

    It is a quarter of log(1 + count / mean count): small enough to change cosines little, and a model can give it more
    weight. It needs no statistics that out-of-fold features would have to share.
    """
    popularity = np.log1p(counts / max(counts.mean(), 1e-9)) / 4
    features = np.concatenate([factors, popularity[:, None].astype(factors.dtype)], axis=1)
    present = counts > 0
    features[~present] = 0.0
    return Encoded(features, present)


def item_svd(groups: ItemGroups, dim: int) -> np.ndarray:
    """Factor the normalized incidence matrix of groups (users or bundles) and items.

    With edges R, the matrix is D_g^(-1/2) R D_i^(-1/4) = U S V'; an item's vector is its row of sqrt(num_items) V S,
    over the largest singular value. The power of the items' degrees is ours: with -1/2, as in LightGCN, the first
    columns are small groups that share no item with others, and real bundles are completed less well. Signs are fixed:
    in each column, the entry of largest size is positive.

    Args:
        groups: The edges of items and groups.
        dim: Number of columns.

    Returns:
        `[num_items, dim]` float32; zero rows for items without an edge, zero columns beyond the rank.
    """
    features = np.zeros((groups.num_items, dim), dtype=np.float32)
    if not len(groups):
        return features
    by_group = sparse.diags_array(np.maximum(groups.group_sizes, 1) ** -0.5)
    by_item = sparse.diags_array(np.maximum(groups.groups_per_node, 1) ** -0.25)
    values, vectors = truncated_svd(sparse.csr_array(by_group @ groups.csr().T @ by_item), dim)
    features[:, : len(values)] = np.sqrt(groups.num_items) * (vectors * (values / values[0])[:, None]).T
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
    if smaller <= 2 * dim + 1:  # svds is for a small share of all vectors; here numpy is as fast
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
