"""Find encoders by short texts (`descriptor`, `open_clip:ViT-B-32/laion2b_s34b_b79k`, …), or by a folder's data.

Knows nothing about how an encoder works; imports the models of the requested ones only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from operator import attrgetter

import torch

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.tables import find_table
from bundle_mllm.encoders.base import ItemEncoder
from bundle_mllm.encoders.relational import NUM_FOLDS
from bundle_mllm.encoders.settings import EncoderOptions
from bundle_mllm.errors import BundleMLLMError

logger = logging.getLogger(__name__)


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
        "sentence_transformers": EncoderEntry("sentence_models", "SentenceModelOfPictures", "clip-ViT-B-32"),
    },
    "acoustic": {
        "descriptor": EncoderEntry("descriptors", "SoundDescriptor"),
        "clap": EncoderEntry("acoustic", "ClapEncoder.load", "laion/clap-htsat-unfused"),
        "laion": EncoderEntry("acoustic", "ClapEncoder.load_laion", "630k-audioset-best.pt"),
    },
    "textual": {
        "tfidf": EncoderEntry("textual", "TfidfEncoder"),
        "transformers": EncoderEntry("textual", "SentenceEncoder", "sentence-transformers/all-MiniLM-L6-v2"),
        "sentence_transformers": EncoderEntry("sentence_models", "SentenceModelOfTexts", "all-MiniLM-L6-v2"),
    },
    "attributes": {
        "all": EncoderEntry("attributes", "AttributeEncoder"),
        "columns": EncoderEntry("attributes", "AttributeEncoder.of_columns", "price,brand"),
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
            "with bundle_mllm.data.features.write_modality."
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


def requested(options: EncoderOptions) -> list[tuple[str, str | ItemEncoder]]:
    """Return (modality, spec or encoder) for each that is named."""
    named = {
        field.name: getattr(options, field.name) for field in fields(EncoderOptions) if field.name != "relational"
    }
    selected = [(modality, spec) for modality, spec in named.items() if spec is not None]
    relational = options.relational
    if isinstance(relational, str) or not isinstance(relational, Sequence):
        relational = [] if relational is None else [relational]
    for spec in relational:
        for each in spec.replace(",", " ").split() if isinstance(spec, str) else [spec]:
            modality, _, method = each.partition(":") if isinstance(each, str) else (each.modality, "", each)
            selected.append((modality, method))
    return selected


def has_attributes(folder: DatasetFolder) -> bool:
    """Return whether other columns of the items table say anything; log why not, if there are any."""
    from bundle_mllm.encoders.attributes import choose_attributes

    choice = choose_attributes(folder)
    if choice.left_out and not choice.columns:
        left_out = ", ".join(f"{name} ({reason})" for name, reason in choice.left_out.items())
        logger.warning(f"attributes: no column is encoded; left out: {left_out}")
    return bool(choice.columns)


DEFAULTS: Mapping[str, tuple[str, Callable[[DatasetFolder], bool]]] = {
    "visual": ("descriptor", lambda folder: any(item.image for item in folder.catalog)),
    "acoustic": ("descriptor", lambda folder: any(item.audio for item in folder.catalog)),
    "textual": ("tfidf", lambda folder: any(item.text for item in folder.catalog)),
    "attributes": ("all", has_attributes),
    "user_item": ("lightgcn", lambda folder: find_table(folder.path, "interactions") is not None),
    "bundle_item": ("svd", lambda folder: len(folder.bundles.train) >= NUM_FOLDS),  # fewer are not cross-fitted
}
"""The default encoder of each modality, which needs no download, and whether a folder has data of the modality."""


def available(folder: DatasetFolder, kept: Collection[str] = ()) -> list[tuple[str, str]]:
    """Return (modality, spec of `DEFAULTS`) for each modality that a folder has data of.

    Args:
        folder: The dataset folder.
        kept: Modalities whose encoders a model folder keeps; which columns are attributes is decided then.

    Raises:
        BundleMLLMError: If it has none.
    """
    selected = [
        (modality, spec)
        for modality, (spec, has_data) in DEFAULTS.items()
        if (modality == "attributes" and modality in kept) or has_data(folder)
    ]
    if not selected:
        raise BundleMLLMError(
            f"{folder.path} has nothing to encode: its items have neither `image` nor `audio` nor text nor other "
            f"columns that say anything, it has no interactions table and fewer than {NUM_FOLDS} training bundles; "
            "add one of them."
        )
    return selected
