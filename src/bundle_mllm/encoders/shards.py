"""Keep the finished parts of an encoding on disk, so that a killed run continues where it stopped.

Knows nothing about how items are encoded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bundle_mllm.data.files import atomic_path
from bundle_mllm.encoders.batches import Rows, digest_source

SHARD_BATCHES = 4
"""Batches per shard: at most this much work is lost when a run is killed."""
_THREADS = 8


class Shards:
    """The items of one modality in batches and shards, and the files of the shards that are done.

    A batch never crosses a shard's border, so a batch holds the same items whenever and wherever it is encoded.

    Args:
        folder: Where the files of all runs are kept.
        modality: The modality.
        identity: All that the bytes of a shard depend on beyond the content of the items' sources: encoder, device,
            items. Another identity has other files.
        sources: The source of each item of the catalog.
        batch_size: Items per batch.
    """

    def __init__(
        self,
        folder: Path,
        modality: str,
        identity: Mapping[str, Any],
        sources: Sequence[str | None],
        batch_size: int,
    ):
        self._all, self._modality = folder, modality
        self.rows = [row for row, source in enumerate(sources) if source is not None]
        identity = {**identity, "batch_size": batch_size, "shard_batches": SHARD_BATCHES, "rows": self.rows}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.folder = folder / f"{modality}-{digest[:16]}"
        self._sources = sources
        self._batch_size = batch_size
        self._size = batch_size * SHARD_BATCHES

    def __len__(self) -> int:
        return -(-len(self.rows) // self._size)

    def shard_rows(self, shard: int) -> list[int]:
        """Return the catalog rows of a shard."""
        return self.rows[shard * self._size : (shard + 1) * self._size]

    def batches(self, shard: int) -> list[list[int]]:
        """Return the catalog rows of each batch of a shard."""
        rows = self.shard_rows(shard)
        return [rows[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]

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

    def pending(self, root: Path | None) -> list[int]:
        """Return the shards that are not done, or whose sources have changed since.

        Args:
            root: The dataset folder, links resolved; `None` if the sources are texts.
        """
        pending = []
        for shard in range(len(self)):
            done = self.load(shard)
            if done is None or done.digests.numpy().tobytes() != digests(root, self._texts(shard)):
                pending.append(shard)
        return pending

    def _texts(self, shard: int) -> list[str]:
        return [self._sources[row] or "" for row in self.shard_rows(shard)]

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.safetensors"

    def delete(self) -> None:
        """Delete the files of this modality, of this and of earlier runs."""
        for folder in self._all.glob(f"{self._modality}-*"):
            shutil.rmtree(folder, ignore_errors=True)
        if self._all.is_dir() and not any(self._all.iterdir()):
            self._all.rmdir()


def digests(root: Path | None, sources: Iterable[str]) -> bytes:
    """Return the SHA-256 of each source, one after another; see `batches.digest_source`."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return b"".join(pool.map(lambda source: digest_source(root, source)[0], sources))
