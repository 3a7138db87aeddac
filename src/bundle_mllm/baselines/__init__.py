"""Baselines: simple and learned methods that answer the same questions as a model, fitted to training bundles only.

They must not know the answers of questions, nor any bundle outside the training split.
"""

from bundle_mllm.baselines.base import Asked, Baseline, UnavailableError
from bundle_mllm.baselines.evaluate import BaselineResult, baseline_path, evaluate_baselines
from bundle_mllm.baselines.registry import ALL, BASELINES, make_baseline

__all__ = [
    "ALL",
    "Asked",
    "BASELINES",
    "Baseline",
    "BaselineResult",
    "UnavailableError",
    "baseline_path",
    "evaluate_baselines",
    "make_baseline",
]
