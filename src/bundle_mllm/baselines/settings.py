"""Settings of `evaluate_baselines`.

Knows nothing about how a baseline works; imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle_mllm.evaluation.settings import ScoringOptions


@dataclass(frozen=True)
class BaselineSettings(ScoringOptions):
    """Fit baselines to the training bundles of a dataset folder and measure them on a question file."""

    data: Path
    """Dataset folder whose items the questions name; baselines learn from its training bundles."""
    questions: Path
    """Question file (see `bundle-mllm questions`)."""
    baselines: tuple[str, ...]
    """Methods to measure beside the model or without one, fitted to the training bundles: all, or some of random,
    popularity, co_occurrence, item_knn, item_knn_users, tfidf, category_pmi, similarity:MODALITY, lightgcn,
    lightgcn_users, ease, ease_users, multivae, set_transformer, boosted_ranker, listwise_ranker; and
    llm:NAME_OR_FOLDER, a language model that reads titles, zero-shot (not in all)."""
    output: Path | None = None
    """Where the metrics of a model would go, such as metrics.json; those of a baseline go beside it, to
    metrics.popularity.json, ..."""
    fitted: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """Baselines by name that are fitted to the same folder already; receives those that are fitted now."""
    report: Callable[[Any], None] | None = field(default=None, kw_only=True)
    """Called with each `BaselineResult` as soon as it is measured and written."""
