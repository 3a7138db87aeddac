"""Make, read and write multiple-choice questions: items shown, candidates, and which of these is the answer.

Knows nothing about tokenizers, features or token ids.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, get_args

from bundle_mllm.data.bundles import Bundle, BundleSplits
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.negatives import NegativeSampler
from bundle_mllm.data.records import require_fields, to_id, to_ids
from bundle_mllm.data.tables import iter_records, write_records
from bundle_mllm.errors import BundleMLLMError, check_at_least, check_choice

MIN_CANDIDATES = 2
MAX_OPTIONS = 26
"""Most candidates of one prompt: its options are lettered A to Z."""
Negatives = Literal["uniform", "hard"]
Partial = Literal["half", "leave_one_out"]


@dataclass(frozen=True)
class Question:
    """A partial bundle and the candidates of which one completes it.

    Attributes:
        question_id: A stable name, unique in its file.
        bundle_id: The bundle the question was made from.
        partial: The item ids shown.
        candidates: The item ids to choose from, 2 or more. One prompt shows up to 26 (the answer is one of the letters
            A to Z); longer lists are for evaluation, which ranks them in groups.
        answer_index: The position of the right one in `candidates`.
    """

    question_id: str
    bundle_id: str
    partial: tuple[str, ...]
    candidates: tuple[str, ...]
    answer_index: int

    @property
    def answer(self) -> str:
        """The item id of the right candidate."""
        return self.candidates[self.answer_index]


def spread(bundles: Sequence[Bundle], number: int) -> list[Bundle]:
    """Return at most `number` of the bundles of two items or more, at equal distances: a file may be sorted."""
    bundles = [bundle for bundle in bundles if len(bundle.items) >= 2]
    number = min(number, len(bundles))
    return [bundles[index * len(bundles) // number] for index in range(number)]


def make_questions(
    bundles: Sequence[Bundle],
    catalog: ItemCatalog,
    splits: BundleSplits,
    *,
    num_candidates: int = 10,
    negatives: Negatives = "uniform",
    partial: Partial = "half",
    questions_per_bundle: int = 2,
    max_partial: int = 10,
    seed: int,
) -> list[Question]:
    """Make the questions of an evaluation, bundle after bundle.

    The randomness of a question depends on the seed, its bundle's id and its number in the bundle alone: another
    bundle in `bundles` changes no other question. (Another *training* bundle changes train frequencies and with them
    hard negatives.)

    Args:
        bundles: The bundles to complete, such as `splits.validation`; those of fewer than two items are skipped.
        catalog: The items; negatives are drawn from all of them, never from the bundle.
        splits: The data set's bundles, of which `train` gives the frequencies for hard negatives.
        num_candidates: Candidates per question, 2 or more. The default is the paper's; more than 26 do not fit into
            one prompt and are for evaluation.
        negatives: `"uniform"` draws over the catalog (the paper's protocol). `"hard"` draws items of the answer's
            category near its train frequency (ours; under uniform negatives popularity answers many questions).
        partial: `"half"` shows half of the bundle and takes answers from the rest; `"leave_one_out"` shows all items
            but the answer.
        questions_per_bundle: At most this many questions per bundle, each with another answer.
        max_partial: At most this many items are shown.
        seed: The same seed gives the same questions.

    Returns:
        The questions; `question_id` is the bundle's id and the number of the question in it.

    Raises:
        BundleMLLMError: If an option is out of range, or the catalog has too few items outside a bundle.
    """
    _check_num_candidates(num_candidates)
    check_choice("negatives", negatives, get_args(Negatives))
    check_choice("partial", partial, get_args(Partial))
    check_at_least("questions_per_bundle", questions_per_bundle, 1, "no question would be made")
    check_at_least("max_partial", max_partial, 1, "no item would be shown")
    sampler = NegativeSampler(catalog, splits.train, seed)
    questions = []
    for bundle in bundles:
        if len(bundle.items) < 2:
            continue
        sampler.check(bundle, num_candidates)
        rows = catalog.rows(bundle.items, where=f"Bundle {bundle.bundle_id!r}")
        members = frozenset(rows)
        _generator(seed, bundle.bundle_id).shuffle(rows)
        half = min(len(rows) // 2, max_partial)
        answers, possible = (rows[half:], rows[:half]) if partial == "half" else (rows, rows)
        for number, answer in enumerate(answers[:questions_per_bundle]):
            shown_rows = [row for row in possible if row != answer][:max_partial]
            rng = _generator(seed, bundle.bundle_id, number)
            wrong = sampler.draw(answer, members, num_candidates - 1, negatives == "hard", rng)
            questions.append(_build(bundle, number, catalog.item_ids, shown_rows, [answer, *wrong], rng))
    return questions


def sample_training_questions(
    bundles: Sequence[Bundle],
    catalog: ItemCatalog,
    *,
    num_questions: int,
    num_candidates: tuple[int, int],
    hard_fraction: float,
    max_partial: int = 10,
    fold_of_bundle: Mapping[str, int] | None = None,
    seed: int,
) -> list[Question]:
    """Sample questions to train on, in passes over all bundles, each in another order.

    The partial bundle is of random size, the answer any item of the rest.

    Args:
        bundles: The training bundles; those of fewer than two items are skipped. They also give the frequencies for
            hard negatives.
        catalog: The items; negatives are drawn from all of them, never from the bundle.
        num_questions: How many questions to sample.
        num_candidates: The least and the greatest number of options, 2 to 26; drawn uniformly for each question.
        hard_fraction: The probability that the negatives of a question are hard, 0 to 1; see [`make_questions`].
        max_partial: At most this many items are shown.
        fold_of_bundle: The fold of each bundle, where questions use out-of-fold features: hard negatives of a question
            are then matched on frequencies outside its bundle's fold, too. If they were matched on all bundles, the
            features of the answer alone would lack the bundle in question, which would give the answer away.
        seed: The same seed gives the same questions.

    Returns:
        `num_questions` questions; `question_id` is the bundle's id and the number of the pass.

    Raises:
        BundleMLLMError: If an option is out of range, no bundle has two items, or the catalog has too few items
            outside a bundle.
    """
    least, greatest = num_candidates
    for number in num_candidates:
        _check_num_candidates(number)
        if number > MAX_OPTIONS:
            raise BundleMLLMError(
                f"A training question cannot have {number} candidates, with letters A to Z: choose 2 to {MAX_OPTIONS}."
            )
    if least > greatest:
        raise BundleMLLMError(f"num_candidates is {least} to {greatest}, an empty range: write ({greatest}, {least}).")
    if not 0 <= hard_fraction <= 1:
        raise BundleMLLMError(f"hard_fraction is {hard_fraction}, not a probability: choose 0 to 1.")
    check_at_least("num_questions", num_questions, 1, "no question would be made")
    check_at_least("max_partial", max_partial, 1, "no item would be shown")
    fold_of = {bundle.bundle_id: fold_of_bundle[bundle.bundle_id] if fold_of_bundle else None for bundle in bundles}
    samplers = {
        fold: NegativeSampler(catalog, (b for b in bundles if fold is None or fold_of[b.bundle_id] != fold), seed)
        for fold in set(fold_of.values())
    }
    usable = [bundle for bundle in bundles if len(bundle.items) >= 2]
    if not usable:
        raise BundleMLLMError(f"None of the {len(bundles)} training bundles has two items for a question: add some.")
    for bundle in usable:
        samplers[fold_of[bundle.bundle_id]].check(bundle, greatest)
    rows_of = [catalog.rows(bundle.items) for bundle in usable]
    members_of = [frozenset(rows) for rows in rows_of]

    rng = _generator(seed)
    order = list(range(len(usable)))
    questions: list[Question] = []
    for number in count():
        rng.shuffle(order)
        for index in order:
            if len(questions) == num_questions:
                return questions
            rows = rows_of[index]
            shown = rng.randint(1, min(len(rows) - 1, max_partial))
            *shown_rows, answer = rng.sample(rows, shown + 1)
            num_wrong = rng.randint(least, greatest) - 1
            sampler = samplers[fold_of[usable[index].bundle_id]]
            wrong = sampler.draw(answer, members_of[index], num_wrong, rng.random() < hard_fraction, rng)
            questions.append(_build(usable[index], number, catalog.item_ids, shown_rows, [answer, *wrong], rng))
    raise AssertionError("count() does not end")


def save_questions(path: str | os.PathLike, questions: Iterable[Question]) -> None:
    """Write questions as a table (see `write_records`), one per row."""
    write_records(path, map(vars, questions))


def load_questions(path: str | os.PathLike, catalog: ItemCatalog) -> list[Question]:
    """Read questions and check each of them against the catalog.

    Args:
        path: A table with `question_id`, `bundle_id`, `partial`, `candidates`, `answer_index` and, optionally,
            `answer` (the item id that `answer_index` points at).
        catalog: The catalog that holds the items.

    Raises:
        BundleMLLMError: If the file holds no question, or one is not a proper question on this catalog.
    """
    questions: dict[str, Question] = {}
    for number, record in enumerate(iter_records(path), start=1):
        question = _to_question(record, catalog, f"{path} row {number}")
        if question.question_id in questions:
            raise BundleMLLMError(f"{path} row {number} repeats the question {question.question_id!r}: rename one.")
        questions[question.question_id] = question
    if not questions:
        raise BundleMLLMError(f"{path} holds no question, so nothing can be measured: make questions first.")
    return list(questions.values())


def _generator(*key: int | str) -> random.Random:
    """Return a generator that depends on `key` alone, unlike `hash()` the same in every process."""
    return random.Random(int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest(), "big"))


def _build(
    bundle: Bundle, number: int, ids: Sequence[str], shown: list[int], options: list[int], rng: random.Random
) -> Question:
    """Put the answer, which is the first option, at a random position, and ids for rows."""
    answer, *wrong = options
    answer_index = rng.randrange(len(options))
    candidates = (*wrong[:answer_index], answer, *wrong[answer_index:])
    partial, candidates = (tuple([ids[row] for row in rows]) for rows in (shown, candidates))
    return Question(f"{bundle.bundle_id}-{number}", bundle.bundle_id, partial, candidates, answer_index)


def _to_question(record: Mapping[str, Any], catalog: ItemCatalog, where: str) -> Question:
    require_fields(record, ("question_id", "bundle_id", "partial", "candidates", "answer_index"), where)
    question_id = to_id(record["question_id"], where)
    where = f"{where} (question {question_id!r})"
    bundle_id = to_id(record["bundle_id"], where)
    partial = to_ids(record["partial"], "partial", where)
    candidates = to_ids(record["candidates"], "candidates", where)
    answer_index = record["answer_index"]
    if isinstance(answer_index, str) and answer_index.isdecimal():  # a cell of a CSV file
        answer_index = int(answer_index)
    for name, ids in (("partial", partial), ("candidates", candidates)):
        catalog.rows(ids, where=f"{where}, `{name}`")
        if repeated := [item_id for item_id in dict.fromkeys(ids) if ids.count(item_id) > 1]:
            raise BundleMLLMError(f"{where} has {repeated[0]!r} more than once in `{name}`: keep one.")
    _check_num_candidates(len(candidates), where)
    if not partial:
        raise BundleMLLMError(f"{where} shows no item, so there is nothing to complete: give `partial` an item.")
    if shown := [item_id for item_id in candidates if item_id in partial]:
        raise BundleMLLMError(f"{where} offers {shown[0]!r}, which is in `partial` already: remove one.")
    if not isinstance(answer_index, int) or isinstance(answer_index, bool) or not 0 <= answer_index < len(candidates):
        raise BundleMLLMError(
            f"{where} has the answer_index {answer_index!r} for {(n := len(candidates))} candidates: use 0 to {n - 1}."
        )
    if record.get("answer") is not None:
        answer = to_id(record["answer"], f"{where}, `answer`,")
        if answer not in candidates:
            raise BundleMLLMError(f"{where} has the answer {answer!r}, which is not among its candidates: add it.")
        if answer != candidates[answer_index]:
            raise BundleMLLMError(
                f"{where} has the answer {answer!r}, but answer_index {answer_index} is {candidates[answer_index]!r}: "
                f"set answer_index to {candidates.index(answer)}."
            )
    return Question(question_id, bundle_id, tuple(partial), tuple(candidates), answer_index)


def _check_num_candidates(num_candidates: int, where: str = "A question") -> None:
    if num_candidates < MIN_CANDIDATES:
        raise BundleMLLMError(
            f"{where} cannot have {num_candidates} candidates, since there would be nothing to choose: give 2 or more."
        )
