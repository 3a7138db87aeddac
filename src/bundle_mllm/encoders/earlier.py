"""Reuse the features of an earlier encoding for items whose sources have not changed.

Knows nothing about how items are encoded.

A file beside the features holds a digest of the source of each row. Only this machine can use it, so it is hidden and
never published; without it, everything is encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from bundle_mllm.data.features import FEATURES, PRESENT
from bundle_mllm.data.files import atomic_path
from bundle_mllm.encoders.batches import Rows

SOURCES_FOLDER = ".sources"
"""Where the digests are, in a folder of features."""
_DIGESTS, _OF = "digests", "of"
_WIDTH = 32  # bytes of a digest


def save_digests(features: Path, modality: str, digests: np.ndarray, sha256: str) -> None:
    """Write the digest of each row's source, `[num_items, 32]` uint8, beside features whose file has this SHA-256.

    Zeros stand for a row that has to be encoded again: it has no features, or something about its source is unusual.
    """
    with atomic_path(_path(features, modality)) as temporary:
        save_file({_DIGESTS: torch.from_numpy(digests)}, temporary, {_OF: sha256})


def read_digests(features: Path, modality: str, sha256: str) -> np.ndarray | None:
    """Return what `save_digests` wrote beside features whose file has this SHA-256, if it is there."""
    try:
        with safe_open(_path(features, modality), "np") as file:
            return file.get_tensor(_DIGESTS) if (file.metadata() or {}).get(_OF) == sha256 else None
    except (OSError, SafetensorError):
        return None


def find_earlier(features: Path, modality: str, sha256: str, digests: Sequence[bytes]) -> list[int | None]:
    """Return the row of the earlier features that each source has, if any.

    Args:
        features: The folder of features.
        modality: Their modality.
        sha256: The digest of the file of earlier features, made by the same encoder.
        digests: Those of the sources.
    """
    earlier = read_digests(features, modality, sha256)
    if earlier is None:
        return [None] * len(digests)
    row_of = {digest.tobytes(): row for row, digest in enumerate(earlier) if digest.any()}
    return [row_of.get(digest) for digest in digests]


def read_earlier(path: Path, rows: Sequence[int], digests: Sequence[bytes]) -> Rows:
    """Read rows of a file of earlier features; the digests are those of their sources."""
    tensors, index = load_file(path), torch.tensor(rows)
    features, present = tensors[FEATURES][index].float(), tensors[PRESENT][index].bool()
    table = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).view(-1, _WIDTH)
    return Rows(features, present, table, ())


def digests_of_rows(num_items: int, parts: Sequence[tuple[Sequence[int], Rows]]) -> np.ndarray:
    """Return what `save_digests` takes, given the catalog rows of each part."""
    digests = np.zeros((num_items, _WIDTH), dtype=np.uint8)
    for rows, part in parts:
        unusual = {position for position, _, _ in part.issues}
        kept = [n for n, is_present in enumerate(part.present.tolist()) if is_present and n not in unusual]
        digests[np.array(rows, dtype=np.int64)[kept]] = part.digests.numpy()[kept]
    return digests


def _path(features: Path, modality: str) -> Path:
    return features / SOURCES_FOLDER / f"{modality}.safetensors"
