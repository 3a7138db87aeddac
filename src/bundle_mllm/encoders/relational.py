"""Describe items by their users or training bundles: truncated SVD or LightGCN of the membership graph.

Knows nothing about the items' titles and files, and of bundles outside the training split only whether these have
near-duplicates in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import svds

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import OutOfFoldFeatures, assign_folds
from bundle_mllm.data.memberships import BUNDLE_ITEM, USER_ITEM, ItemGroups
from bundle_mllm.encoders.base import Encoded, Progress
from bundle_mllm.encoders.lightgcn import LightGCN
from bundle_mllm.errors import BundleMLLMError

NUM_FOLDS = 10


@dataclass(frozen=True)
class TruncatedSVD:
    """Factor the normalized incidence matrix of groups (users or bundles) and items; the fast method.

    With edges R, the matrix is D_g^(-1/2) R D_i^(-1/4) = U S V'; an item's vector is its row of sqrt(num_items) V S,
    over the largest singular value. The power of the items' degrees is ours: with -1/2, as in LightGCN, the first
    columns are small groups that share no item with others, and real bundles are completed less well. Signs are fixed:
    in each column, the entry of largest size is positive.

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
        """Factor a graph: `[num_items, dim]` float32, zero for items without a group."""
        features = np.zeros((groups.num_items, self.dim), dtype=np.float32)
        if len(groups):
            by_group = sparse.diags_array(np.maximum(groups.group_sizes, 1) ** -0.5)
            by_item = sparse.diags_array(np.maximum(groups.groups_per_node, 1) ** -0.25)
            values, vectors = truncated_svd(sparse.csr_array(by_group @ groups.csr().T @ by_item), self.dim)
            features[:, : len(values)] = np.sqrt(groups.num_items) * (vectors * (values / values[0])[:, None]).T
        if progress is not None:
            progress(groups.num_items, groups.num_items)
        return features


class GroupEncoder(ABC):
    """Describe each item by its groups and their number; an item without a group is absent.

    Args:
        method: Makes vectors of the graph of groups and items; the same graph gives the same bytes.
    """

    modality: str

    def __init__(self, method: TruncatedSVD | LightGCN):
        self.method = method
        self.dim = method.dim + 1
        self.name = f"{self.modality.replace('_', '-')} {method.name}"

    @classmethod
    def svd(cls) -> Self:
        """Return the encoder by truncated SVD."""
        return cls(TruncatedSVD())

    @classmethod
    def lightgcn(cls) -> Self:
        """Return the encoder by LightGCN."""
        return cls(LightGCN())

    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Encode the groups of a folder."""
        groups = self.groups(folder)

        def in_items(done: int, total: int) -> None:
            """Report steps of the method as items, as all encoders do."""
            assert progress is not None
            progress(groups.num_items * done // total, groups.num_items)

        return _with_popularity(self.method.fit(groups, progress and in_items), groups.groups_per_node)

    @abstractmethod
    def groups(self, folder: DatasetFolder) -> ItemGroups:
        """Return the groups of a folder."""


class UserItemEncoder(GroupEncoder):
    """A [`GroupEncoder`] of the user log."""

    modality = USER_ITEM

    def groups(self, folder: DatasetFolder) -> ItemGroups:
        """Return the users of each item."""
        log = folder.interactions
        if log is None:
            raise BundleMLLMError(
                f"{folder.path} has no interactions table, so there are no users to describe an item by: "
                'add interactions.csv (user_id, item_id), or leave "user_item" out.'
            )
        return ItemGroups.of_users(log, len(folder.catalog))


class BundleItemEncoder(GroupEncoder):
    """A [`GroupEncoder`] of the *training* bundles.

    These vectors contain the answers of training questions: a model that trains on them learns to trust them more than
    it may at test time. [`~BundleItemEncoder.cross_fit`] makes the vectors to train on.

    Args:
        method: See [`GroupEncoder`].
        num_folds: Number of folds; more of them cost more and come closer to the conditions at test time.
        seed: Chooses the folds.
    """

    modality = BUNDLE_ITEM

    def __init__(self, method: TruncatedSVD | LightGCN, num_folds: int = NUM_FOLDS, seed: int = 0):
        super().__init__(method)
        self.num_folds, self.seed = num_folds, seed
        self.name += f", {num_folds} folds"

    def groups(self, folder: DatasetFolder) -> ItemGroups:
        """Return the training bundles of each item."""
        return ItemGroups.of_bundles(folder.bundles.train, folder.catalog)

    def cross_fit(
        self, folder: DatasetFolder, features: np.ndarray, progress: Progress | None = None
    ) -> OutOfFoldFeatures | None:
        """Fit again without each fold of the training bundles.

        Args:
            folder: Whose training bundles to use.
            features: `[num_items, dim]`, the result of `encode` for all of them.
            progress: Called with (folds done, folds in all).

        Returns:
            The out-of-fold features, in the space of `features`; `None` if there are fewer bundles than folds.
        """
        bundles = {bundle.bundle_id: bundle.items for bundle in folder.bundles.train}
        if len(bundles) < self.num_folds:
            return None
        together = folder.near_duplicates_together
        fold_of_bundle = assign_folds(bundles, self.num_folds, seed=self.seed, near_duplicates_together=together)
        fold_of_group = np.array([fold_of_bundle[bundle_id] for bundle_id in sorted(bundles)])
        fitted = cross_fit(self.method.fit, self.groups(folder), fold_of_group, features[:, :-1], progress)
        encoded = [_with_popularity(factors, others.groups_per_node) for others, factors in fitted]
        return OutOfFoldFeatures(
            self.modality,
            fold_of_bundle,
            torch.from_numpy(np.stack([fold.features for fold in encoded])),
            torch.from_numpy(np.stack([fold.present for fold in encoded])),
        )


def cross_fit(
    fit: Callable[[ItemGroups], np.ndarray],
    groups: ItemGroups,
    fold_of_group: np.ndarray,
    reference: np.ndarray,
    progress: Progress | None = None,
) -> Iterator[tuple[ItemGroups, np.ndarray]]:
    """Fit once without each fold and rotate the result onto the features fitted to all; see `data.folds` for why.

    In one common space, a model can take either. The wrong options of a hard question about the fold must be matched
    on frequencies counted without it, too: then answers and wrong options lose the same bundles.

    Args:
        fit: Turns groups into features, `[num_items, dim]`.
        groups: The training bundles of each item.
        fold_of_group: `[num_groups]` the fold of each bundle, 0 to K - 1.
        reference: `[num_items, dim]`, the features fitted to all bundles.
        progress: Called with (folds done, folds in all).

    Yields:
        For each fold, the bundles of the others and the features fitted to these: `[num_items, dim]` float16, half the
        size, and far more exact than the fold's absence matters.
    """
    num_folds = int(fold_of_group.max()) + 1
    for fold in range(num_folds):
        others = groups.without(np.flatnonzero(fold_of_group == fold))
        yield others, rotate_onto(fit(others), reference).astype(np.float16)
        if progress is not None:
            progress(fold + 1, num_folds)


def rotate_onto(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Rotate features `[num_items, dim]`: X Q with the orthogonal Q that minimizes |X Q - Y| (Schönemann, 1966)."""
    return (features @ rotation_onto(features, reference)).astype(features.dtype)


def rotation_onto(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the rotation Q `[dim, dim]` of `rotate_onto`."""
    left, _, right = np.linalg.svd(features.T.astype(np.float64) @ reference)
    return left @ right


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


def truncated_svd(matrix: sparse.csr_array, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `dim` largest singular values `[kept]`, falling, and their right vectors `[kept, columns]`.

    Values that are zero are left out. In each vector, the entry of largest size is positive; the same matrix gives the
    same bytes.
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
