"""Find features, interactions and columns of items that contain answers.

Knows nothing about how features are made, prompts or models.

Features that were fitted to the training bundles answer training questions better than held-out ones, and a model
that trains on them learns to trust them too much: that is the *gap*. Interactions whose "users" are bundles (some
published tables are bundle membership) contain the answers of held-out questions, too, and are refused. So are columns
of the items table whose values name bundles (a bundle's name, its occasion, …).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import get_args

import numpy as np
from scipy import sparse

from bundle_mllm.data.attributes import AttributeColumn, choose_columns
from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import OutOfFoldFeatures
from bundle_mllm.data.memberships import ItemGroups
from bundle_mllm.data.questions import Negatives, Question, make_questions
from bundle_mllm.errors import BundleMLLMError, check_at_least
from bundle_mllm.settings import check_seed

NUM_QUESTIONS = 1_000
GAP, GAP_ERRORS = 0.05, 3.0  # a gap is large if it is above both, the second in standard errors
LEAKED_WARNING, LEAKED_REFUSAL = 0.05, 0.5  # shares of held-out bundles that users have, beyond chance
ANSWERED_REFUSAL = 0.9  # share of hard held-out questions that interactions answer
FEWEST = 20  # questions of which ANSWERED_REFUSAL, and bundles of which NAMED_REFUSAL, is no accident
NEARLY_ALL = 0.8  # a user "has" a bundle with this share of its items
NEARLY_EQUAL = 0.5  # a value "names" a bundle if items of the two have this Jaccard similarity, as near-duplicates do
NAMED_REFUSAL = 0.2  # share of bundles that a column names; .72 to 1 for names of bundles, up to .02 for others

Scorer = Callable[[list[int], list[int]], np.ndarray]
"""Takes the rows of a partial bundle and of the candidates and returns a score per candidate."""


@dataclass(frozen=True)
class Accuracy:
    """The share of questions that are answered, and its standard error; a tie of n candidates counts 1/n."""

    value: float
    se: float
    num_questions: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.se:.3f}" if self.num_questions else "no question"


@dataclass(frozen=True)
class AccuracyGap:
    """How well one modality, or shared users, alone answer training and validation questions.

    `name` is "shared users", or a modality, with "(cross-fitted)" where training questions use out-of-fold features.
    """

    name: str
    negatives: Negatives
    train: Accuracy
    validation: Accuracy

    @property
    def is_measured(self) -> bool:
        """Whether there were questions of both kinds."""
        return min(self.train.num_questions, self.validation.num_questions) > 0

    @property
    def gap(self) -> float:
        """How much better training questions are answered."""
        return self.train.value - self.validation.value

    @property
    def gap_se(self) -> float:
        """The standard error of the gap."""
        return float(np.hypot(self.train.se, self.validation.se))

    @property
    def is_large(self) -> bool:
        """Whether the gap is too large for chance, and to ignore."""
        return self.is_measured and self.gap > max(GAP, GAP_ERRORS * self.gap_se)

    def __str__(self) -> str:
        gap = f"{self.gap:+.3f} ± {self.gap_se:.3f}" if self.is_measured else "-"
        mark = "   <- large gap" if self.is_large else ""
        return f"{self.name:28} {self.negatives:8} {self.train!s:15} {self.validation!s:15} {gap}{mark}"


@dataclass(frozen=True)
class LeakedBundles:
    """How many held-out bundles are among the items of a user.

    Attributes:
        num_bundles: How many held-out bundles were examined.
        share: The share of them of which some user has (nearly) all items.
        by_chance: The same for copies of them with half of the items exchanged for others that as many users have.
        answered: How well shared users answer hard validation questions.
    """

    num_bundles: int
    share: float
    by_chance: float
    answered: Accuracy

    @property
    def beyond_chance(self) -> float:
        """The share beyond what chance gives."""
        return max(0.0, self.share - self.by_chance)

    @property
    def is_refused(self) -> bool:
        """Whether the interactions encode the held-out bundles."""
        is_answered = self.answered.num_questions >= FEWEST and self.answered.value >= ANSWERED_REFUSAL
        return self.beyond_chance >= LEAKED_REFUSAL or is_answered

    def __str__(self) -> str:
        return (
            f"some user has (nearly) all items of {self.share:.1%} of {self.num_bundles} held-out bundles "
            f"({self.by_chance:.1%} by chance); shared users answer {self.answered} of hard validation questions"
        )


@dataclass(frozen=True)
class LeakageSummary:
    """What was measured.

    Attributes:
        gaps: One entry per modality (and one for interactions) and kind of negatives.
        interactions: The held-out bundles in the interactions; `None` without interactions or held-out bundles.
        columns: Columns of the items table whose values name bundles, and the share of bundles that they name.
    """

    gaps: tuple[AccuracyGap, ...]
    interactions: LeakedBundles | None
    columns: Mapping[str, float] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to correct or to report, one sentence each."""
        warnings, names = [], {gap.name for gap in self.gaps}
        for name in dict.fromkeys(gap.name for gap in self.gaps if gap.is_large):
            if _cross_fitted(name) in names:
                continue  # training questions use the out-of-fold features
            worst = max((gap for gap in self.gaps if gap.name == name), key=lambda gap: gap.gap)
            warnings.append(
                f"{name} alone answers {worst.train.value:.0%} of training but {worst.validation.value:.0%} of "
                f"validation questions ({worst.negatives} negatives): a model that trains on it learns to trust it "
                "too much; train on out-of-fold features (`bundle-mllm encode` makes them for bundle_item) or leave "
                "it out."
            )
        leaked = self.interactions
        if leaked is not None and leaked.beyond_chance >= LEAKED_WARNING:
            warnings.append(
                f"The interactions contain held-out bundles: {leaked}. Results with user_item profit from that share: "
                "report it, or leave user_item out."
            )
        for name, share in self.columns.items():
            warnings.append(
                f"The column {name!r} of the items names bundles: {share:.0%} of them are (nearly) the items of one "
                "of its values. `encode` leaves it out; see that titles and descriptions do not name bundles, either."
            )
        return tuple(warnings)

    def __str__(self) -> str:
        if not self.gaps and not self.columns:
            return "There are neither features nor interactions, so nothing that could contain a bundle."
        lines = [f"{'alone':28} {'wrong':8} {'training':15} {'validation':15} gap", *map(str, self.gaps)]
        if self.interactions is not None:
            lines.append(f"interactions: {self.interactions}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def measure_leakage(
    folder: DatasetFolder,
    *,
    modalities: Sequence[str] | None = None,
    num_questions: int = NUM_QUESTIONS,
    seed: int = 0,
) -> LeakageSummary:
    """Measure how well features and interactions alone answer training against validation questions; refuse nothing.

    Features score a candidate by its cosine with the mean of the partial bundle's unit vectors; an absent item scores
    0. There is one question per bundle, with half of it shown and ten candidates. Where a modality has out-of-fold
    features, training questions are answered with them, too, with wrong options matched on frequencies outside the
    fold.

    Args:
        folder: The dataset folder.
        modalities: The modalities to measure; `None` measures all that the folder has.
        num_questions: At most this many questions of each kind.
        seed: The same seed makes the same questions.
    """
    check_at_least("num_questions", num_questions, 1, "nothing would be measured")
    check_seed(seed)
    questions = cache(lambda split, negatives: _questions(folder, split, negatives, num_questions, seed))

    def measure(name: str, scorer: Scorer) -> list[AccuracyGap]:
        def accuracy(split: str, negatives: Negatives) -> Accuracy:
            return _summary(_hits(questions(split, negatives), folder.catalog, scorer))

        return [AccuracyGap(name, n, accuracy("train", n), accuracy("validation", n)) for n in get_args(Negatives)]

    gaps: list[AccuracyGap] = []
    store = folder.features(modalities)
    for modality in store.modalities if store is not None else ():
        own = folder.features([modality])
        assert own is not None
        scorer = _cosine_scorer(lambda rows, own=own, name=modality: own.gather(rows)[0][name].numpy())
        gaps += (of_own := measure(modality, scorer))
        if (out_of_fold := OutOfFoldFeatures.load(folder, modality)) is not None:
            for gap in of_own:
                train = _cross_fitted_accuracy(folder, out_of_fold, gap.negatives, num_questions, seed)
                gaps.append(replace(gap, name=_cross_fitted(modality), train=train))
    columns = columns_that_name_bundles(folder, choose_columns(folder.catalog).columns, seed=seed)
    if (users := _users(folder)) is None:
        return LeakageSummary(tuple(gaps), None, columns)
    gaps += measure("shared users", _shared_users_scorer(users))
    leaked = _leaked_bundles(folder, users, gaps[-1].validation, num_questions, seed)
    return LeakageSummary(tuple(gaps), leaked, columns)


def check_interactions(
    folder: DatasetFolder, *, allow_leakage: bool = False, num_bundles: int = NUM_QUESTIONS, seed: int = 0
) -> LeakedBundles | None:
    """Refuse interactions that encode held-out bundles.

    Args:
        folder: The dataset folder.
        allow_leakage: Refuse nothing.
        num_bundles: At most this many held-out bundles are examined.
        seed: The same seed chooses the same bundles.

    Returns:
        What was measured, or `None` if the folder has no interactions or no held-out bundles.

    Raises:
        BundleMLLMError: If (nearly) all items of most held-out bundles are with one user, far more often than
            chance has it, or shared users answer nearly all validation questions.
    """
    if (users := _users(folder)) is None:
        return None
    questions = _questions(folder, "validation", "hard", num_bundles, seed)
    answered = _summary(_hits(questions, folder.catalog, _shared_users_scorer(users)))
    leaked = _leaked_bundles(folder, users, answered, num_bundles, seed)
    if leaked is not None and leaked.is_refused and not allow_leakage:
        raise BundleMLLMError(
            f"The interactions of {folder.path} encode held-out bundles, the answers: {leaked}. Remove the table or "
            "the users that are bundles, or pass allow_leakage=True (--allow-leakage) to use it nevertheless."
        )
    return leaked


def mark_held_out(folder: DatasetFolder) -> np.ndarray:
    """Find the interactions that held-out bundles may have made: pairs of a user who has nearly all of a bundle.

    Returns:
        `[num_pairs]` (bool), for `Interactions.without`.
    """
    log = folder.interactions
    if log is None or not len(log):
        return np.zeros(0, dtype=bool)
    users_of = ItemGroups.of_users(log, len(folder.catalog)).csr()  # [num_items, num_users]
    marked = sparse.lil_array(users_of.shape, dtype=bool)
    for split in ("validation", "test"):
        for bundle in folder.bundles[split]:
            rows = np.array(folder.catalog.rows(bundle.items))
            counts = np.asarray(users_of[rows].sum(axis=0)).ravel()
            for user in np.flatnonzero(counts >= np.ceil(NEARLY_ALL * len(rows) - 1e-9)):
                marked[rows, user] = True
    return np.asarray(marked.tocsr()[log.rows, log.user_index]).ravel().astype(bool)


def columns_that_name_bundles(
    folder: DatasetFolder,
    columns: Iterable[AttributeColumn],
    *,
    num_bundles: int = NUM_QUESTIONS,
    seed: int = 0,
) -> dict[str, float]:
    """Return the columns whose values name bundles: the items that share one are (nearly) those of a bundle.

    Numbers count as names, too: a bundle may have one.

    Args:
        folder: The dataset folder.
        columns: The columns to examine.
        num_bundles: At most this many bundles of training, and as many of validation and test, are examined.
        seed: The same seed chooses the same bundles.

    Returns:
        By column, the share of the bundles (of training or of the others, whichever is larger) that it names.
    """
    splits = folder.bundles
    kinds = [_sample(part, num_bundles, seed) for part in (splits.train, (*splits.validation, *splits.test))]
    matrices = [ItemGroups.of_bundles(kind, folder.catalog).csr().T.tocsr() for kind in kinds]
    named = {}
    for column in columns:
        of_items = replace(column, kind="category") if column.is_quantity else column
        groups = ItemGroups.of_names(of_items.names(folder.catalog.cells(column.name)))
        share = max(_named_share(bundles, groups.csr()) for bundles in matrices)
        if share >= NAMED_REFUSAL:
            named[column.name] = share
    return named


def check_columns(folder: DatasetFolder, names: Sequence[str], *, allow_leakage: bool = False) -> None:
    """Refuse columns of the items table whose values name bundles.

    Args:
        folder: The dataset folder.
        names: The columns.
        allow_leakage: Refuse none of these.

    Raises:
        BundleMLLMError: If a column names bundles, or `choose_columns` refuses it.
    """
    named = columns_that_name_bundles(folder, choose_columns(folder.catalog, names).columns)
    if named and not allow_leakage:
        shares = ", ".join(f"{name!r} ({share:.0%} of the bundles)" for name, share in named.items())
        raise BundleMLLMError(
            f"The values of these columns name bundles, the answers: {shares}. Leave them out, or pass "
            "allow_leakage=True (--allow-leakage) to use them nevertheless."
        )


def _named_share(bundles: sparse.csr_array, groups: sparse.csr_array) -> float:
    """Return the share of bundles `[n, num_items]` to which a group `[num_items, num_groups]` is nearly equal.

    A value that one item alone has, such as its price, names no bundle, however small a bundle is.
    """
    shared = sparse.coo_array(bundles @ groups)  # [n, num_groups]
    sizes, of_groups = np.asarray(bundles.sum(axis=1)), np.asarray(groups.sum(axis=0))
    similarity = shared.data / (sizes[shared.row] + of_groups[shared.col] - shared.data)
    return len(np.unique(shared.row[(similarity >= NEARLY_EQUAL) & (shared.data > 1)])) / max(FEWEST, len(sizes))


def _cross_fitted(modality: str) -> str:
    return f"{modality} (cross-fitted)"


def _questions(folder: DatasetFolder, split: str, negatives: Negatives, number: int, seed: int) -> list[Question]:
    return _make_questions(folder, _sample(folder.bundles[split], number, seed), folder.bundles.train, negatives, seed)


def _make_questions(
    folder: DatasetFolder, bundles: Sequence[Bundle], train: Sequence[Bundle], negatives: Negatives, seed: int
) -> list[Question]:
    """Make one question per bundle with ten candidates, or as many as the catalog allows."""
    longest = max((len(bundle.items) for bundle in bundles), default=0)
    number = min(10, len(folder.catalog) - longest + 1)
    if number < 2:
        return []
    splits = replace(folder.bundles, train=tuple(train))
    return make_questions(
        bundles, folder.catalog, splits, num_candidates=number, negatives=negatives, questions_per_bundle=1, seed=seed
    )


def _sample(bundles: Sequence[Bundle], number: int, seed: int) -> list[Bundle]:
    bundles = [bundle for bundle in bundles if len(bundle.items) >= 2]
    return random.Random(seed).sample(bundles, number) if len(bundles) > number else bundles


def _cross_fitted_accuracy(
    folder: DatasetFolder, out_of_fold: OutOfFoldFeatures, negatives: Negatives, number: int, seed: int
) -> Accuracy:
    bundles, hits = _sample(folder.bundles.train, number, seed), []
    for fold in range(out_of_fold.num_folds):
        chosen = [bundle for bundle in bundles if out_of_fold.fold_of_bundle[bundle.bundle_id] == fold]
        kept = out_of_fold.without_fold(folder.bundles.train, fold)
        scorer = _cosine_scorer(lambda rows, features=out_of_fold.features[fold]: features[rows].float().numpy())
        hits += _hits(_make_questions(folder, chosen, kept, negatives, seed), folder.catalog, scorer)
    return _summary(hits)


def _hits(questions: Sequence[Question], catalog: ItemCatalog, scorer: Scorer) -> Iterator[float]:
    for question in questions:
        scores = scorer(catalog.rows(question.partial), catalog.rows(question.candidates))
        best = scores >= scores.max() - 1e-9
        yield float(best[question.answer_index] / best.sum())


def _summary(hits: Iterable[float]) -> Accuracy:
    if not (hits := list(hits)):
        return Accuracy(float("nan"), float("nan"), 0)
    spread = np.std(hits, ddof=1) if len(hits) > 1 else 0.5
    return Accuracy(float(np.mean(hits)), float(spread / np.sqrt(len(hits))), len(hits))


def _cosine_scorer(read: Callable[[list[int]], np.ndarray]) -> Scorer:
    def score(partial: list[int], candidates: list[int]) -> np.ndarray:
        vectors = read([*partial, *candidates]).astype(np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors[len(partial) :] @ vectors[: len(partial)].mean(axis=0)

    return score


def _users(folder: DatasetFolder) -> sparse.csc_array | None:
    """Return which user has which item, `[num_users, num_items]`, or `None` without interactions."""
    log = folder.interactions
    return None if log is None or not len(log) else ItemGroups.of_users(log, len(folder.catalog)).csr().T


def _shared_users_scorer(users: sparse.csc_array) -> Scorer:
    """Score a candidate by its users: each counts with its items in the partial bundle, squared.

    Users of many items and candidates of many users count less, by the root of these numbers.
    """
    activity = np.sqrt(np.maximum(users.sum(axis=1), 1))
    degree = np.sqrt(np.maximum(np.diff(users.indptr), 1))

    def score(partial: list[int], candidates: list[int]) -> np.ndarray:
        overlap = users[:, partial].sum(axis=1)  # [num_users]
        return (users[:, candidates].T @ (overlap**2 / activity)) / degree[candidates]

    return score


def _leaked_bundles(
    folder: DatasetFolder, users: sparse.csc_array, answered: Accuracy, number: int, seed: int
) -> LeakedBundles | None:
    """Count the held-out bundles of which some user has nearly all items; small ones only if there are no others."""
    held_out = [bundle for split in ("validation", "test") for bundle in folder.bundles[split]]
    large = [bundle for bundle in held_out if len(bundle.items) >= 3]
    bundles = _sample(large if len(large) >= 20 else held_out, number, seed)
    if not bundles:
        return None
    order = np.argsort(np.diff(users.indptr), kind="stable")  # items by their number of users
    position = np.argsort(order)
    rng = np.random.default_rng(seed)
    contained, by_chance = 0, 0
    for bundle in bundles:
        rows = np.array(folder.catalog.rows(bundle.items))
        exchanged = rng.permutation(len(rows))[: (len(rows) + 1) // 2]
        others = rows.copy()
        near = position[rows[exchanged]] + rng.integers(-25, 26, size=len(exchanged))
        others[exchanged] = order[np.clip(near, 0, len(order) - 1)]
        contained += _is_contained(users, rows)
        by_chance += _is_contained(users, np.unique(others))
    return LeakedBundles(len(bundles), contained / len(bundles), by_chance / len(bundles), answered)


def _is_contained(users: sparse.csc_array, rows: np.ndarray) -> bool:
    """Return whether some user has nearly all of the items."""
    counts = np.bincount(np.concatenate([users.indices[users.indptr[row] : users.indptr[row + 1]] for row in rows]))
    return bool(len(counts) and counts.max() >= np.ceil(NEARLY_ALL * len(rows) - 1e-9))
