"""Find an encoder by a short text: `descriptor`, `open_clip:ViT-B-32/laion2b_s34b_b79k`, `transformers:NAME`, …

Knows nothing about how an encoder works; imports only the requested one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter

import torch

from bundle_mllm.encoders.base import ItemEncoder
from bundle_mllm.errors import BundleMLLMError


@dataclass(frozen=True)
class EncoderEntry:
    """Where the code of an encoder is: a module of this package, and what makes the encoder.

    It is called with nothing or, where there is an `example` of a model, with a model and a device.
    """

    module: str
    maker: str
    example: str | None = None


ENCODERS: Mapping[str, Mapping[str, EncoderEntry]] = {
    "visual": {
        "descriptor": EncoderEntry("descriptors", "ImageDescriptor"),
        "open_clip": EncoderEntry("visual", "OpenClipEncoder", "ViT-B-32/laion2b_s34b_b79k"),
        "transformers": EncoderEntry("visual", "VisionTowerEncoder", "google/siglip2-base-patch16-224"),
    },
    "acoustic": {
        "descriptor": EncoderEntry("descriptors", "SoundDescriptor"),
        "clap": EncoderEntry("acoustic", "ClapEncoder.load", "laion/clap-htsat-unfused"),
        "laion": EncoderEntry("acoustic", "ClapEncoder.load_laion", "630k-audioset-best.pt"),
    },
    "textual": {
        "tfidf": EncoderEntry("textual", "TfidfEncoder"),
        "transformers": EncoderEntry("textual", "SentenceEncoder", "sentence-transformers/all-MiniLM-L6-v2"),
    },
    "user_item": {
        "svd": EncoderEntry("relational", "UserItemEncoder.svd"),
        "lightgcn": EncoderEntry("relational", "UserItemEncoder.lightgcn"),
    },
    "bundle_item": {
        "svd": EncoderEntry("relational", "BundleItemEncoder.svd"),
        "lightgcn": EncoderEntry("relational", "BundleItemEncoder.lightgcn"),
    },
}
"""Every encoder by modality and name."""


def make_encoder(modality: str, spec: str | ItemEncoder, device: torch.device) -> ItemEncoder:
    """Make the encoder that a spec names; an encoder is returned as it is.

    Args:
        modality: A key of `ENCODERS`.
        spec: A name of `ENCODERS[modality]`, followed by a colon and a model where it takes one.
        device: Where a model runs.

    Raises:
        BundleMLLMError: If there is no such encoder, or it cannot be loaded.
    """
    if not isinstance(spec, str):
        return spec
    name, _, model = spec.partition(":")
    if modality not in ENCODERS:
        raise BundleMLLMError(
            f"No encoder makes the modality {modality!r}: choose from {', '.join(ENCODERS)}, or write the features "
            "with bundle_mllm.data.write_modality."
        )
    entry = ENCODERS[modality].get(name)
    if entry is None or bool(model) != bool(entry.example):
        known = ", ".join(
            f"{key}:MODEL (such as {each.example})" if each.example else key
            for key, each in ENCODERS[modality].items()
        )
        raise BundleMLLMError(f"There is no {modality} encoder {spec!r}: choose from {known}.")
    make = attrgetter(entry.maker)(import_module(f"{__package__}.{entry.module}"))
    return make(model, device) if entry.example else make()
