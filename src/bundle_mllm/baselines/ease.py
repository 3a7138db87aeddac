"""EASE (Steck, WWW 2019): a linear autoencoder of bundles in closed form.

Knows nothing about words, features or training by steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from scipy import linalg, sparse
from scipy.linalg.lapack import dpotri  # pyright: ignore[reportAttributeAccessIssue]

from bundle_mllm.baselines.base import InnerProductBaseline, QuestionBatch, UnavailableError, user_groups
from bundle_mllm.baselines.learning import hold_out
from bundle_mllm.data.bundles import Bundle, BundleSplits
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.leakage import mark_held_out
from bundle_mllm.data.memberships import ItemGroups

SparseArray: TypeAlias = Any
"""A `csr_array`; scipy's own types know neither its shape nor its products."""
REGULARIZATIONS = (10.0, 30.0, 100.0, 300.0)
"""The values of λ among which held-out training bundles choose."""
MAX_SIDE = 20_000
"""Largest matrix that is inverted: 3.2 GB."""


class EASE(InnerProductBaseline):
    """Score a candidate by a ridge regression of each item on all others, over training bundles.

    With the incidence matrix X of bundles and items, P = (XᵀX + λI)⁻¹ and the weights B_ij = -P_ij / P_jj (eq. 8; 0 on
    the diagonal), the score is the sum of B_ic over the items i shown. Where there are fewer bundles than items, the
    same weights come from a matrix of bundles (ours, by Woodbury's identity): with K = (XXᵀ + λI)⁻¹,
    B_ij = (XᵀKX)_ij / (1 - (XᵀKX)_jj). So the cost grows with the smaller side, and items in no bundle cost nothing
    and score 0.

    Args:
        regularization: λ; by default the one of `REGULARIZATIONS` under which the items of held-out training bundles
            rank best.
    """

    def __init__(self, regularization: float | None = None):
        self.regularization = regularization

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Choose λ if need be, and solve for all bundles."""
        groups = self._groups(folder, [folder.catalog.rows(bundle.items) for bundle in bundles], ())
        self._check(folder, groups)
        if self.regularization is None:
            self.regularization = self._choose(folder, bundles)
        self._solve(groups, self.regularization)

    def profile(self, batch: QuestionBatch) -> np.ndarray:
        """Add up the rows of the items shown, and multiply by the inverse."""
        return (batch.shown @ self._inputs) @ self._inverse

    def _groups(
        self, folder: DatasetFolder, bundles: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]]
    ) -> SparseArray:
        """Return which item is in which group, `[num_items, num_groups]`, where nothing tells of held-out bundles.

        Both are given by the rows of each bundle; here the groups are the bundles.
        """
        numbers = np.repeat(np.arange(len(bundles)), list(map(len, bundles)))
        rows = np.fromiter(chain.from_iterable(bundles), dtype=np.int64)
        return ItemGroups("bundles", rows, numbers, len(folder.catalog)).csr()

    def _check(self, folder: DatasetFolder, groups: SparseArray) -> None:
        side = min(groups.shape[1], np.count_nonzero(np.diff(groups.indptr)))
        if side > MAX_SIDE:
            raise UnavailableError(
                f"{folder.path} has {side} bundles or users and as many items in them, whose matrix would take "
                f"{8 * side**2 / 1e9:.0f} GB",
                f"give {MAX_SIDE} or fewer",
            )

    def _solve(self, groups: SparseArray, regularization: float) -> None:
        """Solve for groups `[num_items, num_groups]`."""
        in_some = np.flatnonzero(np.diff(groups.indptr))
        if groups.shape[1] <= len(in_some):
            inverse = _inverse((groups.T @ groups).toarray(), regularization)  # K
            diagonal = np.zeros(groups.shape[0])
            for rows in np.array_split(in_some, 1 + len(in_some) * groups.shape[1] // 50_000_000):
                diagonal[rows] = groups[rows].multiply(groups[rows] @ inverse).sum(axis=1)
            self._inputs, self._inverse = groups, inverse
            self.vectors = sparse.csr_array(sparse.diags_array(1 / (1 - diagonal)) @ groups)
        else:
            warm = groups[in_some]
            inverse = _inverse((warm @ warm.T).toarray(), regularization)  # P
            weights = inverse / -np.diag(inverse)
            np.fill_diagonal(weights, 0.0)
            ones, shape = np.ones(len(in_some)), (groups.shape[0], len(in_some))
            select = sparse.csr_array((ones, (in_some, np.arange(len(in_some)))), shape=shape)
            self._inputs, self._inverse, self.vectors = select, weights, select

    def _choose(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> float:
        """Return the λ under which the hidden halves of held-out bundles have the highest mean reciprocal rank."""
        training, held_out = hold_out(folder, bundles, seed=0)
        if not held_out:
            return REGULARIZATIONS[1]
        num_items, groups = len(folder.catalog), self._groups(folder, training, held_out)
        shown, hidden = ([rows[part] for rows in held_out] for part in (slice(None, None, 2), slice(1, None, 2)))
        batch = QuestionBatch.of_catalog(shown, num_items)
        question = np.repeat(np.arange(len(hidden)), list(map(len, hidden)))
        row = np.fromiter(chain.from_iterable(hidden), dtype=np.int64)
        quality = {}
        for regularization in REGULARIZATIONS:
            self._solve(groups, regularization)
            scores = self.score_catalog(batch)
            scores[batch.shown.nonzero()] = -np.inf
            ordered = np.sort(scores, axis=1)
            sides = (self._places(ordered, question, scores[question, row], side) for side in ("left", "right"))
            quality[regularization] = np.mean(1 / (num_items + 0.5 - sum(sides) / 2))  # ties: their mean rank
        return max(quality, key=quality.__getitem__)

    @staticmethod
    def _places(ordered: np.ndarray, question: np.ndarray, scores: np.ndarray, side: Any) -> np.ndarray:
        """Return where scores would go in the ordered rows of their questions."""
        return np.array([np.searchsorted(ordered[q], score, side) for q, score in zip(question, scores, strict=True)])


class UserEASE(EASE):
    """[`EASE`] of users and items; the training bundles choose λ alone.

    Users whose log shows nearly all of a held-out training bundle (see `mark_held_out`), as it does where bundles and
    log are of the same orders, lose it while λ is chosen: it is the answer.
    """

    def _groups(
        self, folder: DatasetFolder, bundles: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]]
    ) -> SparseArray:
        groups = user_groups(folder)
        if not held_out or folder.interactions is None:
            return groups.csr()
        answers = tuple(
            Bundle(str(number), tuple(folder.catalog.item_ids[row] for row in rows), "test")
            for number, rows in enumerate(held_out)
        )
        data = DatasetFolder(folder.path, folder.catalog, BundleSplits(test=answers))
        vars(data)["interactions"] = folder.interactions
        log = folder.interactions.without(mark_held_out(data))
        return ItemGroups.of_users(log, len(folder.catalog)).csr()


def _inverse(matrix: np.ndarray, regularization: float) -> np.ndarray:
    """Return `(matrix + λI)⁻¹` of a symmetric matrix, which is overwritten."""
    matrix[np.diag_indices_from(matrix)] += regularization
    factor = linalg.cholesky(matrix, lower=True, overwrite_a=True)
    inverse, _ = dpotri(factor, lower=True, overwrite_c=True)
    return inverse + np.tril(inverse, -1).T
