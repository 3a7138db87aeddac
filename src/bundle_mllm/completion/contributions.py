"""What each source of information contributed to an answer: title, picture, sound, attributes, users, bundles, LLM.

Knows nothing about rules, files, or how contributions are shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bundle_mllm.modeling.answers_bundle_mllm import Completion
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.groups_bundle_mllm import ItemPairs
from bundle_mllm.modeling.retriever_bundle_mllm import BundleRetriever

SOURCES = {
    "title": ("textual",),
    "picture": ("visual",),
    "sound": ("acoustic",),
    "attributes": ("attributes",),
    "users": ("user_item",),
    "bundles": ("bundle_item", "bundle_category"),
}
"""The modalities and memberships of each source; others are sources under their own names."""
LLM = "LLM"
"""The source that is the ranker as a whole: it reads titles and item tokens together, and is not taken apart."""


def contributions(completer: BundleCompleter, completion: Completion, places: Sequence[int]) -> list[dict[str, float]]:
    """Return what each source adds to the score of each answer; +0.69 doubles its odds, -0.69 halves them.

    The sources of the retriever are not additive (its towers and its network read them together), so each has its
    Shapley value (Shapley, 1953; Lundberg and Lee, 2017): the change of the score when the source becomes known, of
    the partial bundle and of the answer, averaged over all orders in which sources can become known. They sum exactly
    to the retriever's score minus that of an item of which nothing is known. "LLM" is the log-probability of the
    ranker minus that of an even guess among the items that it was shown. With both models all are weighed as in the
    answer (see `BundleCombination`). So the sums of two answers that the ranker was shown, or of two that it was not,
    differ by the logarithm of the ratio of their scores.

    Args:
        completer: The models.
        completion: The scores of a question.
        places: The answers: their places among the candidates.
    """
    entries = [completion.candidates[place] for place in places]
    found: list[dict[str, float]] = [{} for _ in entries]
    if completer.retriever is not None and entries:
        question = {"partial": completion.partial, "candidates": entries}
        batch = completer.processor.option_rows([question], completer.retriever.config.modalities)
        values = shapley_values(completer.retriever, **batch)
        found = [{name: float(of_source[i]) for name, of_source in values.items()} for i in range(len(entries))]
    joins = len(completer.models) == 2
    weight, temperature = (completer.combination.ranker_weight, completer.combination.temperature) if joins else (1, 1)
    if (ranker := completion.scores.get("ranker")) is None:
        return found
    num_shown = int((ranker > -torch.inf).sum())
    for parts, log_probability in zip(found, ranker[list(places)].tolist(), strict=True):
        if log_probability > -math.inf:  # it was shown to the ranker
            parts[LLM] = weight * (log_probability + math.log(num_shown))
            parts |= {name: value / temperature for name, value in parts.items()}
    return found


@torch.no_grad()
def shapley_values(
    retriever: BundleRetriever,
    partial_rows: torch.Tensor,
    option_rows: torch.Tensor,
    extra_items: Mapping[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the Shapley value of each source of a retriever for the options of one question, `[n]` each.

    The retriever scores the question once for each set of sources, 2 to the power of their number: all its items are
    given as items of this call, without the features and the groups of the sources that are left out.

    Args:
        retriever: The retriever, in evaluation mode.
        partial_rows: `[1, num_partial]`
        option_rows: `[1, n]`
        extra_items: See `BundleRetriever.forward`.
    """
    catalog, extra = retriever.catalog, dict(extra_items) if extra_items else None
    shown = torch.cat([partial_rows, option_rows], dim=1)[0].to(retriever.device)
    rows = catalog.num_rows + torch.arange(len(shown), device=retriever.device).unsqueeze(0)
    partial, options = rows.split([partial_rows.shape[1], option_rows.shape[1]], dim=1)
    features, present = catalog.gather(shown, extra)
    pairs = {
        name: ItemPairs(*groups.gather(shown, catalog.num_rows, ((extra or {}).get("groups") or {}).get(name))[1:3])
        for name, groups in retriever.memberships.items()
    }
    sources = _sources([*catalog.modalities, *pairs])
    scores = []
    for coalition in range(1 << len(sources)):
        known = {name for i, names in enumerate(sources.values()) if coalition >> i & 1 for name in names}
        columns = torch.tensor([name in known for name in catalog.modalities], device=present.device)
        groups = {name: each for name, each in pairs.items() if name in known}
        items = {"features": features, "present": present & columns, "groups": groups}
        scores.append(retriever(partial, options, items).scores[0].double().cpu())
    values, number = {}, len(sources)
    for i, name in enumerate(sources):
        values[name] = torch.zeros(option_rows.shape[1], dtype=torch.float64)
        for coalition in range(1 << number):
            if not coalition >> i & 1:
                share = 1 / (number * math.comb(number - 1, coalition.bit_count()))  # |S|! (n - |S| - 1)! / n!
                values[name] += share * (scores[coalition | 1 << i] - scores[coalition])
    return values


def _sources(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the modalities and memberships of each source that a retriever has."""
    known = {source: tuple(name for name in group if name in names) for source, group in SOURCES.items()}
    own = {name: (name,) for name in names if not any(name in group for group in SOURCES.values())}
    return {source: group for source, group in (known | own).items() if group}
