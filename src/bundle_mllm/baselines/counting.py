"""Baselines that count: chance, popularity, co-occurrence, neighbors, categories.

They must not know words, features or anything that is trained by steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from bundle_mllm.baselines.base import Asked, Relation, UnavailableError, bundle_edges, bundle_relation, user_edges
from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.folder import DatasetFolder


class Chance:
    """Random scores; those of a question depend on its items and the seed alone.

    Args:
        seed: The same seed gives the same scores.
    """

    reads_bundles = False

    def __init__(self, seed: int = 0):
        self.seed = seed

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Learn nothing."""

    def score(self, asked: Asked) -> np.ndarray:
        """Draw scores, uniform in [0, 1)."""
        scores = [np.empty(0)]
        for partial, candidates in zip(asked.partials, asked.candidates, strict=True):
            generator = np.random.default_rng([self.seed, len(partial), *partial, *candidates])
            scores.append(generator.random(len(candidates)))
        return np.concatenate(scores)


class Popularity:
    """Score an item by the number of training bundles that it is in."""

    reads_bundles = True

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Count."""
        self._counts = bundle_relation(folder, bundles).counts

    def score(self, asked: Asked) -> np.ndarray:
        """Look the counts up."""
        return self._counts[asked.candidate].astype(float)


class CoOccurrence:
    """Score a candidate c by how often it met the items shown in training bundles: the sum of |B_i ∩ B_c| over i."""

    reads_bundles = True

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Note which bundles each item is in."""
        self._relation = bundle_relation(folder, bundles)

    def score(self, asked: Asked) -> np.ndarray:
        """Count."""
        return self._relation.meetings(asked)


class ItemKNN:
    """Score a candidate by its cosine similarity to the items shown (Sarwar et al., WWW 2001), over training bundles.

    The sum over the items i shown of |B_i ∩ B_c| / √((|B_i| + s)(|B_c| + s)). The shrinkage s (ours in this form, in
    which a question costs what its items cost and no matrix of all pairs is needed) keeps two items that met once and
    are nowhere else from being perfectly similar. All neighbors count: ten candidates leave none to cut off.

    Args:
        shrinkage: s.
    """

    reads_bundles = True

    def __init__(self, shrinkage: float = 5.0):
        self.shrinkage = shrinkage

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Note which bundles each item is in."""
        self._fit(bundle_relation(folder, bundles))

    def score(self, asked: Asked) -> np.ndarray:
        """Add similarities up."""
        return self._relation.meetings(asked, self._scale) * self._scale[asked.candidate]

    def _fit(self, relation: Relation) -> None:
        self._relation = relation
        self._scale = (relation.counts + self.shrinkage) ** -0.5  # [num_items]


class UserKNN(ItemKNN):
    """[`ItemKNN`] over the user log: items are alike if the same users met them."""

    reads_bundles = False

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Note which users met each item."""
        self._fit(Relation(*user_edges(folder), len(folder.catalog)))


class CategoryPMI:
    """Score a candidate by how much more often its category meets those shown than chance would have it.

    The mean over the items i shown of log((n_ab + 1) / (n_a n_b / n + 1)) with a = category of i and b = category of
    the candidate: pointwise mutual information (Church and Hanks, 1990) of the categories of two items of one training
    bundle, drawn towards 0 where few pairs are expected. Of n pairs, n_ab have the categories a and b; a pair of a
    bundle of k items counts 1 / (k - 1), so that each item counts once. Items without a category give 0.
    """

    reads_bundles = True

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Count pairs of categories."""
        catalog = folder.catalog
        names = sorted({category for category in catalog.categories if category})
        if len(names) < 2:
            raise UnavailableError(
                f"{folder.path} has items of {len(names)} categories: give `category` to items, or leave it out."
            )
        number = {name: column for column, name in enumerate(names)}
        self._category = np.array([number.get(category or "", -1) for category in catalog.categories])
        groups, items = bundle_edges(catalog, [bundle for bundle in bundles if len(bundle.items) > 1])
        weight = 1.0 / np.maximum(np.bincount(groups) - 1, 1)  # [bundles]
        known = self._category[items] >= 0
        groups, columns = groups[known], self._category[items][known]
        shape = (len(weight), len(names))
        counts = sparse.csr_array((np.ones(len(groups)), (groups, columns)), shape=shape)  # adds up
        itself = sparse.diags_array(np.bincount(columns, weights=weight[groups], minlength=len(names)))
        self._pairs = sparse.csr_array(counts.T @ sparse.diags_array(weight) @ counts - itself)  # [names, names]
        self._marginal = np.asarray(self._pairs.sum(axis=1))
        self._total = max(self._marginal.sum(), 1e-9)

    def score(self, asked: Asked) -> np.ndarray:
        """Look the categories up."""
        scores = [np.empty(0)]
        for part in asked.batches(10_240):
            sizes = part.num_shown[part.question]  # [total]
            target = np.repeat(np.arange(len(sizes)), sizes)  # [pairs]: each candidate with each item shown
            firsts = part.shown.indptr[part.question]
            place = np.arange(len(target)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(firsts, sizes)
            shown, candidate = self._category[part.shown.indices[place]], self._category[part.candidate[target]]
            both = (shown >= 0) & (candidate >= 0)
            values = np.zeros(len(target))
            values[both] = self._pmi(shown[both], candidate[both])
            scores.append(np.bincount(target, weights=values, minlength=len(sizes)) / sizes)
        return np.concatenate(scores)

    def _pmi(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        met = np.asarray(self._pairs[a, b]).ravel() if len(a) else np.empty(0)
        return np.log((met + 1) / (self._marginal[a] * self._marginal[b] / self._total + 1))
