"""Baselines that count: chance, popularity, co-occurrence, neighbors, categories.

Knows nothing about words, features or training by steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from bundle_mllm.baselines.base import InnerProductBaseline, QuestionBatch, UnavailableError, user_groups
from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.memberships import ItemGroups


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

    def score(self, batch: QuestionBatch) -> np.ndarray:
        """Draw scores, uniform in [0, 1)."""
        scores = [np.empty(0)]
        for partial, candidates in zip(batch.partials, batch.candidates, strict=True):
            generator = np.random.default_rng([self.seed, len(partial), *partial, *candidates])
            scores.append(generator.random(len(candidates)))
        return np.concatenate(scores)

    def score_catalog(self, batch: QuestionBatch) -> np.ndarray:
        """Draw a score for each item."""
        keys = ([self.seed, len(partial), *partial] for partial in batch.partials)
        return np.stack([np.random.default_rng(key).random(batch.num_items) for key in keys])


class Popularity:
    """Score an item by the number of its training bundles."""

    reads_bundles = True

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Count."""
        self._counts = ItemGroups.of_bundles(bundles, folder.catalog).groups_per_node

    def score(self, batch: QuestionBatch) -> np.ndarray:
        """Look the counts up."""
        return self._counts[batch.candidate_rows].astype(float)

    def score_catalog(self, batch: QuestionBatch) -> np.ndarray:
        """Give every question the same scores."""
        return np.tile(self._counts.astype(float), (len(batch), 1))


class CoOccurrence(InnerProductBaseline):
    """Score a candidate c by its co-occurrence with the items i shown in training bundles: the sum of |B_i ∩ B_c|."""

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Store the bundles of each item."""
        self.vectors = ItemGroups.of_bundles(bundles, folder.catalog).csr()

    def profile(self, batch: QuestionBatch) -> sparse.csr_array:
        """Count how many items shown are in each bundle."""
        return sparse.csr_array(batch.shown @ self.vectors)


class ItemKNN(InnerProductBaseline):
    """Score a candidate by its cosine similarity to the items shown (Sarwar et al., WWW 2001), over training bundles.

    The sum over the items i shown of |B_i ∩ B_c| / √((|B_i| + s)(|B_c| + s)). The shrinkage s (ours in this form, in
    which the cost of a question depends on its items alone and no matrix of all pairs is needed) keeps two items from
    being perfectly similar that share the only bundle of each. All neighbors count: ten candidates leave none to cut
    off.

    Args:
        shrinkage: s.
    """

    def __init__(self, shrinkage: float = 5.0):
        self.shrinkage = shrinkage

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Store the groups of each item, scaled by their number."""
        groups = self._groups_of(folder, bundles)
        scale = sparse.diags_array((groups.groups_per_node + self.shrinkage) ** -0.5)
        self.vectors = sparse.csr_array(scale @ groups.csr())

    def profile(self, batch: QuestionBatch) -> sparse.csr_array:
        """Add up the groups of the items shown."""
        return sparse.csr_array(batch.shown @ self.vectors)

    def _groups_of(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> ItemGroups:
        return ItemGroups.of_bundles(bundles, folder.catalog)


class UserKNN(ItemKNN):
    """[`ItemKNN`] over the user log: items are similar if they have the same users."""

    reads_bundles = False

    def _groups_of(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> ItemGroups:
        return user_groups(folder)


class CategoryPMI:
    """Score a candidate by how much more often its category occurs with those shown than by chance.

    The mean over the items i shown of log((n_ab + 1) / (n_a n_b / n + 1)) with a = category of i and b = category of
    the candidate: pointwise mutual information (Church and Hanks, 1990) of the categories of two items of one training
    bundle, drawn towards 0 where few pairs are expected. Of n pairs, n_ab have the categories a and b; a pair of a
    bundle of k items counts 1 / (k - 1), so that each item counts once. Items without a category give 0.
    """

    reads_bundles = True

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Count pairs of categories.

        Raises:
            UnavailableError: If items have no categories.
        """
        names = sorted({category for category in folder.catalog.categories if category})
        if len(names) < 2:
            raise UnavailableError(f"{folder.path} has items of {len(names)} categories", "give `category` to items")
        number = {name: column for column, name in enumerate(names)}
        self._category = np.array([number.get(category or "", -1) for category in folder.catalog.categories])
        several = [bundle for bundle in bundles if len(bundle.items) > 1]
        groups = ItemGroups.of_bundles(several, folder.catalog)
        weight = 1.0 / np.maximum(groups.group_sizes - 1, 1)  # [bundles]
        has_category = np.flatnonzero(self._category >= 0)
        one_hot = ItemGroups("category", has_category, self._category[has_category], len(folder.catalog)).csr()
        counts = groups.csr().T @ one_hot  # [bundles, names]
        with_itself = sparse.diags_array(weight @ counts)
        self._pairs = sparse.csr_array(counts.T @ sparse.diags_array(weight) @ counts - with_itself)  # [names, names]
        self._marginal = np.asarray(self._pairs.sum(axis=1))
        self._total = max(self._marginal.sum(), 1e-9)

    def score(self, batch: QuestionBatch) -> np.ndarray:
        """Look the categories up."""
        sizes = batch.num_shown[batch.question_index]  # [total]
        target = np.repeat(np.arange(len(sizes)), sizes)  # [pairs]: each candidate with each item shown
        firsts = batch.shown.indptr[batch.question_index]
        position = np.arange(len(target)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(firsts, sizes)
        shown = self._category[batch.shown.indices[position]]
        candidate = self._category[batch.candidate_rows[target]]
        both = (shown >= 0) & (candidate >= 0)
        values = np.zeros(len(target))
        a, b = shown[both], candidate[both]
        joint = np.asarray(self._pairs[a, b]).ravel() if len(a) else np.empty(0)
        values[both] = self._pmi(joint, self._marginal[a], self._marginal[b])
        return np.bincount(target, weights=values, minlength=len(sizes)) / sizes

    def score_catalog(self, batch: QuestionBatch) -> np.ndarray:
        """Add up the information of the categories shown about all categories, and look those of the items up."""
        categories = self._category[batch.shown.indices]
        numbers, column = np.unique(np.maximum(categories, 0), return_inverse=True)
        weights = (categories >= 0) / np.repeat(batch.num_shown, batch.num_shown)
        shape = (len(batch), len(numbers))
        profile = sparse.csr_array((weights, column, batch.shown.indptr), shape=shape)  # [questions, numbers]
        of_shown = self._marginal[numbers, None]
        table = self._pmi(self._pairs[numbers].toarray(), of_shown, self._marginal)  # [numbers, names]
        return np.where(self._category >= 0, (profile @ table)[:, self._category], 0.0)

    def _pmi(self, joint: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the information of pairs of categories from their joint and marginal counts."""
        return np.log((joint + 1) / (a * b / self._total + 1))
