"""Select what to encode: the requested modalities, or all that need no download; features of other origin stay.

Knows nothing about how an encoder works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from bundle_mllm.data.features import find_features, read_feature_manifest
from bundle_mllm.data.files import sha256
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.tables import find_table
from bundle_mllm.encoders.base import ItemEncoder
from bundle_mllm.encoders.relational import NUM_FOLDS
from bundle_mllm.encoders.settings import EncoderOptions
from bundle_mllm.errors import BundleMLLMError

DEFAULTS: Mapping[str, str] = {
    "visual": "descriptor",
    "acoustic": "descriptor",
    "textual": "tfidf",
    "user_item": "lightgcn",
    "bundle_item": "svd",
}
"""The default encoder of each modality; none of them needs a download."""

MARK = "encoded_by"
"""Metadata key for the encoder in features files that `encode` made, so that no others are replaced."""


def requested(options: EncoderOptions) -> list[tuple[str, str | ItemEncoder]]:
    """Return (modality, spec or encoder) for each that is named."""
    named = {"visual": options.visual, "acoustic": options.acoustic, "textual": options.textual}
    selected = [(modality, spec) for modality, spec in named.items() if spec is not None]
    relational = options.relational
    if isinstance(relational, str):
        relational = [part.strip() for part in relational.split(",") if part.strip()]
    elif not isinstance(relational, Sequence):
        relational = [] if relational is None else [relational]
    for spec in relational:
        modality, _, method = spec.partition(":") if isinstance(spec, str) else (spec.modality, "", spec)
        selected.append((modality, method))
    return selected


def available(folder: DatasetFolder) -> list[tuple[str, str]]:
    """Return (modality, spec of `DEFAULTS`) for each modality that a folder has data of.

    Raises:
        BundleMLLMError: If it has none.
    """
    has = {
        "visual": any(item.image for item in folder.catalog),
        "acoustic": any(item.audio for item in folder.catalog),
        "textual": any(item.text for item in folder.catalog),
        "user_item": find_table(folder.path, "interactions") is not None,
        "bundle_item": len(folder.bundles.train) >= NUM_FOLDS,  # fewer are not cross-fitted
    }
    selected = [(modality, spec) for modality, spec in DEFAULTS.items() if has[modality]]
    if not selected:
        raise BundleMLLMError(
            f"{folder.path} has nothing to encode: its items have neither `image` nor `audio` nor text, it has no "
            f"interactions table and fewer than {NUM_FOLDS} training bundles; add one of them."
        )
    return selected


def existing(features: Path, modality: str) -> tuple[Path, str | None] | None:
    """Return the file of a modality's features, if there is one, and the encoder that `encode` made it with, if any.

    The mark in the file counts, since the manifest is written after it; the manifest does where the file is unreadable
    or has no mark.
    """
    path = find_features(features).get(modality) if features.is_dir() else None
    if path is None:
        return None
    entry = read_feature_manifest(features).get(modality, {})
    provenance = entry.get("provenance", {}) if entry.get("file") == path.name else {}
    recorded = provenance.get("encoder") if "sources_sha256" in provenance else None
    try:
        with safe_open(path, framework="pt") as file:
            mark = (file.metadata() or {}).get(MARK)
    except SafetensorError:
        return path, recorded
    return path, mark or (recorded if recorded and entry.get("sha256") == sha256(path) else None)
