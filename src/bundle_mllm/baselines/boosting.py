"""Boosted trees over the scores of simple baselines, fitted to training questions, by candidate or by question.

Knows nothing about how a simple baseline scores, and of validation bundles only whether they have near-duplicates
among the training bundles.

A baseline fitted to all training bundles contains the answers of training questions, and leaving out only a question's
own bundle lowers the counts of its answer and of nothing else. So training bundles are cut into folds, which are as
new to each other as the splits are, and questions about a fold are scored by simple baselines that were fitted without
it. Hard negatives are matched on the frequencies outside the fold, too, so that answers and wrong options lose the
same bundles. Then scores of training questions are distributed as scores of held-out questions are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from bundle_mllm.baselines.base import Baseline, QuestionBatch, UnavailableError, score_in_parts
from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import assign_folds
from bundle_mllm.data.questions import sample_training_questions

NUM_FOLDS = 5
NUM_QUESTIONS = 8_000
QUESTIONS_PER_BUNDLE = 10
NUM_CANDIDATES = 10


class BoostedRanker:
    """Score candidates by the odds of being the answer, from histogram gradient boosting (scikit-learn).

    The inputs are, of each simple baseline, the score of the candidate, its standard score within the question and the
    share of the other candidates with a lower score; and the number of items shown.

    Args:
        simple: Makes the simple baselines, by name; those without their data in the folder are left out.
        seed: The same seed gives the same scores.
        num_questions: Maximal number of training questions, half of them with hard negatives; at most ten per bundle.
    """

    reads_bundles = True

    def __init__(
        self, simple: Mapping[str, Callable[[], Baseline]], seed: int = 0, num_questions: int = NUM_QUESTIONS
    ):
        self._make, self.seed, self.num_questions = dict(simple), seed, num_questions

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Fit the simple baselines without each fold, then the trees, then the simple baselines to all bundles.

        Raises:
            UnavailableError: If there are too few bundles or items, or LightGBM is needed and missing.
        """
        num_bundles = sum(len(bundle.items) > 1 for bundle in bundles)
        if num_bundles < 2 * NUM_FOLDS:
            raise UnavailableError(
                f"{folder.path} has {num_bundles} training bundles of two items, too few for {NUM_FOLDS} folds",
                "add bundles",
            )
        num_candidates = min(NUM_CANDIDATES, len(folder.catalog) - max(len(bundle.items) for bundle in bundles) + 1)
        if num_candidates < 2:
            raise UnavailableError(
                f"{folder.path} has a training bundle of all items, which leaves no wrong option", "add items"
            )
        members = {bundle.bundle_id: bundle.items for bundle in bundles}
        together = folder.near_duplicates_together
        folds = assign_folds(members, NUM_FOLDS, seed=self.seed, near_duplicates_together=together)
        questions = sample_training_questions(
            bundles,
            folder.catalog,
            num_questions=min(self.num_questions, QUESTIONS_PER_BUNDLE * num_bundles),
            num_candidates=(num_candidates, num_candidates),
            hard_fraction=0.5,
            fold_of_bundle=folds,
            seed=self.seed,
        )
        self._simple = self._fit_simple(folder, bundles, self._make)
        inputs, labels = [], []
        refitted = [name for name, baseline in self._simple.items() if baseline.reads_bundles]
        for fold in sorted(set(folds.values())):
            of_fold = [question for question in questions if folds[question.bundle_id] == fold]
            if not of_fold:
                continue
            kept = [bundle for bundle in bundles if folds[bundle.bundle_id] != fold]
            fitted = self._fit_simple(folder, kept, {name: self._make[name] for name in refitted})
            inputs.append(self._inputs(QuestionBatch.of(of_fold, folder.catalog), {**self._simple, **fitted}))
            labels += [np.arange(len(question.candidates)) == question.answer_index for question in of_fold]
        self._fit_trees(np.concatenate(inputs), np.concatenate(labels), list(map(len, labels)))

    def score(self, batch: QuestionBatch) -> np.ndarray:
        """Score by the simple baselines, then by the trees."""
        return self._score_by_trees(self._inputs(batch, self._simple))

    def _fit_trees(self, inputs: np.ndarray, is_answer: np.ndarray, sizes: list[int]) -> None:
        """Fit trees to candidates `[n, columns]`, one question of `sizes` after the other."""
        self._trees = HistGradientBoostingClassifier(
            learning_rate=0.06,
            max_iter=150,
            max_leaf_nodes=15,
            min_samples_leaf=100,
            l2_regularization=1.0,
            early_stopping=False,  # pyright: ignore[reportArgumentType]  # a stub inferred from the default "auto"
            random_state=self.seed,
        )
        self._trees.fit(inputs, is_answer)

    def _score_by_trees(self, inputs: np.ndarray) -> np.ndarray:
        return self._trees.decision_function(inputs)

    @staticmethod
    def _fit_simple(
        folder: DatasetFolder, bundles: Sequence[Bundle], make: Mapping[str, Callable[[], Baseline]]
    ) -> dict[str, Baseline]:
        fitted = {}
        for name in make:
            with suppress(UnavailableError):
                baseline = make[name]()
                baseline.fit(folder, bundles)
                fitted[name] = baseline
        return fitted

    def _inputs(self, batch: QuestionBatch, simple: Mapping[str, Baseline]) -> np.ndarray:
        """Return the inputs of the trees for each candidate: `[total, 3 · baselines + 1]` float32."""
        columns = [batch.num_shown[batch.question_index]]
        for name in self._simple:
            scores = score_in_parts(simple[name], batch)
            columns += [scores, _standard(batch, scores), _share_lower(batch, scores)]
        return np.stack(columns, axis=1).astype(np.float32)


class ListwiseRanker(BoostedRanker):
    """[`BoostedRanker`] whose trees rank the candidates of a question (LambdaRank; Burges, 2010), by LightGBM.

    The trees have the same size, number and learning rate.
    """

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Refuse where LightGBM is missing; else as the base class does.

        Raises:
            UnavailableError: If there are too few bundles or items, or LightGBM is needed and missing.
        """
        try:
            import lightgbm  # noqa: F401
        except ImportError as error:
            raise UnavailableError("LightGBM is not installed", "pip install 'bundle-mllm[lightgbm]'") from error
        super().fit(folder, bundles)

    def _fit_trees(self, inputs: np.ndarray, is_answer: np.ndarray, sizes: list[int]) -> None:
        import lightgbm

        parameters: dict[str, Any] = {
            "objective": "lambdarank",
            "learning_rate": 0.06,
            "num_leaves": 15,
            "min_data_in_leaf": 100,
            "lambda_l2": 1.0,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }
        data = lightgbm.Dataset(inputs, label=is_answer.astype(np.int32), group=sizes)
        self._ranker = lightgbm.train(parameters, data, num_boost_round=150)

    def _score_by_trees(self, inputs: np.ndarray) -> np.ndarray:
        return np.asarray(self._ranker.predict(inputs), dtype=np.float64)


def _standard(batch: QuestionBatch, scores: np.ndarray) -> np.ndarray:
    """Return the scores less their mean in the question, over their standard deviation; 0 where all are equal."""
    question = batch.question_index
    number = np.bincount(question)
    centered = scores - (np.bincount(question, weights=scores) / number)[question]
    deviation = np.sqrt(np.bincount(question, weights=centered**2) / number)[question]
    return centered / np.where(deviation > 1e-12, deviation, 1.0)


def _share_lower(batch: QuestionBatch, scores: np.ndarray) -> np.ndarray:
    """Return the share of the question's other candidates with a lower score, equal ones counting half."""
    order = np.lexsort((scores, batch.question_index))  # question by question, the lowest score first
    ordered, question = scores[order], batch.question_index[order]
    new = np.flatnonzero((np.diff(ordered, prepend=np.nan) != 0) | (np.diff(question, prepend=-1) != 0))
    ends = np.append(new[1:], len(order))
    middle = np.repeat((new + ends - 1) / 2, ends - new)  # mean position of equal ones
    number = np.bincount(batch.question_index)
    starts = np.cumsum(number) - number
    shares = np.empty(len(order))
    shares[order] = (middle - starts[question]) / np.maximum(1, number - 1)[question]
    return shares
