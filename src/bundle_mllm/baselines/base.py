"""Define baselines: fitted to training bundles, they score candidates by their rows in the catalog.

Knows nothing about which candidate is the answer, how scores become metrics, nor any method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.memberships import ItemGroups
from bundle_mllm.data.questions import Question
from bundle_mllm.errors import BundleMLLMError

CANDIDATES_AT_ONCE = 2_560
"""Candidates scored together: their features and their groups, many for popular items, are held in memory."""


class UnavailableError(BundleMLLMError):
    """A dataset folder lacks the data that a baseline needs: what is missing and where, and what to add."""

    def __init__(self, problem: str, remedy: str):
        super().__init__(f"{problem}: {remedy}, or leave this baseline out.")


@dataclass(frozen=True, eq=False)
class QuestionBatch:
    """The items shown in questions and the candidates, as rows of a catalog of so many items, without the answers.

    Questions about the whole catalog have no candidates.
    """

    partials: Sequence[Sequence[int]]
    candidates: Sequence[Sequence[int]]
    num_items: int

    @classmethod
    def of_catalog(cls, partials: Sequence[Sequence[int]], num_items: int) -> QuestionBatch:
        """Ask about the whole catalog."""
        return cls(partials, [()] * len(partials), num_items)

    @classmethod
    def of(cls, questions: Sequence[Question], catalog: ItemCatalog) -> QuestionBatch:
        """Take the answers away from questions."""
        return cls(
            [catalog.rows(question.partial) for question in questions],
            [catalog.rows(question.candidates) for question in questions],
            len(catalog),
        )

    def __len__(self) -> int:
        return len(self.partials)

    @cached_property
    def candidate_rows(self) -> np.ndarray:
        """The candidates of all questions, one question after the other: `[total]` int64."""
        return np.fromiter(chain.from_iterable(self.candidates), dtype=np.int64)

    @cached_property
    def question_index(self) -> np.ndarray:
        """The number of the question of each candidate: `[total]` int64, rising."""
        return np.repeat(np.arange(len(self)), list(map(len, self.candidates)))

    @cached_property
    def shown(self) -> sparse.csr_array:
        """The items shown in each question: `[questions, num_items]`, 1 where shown."""
        rows = np.fromiter(chain.from_iterable(self.partials), dtype=np.int64)
        ends = np.cumsum([0, *map(len, self.partials)])
        return sparse.csr_array((np.ones(len(rows)), rows, ends), shape=(len(self), self.num_items))

    @cached_property
    def num_shown(self) -> np.ndarray:
        """The number of items shown in each question: `[questions]`."""
        return np.fromiter(map(len, self.partials), dtype=np.int64)

    def parts(self, max_candidates: int) -> Iterator[QuestionBatch]:
        """Cut into parts of at most so many candidates; a longer question is a part of its own."""
        start = total = 0
        for end, candidates in enumerate(self.candidates):
            if end > start and total + len(candidates) > max_candidates:
                yield QuestionBatch(self.partials[start:end], self.candidates[start:end], self.num_items)
                start, total = end, 0
            total += len(candidates)
        if start < len(self):
            yield QuestionBatch(self.partials[start:], self.candidates[start:], self.num_items)

    def split(self, scores: np.ndarray) -> list[np.ndarray]:
        """Cut `[total]` scores into those of each question."""
        return np.split(scores, np.cumsum(list(map(len, self.candidates)))[:-1])


class Baseline(Protocol):
    """A method that is fitted to training bundles and scores the candidates of questions.

    Attributes:
        reads_bundles: Whether the scores depend on the bundles that it is fitted to.
    """

    reads_bundles: bool

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Learn from training bundles, and from the items, features and users of a folder, not from its bundles.

        Raises:
            UnavailableError: If the folder lacks the data that this baseline needs.
        """
        ...

    def score(self, batch: QuestionBatch) -> np.ndarray:
        """Return one score for each candidate, `[total]`; higher is better, finite; equal where nothing is known."""
        ...


class CatalogBaseline(Baseline, Protocol):
    """A baseline that scores whole catalogs, too."""

    def score_catalog(self, batch: QuestionBatch) -> np.ndarray:
        """Return the score of every item for each question, `[questions, num_items]`, as `score` gives it."""
        ...


class InnerProductBaseline(ABC):
    """A baseline whose score is the inner product of a vector of the items shown and one of the candidate."""

    reads_bundles = True
    vectors: np.ndarray | sparse.csr_array
    """`[num_items, dim]`, set by `fit`."""

    @abstractmethod
    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Learn the vectors."""

    @abstractmethod
    def profile(self, batch: QuestionBatch) -> np.ndarray | sparse.csr_array:
        """Return the vector of the items shown in each question: `[questions, dim]`."""

    def score(self, batch: QuestionBatch) -> np.ndarray:
        """Multiply each candidate's vector by that of its question."""
        profile = self.profile(batch)[batch.question_index]
        vectors = self.vectors[batch.candidate_rows]
        if isinstance(vectors, np.ndarray):
            return np.einsum("nd,nd->n", profile, vectors)
        return np.asarray(vectors.multiply(profile).sum(axis=1)).ravel()

    def score_catalog(self, batch: QuestionBatch) -> np.ndarray:
        """Multiply the vectors of all items by that of each question."""
        scores: Any = self.profile(batch) @ self.vectors.T
        return scores.toarray() if sparse.issparse(scores) else np.asarray(scores)


def score_in_parts(baseline: Baseline, batch: QuestionBatch, max_candidates: int = CANDIDATES_AT_ONCE) -> np.ndarray:
    """Score any number of questions, a few candidates at a time: `[total]`."""
    return np.concatenate([np.empty(0), *(baseline.score(part) for part in batch.parts(max_candidates))])


def user_groups(folder: DatasetFolder) -> ItemGroups:
    """Return the users of each item.

    Raises:
        UnavailableError: If the folder has no user log.
    """
    log = folder.interactions
    if log is None or not len(log):
        raise UnavailableError(f"{folder.path} has no interactions of users", "add interactions.csv")
    return ItemGroups.of_users(log, len(folder.catalog))
