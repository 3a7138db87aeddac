"""What both models share: strict loading, evaluation mode, passes, the initialization of linear maps and of a catalog.

Knows nothing about what either model computes.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import CONFIG_NAME

from .catalog_bundle_mllm import BundleMLLMItemCatalog, BundleMLLMTable
from .item_processing_bundle_mllm import HUB_ARGUMENTS


class BundleLinear(nn.Linear):
    """A linear map that keeps torch's own initialization."""


class BundlePreTrainedModel(PreTrainedModel):
    """A `PreTrainedModel` that loads exactly its own weights, or says which differ."""

    how_to_make: ClassVar[str] = ""
    """What a message about foreign weights adds."""
    loaded_by: Mapping[str, Any] = MappingProxyType({})
    """The arguments by which the files of this model were found; a pipeline finds what stands beside them likewise."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, BundleLinear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = max(1, module.in_features) ** -0.5
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, BundleMLLMTable):
            for buffer in module.buffers():
                init.constant_(buffer, module.fill)
        elif isinstance(module, BundleMLLMItemCatalog):
            init.zeros_(module.present)
        else:
            super()._init_weights(module)

    @classmethod
    def may_ignore(cls, key: str) -> bool:
        """Return whether a weight of a checkpoint is of no use to this class, and no mistake."""
        return False

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load a saved model, strictly: weights that are missing, left over or of another shape are errors.

        They are not if `key_mapping` says that the file holds something else (for example a stock backbone), if the
        caller asks for the list of them (`output_loading_info`), or if there is no file, but a `state_dict`.

        Raises:
            ValueError: If the checkpoint does not hold exactly the weights of this model.
        """
        is_own = kwargs.get("key_mapping") is None
        strict = is_own and pretrained_model_name_or_path is not None and not output_loading_info
        if is_own:
            kwargs.setdefault("use_safetensors", True)  # a pickle runs code
        if strict:
            kwargs["ignore_mismatched_sizes"] = True  # not ignored: reported below, by name
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        model.loaded_by = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        if strict:
            problems = {
                "missing": sorted(info["missing_keys"]),
                "unexpected": sorted(key for key in info["unexpected_keys"] if not cls.may_ignore(key)),
                "of another shape": sorted(str(key) for key in info["mismatched_keys"]),
            }
            found = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in problems.items() if keys)
            if found:
                raise ValueError(
                    f"The weights in {str(pretrained_model_name_or_path)!r} are not those of this {cls.__name__}: "
                    f"{found}. The model would answer with random weights: load a folder that this class saved"
                    f"{cls.how_to_make}."
                )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save as the base class does; weights, too, with the permissions that the umask gives."""
        super().save_pretrained(save_directory, *args, **kwargs)
        mode = Path(save_directory, CONFIG_NAME).stat().st_mode
        for path in Path(save_directory).glob("*.safetensors"):  # the library writes them for their owner alone
            path.chmod(mode)


@contextmanager
def evaluating(models: Sequence[Any]) -> Iterator[None]:
    """Put the models that are in training mode into evaluation mode for a while."""
    training = [model for model in models if model.training]
    for model in training:
        model.eval()
    try:
        yield
    finally:
        for model in training:
            model.train()


def split_indices(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cut indices into pieces of up to `size`, which are computed in one pass each."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]
