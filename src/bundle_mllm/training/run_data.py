"""The questions of a run: which bundles which model may see, and what each step trains and validates on.

Knows nothing about models' weights, optimizers or stages' order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers.utils import logging

from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.features import FeatureStore
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import OutOfFoldFeatures, part_bundles
from bundle_mllm.data.questions import Negatives, Question, make_questions, sample_training_questions, spread
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import calibration_before_temperature, compute_metrics, validation_figures
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.item_processing_bundle_mllm import BundleItemProcessor
from bundle_mllm.progress import note
from bundle_mllm.training.config import InputOptions, StageConfig
from bundle_mllm.training.out_of_fold import load_out_of_fold

logger = logging.get_logger(__name__)

HELD_OUT, STACKING = 0.1, 0.2
"""Shares of the training bundles: held out until both models are joined, and seen by the stacker alone at first."""


class RunData:
    """The data of a run; everything is made when it is first used, and the same each time.

    Args:
        settings: The run's settings.
        folder: The dataset folder.
        holds_out: Whether a tenth of the training bundles is kept from both models.
    """

    def __init__(self, settings: InputOptions, folder: DatasetFolder, *, holds_out: bool = True):
        self.settings, self.folder, self.holds_out = settings, folder, holds_out

    @property
    def catalog(self) -> ItemCatalog:
        """The items."""
        return self.folder.catalog

    @cached_property
    def features(self) -> FeatureStore | None:
        """The item features that the run uses.

        Raises:
            BundleMLLMError: If no item has any of them.
        """
        store = self.folder.features(self.settings.modalities)
        if store is not None and store.is_empty:
            raise BundleMLLMError(
                f"No item of {self.folder.path} has {' or '.join(map(repr, store.modalities))} features, so a model "
                "could not tell items apart: encode others (bundle-mllm encode), or use others (--modalities)."
            )
        return store

    def note_features(self) -> None:
        """Say which features the models will read, if there are any, beside the progress."""
        if self.features is not None:
            read = ", ".join(f"{name} ({width} wide)" for name, width in self.features.modalities.items())
            note(f"features of {self.folder.path}: {read}")

    @cached_property
    def out_of_fold(self) -> OutOfFoldFeatures | None:
        """The out-of-fold features of the training bundles."""
        return None if self.features is None else load_out_of_fold(self.folder, list(self.features.modalities))

    @cached_property
    def _parts(self) -> tuple[set[str], set[str]]:
        """Held-out bundles and those of the stacker."""
        bundles = self.folder.bundles.train
        if self.holds_out and self.features is not None:  # without features there is no retriever
            held_out, stacking = self._part(HELD_OUT, STACKING)
            if any(len(bundle.items) >= 2 for bundle in bundles if bundle.bundle_id not in held_out):
                return held_out, stacking
            logger.warning(
                f"{self.folder.path} has too few different training bundles ({len(bundles)}) to hold a tenth out, so "
                "ranker and retriever are joined with equal weights: add bundles."
            )
        return set(), self._part(STACKING)[0]

    def _part(self, *shares: float) -> list[set[str]]:
        bundles, folds = self.folder.bundles.train, self.out_of_fold
        if folds is not None:
            return part_bundles(bundles, shares, out_of_fold=folds)
        return part_bundles(bundles, shares, near_duplicates_together=self.folder.near_duplicates_together)

    @property
    def held_out(self) -> set[str]:
        """Ids of the training bundles that neither model sees until they are joined."""
        return self._parts[0]

    @property
    def stacking_bundles(self) -> set[str]:
        """Ids of the training bundles that the stacker learns from; none of them is held out."""
        return self._parts[1]

    @cached_property
    def ranker_bundles(self) -> list[Bundle]:
        """The training bundles that the ranker may see."""
        return [bundle for bundle in self.folder.bundles.train if bundle.bundle_id not in self.held_out]

    def ranker_questions(self, stage: StageConfig, seed: int) -> list[Question]:
        """Sample the training questions of a stage, whole batches of them."""
        return self._sample(
            self.ranker_bundles,
            num_questions=stage.max_steps * stage.step_size,
            num_candidates=stage.num_candidates,
            hard_fraction=stage.hard_fraction,
            shows_items=stage.shows_items,
            seed=seed,
        )

    def retriever_questions(self) -> list[Question]:
        """Sample the training questions of the retriever, about all training bundles."""
        settings = self.settings.retriever
        return self._sample(
            self.folder.bundles.train,
            num_questions=settings.num_questions,
            num_candidates=settings.num_candidates,
            hard_fraction=settings.hard_fraction,
            seed=self.settings.seed + 1,
        )

    @cached_property
    def held_out_questions(self) -> list[Question]:
        """Sample questions about the held-out bundles, half of them with hard negatives."""
        bundles = [bundle for bundle in self.folder.bundles.train if bundle.bundle_id in self.held_out]
        return self._sample(
            [bundle for bundle in bundles if len(bundle.items) >= 2],
            num_questions=self.settings.combination_questions,
            num_candidates=(self.settings.validation_candidates,) * 2,
            hard_fraction=0.5,
            seed=self.settings.seed,
        )

    def _sample(self, bundles: Sequence[Bundle], shows_items: bool = True, **options: Any) -> list[Question]:
        if not bundles or not options["num_questions"]:
            return []
        folds = self.out_of_fold if shows_items else None
        options |= {"max_partial": self.settings.max_partial, "fold_of_bundle": folds and folds.fold_of_bundle}
        return sample_training_questions(bundles, self.catalog, **options)

    @cached_property
    def validation_questions(self) -> list[Question]:
        """Make questions about validation bundles, a uniform and a hard one about each."""
        settings, chosen = self.settings, []
        bundles = spread(self.folder.bundles.validation, settings.validation_questions // 2)
        if not bundles:
            logger.warning(
                f"There are no validation questions ({len(self.folder.bundles.validation)} validation bundles, "
                f"validation_questions {settings.validation_questions}), so each stage keeps its last checkpoint."
            )
        for negatives in ("uniform", "hard"):
            made = self._make(bundles, negatives)
            chosen += [dataclasses.replace(q, question_id=f"{q.question_id}-{negatives}") for q in made]
        return chosen

    @cached_property
    def calibration_questions(self) -> list[Question]:
        """Make one question about each of some validation bundles, every other one with hard negatives."""
        bundles = spread(self.folder.bundles.validation, self.settings.calibration_questions)
        return [*self._make(bundles[::2], "uniform"), *self._make(bundles[1::2], "hard")]

    def _make(self, bundles: Sequence[Bundle], negatives: Negatives) -> list[Question]:
        settings = self.settings
        return make_questions(
            bundles,
            self.catalog,
            self.folder.bundles,
            num_candidates=settings.validation_candidates,
            negatives=negatives,
            max_partial=settings.max_partial,
            questions_per_bundle=1,
            seed=settings.seed,
        )

    def validate(self, completer: BundleCompleter) -> dict[str, dict[str, float]]:
        """Return the validation figures of each part of a completer; none without validation bundles."""
        if not self.validation_questions:
            return {}
        scored = score_questions(completer, self.validation_questions)
        figures = {part: validation_figures(questions) for part, questions in scored.items()}
        if "both" in scored:
            before = calibration_before_temperature(scored["both"], completer.combination.temperature)
            figures["both"]["calibration_error"] = float(compute_metrics(scored["both"])["calibration_error"])
            figures["both"]["calibration_error_before_temperature"] = before
        return figures

    def item_processor(self) -> BundleItemProcessor:
        """Return a processor of the items alone."""
        return BundleItemProcessor(self.catalog.item_ids, self.catalog.titles)
