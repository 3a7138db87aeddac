"""Merge the LoRA adapter of a checkpoint folder into a backbone with PEFT, accounting for every setting and weight.

Knows nothing about items or about who trained the adapter.

PEFT alone warns at most where a weight is missing or foreign, or a setting is of a newer version; a published result
depends on both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedModel

from bundle_mllm.data.files import read_json
from bundle_mllm.data.torch_files import load_weights
from bundle_mllm.errors import BundleMLLMError

SETTINGS_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.bin"
_SETTINGS: dict[str, tuple[Any, ...]] = {  # what PEFT merges exactly: values, or types of values; empty for any
    "peft_type": ("LORA",),
    "init_lora_weights": (True, False, "gaussian"),  # others change the base model
    "r": (int,),
    "lora_alpha": (int, float),
    "target_modules": (list, str),
    "use_rslora": (bool, NoneType),
    "use_dora": (bool, NoneType),
    **dict.fromkeys(("alpha_pattern", "bias", "fan_in_fan_out", "layers_pattern", "layers_to_transform"), ()),
    **dict.fromkeys(("lora_bias", "modules_to_save", "rank_pattern"), ()),
}
_NOTES = {"auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "peft_version", "revision"}
_NOTES |= {"megatron_core", "qalora_group_size", "task_type"}  # of no consequence for trained weights


def merge_lora_checkpoint(backbone: PreTrainedModel, checkpoint: Path) -> None:
    """Merge the adapter of a folder (`adapter_config.json`, `adapter_model.bin`) into its backbone, in place.

    Raises:
        BundleMLLMError: If a file is missing or damaged, a setting cannot be merged, or a weight is missing, foreign
            or of another shape than the backbone needs.
    """
    path = checkpoint / SETTINGS_FILE
    settings = read_json(path)
    for name, value in settings.items():
        allowed = _SETTINGS.get(name, (None, False, "", [], {}))
        if name not in _NOTES and allowed and value not in allowed and type(value) not in allowed:
            raise BundleMLLMError(
                f"{path} sets {name} to {value!r}, which cannot be merged exactly: merge the adapter with PEFT, in "
                "the version that made it."
            )
    weights = load_weights(checkpoint / WEIGHTS_FILE)
    embedding = backbone.get_input_embeddings().weight
    config = LoraConfig(**{name: settings[name] for name in _SETTINGS if name in settings})
    try:
        adapted = get_peft_model(backbone, config)
    except (ValueError, TypeError) as error:
        raise BundleMLLMError(
            f"{path} does not fit the base model ({error}): give the base model that the adapter was trained on."
        ) from error
    if backbone.config.tie_word_embeddings and any(
        name.endswith("base_layer.weight") and weight is embedding
        for name, weight in adapted.named_parameters(remove_duplicate=False)
    ):
        raise BundleMLLMError(
            f"{path} adapts a layer that shares its weight with another (embedding and head), so merging would change "
            "both: give the base model that the adapter was trained on."
        )
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    check_weights(checkpoint / WEIGHTS_FILE, weights, shapes, "base model")
    set_peft_model_state_dict(adapted, weights)
    adapted.merge_and_unload()


def check_weights(path: Path, weights: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple], given_by: str) -> None:
    """Check that a file holds exactly the expected weights, whose shapes are `given_by` something (for messages).

    Raises:
        BundleMLLMError: If a weight is missing, foreign or of another shape; the message names it.
    """
    missing, foreign = shapes.keys() - weights.keys(), weights.keys() - shapes.keys()
    for what, names in (("lacks", missing), ("has the unknown", foreign)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            raise BundleMLLMError(
                f"{path} {what} {len(names)} weights ({shown}), so it is no checkpoint of this kind, or not one for "
                f"this {given_by}: give the files that belong together."
            )
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise BundleMLLMError(
                f"{path} has {name} of shape {list(weights[name].shape)}, but {list(shape)} is needed by the "
                f"{given_by}: give the files that belong together."
            )
