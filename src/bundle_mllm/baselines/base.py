"""What a baseline is: fitted to training bundles, it scores candidates by their rows in the catalog.

It must not know which candidate is the answer, how scores become metrics, nor any method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Protocol

import numpy as np
from scipy import sparse

from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.questions import Question
from bundle_mllm.errors import BundleMLLMError


class UnavailableError(BundleMLLMError):
    """A dataset folder lacks what a baseline looks at; the message says what."""


@dataclass(frozen=True, eq=False)
class Asked:
    """Questions without their answers, as rows of the catalog.

    Attributes:
        partials: The rows shown in each question.
        candidates: The rows to choose from in each question.
        num_items: Length of the catalog.
    """

    partials: Sequence[Sequence[int]]
    candidates: Sequence[Sequence[int]]
    num_items: int

    @classmethod
    def of(cls, questions: Sequence[Question], catalog: ItemCatalog) -> Asked:
        """Take the answers away from questions."""
        return cls(
            [catalog.rows(question.partial) for question in questions],
            [catalog.rows(question.candidates) for question in questions],
            len(catalog),
        )

    def __len__(self) -> int:
        return len(self.partials)

    @cached_property
    def candidate(self) -> np.ndarray:
        """The candidates of all questions, one after the other: `[total]` int64."""
        return np.fromiter(chain.from_iterable(self.candidates), dtype=np.int64)

    @cached_property
    def question(self) -> np.ndarray:
        """The number of the question of each of them: `[total]` int64, rising."""
        return np.repeat(np.arange(len(self)), list(map(len, self.candidates)))

    @cached_property
    def shown(self) -> sparse.csr_array:
        """Which items each question shows: `[questions, num_items]`, 1 where shown."""
        rows = np.fromiter(chain.from_iterable(self.partials), dtype=np.int64)
        ends = np.cumsum([0, *map(len, self.partials)])
        return sparse.csr_array((np.ones(len(rows)), rows, ends), shape=(len(self), self.num_items))

    @cached_property
    def num_shown(self) -> np.ndarray:
        """How many items each question shows: `[questions]`."""
        return np.fromiter(map(len, self.partials), dtype=np.int64)

    def batches(self, max_candidates: int) -> Iterator[Asked]:
        """Cut into parts of at most so many candidates in all; a longer question is a part of its own."""
        start = total = 0
        for end, candidates in enumerate(self.candidates):
            if end > start and total + len(candidates) > max_candidates:
                yield Asked(self.partials[start:end], self.candidates[start:end], self.num_items)
                start, total = end, 0
            total += len(candidates)
        if start < len(self):
            yield Asked(self.partials[start:], self.candidates[start:], self.num_items)

    def split(self, scores: np.ndarray) -> list[np.ndarray]:
        """Cut `[total]` scores into those of each question."""
        return np.split(scores, np.cumsum(list(map(len, self.candidates)))[:-1])


class Baseline(Protocol):
    """A method that is fitted to training bundles and scores the candidates of questions.

    Attributes:
        reads_bundles: Whether the bundles that it is fitted to make a difference.
    """

    reads_bundles: bool

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Learn from training bundles.

        Args:
            folder: Items, and whatever else the folder holds of them; not its bundles.
            bundles: All that may be known of bundles.

        Raises:
            UnavailableError: The folder lacks what this baseline looks at.
        """
        ...

    def score(self, asked: Asked) -> np.ndarray:
        """Return one score for each candidate, `[total]`; higher is better, finite; equal where nothing is known."""
        ...


class Relation:
    """Which items meet in which groups: training bundles, or the users of a log.

    Args:
        groups: `[num_edges]` number of the group of each edge, from 0.
        items: `[num_edges]` row of its item. Repeated edges count once.
        num_items: Length of the catalog.
    """

    def __init__(self, groups: np.ndarray, items: np.ndarray, num_items: int):
        self.num_groups = int(groups.max()) + 1 if groups.size else 0
        shape = (num_items, max(1, self.num_groups))
        self.groups_of = sparse.csr_array((np.ones(groups.size), (items, groups)), shape=shape)
        self.groups_of.data[:] = 1.0
        self.counts = np.diff(self.groups_of.indptr)
        """In how many groups each item is: `[num_items]`."""

    def meetings(self, asked: Asked, weights: np.ndarray | None = None) -> np.ndarray:
        """Add up, over the items shown, in how many groups each meets the candidate.

        Args:
            asked: The questions.
            weights: `[num_items]` of the items shown; 1 if not given.

        Returns:
            `[total]`.
        """
        sums = [np.empty(0)]
        for part in asked.batches(2_560):  # so that the groups of popular items are not all held at once
            shown = part.shown if weights is None else part.shown @ sparse.diags_array(weights)
            profile = sparse.csr_array(shown @ self.groups_of)  # [questions, groups]
            sums.append(profile[part.question].multiply(self.groups_of[part.candidate]).sum(axis=1))
        return np.concatenate(sums)


def bundle_relation(folder: DatasetFolder, bundles: Sequence[Bundle]) -> Relation:
    """Return which items meet in which bundles."""
    return Relation(*bundle_edges(folder.catalog, bundles), len(folder.catalog))


def bundle_edges(catalog: ItemCatalog, bundles: Sequence[Bundle]) -> tuple[np.ndarray, np.ndarray]:
    """Return the bundle, by number, and the item of each edge: `[num_edges]` twice."""
    rows = [catalog.rows(bundle.items) for bundle in bundles]
    groups = np.repeat(np.arange(len(rows)), list(map(len, rows)))
    return groups, np.fromiter(chain.from_iterable(rows), dtype=np.int64)


def user_edges(folder: DatasetFolder) -> tuple[np.ndarray, np.ndarray]:
    """Return the user, by number, and the item of each interaction: `[num_edges]` twice.

    Raises:
        UnavailableError: The folder has no user log.
    """
    log = folder.interactions
    if log is None or not len(log):
        raise UnavailableError(f"{folder.path} has no interactions of users: add interactions.csv, or leave it out.")
    return log.user_index, log.rows
