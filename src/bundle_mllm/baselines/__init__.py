"""Baselines: simple and learned methods that answer the same questions as a model, fitted to training bundles only.

They must not know the answers of questions, nor any bundle outside the training split.
"""

from .base import Asked, Baseline, UnavailableError
from .evaluate import BaselineResult, baseline_path, evaluate_baselines
from .specs import ALL, BASELINES, make_baseline

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
