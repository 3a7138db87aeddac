"""Build the model that a run or a conversion starts from: backbone, processor over the catalog, catalog rows.

Knows nothing about stages, questions or optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.modeling.configuration_bundle_mllm import modality_of
from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor
from bundle_mllm.training.config import SCRATCH, RunConfig
from bundle_mllm.training.relations import load_relations
from bundle_mllm.training.scratch import scratch_backbone


def build_model(config: RunConfig, data: DatasetFolder) -> tuple[BundleMLLMForCausalLM, BundleMLLMProcessor]:
    """Wrap the backbone of a run into an untrained Bundle-MLLM over the catalog of a dataset folder.

    Deterministic: the same settings and data give the same weights.

    Raises:
        BundleMLLMError: The backbone cannot be loaded, or the folder has no item features but stage two wants them.
    """
    separator = None
    if config.base_model == SCRATCH:
        backbone, tokenizer, separator = scratch_backbone(data.catalog.titles, seed=config.seed)
    else:
        backbone, tokenizer = load_backbone(config.base_model, config.dtype)
    store = data.features(config.modalities)
    if store is None and config.stage_two.max_steps:
        raise BundleMLLMError(
            f"{data.path} has no item features, so stage two has nothing to fuse: write features/*.safetensors first "
            "(bundle-mllm encode), or set stage_two.num_questions=0 to train from titles only."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        modalities = store.modalities if store else {}
        fields = vars(config.fusion) | ({} if modalities else {"matching_hidden_size": None})
        allowed = config.relations if fields["matching_hidden_size"] else ()
        relations = [name for name in allowed if modality_of(name) in modalities]
        relations = load_relations(data, relations, allow_leakage=config.allow_leakage)
        fields["relations"] = dict.fromkeys(relations, 0)
        model, processor = wrap_backbone(backbone, tokenizer, data.catalog, modalities, **fields)
    if separator is not None:
        model.model.separator.weight.data[0] = separator
    if store is not None:
        features, present = store.load()
        model.set_catalog(features, present, fit_statistics=config.fusion.standardize_features, relations=relations)
    return model, processor


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
        The model, whose catalog is still empty, and its processor. Neither the separator nor an item grows the
        backbone's embedding.
    """
    matches = config.get("matching_hidden_size") is not None
    processor = BundleMLLMProcessor.from_backbone_tokenizer(
        tokenizer, catalog.item_ids, catalog.titles, marks_options=matches
    )
    processor.max_length = getattr(backbone.config, "max_position_embeddings", None)  # BLOOM has no longest prompt
    processor.modalities = dict(modalities)
    config |= processor.matching_fields() if matches else {}
    model = BundleMLLMForCausalLM.from_backbone(
        backbone, modalities=dict(modalities), separator_token_id=processor.separator_token_id, **config
    )
    return model, processor


def load_backbone(name: str, dtype: str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer by Hub name or folder.

    Raises:
        BundleMLLMError: There is no such model, its weights are damaged or incomplete, or its tokenizer is empty (what
            an offline cache can yield silently).
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
