"""Embed pictures with the image tower of a pretrained model, through open_clip or transformers.

Knows nothing about titles, categories or anything of an item but its picture.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle_mllm.encoders.batches import Reading
from bundle_mllm.encoders.media import read_picture
from bundle_mllm.encoders.pretrained import PretrainedEncoder, load_tower, loading, source_name
from bundle_mllm.errors import BundleMLLMError

PICTURE_POLICY = "first frame, upright by EXIF, transparency on white"


def read_for_open_clip(transform: Callable[[Any], torch.Tensor], path: Path) -> Reading:
    """Read a picture and prepare it as open_clip does for evaluation."""
    image, note = read_picture(path)
    return Reading({"image": transform(image)[None]}, note)


class OpenClipEncoder(PretrainedEncoder):
    """Embed pictures with any model of open_clip; vectors of length 1.

    Args:
        model: `NAME/TAG` with a model name and a pretrained tag (or a path to a checkpoint) of open_clip,
            `hf-hub:ORG/NAME` or `local-dir:PATH`.
        device: Where the model runs.

    Raises:
        BundleMLLMError: If open_clip is not installed, the model is unknown, or its weights cannot be loaded.
    """

    modality = "visual"
    field = "image"

    def __init__(self, model: str, device: torch.device):
        what = f"The visual encoder 'open_clip:{model}'"
        try:
            open_clip: Any = import_module("open_clip")
        except ImportError as error:
            raise BundleMLLMError(f'{what} needs open_clip: pip install "bundle-mllm[encoders]".') from error
        schema, _, path = model.partition(":")
        if path and schema in ("hf-hub", "local-dir"):
            name, tag, source, quick_gelu = model, None, path, False
        else:
            name, _, tag = model.partition("/")
            if name not in open_clip.list_models():
                raise BundleMLLMError(
                    f"{what} names no model of open_clip: give NAME/TAG such as ViT-B-32/laion2b_s34b_b79k "
                    "(open_clip.list_pretrained() has them all), hf-hub:ORG/NAME or local-dir:PATH."
                )
            known = open_clip.get_pretrained_cfg(name, tag) if tag else {}
            if not known and not Path(tag).is_file():
                tags = open_clip.list_pretrained_tags_by_model(name)
                raise BundleMLLMError(
                    f"{what} names no pretrained weights, and random ones would be useless: choose from "
                    f"{', '.join(f'{name}/{one}' for one in tags) or 'the files you have'}."
                )
            source = known.get("hf_hub", "").rpartition("/")[0] or tag
            quick_gelu = known.get("quick_gelu", False)
        with loading(what), warnings.catch_warnings():
            warnings.filterwarnings("error", message="QuickGELU mismatch")  # its features would be wrong, not absent
            clip, transform = open_clip.create_model_from_pretrained(
                name, pretrained=tag, device="cpu", force_quick_gelu=quick_gelu
            )
        settings = clip.visual.preprocess_cfg
        named = f"{schema}:{source_name(source)}" if tag is None else f"{name}/{source_name(tag)}"
        super().__init__(
            clip,
            device,
            partial(read_for_open_clip, transform),
            name=f"open_clip:{named}",
            source=source,
            preprocessing={"pictures": PICTURE_POLICY, **settings},
            library="open_clip_torch",
        )
        height, width = np.broadcast_to(settings["size"], 2).tolist()
        self.dim = self.embed({"image": torch.zeros(1, 3, height, width, device=device)}).shape[1]

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the image embeddings, `[n, dim]`."""
        return self.model.encode_image(inputs["image"])  # pyright: ignore[reportCallIssue]


def read_for_transformers(processor: Any, path: Path) -> Reading:
    """Read a picture and prepare it by the model's image processor."""
    image, note = read_picture(path)
    return Reading(dict(processor(images=image, return_tensors="pt", input_data_format="channels_last")), note)


class VisionTowerEncoder(PretrainedEncoder):
    """Embed pictures with the image tower of CLIP, SigLIP, SigLIP 2, BLIP-2 or DINOv2; vectors of length 1.

    The vector is the model's own of the whole picture: the projection into the space of texts (CLIP), the attention
    pool (SigLIP), or the first token after the last layer norm (BLIP-2's vision transformer, DINOv2).

    Args:
        model: Name on the Hub, or folder.
        device: Where the model runs.

    Raises:
        BundleMLLMError: If the model cannot be loaded or is of another kind.
    """

    modality = "visual"
    field = "image"

    def __init__(self, model: str, device: torch.device):
        import transformers

        what = f"The visual encoder 'transformers:{model}'"
        with loading(what):
            config = transformers.AutoConfig.from_pretrained(model)
        if config.model_type not in _TOWERS:
            raise BundleMLLMError(
                f"{what} is of type {config.model_type!r}, which has no known image tower: take one of type "
                f"{', '.join(_TOWERS)}."
            )
        class_name, self._output, options = _TOWERS[config.model_type]
        tower_config = config
        if "vision_config" in config.sub_configs:
            tower_config = config.vision_config
            if config.model_type == "clip":
                tower_config.projection_dim = config.projection_dim
        load = getattr(transformers, class_name).from_pretrained
        tower = load_tower(load, model, what=what, config=tower_config, **options)
        with loading(what):
            processor = transformers.AutoImageProcessor.from_pretrained(model, backend="pil")
        super().__init__(
            tower,
            device,
            partial(read_for_transformers, processor),
            name=f"transformers:{source_name(model)}",
            source=model,
            preprocessing={"pictures": PICTURE_POLICY, **json.loads(processor.to_json_string())},
        )
        self.dim = tower_config.projection_dim if self._output == "image_embeds" else tower_config.hidden_size

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the image embeddings, `[n, dim]`."""
        return self.model(**inputs)[self._output]


_TOWERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip": ("CLIPVisionModelWithProjection", "image_embeds", {}),
    "siglip": ("SiglipVisionModel", "pooler_output", {}),
    "siglip2": ("Siglip2VisionModel", "pooler_output", {}),
    "blip-2": ("Blip2VisionModel", "pooler_output", {"key_mapping": {r"^vision_model\.": ""}}),
    "dinov2": ("Dinov2Model", "pooler_output", {}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "pooler_output", {}),
}
"""Type of the configuration to class, output and loading options."""
