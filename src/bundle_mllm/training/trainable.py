"""Which parameters train: one table of groups, applied to a model, saved and loaded as one file.

Knows nothing about data, optimizers or stages.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from bundle_mllm.data.files import atomic_path
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.lora import LORA_TARGET_MODULES
from bundle_mllm.training.config import LoraSettings, ParameterGroup

# group -> prefixes of parameter names in a ranker. "lora" has none: its parameters are added by PEFT.
PARAMETER_GROUPS: dict[ParameterGroup, tuple[str, ...]] = {
    "lora": (),
    "backbone": ("model.language_model.", "lm_head."),
    "fusion": ("model.fusion.",),
    "projector": ("model.projector.",),
    "separator": ("model.separator.",),
    "matching": ("matching.", "item_matching."),  # of a ranker without letters
}


def make_trainable(model: Any, groups: Collection[ParameterGroup], lora: LoraSettings, *, seed: int) -> Any:
    """Freeze everything but the named groups.

    Args:
        model: A ranker.
        groups: Names of `PARAMETER_GROUPS`.
        lora: Settings of the adapter that is added when `groups` names "lora".
        seed: Seed of the adapter's initial weights.

    Returns:
        The model, wrapped by PEFT when "lora" is among the groups; the other groups are then copies that PEFT saves
        with the adapter (a parameter that merely requires a gradient would be left out of its checkpoints).

    Raises:
        BundleMLLMError: If a group is unknown, the groups exclude each other, or LoRA finds nothing to adapt.
    """
    if unknown := set(groups) - set(PARAMETER_GROUPS):
        raise BundleMLLMError(
            f"Unknown parameter groups {sorted(unknown)}: choose from {', '.join(PARAMETER_GROUPS)}."
        )
    if "lora" not in groups:
        prefixes = tuple(prefix for group in groups for prefix in PARAMETER_GROUPS[group])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(prefixes))
        return model
    if "backbone" in groups:
        raise BundleMLLMError("`trains` names both lora and backbone: choose one.")
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora_targets(model, lora),
        modules_to_save=[prefix.strip(".") for group in groups for prefix in PARAMETER_GROUPS[group]] or None,
        task_type="CAUSAL_LM" if model.has_head else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def lora_targets(model: nn.Module, lora: LoraSettings) -> list[str]:
    """Return the full names of the backbone's modules that LoRA adapts: query and value maps if no names are given."""
    wanted = LORA_TARGET_MODULES if lora.target_modules is None else lora.target_modules
    modules = [name for name, _ in model.named_modules() if name.startswith("model.language_model.")]
    targets = [name for name in modules if name.rsplit(".", 1)[-1] in wanted]
    if not targets:
        raise BundleMLLMError(
            f"The backbone has no module named {' or '.join(wanted)}, so LoRA has nothing to adapt: set "
            "stage_one.lora.target_modules to the names of its query and value maps."
        )
    if lora.upper_layers is None:
        return targets
    layers = sorted({_layer(name) for name in targets})
    return [name for name in targets if _layer(name) in layers[-lora.upper_layers :]]


def _layer(name: str) -> int:
    """Return the number of the layer that a module is in, the first number of its name."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


def merge_lora(model: Any) -> Any:
    """Fold the adapter into the backbone and return the plain model."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def save_trainable(model: nn.Module, path: Path) -> None:
    """Write every trainable parameter to one safetensors file, atomically."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


@torch.no_grad()
def load_trainable(model: nn.Module, path: Path) -> None:
    """Read a file of `save_trainable` back; it must hold exactly the trainable parameters."""
    tensors = load_file(path)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if tensors.keys() != parameters.keys():
        different = sorted(tensors.keys() ^ parameters.keys())
        raise BundleMLLMError(
            f"{path} does not hold the parameters that train here ({len(different)} differ: {different[:3]})."
        )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
