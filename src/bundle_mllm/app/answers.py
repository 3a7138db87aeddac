"""What a model answers to a visitor of the app: the best items, why, and where the visitor's own items rank.

Knows nothing about pages, or what led to a state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bundle_mllm.app.items import ShownItems
from bundle_mllm.app.state import OwnItem, State
from bundle_mllm.completion.complete import Answers, RuledCompleter
from bundle_mllm.completion.contributions import contributions
from bundle_mllm.completion.rules import CatalogRules, Rules
from bundle_mllm.device import choose_device
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling.answers_bundle_mllm import describe_answers, explain_answers

NUM_BESIDE, NUM_BESIDE_READ = 1000, 100
"""Items of the catalog that an own item is ranked with, the best by the retriever: most, and where the ranker reads
each of them. Without a retriever they are the answers."""


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        number: The item: its row, or below 0 an item of the visitor's own.
        place: Its place, from 1.
        score: Its probability.
        guess: Whether nothing is known about it.
        alone: The probability that ranker and retriever each give it.
        contributions: What each source of information adds, as log-odds.
        of: Of an own item: the number of items that it was ranked with, itself counted.
        elsewhere: Its place among the answers of the model that is compared; 0 if it is not among them.
    """

    number: int
    place: int
    score: float
    guess: bool = False
    alone: Mapping[str, float] = field(default_factory=dict)
    contributions: Mapping[str, float] = field(default_factory=dict)
    of: int | None = None
    elsewhere: int | None = None


@dataclass(frozen=True)
class Result:
    """The answers of one model.

    Attributes:
        answers: The best first; the visitor's own items where they rank, or at the end.
        notes: What rules could not be kept to, and what the model does not know.
        error: Why there are no answers.
        nothing_fits: Whether nothing fits well enough for the probability that was asked for.
    """

    answers: tuple[Answer, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None
    nothing_fits: bool = False


class AppModel:
    """A model with its items.

    Args:
        name: Model folder or Hub repository.
        data: The dataset folder; see `ShownItems`.
        device: Where the models run.

    Raises:
        BundleMLLMError: See `load_completer` and `ShownItems`.
    """

    def __init__(self, name: str, data: Path | None = None, device: str | None = None):
        self.completer = load_completer(name, str(choose_device(device)))
        processor = self.completer.processor
        self.items = ShownItems(processor.item_ids, processor.titles, name, data)
        encoder = self.completer.item_encoder
        self.reads = ("title",) if encoder is None else encoder.read_columns
        self.name = "/".join(Path(name).absolute().parts[-2:]) if Path(name).is_dir() else name
        """What the page calls it: the name of a repository, or the end of a path."""
        self.takes_own = encoder is not None or self.completer.ranker is not None
        """Whether anything can be known about an item that is not in the catalog."""
        self.is_calibrated = self.completer.combination.calibration is not None
        """Whether it can say that nothing fits."""

    @property
    def parts(self) -> str:
        """What answers, in words."""
        return " + ".join(part for part in self.completer.parts if part != "both")

    def complete(self, shown: ShownItems, state: State) -> Result:
        """Answer a visitor; what goes wrong is in the result.

        Args:
            shown: The items that the numbers of the state are rows of; this model may have others.
            state: What the visitor has done.
        """
        try:
            return self._complete(shown, state)
        except ValueError as error:  # what models and encoders raise for wrong input
            return Result(error=" ".join(str(error).split()))

    def _complete(self, shown: ShownItems, state: State) -> Result:
        numbers = [n for n in state.bundle if n < 0 or shown.item_ids[n] in self.items.row_of]
        notes = []
        if missing := len(state.bundle) - len(numbers):
            notes.append(f"{missing} of the {len(state.bundle)} items of the bundle are not in this model's catalog.")
        if not numbers:
            return Result(notes=tuple(notes))
        partial = [self._entry(state.own[n]) if n < 0 else shown.item_ids[n] for n in numbers]
        rules = CatalogRules.none(len(self.items))
        if state.rules != Rules():
            rules = state.rules.apply(self.items.item_ids, self.items.columns)
        ruled = RuledCompleter(self.completer, rules)
        coverage = state.coverage if self.is_calibrated else None
        if coverage != state.coverage:
            notes.append("This model was not calibrated, so these are its best items, however well they fit.")
        [found] = ruled.complete([{"partial": partial}], top_k=state.top_k, explain=True, coverage=coverage)
        answers = _answers(found, shown)
        for own in self._rank(partial, state.ranked, rules, found):
            answers.insert(min(own.place - 1, len(answers)), own)
        placed = tuple(a if a.number < 0 else replace(a, place=i) for i, a in enumerate(answers, start=1))
        return Result(placed, (*notes, *rules.notes, *found.notes), nothing_fits=found.set_size == 0)

    def _rank(
        self, partial: Sequence[Any], own: Mapping[int, OwnItem], rules: CatalogRules, found: Answers
    ) -> list[Answer]:
        """Return where items of the visitor's own rank among the best items that the filters of the rules allow."""
        if not own:
            return []
        completer = self.completer
        beside = [item["item_id"] for item in found.items]
        if completer.retriever is not None:
            reads_all = completer.ranker is not None and not completer.reads_letters
            [prepared] = completer.prepare([{"partial": partial}])
            scores = completer.catalog_scores([prepared["partial"]])[0].cpu()
            scores[~torch.from_numpy(rules.allowed)] = -torch.inf
            best = scores.topk(min(NUM_BESIDE_READ if reads_all else NUM_BESIDE, len(scores)))
            beside = [self.items.item_ids[row] for row in best.indices[best.values > -torch.inf].tolist()]
            beside = [item_id for item_id in beside if item_id not in partial]
        question = {"partial": partial, "candidates": [*beside, *map(self._entry, own.values())]}
        [completion] = completer.score([question])
        scores, places = completion.answer, range(len(beside), len(beside) + len(own))
        described = describe_answers(completer, completion, places)
        explained = explain_answers(completion, places)
        parts = contributions(completer, completion, places)
        ranked = [
            Answer(
                number=number,
                place=1 + int((scores > scores[i]).sum()),
                score=answer["score"],
                guess=answer["guess"],
                alone=alone,
                contributions=of_item,
                of=len(scores),
            )
            for number, i, answer, alone, of_item in zip(own, places, described, explained, parts, strict=True)
        ]
        return sorted(ranked, key=lambda answer: answer.place)

    def _entry(self, item: OwnItem) -> dict[str, Any]:
        """Return an item of the visitor's own as a question has it: as far as this model can read it."""
        given = {"title": item.title, "category": item.category, "image": item.picture}
        return {name: value for name, value in given.items() if value and name in self.reads}


def compare(results: Sequence[Result]) -> list[Result]:
    """Return the results of two models, each answer with its place among those of the other."""
    places = [{answer.number: answer.place for answer in result.answers} for result in results]
    return [
        replace(result, answers=tuple(replace(a, elsewhere=other.get(a.number, 0)) for a in result.answers))
        for result, other in zip(results, reversed(places), strict=True)
    ]


def _answers(found: Answers, shown: ShownItems) -> list[Answer]:
    answers = []
    for place, item in enumerate(found.items, start=1):
        if (row := shown.row_of.get(item["item_id"])) is None:
            continue
        alone = {part: item["explanation"][part] for part in ("ranker", "retriever") if part in item["explanation"]}
        given = item["explanation"].get("contributions", {})
        answers.append(Answer(row, place, item["score"], item["guess"], alone, given))
    return answers
