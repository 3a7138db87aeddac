"""Complete bundles out of the whole catalog, or of candidates, under the rules of a shop.

Knows nothing about what conditions mean, or how items are selected under limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from bundle_mllm.completion.approximate import NUM_FOUND, ApproximateIndex, Search
from bundle_mllm.completion.columns import ItemColumns
from bundle_mllm.completion.contributions import contributions
from bundle_mllm.completion.media import ItemMedia
from bundle_mllm.completion.page import shown_answers
from bundle_mllm.completion.rules import CatalogRules, Rules
from bundle_mllm.completion.selection import Groups, Limits, Prices, Selected, select
from bundle_mllm.device import choose_device
from bundle_mllm.errors import BundleMLLMError, check_at_least
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling.answers_bundle_mllm import Completion, describe_answers, explain_answers, letters_of
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.conformity_bundle_mllm import answer_set
from bundle_mllm.modeling.questions_bundle_mllm import field as field_of
from bundle_mllm.modeling.questions_bundle_mllm import id_of
from bundle_mllm.pages import notebook_cell, write_page

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
            allow; `boost` and limits do not change it), `guess` (see `describe_answers`) and, if wanted,
            `explanation` and `p_value`.
        notes: One line for each rule that could not be kept to or left too few, and for `unranked`; empty if there is
            nothing to say.
        partial: The items of the bundle: `item_id`, `title` and, of a new item, `image`.
        rules: The rules that were kept to.
        media: Pictures and sounds for a page or a notebook, where there are any.
        unranked: Why these are the answers of the retriever alone, though there is a ranker; `None` if they are not.
        set_size: How many items the set has that holds the right answer with the stated probability, as far as the
            filters allow them: 0 if nothing fits, `None` if no probability was stated.
    """

    items: list[dict[str, Any]]
    notes: tuple[str, ...] = ()
    partial: tuple[dict[str, Any], ...] = field(default=(), compare=False)
    rules: Rules | None = field(default=None, compare=False)
    media: ItemMedia | None = field(default=None, compare=False, repr=False)
    unranked: str | None = None
    set_size: int | None = None

    def write_html(self, path: str | Path, about: str = "", right: str | None = None) -> Path:
        """Write a page that needs no other file: the bundle, the answers with pictures and scores, notes and rules.

        Args:
            path: The file.
            about: A line below the heading.
            right: The id of the right answer, where it is known.
        """
        return write_page(path, "answers.html", found=self._shown(right) | {"about": about})

    def _repr_html_(self) -> str:
        return notebook_cell("answers.html", found=self._shown())

    def _shown(self, right: str | None = None) -> dict[str, Any]:
        return shown_answers(self.partial, self.items, self.notes, self.rules, self.media, right)


@dataclass(frozen=True)
class _Asked:
    """A question with the candidates that it is scored on; `None` for the whole catalog of the retriever."""

    question_id: Any
    partial: Sequence[Any]
    candidates: Sequence[Any] | None
    letters: str


@dataclass(frozen=True, eq=False)
class _Scored:
    """The scores of what a question may be answered with.

    Attributes:
        completion: Of the whole catalog, with `-inf` where an item is no answer; or of the allowed candidates.
        rows: `[n]` catalog rows of the candidates, -1 for dict items; `None` for the whole catalog.
        given: Catalog rows of all candidates, those that are not allowed, too; `None` for the whole catalog.
        letters: The letter of each candidate where the question has up to 26.
    """

    completion: Completion
    rows: np.ndarray | None = None
    given: np.ndarray | None = None
    letters: str = ""


class RuledCompleter:
    """Completes bundles by a completer, under rules; see `Rules` for what is done in which order.

    Args:
        completer: The models.
        rules: What `Rules.apply` made for their catalog; no rules if not given.
        media: Pictures and sounds that pages and notebooks show.
        index: Finds the items that whole catalogs are searched for. All are compared where there is none, where rules
            boost items or choose among them, and for questions of which the index finds too few.

    Raises:
        BundleMLLMError: If the rules are of another catalog, or compare items and there is no retriever.
    """

    def __init__(
        self,
        completer: BundleCompleter,
        rules: CatalogRules | None = None,
        media: ItemMedia | None = None,
        index: ApproximateIndex | None = None,
    ):
        num_items = completer.processor.num_items
        rules = rules or CatalogRules.none(num_items)
        self.completer, self.rules, self.media, self.index = completer, rules, media, index
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
        coverage: float | None = None,
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
                the answer), what each source of information contributed (see `contributions`), and what `boost` adds.
            coverage: Answer only with items of the smallest set that holds the right one with this probability, if no
                rule removes it; see `BundleCalibration`.
            batch_size: Prompts per forward pass of the ranker.
            progress: Wraps the batches of the ranker, for a progress bar.

        Raises:
            BundleMLLMError: If a number is below 1, more categories are required than there are answers, a question
                cannot be read, or the models were not calibrated for this coverage.
        """
        check_at_least("top_k", top_k, 1, "there would be no answers")
        check_at_least("page", page, 1, "there is no such page")
        if len(names := self.rules.rules.required_categories) > top_k:
            raise BundleMLLMError(
                f"{len(names)} categories are required ({', '.join(map(repr, names))}), but only {top_k} answers are "
                "wanted: require fewer, or raise top_k."
            )
        answers: dict[int, Answers] = {}
        options = {"batch_size": batch_size, "progress": progress, "may_lack_ranker": True}
        size = max(1, min(MAX_QUESTIONS, CATALOG_CELLS // max(1, self.completer.processor.num_items)))
        try:
            asked = [self._read(question) for question in self.completer.prepare(questions)]
            catalog = partial(self._score_catalog, number=top_k * page if coverage is None else None)
            for score, is_open in ((catalog, True), (self._score_candidates, False)):
                numbers = [i for i, each in enumerate(asked) if (each.candidates is None) == is_open]
                for start in range(0, len(numbers), size):
                    chunk = numbers[start : start + size]
                    for i, scored in zip(chunk, score([asked[i] for i in chunk], top_k, options), strict=True):
                        answers[i] = self._answer(asked[i].partial, scored, top_k, page, explain, coverage)
        except ValueError as error:
            raise error if isinstance(error, BundleMLLMError) else BundleMLLMError(str(error)) from error
        return [
            replace(answers[i], partial=self._shown(question), rules=self.rules.rules, media=self.media)
            for i, question in enumerate(questions)
        ]

    def ranked_items(self, question: Any, top_k: int) -> list[str]:
        """Return the items that the ranker scores for a question about the whole catalog."""
        asked = self._read(question)
        [values], _ = self._retrieve([asked])
        return [self.completer.processor.item_ids[row] for row in self._ranked(values.numpy(), asked.partial, top_k)]

    def _read(self, question: Any) -> _Asked:
        partial, candidates = self.completer.processor.read_question(question)
        letters = letters_of(candidates)
        if candidates is None and self.completer.retriever is None:
            candidates = list(self.completer.others(partial))
        return _Asked(field_of(question, "question_id"), partial, candidates, letters)

    def _score_catalog(
        self, questions: Sequence[_Asked], top_k: int, options: Mapping[str, Any], *, number: int | None
    ) -> Iterator[_Scored]:
        """Score all allowed items by the retriever, or `number` and more by the index, and the best by the ranker."""
        completer = self.completer
        table, log_shares = self._retrieve(questions, number)
        shown: list[list[int]] = [[]] * len(questions)
        if completer.ranker is not None:
            pairs = zip(table, questions, strict=True)
            shown = [self._ranked(values.numpy(), question.partial, top_k) for values, question in pairs]
        about_catalog = [replace(question, candidates=completer.processor.item_ids) for question in questions]
        completions = completer.rank(about_catalog, list(table), shown, **options)
        for completion, log_share in zip(completions, log_shares, strict=True):
            yield _Scored(replace(completion, log_share=log_share))

    def _retrieve(
        self, questions: Sequence[_Asked], number: int | None = None
    ) -> tuple[torch.Tensor, Sequence[float | None]]:
        """Return the log-probabilities of the retriever among the allowed items, `[num_questions, num_items]`.

        With an index, they are among the items that it finds, if these are `number` and as many as are ranked. Also
        returned is the log of the share that the allowed items have of the probability of all, unknown with an index.
        """
        partials = [question.partial for question in questions]
        if search := self._search(number):
            logs, total = self._masked(self.completer.catalog_scores(partials, search).cpu()), None
            least = max(number or 0, self.completer.num_ranked)
            if few := [i for i, row in enumerate(logs) if int((row > -torch.inf).sum()) < least]:
                exact = self.completer.catalog_scores([partials[i] for i in few]).cpu()
                logs[few] = self._masked(exact)
        else:
            logs = self.completer.catalog_scores(partials).cpu()
            total = logs.logsumexp(dim=-1, keepdim=True)
            logs = self._masked(logs)
        normalizer = logs.logsumexp(dim=-1, keepdim=True)
        logs.sub_(normalizer.masked_fill(normalizer.isinf(), 0.0))  # `-inf` where nothing is allowed
        return logs, [None] * len(logs) if total is None else (normalizer - total)[:, 0].tolist()

    def _search(self, number: int | None) -> Search | None:
        """Return what finds items for questions about the whole catalog; `None` where all are to be compared."""
        chooses = self.rules.selects or self.rules.offsets is not None
        if self.index is None or number is None or number > NUM_FOUND or chooses:
            return None
        return self.index.search(self.rules.allowed)

    def _masked(self, scores: torch.Tensor) -> torch.Tensor:
        return scores if self.rules.allowed.all() else scores.masked_fill_(~self._allowed, -torch.inf)

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
        kept: list[tuple[_Asked, np.ndarray, list[int]]] = []  # with the rows of all candidates, and places of allowed
        for question in questions:
            candidates, processor = question.candidates or (), self.completer.processor
            rows = np.array([-1 if isinstance(each, Mapping) else processor.row(each) for each in candidates])
            if not self.rules.is_empty and (rows < 0).any():
                raise BundleMLLMError(
                    f"Rules read columns of the catalog, and {int((rows < 0).sum())} candidates are given as "
                    "dictionaries and have none: add these items to the catalog, or leave the rules out."
                )
            places = np.flatnonzero((rows < 0) | self.rules.allowed[rows]).tolist()
            kept.append((replace(question, candidates=[candidates[place] for place in places]), rows, places))
        completions = iter(self.completer.score([question for question, _, places in kept if places], **options))
        nothing = Completion([], {part: torch.zeros(0) for part in self.completer.parts}, {}, None)
        for question, rows, places in kept:
            letters = "".join(question.letters[place] for place in places) if question.letters else ""
            yield _Scored(next(completions) if places else nothing, rows[places], rows, letters)

    def _answer(
        self,
        partial: Sequence[Any],
        scored: _Scored,
        top_k: int,
        page: int,
        explain: bool,
        coverage: float | None,
    ) -> Answers:
        """Select the answers of a page, and describe them."""
        order = self._order(scored.completion.answer.numpy(), scored.rows)
        p_values, set_size = None, None
        if coverage is not None:
            p_values, belongs = answer_set(self.completer, scored.completion, coverage)
            order = np.where(belongs.numpy(), order, -np.inf)
            set_size = int((order > -np.inf).sum())
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
        items = describe_answers(self.completer, scored.completion, found.rows, scored.letters, p_values=p_values)
        if explain:
            for item, explanation in zip(items, self._explain(scored, found.rows), strict=True):
                item["explanation"] = explanation
        notes = self._notes(found, top_k if set_size is None else min(top_k, set_size), scored.given)
        if set_size is not None:
            notes = (_describe_set(set_size, len(items), coverage), *notes)
        if (unranked := scored.completion.unranked) is not None:
            notes = (f"the retriever alone answered: {unranked}", *notes)
        return Answers(items, notes, unranked=unranked, set_size=set_size)

    def _shown(self, question: Any) -> tuple[dict[str, Any], ...]:
        """Return the items of the bundle as `Answers` have them."""
        processor, shown = self.completer.processor, []
        for entry in field_of(question, "partial"):
            image = {"image": entry["image"]} if isinstance(entry, Mapping) and entry.get("image") else {}
            shown.append({"item_id": id_of(entry), "title": processor.title(entry), **image})
        return tuple(shown)

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

    def _explain(self, scored: _Scored, places: Sequence[int]) -> list[dict[str, Any]]:
        """Return what each model and each source says about answers, and what `boost` adds."""
        explained = explain_answers(scored.completion, places)
        found = contributions(self.completer, scored.completion, places)
        for explanation, of_answer, place in zip(explained, found, places, strict=True):
            explanation["contributions"] = of_answer
            if self.rules.offsets is not None:
                row = place if scored.rows is None else scored.rows[place]
                explanation["boost"] = float(self.rules.offsets[row])
        return explained

    def _notes(self, found: Selected, top_k: int, given: np.ndarray | None) -> tuple[str, ...]:
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
            causes = {**self.rules.removed(None if given is None else given[given >= 0]), **found.blocked}
            removed = ", ".join(f"{rule} removes {number}" for rule, number in causes.items() if number)
            notes.append(f"{len(found.rows)} answers instead of {top_k}: {removed or 'there are no more items'}")
        return tuple(notes)


def load_ruled_completer(
    model: str | Path,
    rules: Rules | None = None,
    items: str | Path | None = None,
    device: str | None = None,
    ranker: str | None = None,
    retrieval: Literal["exact", "approximate"] = "exact",
) -> RuledCompleter:
    """Load a model folder or Hub repository, and apply rules to its catalog.

    Args:
        model: The folder or repository.
        rules: The rules; none if not given.
        items: Items table or dataset folder whose columns the rules read, and whose pictures and sounds pages and
            notebooks show; by default the table that the model folder holds, without these.
        device: Where the models run; a GPU if there is one.
        ranker: Address of the server that runs the exported ranker, if one does; see `load_completer`.
        retrieval: How whole catalogs are searched: exactly, or by an index that is made now; see `ApproximateIndex`.

    Raises:
        BundleMLLMError: See `load_completer`, `ItemColumns.of_model`, `Rules.apply` and `ApproximateIndex.of`.
    """
    completer = load_completer(model, str(choose_device(device)), ranker)
    media = None if items is None else ItemMedia.open(items)
    index = ApproximateIndex.of(completer) if retrieval == "approximate" else None
    if rules is None or rules == Rules():
        return RuledCompleter(completer, media=media, index=index)
    item_ids = completer.processor.item_ids
    columns = ItemColumns.of_model(model, item_ids, completer.processor.titles, items)
    return RuledCompleter(completer, rules.apply(item_ids, columns), media, index)


def _describe_set(size: int, shown: int, coverage: float | None) -> str:
    """Return a line about a set that holds the right answer with a stated probability."""
    if not size:
        return f"nothing fits: in {coverage:.1%} of all questions the right answer fits better than any item here"
    some = "" if size == shown else f", of which these are {shown}"
    return f"the right answer is in a set of {size:,} with the probability {coverage:.1%}{some}"


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
