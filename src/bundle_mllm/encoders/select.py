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
from bundle_mllm.encoders.batches import item_sources
from bundle_mllm.encoders.relational import NUM_FOLDS
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


def requested(
    visual: str | ItemEncoder | None,
    acoustic: str | ItemEncoder | None,
    textual: str | ItemEncoder | None,
    relational: str | ItemEncoder | Sequence[str | ItemEncoder] | None,
) -> list[tuple[str, str | ItemEncoder]]:
    """Return (modality, spec or encoder) for each that is not `None`; see `encode_folder`."""
    named = {"visual": visual, "acoustic": acoustic, "textual": textual}
    selected = [(modality, spec) for modality, spec in named.items() if spec is not None]
    if isinstance(relational, str):
        relational = [part.strip() for part in relational.split(",") if part.strip()]
    elif not isinstance(relational, Sequence):
        relational = [] if relational is None else [relational]
    for spec in relational:
        if isinstance(spec, str):
            modality, _, method = spec.partition(":")
            selected.append((modality, method))
        else:
            selected.append((spec.modality, spec))
    return selected


def available(folder: DatasetFolder) -> list[tuple[str, str]]:
    """Return (modality, spec of `DEFAULTS`) for each modality that a folder has data of.

    Raises:
        BundleMLLMError: If it has none.
    """
    has = {
        "visual": any(item.image for item in folder.catalog),
        "acoustic": any(item.audio for item in folder.catalog),
        "textual": any(item_sources("text", folder)),
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


def kept_file(features: Path, modality: str, encoder: str) -> Path | None:
    """Return the file of a modality's features if another encoder made them; without a request, they stay.

    Args:
        features: The `features` folder; it need not exist.
        modality: The modality.
        encoder: Name of the encoder that would be run.

    Returns:
        The file, or `None` if there is none or this encoder made it.
    """
    path = _file(features, modality)
    return None if path is None or _encoder_of(features, modality, path) == encoder else path


def refuse_to_replace(features: Path, modality: str) -> None:
    """Refuse to replace features that `encode` did not make.

    Args:
        features: The `features` folder; it need not exist.
        modality: The modality to be written.

    Raises:
        BundleMLLMError: If `encode` did not make them.
    """
    path = _file(features, modality)
    if path is not None and _encoder_of(features, modality, path) is None:
        raise BundleMLLMError(
            f"{path} already holds modality {modality!r} and was not made by `encode`, which would replace it: delete "
            "it or move it out of this folder first, or leave this modality out."
        )


def _file(features: Path, modality: str) -> Path | None:
    return find_features(features).get(modality) if features.is_dir() else None


def _encoder_of(features: Path, modality: str, path: Path) -> str | None:
    """Return the encoder that `encode` made a file with, or `None` if it did not make it.

    The mark in the file counts, since the manifest is written after it; the manifest does where the file is unreadable
    or has no mark.
    """
    entry = read_feature_manifest(features).get(modality, {})
    provenance = entry.get("provenance", {}) if entry.get("file") == path.name else {}
    recorded = provenance.get("encoder") if "sources_sha256" in provenance else None
    try:
        with safe_open(path, framework="pt") as file:
            mark = (file.metadata() or {}).get(MARK)
    except SafetensorError:
        return recorded
    return mark or (recorded if recorded and entry.get("sha256") == sha256(path) else None)
