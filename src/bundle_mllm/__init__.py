"""Product bundling with multimodal LLMs (Bundle-MLLM, arXiv 2407.11712) on the Hugging Face stack.

Importing the package registers the model with the Auto classes and the `bundle-completion` pipeline task. Everything
else is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bundle_mllm.companions import check_companions as _check_companions

_check_companions()  # before transformers meets them

from bundle_mllm import modeling as _modeling  # noqa: E402

_LAZY = {
    "BundleCompletionPipeline": "modeling",
    "BundleMLLMConfig": "modeling",
    "BundleMLLMForCausalLM": "modeling",
    "BundleMLLMModel": "modeling",
    "BundleMLLMProcessor": "modeling",
    "BundleMLLMTokenizerFast": "modeling",
    "BundleMLLMError": "errors",
    "BundleSplits": "data",
    "DatasetFolder": "data",
    "ItemCatalog": "data",
    "Question": "data",
    "load_questions": "data",
    "make_questions": "data",
    "sample_training_questions": "data",
    "save_questions": "data",
    "evaluate_baselines": "baselines",
    "encode_folder": "encoders.encode",
    "as_scored": "evaluation.metrics",
    "compare_metrics": "evaluation.results",
    "compute_metrics": "evaluation.metrics",
    "evaluate": "evaluation.evaluate",
    "rank_candidates": "evaluation.ranking",
    "report": "report",
    "score_questions": "evaluation.scoring",
    "convert_checkpoint": "interop.convert",
    "publish_dataset": "hub.dataset",
    "export_stock": "interop.export",
    "publish": "hub.publish",
    "verify_repository": "hub.verify",
    "load_model": "model_folder",
    "save_model": "model_folder",
    "RunConfig": "training.config",
    "StageOneConfig": "training.config",
    "StageTwoConfig": "training.config",
    "default_run": "training.config",
    "train": "training.run",
}

__version__ = "0.1.0"
__all__ = [*sorted(_LAZY), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from bundle_mllm.baselines import evaluate_baselines
    from bundle_mllm.data import (
        BundleSplits,
        DatasetFolder,
        ItemCatalog,
        Question,
        load_questions,
        make_questions,
        sample_training_questions,
        save_questions,
    )
    from bundle_mllm.encoders.encode import encode_folder
    from bundle_mllm.errors import BundleMLLMError
    from bundle_mllm.evaluation.evaluate import evaluate
    from bundle_mllm.evaluation.metrics import as_scored, compute_metrics
    from bundle_mllm.evaluation.ranking import rank_candidates
    from bundle_mllm.evaluation.results import compare_metrics
    from bundle_mllm.evaluation.scoring import score_questions
    from bundle_mllm.hub.dataset import publish_dataset
    from bundle_mllm.hub.publish import publish
    from bundle_mllm.hub.verify import verify_repository
    from bundle_mllm.interop.convert import convert_checkpoint
    from bundle_mllm.interop.export import export_stock
    from bundle_mllm.model_folder import load_model, save_model
    from bundle_mllm.modeling import (
        BundleCompletionPipeline,
        BundleMLLMConfig,
        BundleMLLMForCausalLM,
        BundleMLLMModel,
        BundleMLLMProcessor,
        BundleMLLMTokenizerFast,
    )
    from bundle_mllm.report import report
    from bundle_mllm.training.config import RunConfig, StageOneConfig, StageTwoConfig, default_run
    from bundle_mllm.training.run import train
