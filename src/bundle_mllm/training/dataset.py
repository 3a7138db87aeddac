"""Turn questions into what TRL's `SFTTrainer` reads.

Knows nothing about models, optimizers or files.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from datasets import Dataset, NamedSplit

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.folds import OutOfFoldFeatures
from bundle_mllm.data.questions import Question
from bundle_mllm.training.out_of_fold import fold_offset

if TYPE_CHECKING:
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

MOST_COPIED = 3
"""Items that a copy shows: with more to look through, letters are learned later."""
IGNORED = -100
"""Label of a token that takes no part in the loss (PyTorch's convention)."""


def prompt_completion_dataset(
    questions: Sequence[Question], processor: BundleMLLMProcessor, *, shows_items: bool, split: str = "train"
) -> Dataset:
    """Return rows of `prompt` and `completion` text, which stock `trl sft` reads as they are.

    Args:
        questions: The questions, one row each.
        processor: Writes the prompts.
        shows_items: Whether item tokens stand beside the titles (stage two) or titles only (stage one).
        split: Name of the dataset's split.
    """
    rows = {
        "prompt": [processor.render(question, show_items=shows_items) for question in questions],
        "completion": [processor.completion(question.answer_index) for question in questions],
    }
    return Dataset.from_dict(rows, split=NamedSplit(split))


def training_dataset(
    questions: Sequence[Question],
    processor: BundleMLLMProcessor,
    *,
    shows_items: bool,
    out_of_fold: OutOfFoldFeatures | None = None,
) -> Dataset:
    """Return rows of `input_ids` and `labels`, tokenized when a batch is read.

    The same tokens as `trl sft` makes of [`prompt_completion_dataset`]: prompt, answer letter, end of sequence; the
    loss falls on the last two. Nothing is tokenized ahead of the step that needs it. With out-of-fold features an item
    token is the item's row of the fold of the question's bundle (see `BundleMLLMItemCatalog.set_folds`).
    """
    offset, num_items = processor.tokenizer.item_token_offset, processor.num_items
    end = processor.tokenizer.eos_token_id

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        input_ids, labels = [], []
        prompts = processor([_as_asked(row, processor) for row in rows], show_items=shows_items)["input_ids"]
        for row, prompt in zip(rows, prompts, strict=True):
            answer = [processor.answer_token_ids(len(row["candidates"]))[row["answer_index"]], end]
            if offset_of_fold := fold_offset(row["bundle_id"], out_of_fold, num_items):
                prompt = [token + offset_of_fold if token >= offset else token for token in prompt]
            input_ids.append([*prompt, *answer])
            labels.append([IGNORED] * len(prompt) + answer)
        return {"input_ids": input_ids, "labels": labels}

    names = ("partial", "candidates", "answer_index", "bundle_id")
    columns = {name: [getattr(question, name) for question in questions] for name in names}
    return Dataset.from_dict(columns).with_transform(encode)


def as_copies(questions: Sequence[Question], seed: int) -> list[Question]:
    """Let questions ask which option is one of the items shown: the first few, of which one is now the answer."""
    rng = random.Random(seed)
    copies = []
    for question in questions:
        partial, candidates = question.partial[:MOST_COPIED], list(question.candidates)
        candidates[question.answer_index] = rng.choice(partial)
        copies.append(replace(question, partial=partial, candidates=tuple(candidates)))
    return copies


def _as_asked(question: Mapping[str, Any], processor: BundleMLLMProcessor) -> Mapping[str, Any]:
    """Return a question as the processor reads it: of a copy, whose answer is shown, the bundle is shown as titles."""
    partial, candidates = question["partial"], question["candidates"]
    if candidates[question["answer_index"]] not in partial:
        return question
    return {**question, "partial": [{"title": processor.titles[processor.row(item_id)]} for item_id in partial]}


def batch_by_length(
    questions: Sequence[Question], catalog: ItemCatalog, *, batch_size: int, seed: int, window: int = 32
) -> list[Question]:
    """Order questions so that those of one batch are about equally long, and little is padded.

    Within each window of `window` batches the questions are sorted by length and the batches then shuffled, so the
    order over the whole run stays random.
    """
    length = _length_estimate(catalog)
    rng = random.Random(seed)
    ordered: list[Question] = []
    span = batch_size * window
    for start in range(0, len(questions), span):
        chunk = sorted(questions[start : start + span], key=length)
        batches = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        if len(batches[-1]) == batch_size:
            rng.shuffle(batches)  # a short last batch stays last, or every later batch would straddle two
        ordered.extend(question for batch in batches for question in batch)
    return ordered


def check_lengths(questions: Sequence[Question], processor: BundleMLLMProcessor, catalog: ItemCatalog) -> None:
    """Refuse questions that are longer than the backbone's context before any step; tokenizes the longest only.

    Raises:
        ValueError: If a prompt is too long; the message names the question and both lengths.
    """
    longest = heapq.nlargest(16, questions, key=_length_estimate(catalog))
    processor([_as_asked(vars(question), processor) for question in longest])


def _length_estimate(catalog: ItemCatalog) -> Callable[[Question], int]:
    """Return what estimates a question's length in characters, without writing its prompt."""
    length = [len(title) + 12 for title in catalog.titles]  # of the title, and what stands around it
    return lambda question: sum(length[row] for row in catalog.rows((*question.partial, *question.candidates)))
