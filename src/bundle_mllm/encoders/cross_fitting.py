"""Fit features again without each fold of the training bundles, in one common space.

It must not know which method makes the features, nor how questions are asked.

A question about a training bundle must not be asked with features that know the bundle, or its answer would look like
nothing that is seen at test time. So the training bundles are cut into K folds, the method is fitted K times without
one of them, and each version is rotated onto the features that were fitted to all bundles (orthogonal Procrustes). A
version and the questions about its fold are then to each other as all training bundles and a held-out question:
answers and wrong options lose the same bundles. That needs two more things. Near-duplicates share a fold, as they
share a split: a quarter of real outfits have one, which would give the answer away. And the wrong options of a hard
question must be matched on frequencies counted without the fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes the group and the item of each edge; returns `[num_items, dim]`."""


def align(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Rotate features onto others: X Q with the orthogonal Q that minimizes |X Q - Y| (Schönemann, 1966).

    Args:
        features: X, `[num_items, dim]`.
        reference: Y, `[num_items, dim]`.

    Returns:
        X Q, with all inner products of X.
    """
    left, _, right = np.linalg.svd(features.T.astype(np.float64) @ reference)
    return (features @ (left @ right)).astype(features.dtype)


def cross_fit(
    fit: Fit,
    bundles: Sequence[np.ndarray],
    folds: Sequence[int],
    reference: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Fit once without each fold and align the result with the features fitted to all.

    Args:
        fit: The method.
        bundles: The rows of each training bundle's items.
        folds: The fold of each bundle, 0 to K - 1.
        reference: `[num_items, dim]`, what the method makes of all bundles.
        progress: Called with (versions done, versions in all).

    Returns:
        `[K, num_items, dim]` float16: half the size, and far below what leaving out bundles changes.
    """
    num_folds = max(folds) + 1
    versions = np.zeros((num_folds, *reference.shape), dtype=np.float16)
    for fold in range(num_folds):
        kept = [rows for rows, other in zip(bundles, folds, strict=True) if other != fold]
        versions[fold] = align(fit(*edges(kept)), reference)
        if progress is not None:
            progress(fold + 1, num_folds)
    return versions


def edges(groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the group and the item of each edge, given the items of each group: `[num_edges]` twice."""
    sizes = np.fromiter(map(len, groups), dtype=np.int64, count=len(groups))
    numbers = np.repeat(np.arange(len(groups)), sizes)
    items = np.concatenate([np.empty(0, dtype=np.int64), *groups]).astype(np.int64)
    return numbers, items
