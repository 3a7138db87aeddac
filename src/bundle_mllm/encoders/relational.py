"""Describe items by who meets them: truncated SVD of the user log or of the training bundles.

It must not know any edge outside the training split, nor the items' titles and files.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from ..data.folder import DatasetFolder
from ..errors import BundleMLLMError
from .base import Encoded, Progress


class UserItemSVD:
    """Describe each item by the users who meet it.

    Args:
        dim: Length of a vector; columns beyond the rank of the log are zero.
    """

    name = "user-item-svd-1"
    modality = "user_item"

    def __init__(self, dim: int = 64):
        self.dim = dim

    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Factor the user log of a folder; an item that no user meets is absent."""
        log = folder.interactions
        if log is None:
            raise BundleMLLMError(
                f"{folder.path} has no interactions table, so no user tells anything about an item: "
                'add interactions.csv (user_id, item_id), or leave "user_item" out.'
            )
        return _encode_edges(log.user_index, log.rows, len(folder.catalog), self.dim, progress)


class BundleItemSVD:
    """Describe each item by the *training* bundles it occurs in.

    These vectors know the bundles that training questions are asked about: a model that trains on them as they are
    learns to trust them more than it may at test time.

    Args:
        dim: Length of a vector; columns beyond the rank of the bundles are zero.
    """

    name = "bundle-item-svd-1"
    modality = "bundle_item"

    def __init__(self, dim: int = 64):
        self.dim = dim

    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Factor the training bundles of a folder; an item in none of them is absent."""
        rows = [folder.catalog.rows(bundle.items) for bundle in folder.bundles.train]
        numbers = np.repeat(np.arange(len(rows)), [len(bundle) for bundle in rows])
        items = np.fromiter((row for bundle in rows for row in bundle), dtype=np.int64)
        return _encode_edges(numbers, items, len(folder.catalog), self.dim, progress)


def _encode_edges(
    groups: np.ndarray, items: np.ndarray, num_items: int, dim: int, progress: Progress | None = None
) -> Encoded:
    features = item_svd(groups, items, num_items, dim)
    if progress is not None:
        progress(num_items, num_items)
    return Encoded(features, np.bincount(items, minlength=num_items) > 0)


def item_svd(groups: np.ndarray, items: np.ndarray, num_items: int, dim: int) -> np.ndarray:
    """Factor the symmetrically normalized incidence matrix of groups (users or bundles) and items.

    With edges R, the matrix is D_g^(-1/2) R D_i^(-1/2) = U S V'; an item's vector is its row of sqrt(num_items) V S,
    so that a column's root mean square is its singular value (at most 1). Signs are fixed: in each column, the entry
    of largest size is positive. Ours; the normalization is that of LightGCN (He et al., 2020).

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
    by_group, by_item = (sparse.diags_array(_inverse_root(edges.sum(axis=axis))) for axis in (1, 0))
    matrix = sparse.csr_array(by_group @ edges @ by_item)
    values, vectors = truncated_svd(matrix, dim)
    features[:, : len(values)] = np.sqrt(num_items) * (vectors * values[:, None]).T
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


def _inverse_root(degrees: np.ndarray) -> np.ndarray:
    return np.where(degrees > 0, 1 / np.sqrt(np.maximum(degrees, 1)), 0.0)
