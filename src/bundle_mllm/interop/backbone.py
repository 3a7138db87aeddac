"""Load a stock causal language model, and wrap it into a ranker over a catalog.

Knows nothing about training, questions or features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub_access import hub_problem
from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor
from bundle_mllm.settings import SCRATCH


def wrap_backbone(
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    catalog: ItemCatalog,
    modalities: Mapping[str, int],
    **config: Any,
) -> tuple[BundleMLLMForCausalLM, BundleMLLMProcessor]:
    """Add new item modules to a backbone, and the catalog's items and the separator to its tokenizer.

    Args:
        backbone: A causal LM; its weights are taken over, not copied.
        tokenizer: Its tokenizer, which stays as it is.
        catalog: The items.
        modalities: Width of the features of each modality.
        **config: Other fields of `BundleMLLMConfig`.

    Returns:
        The model, with an empty catalog and the backbone's embedding as it was, and its processor.
    """
    processor = BundleMLLMProcessor.from_backbone_tokenizer(tokenizer, catalog.item_ids, catalog.titles)
    processor.max_length = getattr(backbone.config, "max_position_embeddings", None)  # BLOOM has no longest prompt
    processor.modalities = dict(modalities)
    model = BundleMLLMForCausalLM.from_backbone(
        backbone, modalities=dict(modalities), separator_token_id=processor.separator_token_id, **config
    )
    return model, processor


def load_backbone(name: str, dtype: str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer by Hub name, folder or GGUF file, whose weights are then dequantized.

    Args:
        name: The model.
        dtype: Precision of its weights; "auto" is the checkpoint's with a GPU, and float32 without: a processor may
            compute in bfloat16 far more slowly.

    Raises:
        BundleMLLMError: If there is no such model, its weights are damaged or incomplete, or its tokenizer is empty.
    """
    path = Path(name)
    if not path.exists() and (path.is_absolute() or len(path.parts) > 2 or name.startswith(".")):
        raise BundleMLLMError(f'There is no folder {name} with a base model: check the path, or use "{SCRATCH}".')
    if dtype == "auto" and not torch.cuda.is_available():
        dtype = "float32"
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    source, gguf = name, {}
    if path.suffix == ".gguf":
        source, gguf = str(path.parent), {"gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **gguf)
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options, **gguf)
    except ImportError as error:
        raise BundleMLLMError(
            f'The base model {name!r} cannot be loaded: {error}. Install pip install "bundle-mllm[gguf]".'
        ) from error
    except Exception as error:  # of all classes; tokenizers raise `Exception` itself
        reason = hub_problem(error) or str(error).rstrip(".")
        raise BundleMLLMError(
            f"The base model {name!r} cannot be loaded: {reason}. Check the name, the network and access rights, give "
            f'a local folder, or use "{SCRATCH}".'
        ) from error
    backbone, info = loaded
    if gguf:
        _forget_quantization(backbone)
    if missing := sorted(info["missing_keys"]):
        raise BundleMLLMError(
            f"The base model {name!r} lacks {len(missing)} weights ({', '.join(missing[:3])}), which would be random: "
            "download all of it, or give a causal language model."
        )
    if len(tokenizer) < 100:
        raise BundleMLLMError(
            f"The tokenizer of {name!r} has {len(tokenizer)} tokens, so it was not loaded (an offline cache can "
            "do that): load it once with a network, or give a folder that holds tokenizer.json."
        )
    return backbone, tokenizer


def _forget_quantization(backbone: PreTrainedModel) -> None:
    """Remove the marks of the file that was dequantized: transformers refuses to save a model that bears them."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        backbone.__dict__.pop(name, None)
    backbone.config.__dict__.pop("quantization_config", None)
