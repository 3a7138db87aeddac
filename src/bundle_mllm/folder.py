"""The model folder: one self-contained place for weights, catalog features, tokenizer, prompt wording and item titles.

Knows nothing about training or evaluation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor


def save_model(model: BundleMLLMForCausalLM, processor: BundleMLLMProcessor, folder: Path) -> None:
    """Write a model folder, which the Auto classes and the pipeline load."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def load_model(folder: str | Path, **kwargs: Any) -> tuple[BundleMLLMForCausalLM, BundleMLLMProcessor]:
    """Load model and processor from a model folder or Hub repository.

    Raises:
        BundleMLLMError: There is no such folder or repository, or it does not hold a Bundle-MLLM model.
    """
    try:
        model = BundleMLLMForCausalLM.from_pretrained(folder, **kwargs)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    return model.eval(), load_processor(folder)


def load_processor(folder: str | Path) -> BundleMLLMProcessor:
    """Load the processor alone; see [`load_model`]."""
    try:
        return BundleMLLMProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: str | Path, error: Exception) -> BundleMLLMError:
    return BundleMLLMError(
        f"{folder} is no readable Bundle-MLLM model: {error} Give the output folder of `bundle-mllm train`, or the "
        "name of a Hub repository."
    )
