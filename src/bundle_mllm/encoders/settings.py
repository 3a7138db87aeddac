"""Settings of `encode_folder`.

Knows nothing about how an encoder works; imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundle_mllm.encoders.base import ItemEncoder
from bundle_mllm.settings import Settings


@dataclass(frozen=True, kw_only=True)
class EncoderOptions(Settings):
    """The encoder of each modality."""

    visual: str | ItemEncoder | None = None
    """descriptor, open_clip:NAME/TAG, open_clip:hf-hub:ORG/NAME, open_clip:local-dir:PATH, transformers:NAME (CLIP,
    SigLIP 2, BLIP-2, DINOv2; a Hub name or a folder), or sentence_transformers:NAME (the same)."""
    acoustic: str | ItemEncoder | None = None
    """descriptor, clap:NAME (a Hub name or a folder), or laion:PATH.pt (a checkpoint of LAION)."""
    textual: str | ItemEncoder | None = None
    """tfidf, transformers:NAME (a sentence encoder; a Hub name or a folder), or sentence_transformers:NAME (with the
    model's own pooling)."""
    attributes: str | ItemEncoder | None = None
    """all (of the other columns of the items table, those that say something), or columns:PRICE,BRAND (named ones)."""
    relational: tuple[str | ItemEncoder, ...] | str | ItemEncoder | None = None
    """user_item:lightgcn or user_item:svd (from the interactions), bundle_item:lightgcn or bundle_item:svd (from the
    training bundles; features without each fold of these are written, too), or one of each."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Settings):
    """Where the work is done."""

    engine: Literal["local", "ray"] = "local"
    """local, or ray (Ray Data: the cluster of RAY_ADDRESS, or this machine)."""
    device: str | None = None
    """Where models run; the GPU if there is one."""
    batch_size: int | None = None
    """Items embedded at once; the encoder's choice if not given."""
    workers: int | None = None
    """Processes that read files; Ray decides by itself."""


@dataclass(frozen=True)
class EncodingSettings(EngineOptions, EncoderOptions):
    """Turn pictures, sounds, texts, interactions and bundles of a dataset folder into item features.

    Each modality is a file. Without any choice of an encoder, all that the folder has data of is encoded by those
    that need no download (descriptor, tfidf, lightgcn, svd); features that another encoder made are kept. A killed run
    continues when the same command is given again, and after changes only new pictures, sounds and texts are encoded.
    `accelerate launch -m bundle_mllm.cli encode` shares the work among processes. open_clip needs
    bundle-mllm[encoders], ray needs bundle-mllm[ray]; docs/guides/encoders.md has the table of encoders, their widths
    and the licenses of their weights.
    """

    data: Path
    """Dataset folder; its features/ is written."""
    like: Path | None = None
    """Model folder whose encoders are used, with what they fitted, so that its training can be continued on the folder
    (`train --continue-from`)."""
    refit: bool = False
    """Fit vocabularies and statistics anew, too. They are kept otherwise as long as they describe the items, so that
    features of earlier items stay what they were."""
    strict: bool = False
    """Stop at anything that would be left out, such as a file that cannot be read."""
    allow_leakage: bool = False
    """Encode user_item even if the interactions encode held-out bundles, and named columns that name bundles."""
    progress: Callable[[str, int, int], None] | None = None
    """Called by the main process with (modality, items done, items in all) of its own share, and with
    ("bundle_item, cross-fitting", folds done, folds in all)."""
