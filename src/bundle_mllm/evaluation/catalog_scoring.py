"""Score whole catalogs by a completer: one matrix of scores for ranker, retriever and both.

Knows nothing about which items complete a bundle, nor metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.catalog import ScoreCatalog
from bundle_mllm.evaluation.settings import ScoringOptions
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter


def catalog_scorer(completer: BundleCompleter, options: ScoringOptions, max_options: int) -> ScoreCatalog:
    """Return what scores the catalog of a completer by each of its parts.

    The retriever scores all items. The ranker is shown as many of its best as in `BundleCompleter.score`: "ranker" has
    these first, in the ranker's order, and "both" has them as the completer joins the two; all others are as the
    retriever has them. A ranker without a retriever ranks the catalog in groups, at about 0.15 prompts per item.

    Args:
        completer: The models.
        options: How the ranker scores candidates; see `BundleCompleter.score`.
        max_options: Most items that the ranker is shown.
    """
    item_ids = completer.processor.item_ids
    ranking = {
        "batch_size": options.batch_size,
        "permutations": options.permutations,
        "max_options": max_options,
        "group_size": options.group_size,
        "seed": options.seed,
    }

    def score(partials: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        questions = [{"partial": [item_ids[row] for row in rows], "candidates": item_ids} for rows in partials]
        try:
            if completer.retriever is None:
                return {"ranker": _in_groups(completer, questions, ranking)}
            retrieved = completer.catalog_scores([question["partial"] for question in questions]).cpu()
            retrieved = retrieved.double().log_softmax(dim=-1)
            scores = {"retriever": retrieved.numpy()}
            if completer.ranker is None:
                return scores
            best = retrieved.topk(min(max_options, completer.num_ranked, len(item_ids)), dim=-1)
            shown = [rows[logs > -torch.inf].tolist() for rows, logs in zip(best.indices, best.values, strict=True)]
            completions = list(completer.rank(questions, list(retrieved), shown, **ranking))
        except ValueError as error:
            raise BundleMLLMError(str(error)) from error
        answers = zip(scores["retriever"], shown, completions, strict=True)
        scores["ranker"] = np.stack([_first(logs, rows, of_both.scores["ranker"]) for logs, rows, of_both in answers])
        scores["both"] = np.stack([completion.scores["both"].numpy() for completion in completions])
        return {part: scores[part] for part in completer.parts}

    return score


def _in_groups(completer: BundleCompleter, questions: Sequence[dict], ranking: dict[str, Any]) -> np.ndarray:
    """Return the scores of a ranker alone."""
    rows = completer.processor.row
    scores = np.full((len(questions), completer.processor.num_items), -np.inf)
    completions = completer.score([{"partial": question["partial"]} for question in questions], **ranking)
    for number, completion in enumerate(completions):
        scores[number, [rows(item_id) for item_id in completion.candidates]] = completion.answer.numpy()
    return scores


def _first(retrieved: np.ndarray, rows: Sequence[int], ranker: torch.Tensor) -> np.ndarray:
    """Return the retriever's scores with some rows before all others, in the ranker's order."""
    scores, alone = retrieved.copy(), ranker[list(rows)].numpy()
    scores[list(rows)] = retrieved.max() + 1 + alone - alone.min(initial=0.0)
    return scores
