"""Answers as a user reads them: candidates with titles, scores, explanations, and a mark where a score is a guess.

Knows nothing about how candidates are scored.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from .base_bundle_mllm import evaluating
from .questions_bundle_mllm import groups_of, id_of, name_of
from .ranking_bundle_mllm import LETTERS

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Completion:
    """The scores of one question's candidates.

    Attributes:
        candidates: The candidates of the question; for a question without any, those that were retrieved.
        scores: `[K]` float64 log-probabilities by part: "ranker" and "retriever" alone, and "both" joined, as far as
            there are these models. Candidates that the ranker was not shown have `-inf` there.
        orders: `[num_orders, K]` the same under each order of the candidates in the prompt, for "ranker" and "both".
        unrestricted_choice: See `RankerScores`; `None` without a ranker.
        partial: The partial bundle of the question.
        unranked: Why the ranker did not answer, so that the scores are the retriever's alone; `None` if it did.
        log_share: Log of the share that the candidates have of the whole catalog's probability, by the retriever;
            `None` where it was not needed so far.
    """

    candidates: Sequence[Any]
    scores: Mapping[str, torch.Tensor]
    orders: Mapping[str, torch.Tensor]
    unrestricted_choice: int | None
    partial: Sequence[Any] = ()
    unranked: str | None = None
    log_share: float | None = None

    @property
    def answer(self) -> torch.Tensor:
        """The log-probabilities that count: of both models joined, or of the only one."""
        return next(self.scores[part] for part in ("both", "ranker", "retriever") if part in self.scores)

    def best(self, top_k: int | None = None) -> list[int]:
        """Return the places of the candidates, best first; of equal ones the earlier first."""
        return self.answer.argsort(descending=True, stable=True).tolist()[:top_k]


def letters_of(candidates: Sequence[Any] | None) -> str:
    """Return the letters of up to 26 candidates of a question; a longer list and the whole catalog have none."""
    number = 0 if candidates is None else len(candidates)
    return LETTERS[:number] if number <= len(LETTERS) else ""


def describe_answers(
    completer: Any,
    completion: Completion,
    places: Sequence[int],
    letters: str = "",
    *,
    explain: bool = False,
    p_values: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """Return some candidates of a completion as dictionaries.

    Each has `item_id`, `title`, `letter`, `score` (its probability), `guess` (whether no model knows anything about it
    or about any item of the partial bundle; a warning names the dict items that make it one) and, if wanted,
    `p_value` and `explanation`: that of `explain_answers`, and the terms of the retriever's score.

    Args:
        completer: The `BundleCompleter` whose completion it is.
        completion: The scores of a question.
        places: The places of the candidates.
        letters: The letter of each candidate of the completion, if they have letters.
        explain: Whether to add explanations.
        p_values: How usual it is for a right answer to fit no better than each candidate of the completion `[K]`.
    """
    places = list(places)
    entries = [completion.candidates[place] for place in places]
    scores = completion.answer[places].exp().tolist()
    guesses = _guesses(completer, completion.partial, entries)
    answers: list[dict[str, Any]] = [
        {
            "item_id": id_of(entry),
            "title": completer.processor.title(entry),
            "letter": letters[place] if letters else None,
            "score": score,
            "guess": guess,
        }
        for place, entry, score, guess in zip(places, entries, scores, guesses, strict=True)
    ]
    if p_values is not None:
        for answer, p_value in zip(answers, p_values[places].tolist(), strict=True):
            answer["p_value"] = p_value
    if explain and answers:
        terms = retriever_terms(completer, completion.partial, entries)
        for i, (answer, explanation) in enumerate(zip(answers, explain_answers(completion, places), strict=True)):
            of_answer = {name: values[i] for name, values in terms.items()}
            answer["explanation"] = explanation | ({"retriever_terms": of_answer} if terms else {})
    return answers


def explain_answers(completion: Completion, places: Sequence[int]) -> list[dict[str, Any]]:
    """Return the probability that each model alone gives some candidates: the ranker, if it was shown them."""
    alone = sorted(completion.scores.keys() - {"both"})  # the ranker first
    parts = {name: completion.scores[name][list(places)].tolist() for name in alone}
    return [
        {name: math.exp(values[i]) for name, values in parts.items() if values[i] > -math.inf}
        for i in range(len(places))
    ]


@torch.no_grad()
def retriever_terms(completer: Any, partial: Sequence[Any], candidates: Sequence[Any]) -> dict[str, list[float]]:
    """Return what each part of the retriever adds to its scores of candidates, by name; nothing without one."""
    if completer.retriever is None:
        return {}
    with evaluating([completer.retriever]):
        batch = completer.option_rows([{"partial": partial, "candidates": candidates}])
        terms = completer.retriever(**batch, return_terms=True).terms
    return {name: values[0].tolist() for name, values in terms.items()}


def known_items(completer: Any, entries: Sequence[Any]) -> list[bool]:
    """Return of each item of a question whether a model of the completer knows anything about it beyond its id.

    Both models read features, the retriever counts shared groups, and the ranker reads titles.
    """
    ranker, retriever, processor = completer.ranker, completer.retriever, completer.processor
    at = torch.tensor([processor.row(entry) for entry in entries if not isinstance(entry, Mapping)], dtype=torch.long)
    found = torch.zeros(len(at), dtype=torch.bool)
    if ranker is not None:
        for mask in ranker.catalog_rows()["present"].values():
            found |= mask[at.to(mask.device)].cpu()
    if retriever is not None:
        found |= retriever.catalog.present[at.to(retriever.device)].any(dim=1).cpu()
        for groups in retriever.memberships.values():
            found |= groups.degree(at.to(retriever.device)).cpu() > 0
    in_catalog = iter(found.tolist())
    return [
        (bool(entry.get("features") or groups_of(entry)) if isinstance(entry, Mapping) else next(in_catalog))
        or (ranker is not None and bool(processor.title(entry)))
        for entry in entries
    ]


def _guesses(completer: Any, partial: Sequence[Any], candidates: Sequence[Any]) -> list[bool]:
    known = known_items(completer, [*partial, *candidates])
    entries = zip([*partial, *candidates], known, strict=True)
    if unknown := [name_of(entry) for entry, is_known in entries if isinstance(entry, Mapping) and not is_known]:
        logger.warning(
            f"Nothing is known about {', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}, so scores are "
            "guesses: give features, or what the encoders of the model folder read."
        )
    of_partial, of_candidates = known[: len(partial)], known[len(partial) :]
    return [not (is_known and any(of_partial)) for is_known in of_candidates]
