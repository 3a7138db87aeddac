"""The completer joins ranker and retriever: the one way to score candidates and to complete bundles.

Knows nothing about prompt wording, files or metrics.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers.utils import logging

from .combination_bundle_mllm import BundleCombination
from .configuration_bundle_mllm import BundleMLLMConfig
from .item_processing_bundle_mllm import BundleItemProcessor
from .questions_bundle_mllm import EncodedItem, check_scores, field, groups_of, id_of, name_of
from .ranking_bundle_mllm import GROUP_SIZE, MAX_OPTIONS, round_sizes
from .scoring_bundle_mllm import OptionScorer, RankerScorer, RankerScores, certain, select

logger = logging.get_logger(__name__)

BUNDLE_CATEGORY = "bundle_category"
"""The membership that items share through their category."""
NUM_RETRIEVED = 100
"""Items that a whole catalog is narrowed down to, unless more are wanted."""
QUESTIONS_AT_ONCE = 256
"""Questions whose options the retriever scores in one pass; those about a whole catalog: a quarter."""


@dataclass(frozen=True)
class Completion:
    """The scores of one question's candidates.

    Attributes:
        candidates: The candidates of the question; for a question without any, those that were retrieved.
        scores: `[K]` float64 log-probabilities by part: "ranker" and "retriever" alone, and "both" joined, as far as
            there are these models. Candidates that the ranker was not shown have `-inf` there.
        orders: `[num_orders, K]` the same under each order of the candidates in the prompt, for "ranker" and "both".
        unrestricted_choice: See `RankerScores`; `None` without a ranker.
        terms: What each part of the retriever adds to its scores `[K]`, by name; where asked for.
        partial: The partial bundle of the question.
    """

    candidates: Sequence[Any]
    scores: Mapping[str, torch.Tensor]
    orders: Mapping[str, torch.Tensor]
    unrestricted_choice: int | None
    terms: Mapping[str, torch.Tensor] | None = None
    partial: Sequence[Any] = ()

    @property
    def answer(self) -> torch.Tensor:
        """The log-probabilities that count: of both models joined, or of the only one."""
        return next(self.scores[part] for part in ("both", "ranker", "retriever") if part in self.scores)


class BundleCompleter:
    """Complete partial bundles with a ranker, a retriever or both.

    Up to `max_options` candidates are scored by both models: the answer is `softmax((w * ranker + retriever) / T)` of
    their log-probabilities, with w and T of the `combination` (a product of experts; ours). Of more candidates
    the ranker sees the best `max_options` by the retriever: the probability that the retriever gives these is
    redistributed among them, and all others keep theirs. Without a retriever longer lists are ranked in groups
    (`rank_in_groups`); without a ranker the retriever answers. A ranker without letters scores lists of any length. A
    question without candidates is about the whole catalog except the partial bundle.

    Args:
        processor: The items; a `BundleMLLMProcessor` if there is a ranker. The completer has a copy, `processor`.
        ranker: A `BundleMLLMForCausalLM` or a `BundleMLLMForOptionScoring`, or an adapter of one.
        retriever: A `BundleRetriever`.
        combination: How both are joined; by default with weight 1 and temperature 1.

    Raises:
        ValueError: If there is no model, a model has other items than the processor, or the combination was fitted for
            other models.
    """

    def __init__(
        self,
        processor: BundleItemProcessor,
        ranker: Any = None,
        retriever: Any = None,
        combination: BundleCombination | None = None,
    ):
        if ranker is None and retriever is None:
            raise ValueError("A completer needs a ranker, a retriever or both, and got neither: load one first.")
        prompts = getattr(ranker, "active_peft_config", None)
        if prompts is not None and prompts.is_prompt_learning:
            raise ValueError(
                f"The ranker has an adapter of the type {prompts.peft_type.value}, whose learned prompt would be left "
                "out of its scores: adapt it by LoRA or another method that changes layers."
            )
        self.processor: Any = copy.copy(processor)  # that given stays as it is
        self.ranker, self.retriever = ranker, retriever
        self.modalities: dict[str, int] = {}
        self.encode_items: Callable[[Sequence[Mapping]], Sequence[Mapping]] | None = None
        """Encodes dict items without features; the model folder's own encoders where the package is installed."""
        for model in self.models:
            processor.check_model(model.config)
            for name, width in model.config.modalities.items():
                if self.modalities.setdefault(name, width) != width:
                    raise ValueError(
                        f"Ranker and retriever read {name!r} features of {self.modalities[name]} and {width} columns, "
                        "so no item fits both: train the retriever for this ranker."
                    )
        self.combination = combination or BundleCombination()
        if len(self.models) == 2:
            self.combination = self.combination.bind(ranker, retriever)
        elif self.combination.fitted_for:
            missing = "ranker" if ranker is None else "retriever"
            raise ValueError(
                f"The combination was fitted for a ranker and a retriever, but there is no {missing}, so answers "
                "would be those of one model: give both (bundle-mllm retriever makes a retriever), or no combination."
            )
        self.processor.modalities = dict(self.models[0].config.modalities)
        self.processor.other_modalities = self.modalities

    @property
    def models(self) -> list[Any]:
        """The models there are, the ranker first."""
        return [model for model in (self.ranker, self.retriever) if model is not None]

    @property
    def reads_letters(self) -> bool:
        """Whether there is a ranker that answers by the letter of an option."""
        return self.ranker is not None and self.ranker.config.model_type == BundleMLLMConfig.model_type

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what can be scored apart: "ranker", "retriever" and, with both, "both"."""
        names = tuple(name for name in ("ranker", "retriever") if getattr(self, name) is not None)
        return (*names, "both") if len(names) == 2 else names

    @property
    def num_ranked(self) -> int:
        """How many of the retrieved items, M, the ranker scores in a question about the whole catalog."""
        return min(getattr(self.processor, "max_options", MAX_OPTIONS), self.combination.num_ranked)

    def known(self, entries: Sequence[Any]) -> list[bool]:
        """Return of each item of a question whether a model knows anything about it beyond its id.

        Both models read features, the retriever counts shared groups, and the ranker reads titles.
        """
        rows = [self.processor.row(entry) for entry in entries if not isinstance(entry, Mapping)]
        at = torch.tensor(rows, dtype=torch.long)
        found = torch.zeros(len(at), dtype=torch.bool)
        if self.ranker is not None:
            for mask in self.ranker.catalog_rows()["present"].values():
                found |= mask[at.to(mask.device)].cpu()
        if self.retriever is not None:
            found |= self.retriever.catalog.present[at.to(self.retriever.device)].any(dim=1).cpu()
            for groups in self.retriever.memberships.values():
                found |= groups.degree(at.to(self.retriever.device)).cpu() > 0
        in_catalog = iter(found.tolist())
        return [
            (bool(entry.get("features") or groups_of(entry)) if isinstance(entry, Mapping) else next(in_catalog))
            or (self.ranker is not None and bool(self.processor.title(entry)))
            for entry in entries
        ]

    def guesses(self, partial: Sequence[Any], candidates: Sequence[Any]) -> list[bool]:
        """Return of each candidate whether its score is a guess; a warning names the dict items that make it one.

        It is if no model knows anything about the candidate, or about any item of the partial bundle.
        """
        known = self.known([*partial, *candidates])
        entries = zip([*partial, *candidates], known, strict=True)
        if unknown := [name_of(entry) for entry, is_known in entries if isinstance(entry, Mapping) and not is_known]:
            logger.warning(
                f"Nothing is known about {', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}, so scores are "
                "guesses: give features, or what the encoders of the model folder read."
            )
        of_partial, of_candidates = known[: len(partial)], known[len(partial) :]
        return [not (is_known and any(of_partial)) for is_known in of_candidates]

    def to(self, device: Any) -> "BundleCompleter":
        """Move the models to a device."""
        for model in self.models:
            model.to(device)
        return self

    def set_catalog(
        self,
        item_ids: Sequence[str],
        titles: Sequence[str],
        features: Mapping[str, torch.Tensor],
        present: Mapping[str, torch.Tensor] | None = None,
        memberships: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace the items of processor, ranker and retriever, or of none of them.

        Args:
            item_ids: Ids of the items.
            titles: Their titles.
            features: `[num_items, width]` of each modality; see `BundleMLLMItemCatalog.replace`.
            present: `[num_items]` of each modality.
            memberships: See `BundleRetriever.set_catalog`; items are in no group if not given.

        Raises:
            ValueError: If ids, titles or features are not those of one list of items.
        """
        num_items = BundleItemProcessor(item_ids, titles).num_items  # refuses wrong ids before anything is changed
        if unknown := sorted(set(features) - set(self.modalities)):
            raise ValueError(
                f"set_catalog got features of {unknown}, which no model here reads: drop them, or load models that "
                f"read more than {sorted(self.modalities)}."
            )
        for name, matrix in features.items():
            if len(matrix) != num_items:
                raise ValueError(
                    f"There are {num_items} item ids but {len(matrix)} rows of {name!r} features: give one row per id."
                )
        present = present or {}
        before = [(model, model.config.items_hash, model.catalog_rows()) for model in self.models]
        try:
            for model in self.models:
                if not (known := model.config.modalities):
                    continue
                own = {name: matrix for name, matrix in features.items() if name in known}
                masks = {name: mask for name, mask in present.items() if name in known}
                if not own:  # no item has any modality of this model
                    name, width = next(iter(known.items()))
                    own = {name: torch.zeros(num_items, width)}
                    masks = {name: torch.zeros(num_items, dtype=torch.bool)}
                model.set_catalog(own, masks, **({"memberships": memberships} if model is self.retriever else {}))
        except BaseException:
            for model, items_hash, rows in before:
                if rows["features"]:
                    model.set_catalog(**rows)
                model.config.items_hash = items_hash
            raise
        self.processor.set_items(item_ids, titles)
        for model in self.models:
            model.config.items_hash = self.processor.items_hash

    @torch.inference_mode()
    def score(
        self,
        questions: Sequence[Any],
        *,
        batch_size: int = 32,
        permutations: int = 1,
        max_options: int | None = None,
        group_size: int | None = None,
        num_retrieved: int = NUM_RETRIEVED,
        seed: int = 0,
        return_terms: bool = False,
        progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    ) -> list[Completion]:
        """Score the candidates of every question; return one `Completion` for each, in their order.

        Args:
            questions: The questions; see `BundleItemProcessor`.
            batch_size: Prompts per forward pass of the ranker.
            permutations: In how many orders of its candidates the ranker scores each question, at as many times the
                cost; the mean of their log-probabilities counts. See `candidate_orders`.
            max_options: Longest list of candidates in one prompt, 3 to 26; by default the processor's.
            group_size: Most candidates of a group where lists are ranked in groups; by default up to 10.
            num_retrieved: How many items are returned for a question without candidates.
            seed: Of the candidate orders and groups.
            return_terms: Whether to return what each part of the retriever adds.
            progress: Wraps the batches of the ranker, for a progress bar.

        Raises:
            ValueError: If an option is out of range, an item is unknown or there twice, a prompt is too long, or a
                score is not finite.
        """
        if permutations < 1 or batch_size < 1 or num_retrieved < 1:
            raise ValueError(
                f"permutations is {permutations}, batch_size {batch_size} and num_retrieved {num_retrieved}, so "
                "nothing would be scored: give 1 or more of each."
            )
        limit = max_options or getattr(self.processor, "max_options", MAX_OPTIONS)
        if not 3 <= limit <= MAX_OPTIONS:
            raise ValueError(f"max_options is {limit}, but options are lettered A to Z: choose 3 to {MAX_OPTIONS}.")
        size_of_groups: int = group_size or min(GROUP_SIZE, limit)
        round_sizes(MAX_OPTIONS, size_of_groups)  # refuses a wrong size before anything runs
        about_catalog = [field(question, "candidates") is None for question in questions]
        with _evaluating(self.models):
            questions, retrieved, terms = self._retrieve(questions, num_retrieved, return_terms)
            ranked: list[tuple[list[int], RankerScores] | None] = [None] * len(questions)
            if self.ranker is not None and not self.reads_letters:
                lengths = [len(question["candidates"]) for question in questions]
                most = [self.num_ranked if open_ else n for open_, n in zip(about_catalog, lengths, strict=True)]
                shown = self._shown(questions, retrieved, most)
                scorer = OptionScorer(self.ranker, self.processor, batch_size, progress)
                scored = scorer.score([select(questions[i], members) for i, members in shown.items()])
                for (i, members), scores in zip(shown.items(), scored, strict=True):
                    ranked[i] = members, scores
            elif self.ranker is not None:
                scorer = RankerScorer(self.ranker, self.processor, batch_size, progress)
                most = [min(limit, self.num_ranked) if is_open else limit for is_open in about_catalog]
                shown = self._shown(questions, retrieved, most)
                single = [i for i, members in shown.items() if len(members) == 1]
                short = [i for i, members in shown.items() if 2 <= len(members) <= limit]
                long = [i for i in shown if len(shown[i]) > limit]
                prompts = [select(questions[i], shown[i]) for i in short]
                scored = scorer.in_one_prompt(prompts, permutations, seed)
                scored += scorer.in_groups([questions[i] for i in long], size_of_groups, permutations, seed)
                scored += [certain(permutations)] * len(single)
                for i, scores in zip(short + long + single, scored, strict=True):
                    ranked[i] = shown[i], scores
        return [
            self._join(question, of_ranker, of_retriever, of_terms)
            for question, of_ranker, of_retriever, of_terms in zip(questions, ranked, retrieved, terms, strict=True)
        ]

    @torch.no_grad()
    def catalog_scores(self, partials: Sequence[Sequence[Any]]) -> torch.Tensor:
        """Score the whole catalog by the retriever, for partial bundles as questions give them.

        Returns:
            `[num_partials, num_items]` float32: the retriever's scores, up to a constant of the partial bundle
            log-probabilities; `-inf` for its own items.

        Raises:
            ValueError: If there is no retriever, an item is unknown or there twice, or a score is not finite.
        """
        if self.retriever is None:
            raise ValueError("There is no retriever, and the ranker scores no whole catalog: add one, or candidates.")
        batch = self._rows([{"partial": partial} for partial in partials])
        batch.pop("option_rows")
        with _evaluating([self.retriever]):
            scores = self.retriever.catalog_scores(**batch)
        if (allowed := self._allowed(partials)) is not None:
            scores.masked_fill_(~allowed.to(scores.device), -torch.inf)
        if not bool((scores.amax(dim=-1) < torch.inf).all()):  # NaN is the largest
            raise ValueError(
                "The retriever's scores of some items are not finite, so they rank nothing: repair the features of "
                "these items, or take a model whose weights are finite."
            )
        return scores

    def prepare(self, questions: Sequence[Any]) -> list[Any]:
        """Return questions with their dict items encoded, as far as these have no features and there are encoders.

        Raises:
            ValueError: If an item cannot be encoded.
        """
        if self.encode_items is None:
            return list(questions)
        lists = [(field(question, "partial"), field(question, "candidates")) for question in questions]
        new = [entry for pair in lists for entries in pair for entry in _to_encode(entries)]
        if not new:
            return list(questions)
        encoded = iter([self._with_category(entry) for entry in self.encode_items(new)])
        prepared = []
        for question, pair in zip(questions, lists, strict=True):
            entries = [
                [next(encoded) if _needs_encoding(entry) else entry for entry in each]
                if any(_to_encode(each))
                else each
                for each in pair
            ]
            own = {"question_id": field(question, "question_id"), "partial": entries[0], "candidates": entries[1]}
            prepared.append({**question, **own} if isinstance(question, Mapping) else own)
        return prepared

    def _with_category(self, entry: Mapping) -> Mapping:
        """Put a new item into the groups of its category, which are those of any item of that category."""
        groups = None if self.retriever is None else self.retriever.memberships.get(BUNDLE_CATEGORY)
        if groups is not None and isinstance(entry, EncodedItem) and entry.of_category in self.processor:
            row = torch.tensor([self.processor.row(entry.of_category)], device=groups.offsets.device)
            entry.groups[BUNDLE_CATEGORY] = groups.gather(row, self.processor.num_items)[2].tolist()
        return entry

    def others(self, partial: Sequence[Any]) -> Iterator[str]:
        """Yield the items of the catalog that the partial bundle does not hold."""
        held = set(map(id_of, partial))
        return (item_id for item_id in self.processor.item_ids if item_id not in held)

    def check(self, question: Any) -> None:
        """Refuse a question that cannot be scored, before its batch runs; errors are those of `score`."""
        partial, candidates = self.processor.read_question(question)
        if self.ranker is not None:
            shown = self.others(partial) if candidates is None else candidates
            shown = list(islice(shown, self.processor.max_options if candidates else 2))
            if len(shown) > 1:
                self.processor.render({"partial": partial, "candidates": shown})
        for model in self.models:
            self.processor.option_rows([question], model.config.modalities)

    def complete(
        self, question: Any, *, top_k: int | None = None, explain: bool = False, **options: Any
    ) -> list[dict[str, Any]]:
        """Complete one bundle: return the candidates, best first, as `describe` does.

        Args:
            question: The question.
            top_k: How many candidates to return; all that were scored if not given.
            explain: Whether to add the probability that each model gives an answer alone, and the terms of the
                retriever's score.
            **options: See `score`.
        """
        is_open = field(question, "candidates") is None
        options.setdefault("num_retrieved", max(top_k or 0, NUM_RETRIEVED))
        [completion] = self.score([question], return_terms=explain, **options)
        return self.describe(completion, letters=not is_open, top_k=top_k, explain=explain)

    def describe(
        self, completion: Completion, *, letters: bool = True, top_k: int | None = None, explain: bool = False
    ) -> list[dict[str, Any]]:
        """Return the candidates of a completion as dictionaries, best first.

        Each has `item_id`, `title`, `letter` (its place in the question, up to 26 candidates; else `None`), `score`
        (its probability), `guess` (whether it is one, see `guesses`) and, if wanted, `explanation`.
        """
        candidates = completion.candidates
        letters = letters and len(candidates) <= MAX_OPTIONS
        probabilities = completion.answer.exp().tolist()
        answers, best = [], sorted(range(len(candidates)), key=lambda i: -probabilities[i])[:top_k]
        guesses = self.guesses(completion.partial, [candidates[i] for i in best])
        for i, guess in zip(best, guesses, strict=True):
            answer: dict[str, Any] = {
                "item_id": id_of(candidates[i]),
                "title": self.processor.title(candidates[i]),
                "letter": chr(65 + i) if letters else None,
                "score": probabilities[i],
                "guess": guess,
            }
            if explain:
                logs = {name: values for name, values in completion.scores.items() if name != "both"}
                answer["explanation"] = {name: float(values[i].exp()) for name, values in logs.items()}
                terms = {name: float(values[i]) for name, values in (completion.terms or {}).items()}
                answer["explanation"] |= {"retriever_terms": terms} if terms else {}
            answers.append(answer)
        return answers

    def _retrieve(
        self, questions: Sequence[Any], num_retrieved: int, return_terms: bool
    ) -> tuple[list[dict[str, Any]], list[torch.Tensor | None], list[dict[str, torch.Tensor] | None]]:
        """Return the questions with their candidates, and the retriever's log-probabilities (and terms) of these."""
        complete: list[dict[str, Any]] = []
        for question in self.prepare(questions):
            partial, candidates = self.processor.read_question(question)
            if candidates is None and self.retriever is None:
                candidates = list(self.others(partial))
            fields = {"question_id": field(question, "question_id"), "partial": partial, "candidates": candidates}
            complete.append(fields)
        logs: list[torch.Tensor | None] = [None] * len(complete)
        terms: list[dict[str, torch.Tensor] | None] = [None] * len(complete)
        if self.retriever is None:
            return complete, logs, terms
        open_questions = [i for i, question in enumerate(complete) if question["candidates"] is None]
        for chunk in _split(open_questions, QUESTIONS_AT_ONCE // 4):
            batch = self._rows([complete[i] for i in chunk])
            batch.pop("option_rows")
            allowed = self._allowed([complete[i]["partial"] for i in chunk])
            found = self.retriever.retrieve(**batch, top_k=num_retrieved, allowed=allowed)
            for i, rows, scores, total in zip(chunk, found.rows, found.scores, found.log_normalizer, strict=True):
                kept = rows >= 0
                complete[i]["candidates"] = [self.processor.item_ids[row] for row in rows[kept].tolist()]
                logs[i] = of_question = (scores[kept].double() - total.double()).cpu()
                check_scores(complete[i], of_question.tolist())
        given = [i for i in range(len(complete)) if logs[i] is None]
        for chunk in _split(given + (open_questions if return_terms else []), QUESTIONS_AT_ONCE):
            output = self.retriever(**self._rows([complete[i] for i in chunk]), return_terms=return_terms)
            for row, i in enumerate(chunk):
                count = len(complete[i]["candidates"])
                scores = output.scores[row, :count].double().cpu()
                check_scores(complete[i], scores.tolist())
                if logs[i] is None:
                    logs[i] = scores.log_softmax(dim=-1)
                terms[i] = {name: term[row, :count].cpu() for name, term in (output.terms or {}).items()}
        return complete, logs, terms

    def _allowed(self, partials: Sequence[Sequence[Any]]) -> torch.Tensor | None:
        """Return which items may complete each partial bundle: not those that it holds as dict items."""
        held = [
            (number, self.processor.row(entry["item_id"]))
            for number, partial in enumerate(partials)
            for entry in partial
            if isinstance(entry, Mapping) and entry.get("item_id") in self.processor
        ]
        if not held:
            return None
        allowed = torch.ones(len(partials), self.processor.num_items, dtype=torch.bool)
        allowed[tuple(zip(*held, strict=True))] = False
        return allowed

    def _rows(self, questions: Sequence[Any]) -> dict[str, Any]:
        batch = self.processor.option_rows(questions, self.retriever.config.modalities)
        return {name: v.to(self.retriever.device) if torch.is_tensor(v) else v for name, v in batch.items()}

    def _shown(
        self, questions: Sequence[dict[str, Any]], retrieved: Sequence[torch.Tensor | None], limits: Sequence[int]
    ) -> dict[int, list[int]]:
        """Return which candidates of each question the ranker scores."""
        shown: dict[int, list[int]] = {}
        for i, (question, logs, limit) in enumerate(zip(questions, retrieved, limits, strict=True)):
            count = len(question["candidates"])
            chosen = logs.topk(limit).indices.tolist() if count > limit and logs is not None else range(count)
            shown[i] = sorted(chosen)
        return shown

    def _join(
        self,
        question: Mapping[str, Any],
        ranked: tuple[list[int], RankerScores] | None,
        retrieved: torch.Tensor | None,
        terms: Mapping[str, torch.Tensor] | None,
    ) -> Completion:
        candidates, partial = question["candidates"], question["partial"]
        scores = {} if retrieved is None else {"retriever": retrieved}
        if ranked is None:
            return Completion(candidates, scores, {}, None, terms, partial)
        members, answers = ranked
        alone = torch.full((1 + len(answers.orders), len(candidates)), -torch.inf, dtype=torch.float64)
        alone[0, members], alone[1:, members] = answers.log_probabilities, answers.orders
        scores, orders = {**scores, "ranker": alone[0]}, {"ranker": alone[1:]}
        if retrieved is not None:
            combination = self.combination
            own, both = retrieved[members], retrieved.repeat(len(alone), 1)
            mixed = (combination.ranker_weight * alone[:, members] + own) / combination.temperature
            both[:, members] = own.logsumexp(dim=-1) + mixed.log_softmax(dim=-1)
            scores["both"], orders["both"] = both[0], both[1:]
        choice = None if answers.unrestricted_choice is None else members[answers.unrestricted_choice]
        return Completion(candidates, scores, orders, choice, terms, partial)


def _needs_encoding(entry: Any) -> bool:
    return isinstance(entry, Mapping) and not isinstance(entry, EncodedItem) and not entry.get("features")


def _to_encode(entries: Any) -> list[Mapping]:
    """Return the dict items among the entries of a question that are to be encoded."""
    return [entry for entry in entries if _needs_encoding(entry)] if isinstance(entries, (list, tuple)) else []


@contextmanager
def _evaluating(models: Sequence[Any]) -> Iterator[None]:
    """Put the models that are in training mode into evaluation mode for a while."""
    training = [model for model in models if model.training]
    for model in training:
        model.eval()
    try:
        yield
    finally:
        for model in training:
            model.train()


def _split(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
