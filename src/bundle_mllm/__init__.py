"""Product bundling with multimodal LLMs (Bundle-MLLM, arXiv 2407.11712) on the Hugging Face stack.

Importing the package registers the model with the Auto classes and the `bundle-completion` pipeline task. Everything
else is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .companions import check_companions as _check_companions

_check_companions()  # before transformers meets them

from . import modeling as _modeling  # noqa: E402

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
    "report": "evaluation.report",
    "score_questions": "evaluation.scoring",
    "convert_checkpoint": "hub.convert",
    "publish_dataset": "hub.dataset",
    "export_stock": "hub.export",
    "publish": "hub.publish",
    "verify_repository": "hub.verify",
    "load_model": "folder",
    "save_model": "folder",
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
    from .baselines import evaluate_baselines
    from .data import (
        BundleSplits,
        DatasetFolder,
        ItemCatalog,
        Question,
        load_questions,
        make_questions,
        sample_training_questions,
        save_questions,
    )
    from .encoders.encode import encode_folder
    from .errors import BundleMLLMError
    from .evaluation.evaluate import evaluate
    from .evaluation.metrics import as_scored, compute_metrics
    from .evaluation.ranking import rank_candidates
    from .evaluation.report import report
    from .evaluation.results import compare_metrics
    from .evaluation.scoring import score_questions
    from .folder import load_model, save_model
    from .hub.convert import convert_checkpoint
    from .hub.dataset import publish_dataset
    from .hub.export import export_stock
    from .hub.publish import publish
    from .hub.verify import verify_repository
    from .modeling import (
        BundleCompletionPipeline,
        BundleMLLMConfig,
        BundleMLLMForCausalLM,
        BundleMLLMModel,
        BundleMLLMProcessor,
        BundleMLLMTokenizerFast,
    )
    from .training.config import RunConfig, StageOneConfig, StageTwoConfig, default_run
    from .training.run import train
