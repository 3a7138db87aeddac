"""Load a stock causal language model, and wrap it into a ranker over a catalog.

Knows nothing about training, questions or features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.errors import BundleMLLMError
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
    """Load a causal LM and its tokenizer by Hub name or folder.

    Raises:
        BundleMLLMError: If there is no such model, its weights are damaged or incomplete, or its tokenizer is empty.
    """
    path = Path(name)
    if not path.exists() and (path.is_absolute() or len(path.parts) > 2 or name.startswith(".")):
        raise BundleMLLMError(f'There is no folder {name} with a base model: check the path, or use "{SCRATCH}".')
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BundleMLLMError(
            f"The base model {name!r} cannot be loaded: {str(error).rstrip('.')}. Check the name, the network and "
            f'access rights, give a local folder, or use "{SCRATCH}".'
        ) from error
    backbone, info = loaded
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
