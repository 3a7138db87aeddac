"""Merge the LoRA adapter of a checkpoint folder into a backbone, accounting for every setting and weight.

Knows nothing about items or about who trained the adapter.

PEFT would load these files, too, but it warns at most where a weight is missing or foreign, or a setting is of a
newer version; a published result depends on both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bundle_mllm.data.torch_files import load_weights
from bundle_mllm.errors import BundleMLLMError

SETTINGS_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.bin"
_PREFIX = "base_model.model."
# The values that can be merged, the default first. Other initializations than these change the base model.
_KNOWN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),
    "use_rslora": (False, True, None),
}
_HONORED = {*_KNOWN, "r", "lora_alpha", "target_modules"}
# Of no consequence for trained weights: notes, dropout, and what has no effect beside settings that are off here.
# `fan_in_fan_out` is told by the kind of layer, as in PEFT, which corrects the setting where the two disagree.
_IRRELEVANT = {
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
_ADVICE = "merge the adapter with PEFT, in the version that made it."


@dataclass(frozen=True)
class _Lora:
    r: int
    scale: float
    target_modules: tuple[str, ...]


@torch.no_grad()
def merge_lora_checkpoint(backbone: PreTrainedModel, checkpoint: Path) -> None:
    """Add `scale * B @ A` to each adapted weight of a backbone, computed in float32.

    Args:
        backbone: The causal LM that the adapter was trained on; changed in place.
        checkpoint: A folder with `adapter_config.json` and `adapter_model.bin`.

    Raises:
        BundleMLLMError: A file is missing or damaged, a setting is not known here, or a weight is missing, foreign or
            of another shape than the backbone needs.
    """
    lora = _to_lora(read_settings(checkpoint), checkpoint / SETTINGS_FILE)
    suffixes = tuple(f".{name}" for name in lora.target_modules)
    embedding = backbone.get_input_embeddings().weight
    targets: dict[str, nn.Linear | Conv1D] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in backbone.named_modules():
        if not f".{name}".endswith(suffixes):
            continue
        if not isinstance(module, nn.Linear | Conv1D) or module.weight is embedding:
            raise BundleMLLMError(
                f"{checkpoint / SETTINGS_FILE} adapts {name!r}, which is a {type(module).__name__} in the base model: "
                "only linear layers that are not tied to the embedding can be merged. Give the base model that the "
                "adapter was trained on."
            )
        targets[name] = module
        inputs, outputs = module.weight.shape if isinstance(module, Conv1D) else reversed(module.weight.shape)
        shapes[f"{_PREFIX}{name}.lora_A.weight"] = (lora.r, inputs)
        shapes[f"{_PREFIX}{name}.lora_B.weight"] = (outputs, lora.r)
    if not targets:
        raise BundleMLLMError(
            f"{checkpoint / SETTINGS_FILE} adapts {', '.join(lora.target_modules)}, and the base model has no such "
            "modules: give the base model that the adapter was trained on."
        )
    path = checkpoint / WEIGHTS_FILE
    weights = load_weights(path)
    check_weights(path, weights, shapes, "base model")
    for name, module in targets.items():
        a, b = (weights[f"{_PREFIX}{name}.lora_{part}.weight"].float() for part in "AB")
        delta = lora.scale * (b @ a)  # [out, in]
        merged = module.weight.float() + (delta.T if isinstance(module, Conv1D) else delta)
        module.weight.copy_(merged)


def read_settings(checkpoint: Path) -> dict[str, Any]:
    """Read `adapter_config.json` of a checkpoint folder.

    Raises:
        BundleMLLMError: The file is missing or damaged.
    """
    path = checkpoint / SETTINGS_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleMLLMError(f"There is no file {path}: download the whole checkpoint folder.") from error
    except ValueError as error:
        raise BundleMLLMError(f"{path} is not JSON ({error}): download it again.") from error
    if not isinstance(settings, dict):
        raise BundleMLLMError(f"{path} holds a {type(settings).__name__}, not an object {{…}}: download it again.")
    return settings


def check_weights(path: Path, weights: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple], given_by: str) -> None:
    """Check that a file holds exactly the expected weights.

    Args:
        path: The file, for messages.
        weights: What it holds.
        shapes: The shape of each expected weight.
        given_by: What the shapes follow from, for messages.

    Raises:
        BundleMLLMError: A weight is missing, foreign or of another shape; the message names it.
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


def _to_lora(settings: Mapping[str, Any], path: Path) -> _Lora:
    for name, value in settings.items():
        if name not in _HONORED | _IRRELEVANT and value not in (None, False, "", [], {}):
            raise BundleMLLMError(f"{path} sets {name} to {value!r}, which is not known here: {_ADVICE}")
    for name, known in _KNOWN.items():
        if settings.get(name, known[0]) not in known:
            raise BundleMLLMError(f"{path} sets {name} to {settings[name]!r}, which cannot be merged: {_ADVICE}")
    r: Any = settings.get("r")
    alpha: Any = settings.get("lora_alpha")
    targets: Any = settings.get("target_modules")
    if type(r) is not int or r < 1 or type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise BundleMLLMError(f"{path} has r {r!r} and lora_alpha {alpha!r}: both must be positive numbers.")
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        raise BundleMLLMError(f"{path} has the target_modules {targets!r}: a list of module names is needed.")
    return _Lora(r, alpha / (math.sqrt(r) if settings.get("use_rslora") else r), tuple(targets))
