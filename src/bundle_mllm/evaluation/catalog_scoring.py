"""Score whole catalogs by a completer: one matrix of scores for ranker, retriever and both.

Knows nothing about which items complete a bundle, nor metrics.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.catalog import ScoreCatalog
from bundle_mllm.evaluation.settings import ScoringOptions
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter, Completion


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
    processor = completer.processor

    def score(partials: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        shown = [[processor.item_ids[row] for row in rows] for rows in partials]
        scores: dict[str, np.ndarray] = {}
        if completer.retriever is not None:
            scores["retriever"] = completer.catalog_scores(shown).log_softmax(dim=-1).double().cpu().numpy()
        if completer.ranker is None:
            return scores
        completions = _complete(completer, [{"partial": items} for items in shown], options, max_options)
        ranker = scores.get("retriever", np.full((len(partials), processor.num_items), -np.inf)).copy()
        scores["ranker"] = ranker
        for number, completion in enumerate(completions):
            members = np.array([processor.row(item_id) for item_id in completion.candidates])
            alone = completion.scores["ranker"].numpy()
            ranked = np.isfinite(alone)
            above = ranker[number].max(initial=0.0, where=np.isfinite(ranker[number]))
            ranker[number, members[ranked]] = above + 1 + alone[ranked] - alone[ranked].min()
            if completer.retriever is not None:
                both = scores.setdefault("both", scores["retriever"].copy())
                both[number, members] = completion.scores["both"].numpy()
        return {part: scores[part] for part in completer.parts}

    return score


def _complete(
    completer: BundleCompleter, questions: Sequence[dict], options: ScoringOptions, max_options: int
) -> list[Completion]:
    try:
        with torch.inference_mode():
            return completer.score(
                questions,
                batch_size=options.batch_size,
                permutations=options.permutations,
                max_options=max_options,
                group_size=options.group_size,
                num_retrieved=max_options,
                seed=options.seed,
            )
    except ValueError as error:
        raise BundleMLLMError(str(error)) from error
