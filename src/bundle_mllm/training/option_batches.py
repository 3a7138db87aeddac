"""Turn questions into batches for a ranker without letters: items once each, options of one wrong in the others.

Knows nothing about models, optimizers or files.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset

from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.folds import OutOfFoldFeatures
from bundle_mllm.data.questions import Question
from bundle_mllm.modeling.titles_bundle_mllm import pad_right
from bundle_mllm.training.out_of_fold import fold_offset

if TYPE_CHECKING:
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

COLUMNS = ("bundle_id", "partial", "candidates", "answer_index")


def question_dataset(questions: Sequence[Question]) -> Dataset:
    """Return questions as rows, which `OptionCollator` makes into batches."""
    return Dataset.from_dict({name: [getattr(question, name) for question in questions] for name in COLUMNS})


def batch_by_fold(
    questions: Sequence[Question], features: OutOfFoldFeatures | None, *, batch_size: int, seed: int, window: int = 32
) -> list[Question]:
    """Order questions so that most batches use the features of one fold, and their questions share items.

    Within each window of `window` batches the questions are sorted by fold and the batches then shuffled.
    """
    if features is None:
        return list(questions)
    rng, ordered = random.Random(seed), []
    span = batch_size * window
    for start in range(0, len(questions), span):
        chunk = sorted(
            questions[start : start + span], key=lambda question: features.fold_of_bundle[question.bundle_id]
        )
        batches = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        rng.shuffle(batches)
        ordered += [question for batch in batches for question in batch]
    return ordered


class OptionCollator:
    """Makes a batch of questions: the tokens of each different item, and which items each question shows.

    The options of a question are those of all questions of the batch, except the other items of its own bundle. Where
    out-of-fold features are shown, only options of questions of its fold are taken: features that were fitted with
    the question's bundle would tell wrong options from the answer.

    Args:
        processor: Tokenizes items.
        bundles: The bundles that the questions are about.
        shows_items: Whether item tokens stand beside the titles.
        features: The out-of-fold features, where item tokens are shown.
        titles: What the ranker read of the title of each item, `[hidden_size]`; each batch reads its own if not given.
    """

    def __init__(
        self,
        processor: BundleMLLMProcessor,
        bundles: Sequence[Bundle],
        *,
        shows_items: bool,
        features: OutOfFoldFeatures | None = None,
        titles: Mapping[str, torch.Tensor] | None = None,
    ):
        self.processor, self.shows_items, self.features, self.titles = processor, shows_items, features, titles
        self.members = {bundle.bundle_id: frozenset(bundle.items) for bundle in bundles}

    def __call__(self, questions: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the arguments of `BundleMLLMForOptionScoring.forward`."""
        num_items = self.processor.num_items
        offsets = [fold_offset(question["bundle_id"], self.features, num_items) for question in questions]
        places: dict[tuple[int, str], int] = {}  # of each different item of a fold
        pools: dict[int, list[str]] = {}  # by fold, the options of its questions
        for question, offset in zip(questions, offsets, strict=True):
            for item_id in (*question["partial"], *question["candidates"]):
                places.setdefault((offset, item_id), len(places))
            pool = pools.setdefault(offset, [])
            pool += [item_id for item_id in question["candidates"] if item_id not in pool]
        partial, options, labels = [], [], []
        for question, offset in zip(questions, offsets, strict=True):
            answer = question["candidates"][question["answer_index"]]
            others = self.members[question["bundle_id"]] - {answer}
            partial.append([places[offset, item_id] for item_id in question["partial"]])
            options.append([-1 if i in others else places[offset, i] for i in pools[offset]])
            labels.append(pools[offset].index(answer))
        first = self.processor.tokenizer.item_token_offset
        tokens, _ = self.processor.item_tokens([item_id for _, item_id in places], self.shows_items)
        tokens = [
            [token + offset if token >= first else token for token in of_item]
            for of_item, (offset, _) in zip(tokens, places, strict=True)
        ]
        kept = {} if self.titles is None else {"titles": torch.stack([self.titles[item_id] for _, item_id in places])}
        return {
            **pad_right(tokens),
            **kept,
            "partial": _table(partial),
            "options": _table(options),
            "labels": torch.tensor(labels),
        }


def _table(lists: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return lists of indices as rows `[n, longest]`, -1 for none."""
    length = max(map(len, lists))
    return torch.tensor([[*each, *[-1] * (length - len(each))] for each in lists])
