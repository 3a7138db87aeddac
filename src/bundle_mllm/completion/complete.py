"""Complete bundles out of the whole catalog, or of candidates, under the rules of a shop.

Knows nothing about files, conditions, or how items are selected under limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle_mllm.completion.columns import ItemColumns
from bundle_mllm.completion.item_table import ITEM_TABLE
from bundle_mllm.completion.rules import CatalogRules, Rules
from bundle_mllm.completion.selection import Groups, Limits, Prices, Selected, select
from bundle_mllm.device import choose_device
from bundle_mllm.errors import BundleMLLMError, check_at_least
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter, Completion
from bundle_mllm.modeling.questions_bundle_mllm import field, id_of
from bundle_mllm.modeling.ranking_bundle_mllm import MAX_OPTIONS

CATALOG_CELLS = 1 << 24
"""Scores of whole catalogs that are held at once, 64 MiB."""
MAX_QUESTIONS = 64
"""Questions that are scored at once."""


@dataclass(frozen=True)
class Answers:
    """The answers to one question.

    Attributes:
        items: In the order in which they were selected, without rules best first: `item_id`, `title`, `letter` (the
            place among up to 26 candidates, else `None`), `score` (the probability among all items that the filters
            allow; `boost` and limits do not change it), `guess` (see `BundleCompleter.guesses`) and, if wanted,
            `explanation`.
        notes: One line for each rule that could not be kept to or left too few; empty if there is nothing to say.
    """

    items: list[dict[str, Any]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Asked:
    """A question with the candidates that it is scored on; `None` for the whole catalog of the retriever."""

    question_id: Any
    partial: Sequence[Any]
    candidates: Sequence[Any] | None
    has_letters: bool


@dataclass(frozen=True, eq=False)
class _Scored:
    """The scores of what a question may be answered with.

    Attributes:
        values: `[n]` float log-probabilities, `-inf` where an item is no answer.
        rows: `[n]` catalog rows, -1 for dict items; `None` for the whole catalog.
        entries: The n items as the question names them.
        letters: The letter of each item where the question has up to 26 candidates.
        completion: What the models say about the items that the ranker was shown; their places are `shown`.
        retriever: `[n]` the log-probabilities of the retriever alone, where `values` are those of both.
    """

    values: np.ndarray
    entries: Sequence[Any]
    rows: np.ndarray | None = None
    letters: str = ""
    completion: Completion | None = None
    shown: Sequence[int] = ()
    retriever: np.ndarray | None = None


class RuledCompleter:
    """Completes bundles by a completer, under rules; see `Rules` for what is done in which order.

    Args:
        completer: The models.
        rules: What `Rules.apply` made for their catalog; no rules if not given.

    Raises:
        BundleMLLMError: If the rules are of another catalog, or compare items and there is no retriever.
    """

    def __init__(self, completer: BundleCompleter, rules: CatalogRules | None = None):
        num_items = completer.processor.num_items
        rules = rules or CatalogRules.none(num_items)
        self.completer, self.rules = completer, rules
        if len(rules.allowed) != num_items:
            raise BundleMLLMError(
                f"The rules were applied to {len(rules.allowed)} items and the model has {num_items}: apply them to "
                "the ids of the model's processor."
            )
        if completer.retriever is None and (rules.limits.diversity or rules.limits.max_similarity is not None):
            raise BundleMLLMError(
                "diversity and max_similarity compare items by the retriever's features, and this model has no "
                "retriever: add one (bundle-mllm retriever), or leave them out."
            )
        self._allowed = torch.from_numpy(rules.allowed)

    def complete(
        self,
        questions: Sequence[Any],
        *,
        top_k: int = 10,
        page: int = 1,
        explain: bool = False,
        batch_size: int = 32,
        progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    ) -> list[Answers]:
        """Answer questions, each by itself.

        Args:
            questions: The questions; see `BundleItemProcessor`. Rules hold for given candidates, too.
            top_k: How many answers each gets.
            page: Which `top_k` answers, from 1. Each page keeps to the rules by itself, and leaves out the answers of
                those before it.
            explain: Whether to add the probability that each model gives an answer alone (the ranker, if it was shown
                the answer), the terms of the retriever's score, and what `boost` adds.
            batch_size: Prompts per forward pass of the ranker.
            progress: Wraps the batches of the ranker, for a progress bar.

        Raises:
            BundleMLLMError: If a number is below 1, more categories are required than there are answers, or a question
                cannot be read.
        """
        check_at_least("top_k", top_k, 1, "there would be no answers")
        check_at_least("page", page, 1, "there is no such page")
        if len(names := self.rules.rules.required_categories) > top_k:
            raise BundleMLLMError(
                f"{len(names)} categories are required ({', '.join(map(repr, names))}), but only {top_k} answers are "
                "wanted: require fewer, or raise top_k."
            )
        answers: dict[int, Answers] = {}
        options = {"batch_size": batch_size, "progress": progress}
        size = max(1, min(MAX_QUESTIONS, CATALOG_CELLS // max(1, self.completer.processor.num_items)))
        try:
            asked = [self._read(question) for question in self.completer.prepare(questions)]
            for score, wanted in ((self._score_catalog, True), (self._score_candidates, False)):
                numbers = [i for i, each in enumerate(asked) if (each.candidates is None) == wanted]
                for start in range(0, len(numbers), size):
                    chunk = numbers[start : start + size]
                    for i, scored in zip(chunk, score([asked[i] for i in chunk], top_k, options), strict=True):
                        answers[i] = self._answer(asked[i].partial, scored, top_k, page, explain)
        except ValueError as error:
            raise error if isinstance(error, BundleMLLMError) else BundleMLLMError(str(error)) from error
        return [answers[i] for i in range(len(questions))]

    def ranked_items(self, question: Any, top_k: int) -> list[str]:
        """Return the items that the ranker scores for a question about the whole catalog."""
        asked = self._read(question)
        [values] = self._retrieve([asked])
        return [self.completer.processor.item_ids[row] for row in self._ranked(values, asked.partial, top_k)]

    def _read(self, question: Any) -> _Asked:
        partial, candidates = self.completer.processor.read_question(question)
        has_letters = candidates is not None and len(candidates) <= MAX_OPTIONS
        if candidates is None and self.completer.retriever is None:
            candidates = list(self.completer.others(partial))
        return _Asked(field(question, "question_id"), partial, candidates, has_letters)

    def _score_catalog(self, questions: Sequence[_Asked], top_k: int, options: Mapping[str, Any]) -> Iterator[_Scored]:
        """Score all allowed items by the retriever, and the best of them by the ranker, too."""
        completer, item_ids, table = self.completer, self.completer.processor.item_ids, self._retrieve(questions)
        if completer.ranker is None:
            yield from (_Scored(values, item_ids) for values in table)
            return
        shown = [
            self._ranked(values, question.partial, top_k) for values, question in zip(table, questions, strict=True)
        ]
        prompts = [i for i, rows in enumerate(shown) if len(rows) > 1]
        ranked = [replace(questions[i], candidates=[item_ids[row] for row in shown[i]]) for i in prompts]
        completions = dict(zip(prompts, completer.score(ranked, **options), strict=True))
        for i, values in enumerate(table):
            if (completion := completions.get(i)) is None:
                yield _Scored(values, item_ids)
                continue
            joined, rows = values.astype(np.float64), shown[i]
            joined[rows] = np.logaddexp.reduce(joined[rows]) + completion.answer.log_softmax(dim=-1).numpy()
            yield _Scored(joined, item_ids, completion=completion, shown=rows, retriever=values)

    def _retrieve(self, questions: Sequence[_Asked]) -> np.ndarray:
        """Return the log-probabilities of the retriever among the allowed items, `[num_questions, num_items]`."""
        logs = self.completer.catalog_scores([question.partial for question in questions]).cpu()
        if not self.rules.allowed.all():
            logs.masked_fill_(~self._allowed, -torch.inf)
        normalizer = logs.logsumexp(dim=-1, keepdim=True)
        return logs.sub_(normalizer.masked_fill(normalizer.isinf(), 0.0)).numpy()  # `-inf` where nothing is allowed

    def _ranked(self, values: np.ndarray, partial: Sequence[Any], top_k: int) -> list[int]:
        """Return the rows of the items that the ranker scores."""
        number, order = self.completer.num_ranked, self._order(values, None)
        if not self.rules.selects:
            return _best(order, number)
        return self._select(order, self.rules.limits_of_ranked(number, top_k), number, self._rows(partial), None).rows

    def _score_candidates(
        self, questions: Sequence[_Asked], top_k: int, options: Mapping[str, Any]
    ) -> Iterator[_Scored]:
        """Score the allowed candidates."""
        kept: list[tuple[_Asked, np.ndarray, list[int]]] = []
        for question in questions:
            candidates, processor = question.candidates or (), self.completer.processor
            rows = np.array([-1 if isinstance(each, Mapping) else processor.row(each) for each in candidates])
            if not self.rules.is_empty and (rows < 0).any():
                raise BundleMLLMError(
                    f"Rules read columns of the catalog, and {int((rows < 0).sum())} candidates are given as "
                    "dictionaries and have none: add these items to the catalog, or leave the rules out."
                )
            places = np.flatnonzero((rows < 0) | self.rules.allowed[rows]).tolist()
            kept.append((replace(question, candidates=[candidates[place] for place in places]), rows[places], places))
        least = 1 if self.completer.ranker is None or self.completer.retriever is not None else 2  # of one prompt
        asked = [question for question, _, places in kept if len(places) >= least]
        completions = iter(self.completer.score(asked, **options))
        for question, rows, places in kept:
            completion = next(completions) if len(places) >= least else None
            values = np.zeros(len(places)) if completion is None else completion.answer.numpy()
            letters = "".join(chr(65 + place) for place in places) if question.has_letters else ""
            yield _Scored(values, question.candidates or (), rows, letters, completion, range(len(places)))

    def _answer(self, partial: Sequence[Any], scored: _Scored, top_k: int, page: int, explain: bool) -> Answers:
        """Select the answers of a page, and describe them."""
        order = self._order(scored.values, scored.rows)
        if not self.rules.selects:
            found = Selected(_best(order, page * top_k)[(page - 1) * top_k :])
        else:
            limits, rows, shown = self.rules.limits, scored.rows, self._rows(partial)
            if rows is not None:  # of these rows alone, with those of the partial bundle at the end
                rows, shown = np.append(rows, shown).astype(np.int64), list(range(len(rows), len(rows) + len(shown)))
                limits, order = _of_rows(limits, rows), np.append(order, np.full(len(shown), -np.inf))
            found, order = Selected([]), order.copy()
            for _ in range(page):
                order[found.rows] = -np.inf
                found = self._select(order, limits, top_k, shown, rows)
        guesses = self.completer.guesses(partial, [scored.entries[place] for place in found.rows])
        items = [self._describe(scored, *pair) for pair in zip(found.rows, guesses, strict=True)]
        if explain:
            for item, explanation in zip(items, self._explain(partial, scored, found.rows), strict=True):
                item["explanation"] = explanation
        return Answers(items, self._notes(found, top_k))

    def _select(
        self, order: np.ndarray, limits: Limits, number: int, shown: Sequence[int], rows: np.ndarray | None
    ) -> Selected:
        retriever = self.completer.retriever

        def similarity(some: np.ndarray, others: np.ndarray) -> np.ndarray:
            pair = [torch.from_numpy(each if rows is None else rows[each]) for each in (some, others)]
            return retriever.similarity(*pair).cpu().numpy()

        return select(order, limits, number, shown=shown, similarity=similarity)

    def _order(self, values: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        """Return what orders the items: log-probabilities plus `boost`."""
        offsets = self.rules.offsets
        return values if offsets is None else values + (offsets if rows is None else offsets[rows])

    def _rows(self, entries: Sequence[Any]) -> list[int]:
        """Return the catalog rows of the items that have one."""
        processor = self.completer.processor
        return [processor.row(item_id) for item_id in map(id_of, entries) if item_id in processor]

    def _describe(self, scored: _Scored, place: int, guess: bool) -> dict[str, Any]:
        entry = scored.entries[place]
        return {
            "item_id": id_of(entry),
            "title": self.completer.processor.title(entry),
            "letter": scored.letters[place] if scored.letters else None,
            "score": float(np.exp(scored.values[place])),
            "guess": guess,
        }

    def _explain(self, partial: Sequence[Any], scored: _Scored, places: Sequence[int]) -> list[dict[str, Any]]:
        """Return what each model says about answers, and what `boost` adds."""
        parts = {} if scored.completion is None else dict(scored.completion.scores)
        parts.pop("both", None)
        number = {place: i for i, place in enumerate(scored.shown)}
        explained: list[dict[str, Any]] = [
            {name: float(values[number[place]].exp()) for name, values in sorted(parts.items()) if place in number}
            for place in places
        ]
        retriever = self.completer.retriever
        if scored.rows is None:  # probabilities among the whole catalog
            alone = scored.values if scored.retriever is None else scored.retriever
            for explanation, place in zip(explained, places, strict=True):
                explanation["retriever"] = float(np.exp(alone[place]))
        if retriever is not None and places:
            question = {"partial": partial, "candidates": [scored.entries[place] for place in places]}
            batch = self.completer.processor.option_rows([question], retriever.config.modalities)
            with torch.no_grad():
                terms = retriever(**batch.to(retriever.device), return_terms=True).terms
            for i, explanation in enumerate(explained):
                explanation["retriever_terms"] = {name: float(values[0, i]) for name, values in terms.items()}
        if self.rules.offsets is not None:
            for explanation, place in zip(explained, places, strict=True):
                row = place if scored.rows is None else scored.rows[place]
                explanation["boost"] = float(self.rules.offsets[row])
        return explained

    def _notes(self, found: Selected, top_k: int) -> tuple[str, ...]:
        """Say which rules could not be kept to, or left too few."""
        rules, notes = self.rules.rules, []
        if found.unmet:
            names = ", ".join(repr(self.rules.category_names[code]) for code in found.unmet)
            notes.append(f"no allowed item of the required categories {names} could be answered")
        if found.missing_promoted:
            notes.append(
                f"{found.missing_promoted} promoted items of promoted_share {rules.promoted_share:g} are missing"
            )
        if found.relaxed:
            notes.append(f"too few items were left, so these rules were dropped: {', '.join(found.relaxed)}")
        if len(found.rows) < top_k:
            causes = {**self.rules.removed, **found.blocked}
            removed = ", ".join(f"{rule} removes {number}" for rule, number in causes.items() if number)
            notes.append(f"{len(found.rows)} answers instead of {top_k}: {removed or 'there are no more items'}")
        return tuple(notes)


def load_ruled_completer(
    model: str | Path, rules: Rules | None = None, items: str | Path | None = None, device: str | None = None
) -> RuledCompleter:
    """Load a model folder or Hub repository, and apply rules to its catalog.

    Args:
        model: The folder or repository.
        rules: The rules; none if not given.
        items: Items table or dataset folder whose columns the rules read; by default the table that the model folder
            holds, see `item_table`.
        device: Where the models run; a GPU if there is one.

    Raises:
        BundleMLLMError: See `load_completer`, `ItemColumns.load` and `Rules.apply`.
    """
    completer = load_completer(model, str(choose_device(device)))
    if rules is None or rules == Rules():
        return RuledCompleter(completer)
    item_ids, titles = completer.processor.item_ids, completer.processor.titles
    if items is None and (Path(model) / ITEM_TABLE).is_file():
        items = Path(model) / ITEM_TABLE
    if items is not None:
        columns = ItemColumns.load(items, item_ids)
    else:
        records = ({"item_id": item_id, "title": title} for item_id, title in zip(item_ids, titles, strict=True))
        columns = ItemColumns.from_records(records, item_ids, f"The model {model} (no --items were given)")
    return RuledCompleter(completer, rules.apply(item_ids, columns))


def _best(order: np.ndarray, number: int) -> list[int]:
    """Return the places of the highest scores, best first, those that are `-inf` aside."""
    best = torch.from_numpy(order).topk(min(number, len(order)))
    return best.indices[best.values > -torch.inf].tolist()


def _of_rows(limits: Limits, rows: np.ndarray) -> Limits:
    """Return the limits of some items."""
    return replace(
        limits,
        category=None if limits.category is None else Groups(limits.category.of[rows]),
        variant=None if limits.variant is None else Groups(limits.variant.of[rows]),
        price=None if limits.price is None else Prices(limits.price.of[rows]),
        promoted=None if limits.promoted is None else limits.promoted[rows],
    )
