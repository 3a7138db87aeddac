"""The completer joins ranker and retriever: the one way to score candidates and to complete bundles.

Knows nothing about prompt wording, metrics, or how a folder is loaded.
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import torch
from transformers.utils import logging

from .answers_bundle_mllm import Completion, describe_answers, letters_of
from .base_bundle_mllm import evaluating, split_indices
from .combination_bundle_mllm import BundleCombination
from .configuration_bundle_mllm import BundleMLLMConfig
from .conformity_bundle_mllm import answer_set
from .item_processing_bundle_mllm import BundleItemProcessor
from .questions_bundle_mllm import EncodedItem, check_scores, encode_entries, field, id_of
from .ranking_bundle_mllm import GROUP_SIZE, MAX_OPTIONS, round_sizes
from .scoring_bundle_mllm import OptionScorer, RankerScorer, RankerScores, Unanswered, select

logger = logging.get_logger(__name__)

RETRIEVER_FOLDER = "retriever"
"""Where the retriever stands beside a ranker, in a model folder or repository."""
BUNDLE_CATEGORY = "bundle_category"
"""The membership that items share through their category."""
NUM_RETRIEVED = 100
"""Items that a whole catalog is narrowed down to, unless more are wanted."""
QUESTIONS_AT_ONCE = 256
"""Questions whose options the retriever scores in one pass; those about a whole catalog: a quarter."""


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
        ranker: A `BundleMLLMForCausalLM` or a `BundleMLLMForOptionScoring`, or an adapter of one; or one that runs
            elsewhere (see `RankerScorer`), with what is used of a module here.
        retriever: A `BundleRetriever`.
        combination: How both are joined; by default with weight 1 and temperature 1.

    Raises:
        ValueError: If there is no model, a model has other items than the processor, or the combination was fitted for
            other models.
    """

    find_encoder: ClassVar[Callable[..., Any] | None] = None
    """Returns what encodes new items, given a model folder or repository and hub arguments; `None` if nothing does.
    Encoders do not travel with this code: the package bundle-mllm sets this when it is imported."""

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
        self.origin: tuple[str, Mapping[str, Any]] | None = None
        """The model folder or repository, and hub arguments, that it was loaded from."""
        for model in self.models:
            processor.check_model(model.config)
            for name, width in model.config.modalities.items():
                if self.modalities.setdefault(name, width) != width:
                    raise ValueError(
                        f"Ranker and retriever read {name!r} features of {self.modalities[name]} and {width} columns, "
                        "so no item fits both: train the retriever for this ranker."
                    )
        self.combination = combination or BundleCombination()
        if len(self.models) == 2 or self.combination.fitted_for:
            self.combination = self.combination.bind(ranker, retriever)
        self.processor.modalities = dict(self.models[0].config.modalities)
        self.processor.other_modalities = self.modalities

    @property
    def models(self) -> list[Any]:
        """The models there are, the ranker first."""
        return [model for model in (self.ranker, self.retriever) if model is not None]

    @cached_property
    def item_encoder(self) -> Any:
        """Encodes dict items that have no features, by its `encode_items`; `None` if none can. See `find_encoder`."""
        if self.find_encoder is None or self.origin is None:
            return None
        name, files = self.origin
        return self.find_encoder(name, **files)

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

    def save_pretrained(self, folder: str | os.PathLike, **kwargs: Any) -> None:
        """Write what the Auto classes and the pipeline load: the ranker at the top, the retriever below.

        Without a ranker the retriever is at the top. The models record the items of the processor.

        Args:
            folder: The folder.
            **kwargs: For `save_pretrained` of the models, such as `max_shard_size`.

        Raises:
            ValueError: If a model was trained on since the combination was fitted: the folder could not be loaded.
        """
        if len(self.models) == 2 or self.combination.fitted_for:
            self.combination.bind(self.ranker, self.retriever)
        for model in self.models:
            model.config.items_hash = self.processor.items_hash
        top, *below = self.models
        top.save_pretrained(folder, **kwargs)
        for retriever in below:
            retriever.save_pretrained(os.path.join(folder, RETRIEVER_FOLDER), **kwargs)
        if below or self.combination.calibration:
            self.combination.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @torch.inference_mode()
    def score(
        self,
        questions: Sequence[Any],
        *,
        max_options: int | None = None,
        num_retrieved: int = NUM_RETRIEVED,
        **options: Any,
    ) -> list[Completion]:
        """Score the candidates of every question; return one `Completion` for each, in their order.

        Args:
            questions: The questions; see `BundleItemProcessor`.
            max_options: Longest list of candidates in one prompt, 3 to 26; by default the processor's.
            num_retrieved: How many items are returned for a question without candidates.
            **options: See `rank`.

        Raises:
            ValueError: If an option is out of range, an item is unknown or there twice, a prompt is too long, or a
                score is not finite.
        """
        if num_retrieved < 1:
            raise ValueError(f"num_retrieved is {num_retrieved}, so nothing would be scored: give 1 or more.")
        limit = self._limit(max_options)
        of_catalog = min(limit, self.num_ranked) if self.reads_letters else self.num_ranked
        of_candidates = limit if self.reads_letters else None
        about_catalog = [field(question, "candidates") is None for question in questions]
        most = [of_catalog if is_open else of_candidates for is_open in about_catalog]
        questions, retrieved = self._retrieve(questions, num_retrieved)
        shown: list[Sequence[int]] = [range(len(question["candidates"])) for question in questions]
        for i, (logs, number) in enumerate(zip(retrieved, most, strict=True)):
            if logs is not None and number is not None and len(logs) > number:
                shown[i] = sorted(logs.topk(number).indices.tolist())
        completions = self.rank(questions, retrieved, shown, max_options=max_options, **options)
        return [
            completion
            if logs is None or not is_open
            else replace(completion, log_share=float(logs.double().logsumexp(dim=-1)))
            for completion, logs, is_open in zip(completions, retrieved, about_catalog, strict=True)
        ]

    @torch.inference_mode()
    def rank(
        self,
        questions: Sequence[Any],
        retrieved: Sequence[torch.Tensor | None],
        shown: Sequence[Sequence[int]],
        *,
        batch_size: int = 32,
        permutations: int = 1,
        max_options: int | None = None,
        group_size: int | None = None,
        seed: int = 0,
        may_lack_ranker: bool = False,
        progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    ) -> Iterator[Completion]:
        """Score some candidates of each question by the ranker, and join them with the retriever's scores of all.

        Args:
            questions: Questions with candidates, whose dict items are encoded; candidates may be the whole catalog.
            retrieved: Log-probabilities `[K]` of each question's candidates by the retriever; `None` without one.
            shown: The places of the candidates that the ranker scores, in the order of the prompt. Where there are
                none, as where there is no ranker, the retriever answers.
            batch_size: Prompts per forward pass of the ranker.
            permutations: In how many orders of its candidates the ranker scores each question; the mean of their
                log-probabilities counts. See `candidate_orders`.
            max_options: Longest list in one prompt, 3 to 26; by default the processor's. Longer ones go in groups.
            group_size: Most candidates of a group; by default up to 10.
            seed: Of the candidate orders and groups.
            may_lack_ranker: Whether the retriever answers alone where a ranker that runs elsewhere does not answer;
                `Completion.unranked` says so.
            progress: Wraps the batches of the ranker, for a progress bar.

        Returns:
            One `Completion` for each question, in their order, joined when it is fetched.

        Raises:
            ValueError: If an option is out of range, a prompt is too long, a score is not finite, or a ranker that
                runs elsewhere does not answer and the retriever may not, or there is none.
        """
        if permutations < 1 or batch_size < 1:
            raise ValueError(
                f"permutations is {permutations} and batch_size {batch_size}, so nothing would be scored: give 1 or "
                "more of each."
            )
        limit = self._limit(max_options)
        size_of_groups: int = group_size or min(GROUP_SIZE, limit)
        round_sizes(MAX_OPTIONS, size_of_groups)  # refuses a wrong size before anything runs
        ranked: list[RankerScores | Unanswered | None] = [None] * len(questions)
        to_rank = [] if self.ranker is None else [i for i, members in enumerate(shown) if len(members)]
        if to_rank:
            prompts = [select(questions[i], shown[i]) for i in to_rank]
            with evaluating([self.ranker]):
                if not self.reads_letters:
                    scored = OptionScorer(self.ranker, self.processor, batch_size, progress).score(prompts)
                else:
                    scorer = RankerScorer(self.ranker, self.processor, batch_size, progress)
                    scored = scorer.score(prompts, limit, size_of_groups, permutations, seed)
            for i, scores in zip(to_rank, scored, strict=True):
                if isinstance(scores, Unanswered) and not (may_lack_ranker and retrieved[i] is not None):
                    raise ValueError(scores.reason)
                ranked[i] = scores
        return map(self._join, questions, retrieved, shown, ranked)

    def _limit(self, max_options: int | None) -> int:
        """Return the longest list of candidates in one prompt."""
        limit = max_options or getattr(self.processor, "max_options", MAX_OPTIONS)
        if not 3 <= limit <= MAX_OPTIONS:
            raise ValueError(f"max_options is {limit}, but options are lettered A to Z: choose 3 to {MAX_OPTIONS}.")
        return limit

    def option_rows(self, questions: Sequence[Any]) -> dict[str, Any]:
        """Return what the retriever reads of questions, on its device; see `BundleItemProcessor.option_rows`."""
        batch = self.processor.option_rows(questions, self.retriever.config.modalities)
        return {name: v.to(self.retriever.device) if torch.is_tensor(v) else v for name, v in batch.items()}

    @torch.no_grad()
    def catalog_scores(
        self, partials: Sequence[Sequence[Any]], search: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Score the whole catalog by the retriever, for partial bundles as questions give them.

        Args:
            partials: The partial bundles.
            search: Finds the items that are scored; all are if not given. See `BundleRetriever.catalog_scores`.

        Returns:
            `[num_partials, num_items]` float32: the retriever's scores, up to a constant of the partial bundle
            log-probabilities; `-inf` for its own items.

        Raises:
            ValueError: If there is no retriever, an item is unknown or there twice, or a score is not finite.
        """
        if self.retriever is None:
            raise ValueError("There is no retriever, and the ranker scores no whole catalog: add one, or candidates.")
        batch = self.option_rows([{"partial": partial} for partial in partials])
        batch.pop("option_rows")
        with evaluating([self.retriever]):
            scores = self.retriever.catalog_scores(**batch, search=search)
        if (allowed := self.processor.allowed(partials)) is not None:
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

        def encode(entries: list[Mapping]) -> list[Mapping]:
            encoded = entries if self.item_encoder is None else self.item_encoder.encode_items(entries)
            return [self._with_category(entry) for entry in encoded]

        return encode_entries(questions, encode)

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
        self,
        question: Any,
        *,
        top_k: int | None = None,
        explain: bool = False,
        coverage: float | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Complete one bundle: return the candidates, best first, as `describe_answers` does.

        Args:
            question: The question.
            top_k: How many candidates to return; all that were scored if not given.
            explain: Whether to add the probability that each model gives an answer alone, and the terms of the
                retriever's score.
            coverage: Return only the smallest set of candidates that holds the right one with this probability, with
                their `p_value`; none if nothing fits. See `BundleCalibration`.
            **options: See `score`.
        """
        options.setdefault("num_retrieved", self.num_retrieved(top_k, coverage))
        [completion] = self.score([question], **options)
        return self.answers(question, completion, top_k=top_k, explain=explain, coverage=coverage)

    def num_retrieved(self, top_k: int | None = None, coverage: float | None = None) -> int:
        """Return how many items of a whole catalog are needed for so many answers: for a set, all may be."""
        return max(top_k or 0, NUM_RETRIEVED if coverage is None else self.processor.num_items)

    def answers(
        self,
        question: Any,
        completion: Completion,
        *,
        top_k: int | None = None,
        explain: bool = False,
        coverage: float | None = None,
    ) -> list[dict[str, Any]]:
        """Return what `complete` does, of a question that was scored."""
        places, p_values = completion.best(), None
        if coverage is not None:
            p_values, belongs = answer_set(self, completion, coverage)
            places = [place for place in places if belongs[place]]
        letters = letters_of(field(question, "candidates"))
        return describe_answers(self, completion, places[:top_k], letters, explain=explain, p_values=p_values)

    def _retrieve(
        self, questions: Sequence[Any], num_retrieved: int
    ) -> tuple[list[dict[str, Any]], list[torch.Tensor | None]]:
        """Return the questions with their candidates, and the retriever's log-probabilities of these."""
        complete: list[dict[str, Any]] = []
        for question in self.prepare(questions):
            partial, candidates = self.processor.read_question(question)
            if candidates is None and self.retriever is None:
                candidates = list(self.others(partial))
            fields = {"question_id": field(question, "question_id"), "partial": partial, "candidates": candidates}
            complete.append(fields)
        logs: list[torch.Tensor | None] = [None] * len(complete)
        if self.retriever is None:
            return complete, logs
        is_open = [question["candidates"] is None for question in complete]
        with evaluating([self.retriever]):
            for chunk in split_indices([i for i, each in enumerate(is_open) if each], QUESTIONS_AT_ONCE // 4):
                batch = self.option_rows([complete[i] for i in chunk])
                batch.pop("option_rows")
                allowed = self.processor.allowed([complete[i]["partial"] for i in chunk])
                found = self.retriever.retrieve(**batch, top_k=num_retrieved, allowed=allowed)
                for i, rows, scores, total in zip(chunk, found.rows, found.scores, found.log_normalizer, strict=True):
                    kept = rows >= 0
                    complete[i]["candidates"] = [self.processor.item_ids[row] for row in rows[kept].tolist()]
                    logs[i] = of_question = (scores[kept].double() - total.double()).cpu()
                    check_scores(complete[i], of_question.tolist())
            for chunk in split_indices([i for i, each in enumerate(is_open) if not each], QUESTIONS_AT_ONCE):
                output = self.retriever(**self.option_rows([complete[i] for i in chunk]))
                for row, i in enumerate(chunk):
                    scores = output.scores[row, : len(complete[i]["candidates"])].double().cpu()
                    check_scores(complete[i], scores.tolist())
                    logs[i] = scores.log_softmax(dim=-1)
        return complete, logs

    def _join(
        self,
        question: Any,
        retrieved: torch.Tensor | None,
        members: Sequence[int],
        ranked: RankerScores | Unanswered | None,
    ) -> Completion:
        """Redistribute the probability that the retriever gives the members among these, by both models."""
        candidates, partial = field(question, "candidates"), field(question, "partial")
        scores = {} if retrieved is None else {"retriever": retrieved}
        if ranked is None or isinstance(ranked, Unanswered):
            return Completion(candidates, scores, {}, None, partial, None if ranked is None else ranked.reason)
        members = list(members)
        alone = torch.full((1 + len(ranked.orders), len(candidates)), -torch.inf, dtype=torch.float64)
        alone[0, members], alone[1:, members] = ranked.log_probabilities, ranked.orders
        scores, orders = {**scores, "ranker": alone[0]}, {"ranker": alone[1:]}
        if retrieved is not None:
            combination = self.combination
            own, both = retrieved[members].double(), retrieved.double().repeat(len(alone), 1)
            mixed = (combination.ranker_weight * alone[:, members] + own) / combination.temperature
            both[:, members] = own.logsumexp(dim=-1) + mixed.log_softmax(dim=-1)
            scores["both"], orders["both"] = both[0], both[1:]
        choice = None if ranked.unrestricted_choice is None else members[ranked.unrestricted_choice]
        return Completion(candidates, scores, orders, choice, partial)
