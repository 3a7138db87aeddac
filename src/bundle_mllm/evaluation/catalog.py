"""Rank whole catalogs: the places of the items that complete a bundle, and the items that come first.

Knows nothing about models or baselines: it sees scores of whole catalogs, whoever made them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.memberships import ItemGroups
from bundle_mllm.data.questions import Question
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.progress import steps

LIST_LENGTH = 20
"""Length of the list whose novelty and diversity are measured."""
CELLS_AT_ONCE = 8_000_000
"""Scores that are held at once: of fewer questions where the catalog is larger."""
QUESTIONS_AT_ONCE = 64

ScoreCatalog = Callable[[Sequence[Sequence[int]]], Mapping[str, np.ndarray]]
"""Called with the rows of the items shown in some questions; returns `[questions, num_items]` scores by method, higher
is better, `-inf` at most for the items shown."""


@dataclass(frozen=True)
class CatalogQuestion:
    """A partial bundle and the items that complete it.

    Attributes:
        question_id: That of the question it was made of.
        bundle_id: The bundle.
        partial: The item ids shown.
        relevant: The other item ids of the bundle.
    """

    question_id: str
    bundle_id: str
    partial: tuple[str, ...]
    relevant: tuple[str, ...]


@dataclass(frozen=True)
class RankedQuestion:
    """The places that a method gives the relevant items of a question in the whole catalog, without the items shown.

    Attributes:
        question_id: The question.
        bundle_id: Its bundle.
        relevant: The relevant item ids.
        num_better: Of each, how many items have a higher score.
        num_tied: Of each, how many items have the same score, itself among them.
        top: The best `LIST_LENGTH` item ids; equal scores in the order of the catalog.
        novelty: Mean of -log2 of the share of training bundles that an item of `top` is in (self-information; Zhou et
            al., PNAS 2010; here with 1 added to both counts).
        diversity: Mean of 1 - cosine over the pairs of `top`, of each modality's features, and over modalities
            (intra-list diversity; Ziegler et al., WWW 2005); `None` without features.
    """

    question_id: str
    bundle_id: str
    relevant: tuple[str, ...]
    num_better: tuple[int, ...]
    num_tied: tuple[int, ...]
    top: tuple[str, ...]
    novelty: float
    diversity: float | None


def catalog_questions(questions: Sequence[Question], folder: DatasetFolder) -> list[CatalogQuestion]:
    """Ask which items of the catalog complete each partial bundle of a question file; equal ones are asked once.

    Raises:
        BundleMLLMError: If a question's bundle is not in the folder, or lacks an item that is shown.
    """
    items_of = {bundle.bundle_id: bundle.items for bundle in folder.bundles}
    made: dict[tuple[str, frozenset[str]], CatalogQuestion] = {}
    for question in questions:
        items, shown = items_of.get(question.bundle_id, ()), frozenset(question.partial)
        if not shown < set(items):
            raise BundleMLLMError(
                f"The question {question.question_id!r} is about the bundle {question.bundle_id!r}, which "
                f"{folder.path} {'has with other items' if items else 'does not have'}, so it is unknown what "
                "completes it: give the dataset folder that the questions were made of."
            )
        relevant = tuple(item_id for item_id in items if item_id not in shown)
        partial = (question.question_id, question.bundle_id, question.partial, relevant)
        made.setdefault((question.bundle_id, shown), CatalogQuestion(*partial))
    return list(made.values())


def rank_catalog(
    score: ScoreCatalog, questions: Sequence[CatalogQuestion], folder: DatasetFolder, *, progress: bool = False
) -> dict[str, list[RankedQuestion]]:
    """Rank the whole catalog for every question, some questions at a time.

    Args:
        score: Scores the catalog by one method or several.
        questions: The questions.
        folder: The data set: its catalog, training bundles (for novelty) and features (for diversity).
        progress: Whether to show a progress bar.

    Returns:
        One `RankedQuestion` per question, by method.

    Raises:
        BundleMLLMError: If a score is not finite.
    """
    catalog, num_items = folder.catalog, len(folder.catalog)
    step = max(1, min(QUESTIONS_AT_ONCE, CELLS_AT_ONCE // num_items))
    places: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    tops: dict[str, list[np.ndarray]] = {}
    for start in steps(range(0, len(questions), step), "ranking catalogs", shown=progress):
        batch = questions[start : start + step]
        partials = [catalog.rows(question.partial) for question in batch]
        for method, scores in score(partials).items():
            for question, partial, row in zip(batch, partials, scores, strict=True):
                row = np.array(row, dtype=np.float64)
                row[partial] = -np.inf
                _check(method, question, row, len(partial))
                places.setdefault(method, []).append(_places(row, catalog.rows(question.relevant)))
                tops.setdefault(method, []).append(_top(row, min(LIST_LENGTH, num_items - len(partial))))
    ranked: dict[str, list[RankedQuestion]] = {}
    for method, lists in tops.items():
        columns = (questions, places[method], lists, _novelty(lists, folder), _diversity(lists, folder))
        ranked[method] = [
            RankedQuestion(
                question_id=question.question_id,
                bundle_id=question.bundle_id,
                relevant=question.relevant,
                num_better=num_better,
                num_tied=num_tied,
                top=tuple(catalog.item_ids[row] for row in top.tolist()),
                novelty=novelty,
                diversity=diversity,
            )
            for question, (num_better, num_tied), top, novelty, diversity in zip(*columns, strict=True)
        ]
    return ranked


def _check(method: str, question: CatalogQuestion, row: np.ndarray, num_shown: int) -> None:
    if np.isfinite(row).sum() != len(row) - num_shown:
        raise BundleMLLMError(
            f"{method} gives items scores that are not finite in question {question.question_id!r}, so they have no "
            "rank: train it again."
        )


def _places(row: np.ndarray, relevant: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how many items are better than each relevant one, and how many are tied with it."""
    ordered, scores = np.sort(row), row[relevant]
    left, right = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    return tuple((len(row) - right).tolist()), tuple((right - left).tolist())


def _top(row: np.ndarray, length: int) -> np.ndarray:
    """Return the rows of the best items, best first; of equal ones those that are first in the catalog."""
    least = np.partition(row, len(row) - length)[len(row) - length]
    above, equal = np.flatnonzero(row > least), np.flatnonzero(row == least)
    rows = np.sort(np.concatenate([above, equal[: length - len(above)]]))
    return rows[np.argsort(-row[rows], kind="stable")]


def _novelty(tops: Sequence[np.ndarray], folder: DatasetFolder) -> list[float]:
    counts = ItemGroups.of_bundles(folder.bundles.train, folder.catalog).groups_per_node
    information = np.log2((len(folder.bundles.train) + 1) / (counts + 1))  # [num_items]
    return [float(information[top].mean()) for top in tops]


def _diversity(tops: Sequence[np.ndarray], folder: DatasetFolder) -> list[float | None]:
    """Return the diversity of each list: the mean cosine of all pairs follows from the length of the vectors' sum."""
    import torch

    store = folder.features()
    if store is None:
        return [None] * len(tops)
    rows, position = np.unique(np.concatenate(tops), return_inverse=True)
    features, present = store.gather(torch.from_numpy(rows))
    owner = np.repeat(np.arange(len(tops)), list(map(len, tops)))
    by_modality = []
    for name, values in features.items():
        units = torch.nn.functional.normalize(values, dim=1).numpy()[position]  # zero where absent
        sums = np.zeros((len(tops), units.shape[1]))
        np.add.at(sums, owner, units)
        itself = np.bincount(owner, weights=np.square(units).sum(axis=1), minlength=len(tops))
        count = np.bincount(owner, weights=present[name].numpy()[position], minlength=len(tops))
        pairs = np.where(count > 1, count * (count - 1), np.nan)
        by_modality.append(1 - (np.square(sums).sum(axis=1) - itself) / pairs)
    table = np.ma.masked_invalid(by_modality)  # [modalities, lists]
    return [None if value is np.ma.masked else float(value) for value in table.mean(axis=0)]
