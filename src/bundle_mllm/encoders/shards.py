"""Keep the finished parts of an encoding on disk, so that a killed run continues where it stopped.

Knows nothing about how items are encoded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bundle_mllm.data.files import atomic_path
from bundle_mllm.encoders.batches import Rows, Sources, cut

SHARD_BATCHES = 4
"""Batches per shard: at most this much work is lost when a run is killed."""


class Shards:
    """The items of one modality in batches and shards, and the files of the shards that are done.

    A batch never crosses a shard's border, so a batch holds the same items whenever and wherever it is encoded.

    Args:
        folder: Where the files of all runs are kept.
        modality: The modality.
        identity: All that the bytes of a shard depend on beyond the content of the items' sources: encoder, device,
            items. Another identity has other files.
        sources: The sources of the catalog's items.
        batch_size: Items per batch.
        rows: The catalog rows to encode.

    Attributes:
        rows: The catalog rows of each shard.
        batches: The catalog rows of each batch of each shard.
    """

    def __init__(
        self,
        folder: Path,
        modality: str,
        identity: Mapping[str, Any],
        sources: Sources,
        batch_size: int,
        rows: Sequence[int],
    ):
        self._all, self._modality, self._sources = folder, modality, sources
        identity = {**identity, "batch_size": batch_size, "shard_batches": SHARD_BATCHES, "rows": list(rows)}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.folder = folder / f"{modality}-{digest[:16]}"
        self.rows = cut(rows, batch_size * SHARD_BATCHES)
        self.batches = [cut(rows, batch_size) for rows in self.rows]

    def __len__(self) -> int:
        return len(self.batches)

    def save(self, shard: int, rows: Rows) -> None:
        """Write a finished shard in one step."""
        with atomic_path(self._path(shard)) as temporary:
            save_file(rows.to_tensors(), temporary)

    def load(self, shard: int) -> Rows | None:
        """Read a finished shard, or return `None` if it is missing or cannot be read."""
        try:
            return Rows.from_tensors(load_file(self._path(shard)))
        except (OSError, SafetensorError):
            return None

    def pending(self) -> list[int]:
        """Return the shards that are not done, or whose sources have changed since."""
        pending = []
        for shard in range(len(self)):
            done = self.load(shard)
            if done is None or done.digest_list() != self._sources.digests(self.rows[shard]):
                pending.append(shard)
        return pending

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.safetensors"

    def delete(self) -> None:
        """Delete the files of this modality, of this and of earlier runs."""
        for folder in self._all.glob(f"{self._modality}-*"):
            shutil.rmtree(folder, ignore_errors=True)
        if self._all.is_dir() and not any(self._all.iterdir()):
            self._all.rmdir()
