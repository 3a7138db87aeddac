"""Fit features again without each fold of the training bundles, in one common space.

Knows nothing about which method makes the features, nor how questions are made.

The features of a fold are rotated onto those fitted to all bundles (orthogonal Procrustes), so that a model can take
either. The wrong options of a hard question about the fold must be matched on frequencies counted without it, too:
then answers and wrong options lose the same bundles. See `data.folds` for why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bundle_mllm.data.memberships import ItemGroups

Fit = Callable[[ItemGroups], np.ndarray]
"""Turns the bundles of items into features, `[num_items, dim]`."""


def rotate_onto(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
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
    groups: ItemGroups,
    fold_of_group: np.ndarray,
    reference: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[ItemGroups, np.ndarray]]:
    """Fit once without each fold and rotate the result onto the features fitted to all.

    Args:
        fit: The method.
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
