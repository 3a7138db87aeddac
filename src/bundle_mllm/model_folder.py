"""The model folder: one self-contained place for weights, catalog features, tokenizer, prompt wording and item titles.

Knows nothing about training or evaluation.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import CONFIG_NAME

from bundle_mllm.data.files import sha256
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

RUN_RECORD = "run.json"
"""How `bundle-mllm train` made a model folder."""
CONVERSION_RECORD = "conversion.json"
"""How `bundle-mllm convert` made a model folder."""
SCRATCH = "scratch"
"""The base model that needs no download: a small Llama, trained in full."""
NO_RANKER = "none"
"""The base model of a run that trains a retriever alone."""
ANSWERS_WITH = ("*.safetensors", "items.jsonl", "tokenizer.json", "processor_config.json", "chat_template.jinja")
"""The files of a model folder that decide its answers, beside its configuration."""


def save_model(model: BundleMLLMForCausalLM, processor: BundleMLLMProcessor, folder: Path) -> None:
    """Write a model folder, which the Auto classes and the pipeline load, and let the model remember its items."""
    model.config.items_hash = processor.items_hash
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def load_model(folder: str | Path, **kwargs: Any) -> tuple[BundleMLLMForCausalLM, BundleMLLMProcessor]:
    """Load model and processor from a model folder or Hub repository.

    Raises:
        BundleMLLMError: There is no such folder or repository, it does not hold a Bundle-MLLM model, or its items are
            not those the model was saved with.
    """
    _check_exists(folder)
    try:
        model = BundleMLLMForCausalLM.from_pretrained(folder, **kwargs)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    processor = load_processor(folder)
    check_same_items(model, processor, folder)
    return model.eval(), processor


def load_processor(folder: str | Path) -> BundleMLLMProcessor:
    """Load the processor alone; see [`load_model`]."""
    _check_exists(folder)
    try:
        return BundleMLLMProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(folder, error) from error


def check_same_items(model: BundleMLLMForCausalLM, processor: BundleMLLMProcessor, folder: str | Path) -> None:
    """Refuse a processor from `folder` whose items are not those that the model remembers.

    Raises:
        BundleMLLMError: They are others, or in another order.
    """
    try:
        processor.check_model(model.config)
    except ValueError as error:
        raise BundleMLLMError(f"{folder}: {error}") from error


def fingerprint(folder: str | Path) -> str | None:
    """Return a SHA-256 over what a model folder answers with: weights, settings, catalog, items, tokenizer, wording.

    Returns:
        The hexadecimal digest, or `None` for a Hub repository, whose commit says as much.
    """
    files = sorted({path for pattern in ANSWERS_WITH for path in Path(folder).glob(pattern)})
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    if (config := Path(folder) / CONFIG_NAME).is_file():
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings.pop("transformers_version", None)  # says who wrote it
        digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _check_exists(folder: str | Path) -> None:
    """Refuse a mistyped path before the Hub is asked; a Hub name is `org/name`, and there is no folder `org` here."""
    path = Path(folder)
    may_be_hub_name = len(path.parts) == 2 and path.parts[0] not in (".", "..", "/") and not path.parent.is_dir()
    if not path.exists() and not may_be_hub_name:
        raise BundleMLLMError(
            f"There is no folder {folder}: give the output folder of `bundle-mllm train`, or the name of a Hub "
            "repository (org/name)."
        )


def _unreadable(folder: str | Path, error: Exception) -> BundleMLLMError:
    return BundleMLLMError(
        f"{folder} is no readable Bundle-MLLM model: {str(error).rstrip('.')}. Give the output folder of "
        "`bundle-mllm train`, or the name of a Hub repository."
    )
