"""Let questions about training bundles use the features that were fitted without these bundles.

Knows nothing about how features are fitted, prompts or optimizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from transformers.utils import logging

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import OutOfFoldFeatures
from bundle_mllm.data.memberships import BUNDLE_ITEM
from bundle_mllm.data.questions import Question
from bundle_mllm.modeling.catalog_bundle_mllm import BundleMLLMItemCatalog

logger = logging.get_logger(__name__)


def load_out_of_fold(data: DatasetFolder, modalities: Sequence[str]) -> OutOfFoldFeatures | None:
    """Read the out-of-fold features of `bundle_item`; `None`, with a warning, if a model uses it without any."""
    if BUNDLE_ITEM not in modalities:
        return None
    features = OutOfFoldFeatures.load(data, BUNDLE_ITEM)
    if features is None:
        logger.warning(
            f"{data.path} has {BUNDLE_ITEM!r} features without out-of-fold versions: they contain the bundles of "
            "training questions, so the model will trust them too much. `bundle-mllm encode` makes both."
        )
    return features


@contextmanager
def fold_rows(catalog: BundleMLLMItemCatalog, features: OutOfFoldFeatures | None) -> Iterator[None]:
    """Give a catalog the rows of all folds for a while; see `BundleMLLMItemCatalog.set_folds`."""
    if features is not None:
        catalog.set_folds(features.modality, features.features, features.present)
    try:
        yield
    finally:
        catalog.clear_folds()


def fold_offset(bundle_id: str, features: OutOfFoldFeatures | None, num_items: int) -> int:
    """Return what is added to the catalog rows of a question about a training bundle."""
    return 0 if features is None else (features.fold_of_bundle[bundle_id] + 1) * num_items


class QuestionRows:
    """Training questions as catalog rows, those of their folds where there are out-of-fold features.

    Attributes:
        partial: `[num_questions, max_partial]` rows, -1 for padding.
        options: `[num_questions, max_options]` rows, -1 for padding.
        answers: `[num_questions]` place of the answer among the options.
    """

    def __init__(self, questions: Sequence[Question], catalog: ItemCatalog, features: OutOfFoldFeatures | None = None):
        def rows(lists: Sequence[Sequence[str]]) -> torch.Tensor:
            table = np.full((len(lists), max(map(len, lists), default=0)), -1)
            for row, (question, item_ids) in enumerate(zip(questions, lists, strict=True)):
                offset = fold_offset(question.bundle_id, features, len(catalog))
                table[row, : len(item_ids)] = np.array(catalog.rows(item_ids)) + offset
            return torch.from_numpy(table)

        self.partial = rows([question.partial for question in questions])
        self.options = rows([question.candidates for question in questions])
        self.answers = torch.tensor([question.answer_index for question in questions], dtype=torch.long)

    def __len__(self) -> int:
        return len(self.answers)

    def batch(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return partial bundles, options and answers of some questions, without columns of padding alone."""
        partial, options = self.partial[chosen], self.options[chosen]
        partial = partial[:, : int((partial >= 0).sum(dim=1).max())]
        return partial, options[:, : int((options >= 0).sum(dim=1).max())], self.answers[chosen]
