"""Find features and interactions that know answers: how well they alone answer training and held-out questions.

It must not know how features are made, prompts or the language model.

Features that were fitted to the training bundles answer training questions better than held-out ones, and a model
that trains on them learns to trust them more than it may at test time: that is the *gap*. Interactions whose "users"
are bundles (some published user logs are bundle membership) answer held-out questions because they were given the
answers: those are refused.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import OutOfFoldFeatures
from bundle_mllm.data.interactions import Interactions
from bundle_mllm.data.memberships import ItemGroups
from bundle_mllm.data.questions import Negatives, Question, make_questions
from bundle_mllm.errors import BundleMLLMError

NUM_QUESTIONS = 1_000
GAP, GAP_ERRORS = 0.05, 3.0  # a gap is large if it is above both, the second in standard errors
ENCODED_WARNING, ENCODED_REFUSAL = 0.05, 0.5  # shares of held-out bundles that users have, beyond chance
ANSWERED_REFUSAL = 0.9  # share of hard held-out questions that interactions answer
FEWEST = 20  # questions, of which ANSWERED_REFUSAL is no accident
NEARLY_ALL = 0.8  # a user "has" a bundle with this share of its items
_NEGATIVES: tuple[Negatives, ...] = ("uniform", "hard")

Scorer = Callable[[list[int], list[int]], np.ndarray]
"""Takes the rows of a partial bundle and of the candidates and returns a score per candidate."""


@dataclass(frozen=True)
class Accuracy:
    """The share of questions that are answered, one question per bundle.

    Attributes:
        value: The share; a tie of n candidates counts 1/n.
        se: Its standard error.
        num_questions: How many questions were asked.
    """

    value: float
    se: float
    num_questions: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.se:.3f}" if self.num_questions else "no question"


@dataclass(frozen=True)
class Evidence:
    """How well one thing alone answers questions.

    Attributes:
        name: A modality, with "(cross-fitted)" where training questions are asked with its versions; or
            "shared users".
        negatives: The kind of wrong options.
        train: About training bundles.
        validation: About validation bundles.
    """

    name: str
    negatives: Negatives
    train: Accuracy
    validation: Accuracy

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
        asked = min(self.train.num_questions, self.validation.num_questions) > 0
        return asked and self.gap > max(GAP, GAP_ERRORS * self.gap_se)

    def __str__(self) -> str:
        asked = self.train.num_questions and self.validation.num_questions
        gap = f"{self.gap:+.3f} ± {self.gap_se:.3f}" if asked else "-"
        mark = "   <- large gap" if self.is_large else ""
        return f"{self.name:28} {self.negatives:8} {self.train!s:15} {self.validation!s:15} {gap}{mark}"


@dataclass(frozen=True)
class Encoded:
    """How many held-out bundles the users of a log have.

    Attributes:
        num_bundles: The held-out bundles looked at.
        share: The share of them of which some user has (nearly) all items.
        by_chance: The same for these bundles with half of their items exchanged for others that as many users have.
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
        return self.beyond_chance >= ENCODED_REFUSAL or is_answered

    def __str__(self) -> str:
        return (
            f"some user has (nearly) all items of {self.share:.1%} of {self.num_bundles} held-out bundles "
            f"({self.by_chance:.1%} by chance); shared users answer {self.answered} of hard validation questions"
        )


@dataclass(frozen=True)
class LeakageReport:
    """What was measured.

    Attributes:
        evidence: One entry per modality (and the user log) and kind of negatives.
        interactions: What the user log knows of held-out bundles; `None` without a log or held-out bundles.
    """

    evidence: tuple[Evidence, ...]
    interactions: Encoded | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What should be mended or known, one sentence each."""
        found, names = [], {evidence.name for evidence in self.evidence}
        for name in dict.fromkeys(e.name for e in self.evidence if e.is_large):
            if _cross_fitted(name) in names:
                continue  # training questions are asked with the versions
            worst = max((e for e in self.evidence if e.name == name), key=lambda e: e.gap)
            found.append(
                f"{name} alone answers {worst.train.value:.0%} of training but {worst.validation.value:.0%} of "
                f"validation questions ({worst.negatives} negatives): a model that trains on it learns to trust it "
                "too much; train on cross-fitted versions (`bundle-mllm encode` makes them for bundle_item) or leave "
                "it out."
            )
        log = self.interactions
        if log is not None and log.beyond_chance >= ENCODED_WARNING:
            found.append(
                f"The user log knows held-out bundles: {log}. Results with user_item profit from that share; say so, "
                "or leave user_item out."
            )
        return tuple(found)

    def __str__(self) -> str:
        if not self.evidence:
            return "There are neither features nor interactions, so nothing that could know a bundle."
        lines = [f"{'alone':28} {'wrong':8} {'training':15} {'validation':15} gap", *map(str, self.evidence)]
        if self.interactions is not None:
            lines.append(f"user log: {self.interactions}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def measure_leakage(
    folder: DatasetFolder,
    *,
    modalities: Sequence[str] | None = None,
    num_questions: int = NUM_QUESTIONS,
    seed: int = 0,
) -> LeakageReport:
    """Measure how well features and interactions alone answer training against validation questions.

    The scorer of features is the cosine of a candidate and the mean of the partial bundle's directions; an absent
    item has no direction and scores 0. Half of a bundle is shown, one question is asked per bundle, and there are
    ten candidates. Where a modality has cross-fitted versions, training questions are asked with them once more, and
    their wrong options are then matched on frequencies outside of the fold.

    Args:
        folder: The dataset folder.
        modalities: The modalities to measure; `None` measures all that the folder has.
        num_questions: At most this many questions of each kind.
        seed: The same seed asks the same questions.

    Returns:
        The report; no leakage is refused here.

    Raises:
        BundleMLLMError: If `num_questions` is less than 1.
    """
    if num_questions < 1:
        raise BundleMLLMError(f"{num_questions} questions measure nothing: ask for at least 1.")
    store = folder.features(modalities)
    catalog = folder.catalog
    asked = {
        (split, negatives): _questions(folder, split, negatives, num_questions, seed)
        for split in ("train", "validation")
        for negatives in _NEGATIVES
    }
    evidence = []
    for modality in store.modalities if store is not None else ():
        own = folder.features([modality])
        assert own is not None
        scorer = _cosine_scorer(lambda rows, own=own, name=modality: own.gather(rows)[0][name].numpy())
        answered = {key: _accuracy(questions, catalog, scorer) for key, questions in asked.items()}
        evidence += [Evidence(modality, n, answered["train", n], answered["validation", n]) for n in _NEGATIVES]
        if (versions := OutOfFoldFeatures.load(folder, modality)) is not None:
            for negatives in _NEGATIVES:
                train = _cross_fitted_accuracy(folder, versions, negatives, num_questions, seed)
                evidence.append(Evidence(_cross_fitted(modality), negatives, train, answered["validation", negatives]))
    log = folder.interactions
    if log is None or not len(log):
        return LeakageReport(tuple(evidence), None)
    by_users = _shared_users_scorer(_matrix(log, len(catalog)))
    answered = {key: _accuracy(questions, catalog, by_users) for key, questions in asked.items()}
    evidence += [Evidence("shared users", n, answered["train", n], answered["validation", n]) for n in _NEGATIVES]
    return LeakageReport(tuple(evidence), _encoded(folder, log, answered["validation", "hard"], num_questions, seed))


def check_interactions(
    folder: DatasetFolder, *, allow_leakage: bool = False, num_bundles: int = NUM_QUESTIONS, seed: int = 0
) -> Encoded | None:
    """Refuse a user log that encodes held-out bundles.

    Args:
        folder: The dataset folder.
        allow_leakage: Refuse nothing.
        num_bundles: At most this many held-out bundles are looked at.
        seed: Chooses them.

    Returns:
        What the log knows, or `None` if the folder has no log or no held-out bundles.

    Raises:
        BundleMLLMError: If (nearly) all items of most held-out bundles are with one user, far more often than
            chance has it, or shared users answer nearly all validation questions.
    """
    log = folder.interactions
    if log is None or not len(log):
        return None
    scorer = _shared_users_scorer(_matrix(log, len(folder.catalog)))
    questions = _questions(folder, "validation", "hard", num_bundles, seed)
    encoded = _encoded(folder, log, _accuracy(questions, folder.catalog, scorer), num_bundles, seed)
    if encoded is not None and encoded.is_refused and not allow_leakage:
        raise BundleMLLMError(
            f"The interactions of {folder.path} encode held-out bundles, so what is learned of users would be told "
            f"the answers: {encoded}. Remove the interactions table or the users that are bundles, or pass "
            "allow_leakage=True (--allow-leakage) to use it nevertheless."
        )
    return encoded


def _cross_fitted(modality: str) -> str:
    return f"{modality} (cross-fitted)"


def _questions(folder: DatasetFolder, split: str, negatives: Negatives, number: int, seed: int) -> list[Question]:
    return _ask(folder, _sample(folder.bundles[split], number, seed), folder.bundles.train, negatives, seed)


def _ask(
    folder: DatasetFolder, bundles: Sequence[Bundle], train: Sequence[Bundle], negatives: Negatives, seed: int
) -> list[Question]:
    """Ask one question per bundle with ten candidates, or as many as the catalog allows."""
    longest = max((len(bundle.items) for bundle in bundles), default=0)
    num_candidates = min(10, len(folder.catalog) - longest + 1)
    if num_candidates < 2:
        return []
    splits = replace(folder.bundles, train=tuple(train))
    return make_questions(
        bundles,
        folder.catalog,
        splits,
        num_candidates=num_candidates,
        negatives=negatives,
        questions_per_bundle=1,
        seed=seed,
    )


def _sample(bundles: Sequence[Bundle], number: int, seed: int) -> list[Bundle]:
    bundles = [bundle for bundle in bundles if len(bundle.items) >= 2]
    return random.Random(seed).sample(bundles, number) if len(bundles) > number else bundles


def _cross_fitted_accuracy(
    folder: DatasetFolder, versions: OutOfFoldFeatures, negatives: Negatives, number: int, seed: int
) -> Accuracy:
    bundles, hits = _sample(folder.bundles.train, number, seed), []
    for fold in range(versions.num_folds):
        chosen = [bundle for bundle in bundles if versions.fold_of_bundle[bundle.bundle_id] == fold]
        kept = versions.without_fold(folder.bundles.train, fold)
        scorer = _cosine_scorer(lambda rows, version=versions.features[fold]: version[rows].float().numpy())
        hits += _hits(_ask(folder, chosen, kept, negatives, seed), folder.catalog, scorer)
    return _summary(hits)


def _accuracy(questions: Sequence[Question], catalog: ItemCatalog, scorer: Scorer) -> Accuracy:
    return _summary(list(_hits(questions, catalog, scorer)))


def _hits(questions: Sequence[Question], catalog: ItemCatalog, scorer: Scorer) -> Iterator[float]:
    for question in questions:
        scores = scorer(catalog.rows(question.partial), catalog.rows(question.candidates))
        best = scores >= scores.max() - 1e-9
        yield float(best[question.answer_index] / best.sum())


def _summary(hits: Sequence[float]) -> Accuracy:
    if not hits:
        return Accuracy(float("nan"), float("nan"), 0)
    spread = np.std(hits, ddof=1) if len(hits) > 1 else 0.5
    return Accuracy(float(np.mean(hits)), float(spread / np.sqrt(len(hits))), len(hits))


def _cosine_scorer(read: Callable[[list[int]], np.ndarray]) -> Scorer:
    def score(partial: list[int], candidates: list[int]) -> np.ndarray:
        vectors = read([*partial, *candidates]).astype(np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors[len(partial) :] @ vectors[: len(partial)].mean(axis=0)

    return score


def _matrix(log: Interactions, num_items: int) -> sparse.csc_array:
    """Return which user has which item, `[num_users, num_items]`."""
    return ItemGroups.of_users(log, num_items).csr().T


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


def _encoded(folder: DatasetFolder, log: Interactions, answered: Accuracy, number: int, seed: int) -> Encoded | None:
    """Count the held-out bundles of which some user has nearly all items; small ones only if there are no others."""
    held_out = [bundle for split in ("validation", "test") for bundle in folder.bundles[split]]
    large = [bundle for bundle in held_out if len(bundle.items) >= 3]
    bundles = _sample(large if len(large) >= 20 else held_out, number, seed)
    if not bundles:
        return None
    users = _matrix(log, len(folder.catalog))
    degree = np.diff(users.indptr)
    order = np.argsort(degree, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    rng = np.random.default_rng(seed)
    had, by_chance = 0, 0
    for bundle in bundles:
        rows = np.array(folder.catalog.rows(bundle.items))
        exchanged = rng.permutation(len(rows))[: (len(rows) + 1) // 2]
        others = rows.copy()
        near = place[rows[exchanged]] + rng.integers(-25, 26, size=len(exchanged))
        others[exchanged] = order[np.clip(near, 0, len(order) - 1)]
        had += _is_had(users, rows)
        by_chance += _is_had(users, np.unique(others))
    return Encoded(len(bundles), had / len(bundles), by_chance / len(bundles), answered)


def _is_had(users: sparse.csc_array, rows: np.ndarray) -> bool:
    """Tell whether some user has nearly all of these items."""
    counts = np.bincount(np.concatenate([users.indices[users.indptr[row] : users.indptr[row + 1]] for row in rows]))
    return bool(len(counts) and counts.max() >= np.ceil(NEARLY_ALL * len(rows) - 1e-9))
