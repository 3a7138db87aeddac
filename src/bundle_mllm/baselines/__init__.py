"""Baselines: simple and learned methods that score the same questions as a model, fitted to training bundles only.

Knows nothing about the answers of questions, nor bundles outside the training split.
"""

from typing import TYPE_CHECKING

from bundle_mllm.lazy import lazy_names

if TYPE_CHECKING:
    from bundle_mllm.baselines.base import Baseline as Baseline
    from bundle_mllm.baselines.base import QuestionBatch as QuestionBatch
    from bundle_mllm.baselines.base import UnavailableError as UnavailableError
    from bundle_mllm.baselines.evaluate import BaselineResult as BaselineResult
    from bundle_mllm.baselines.evaluate import baseline_path as baseline_path
    from bundle_mllm.baselines.evaluate import evaluate_baselines as evaluate_baselines
    from bundle_mllm.baselines.registry import ALL as ALL
    from bundle_mllm.baselines.registry import BASELINES as BASELINES
    from bundle_mllm.baselines.registry import make_baseline as make_baseline
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)
