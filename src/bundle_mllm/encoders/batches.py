"""Encode items batch by batch: worker processes read their files, the model embeds the content.

Knows nothing about any particular model, nor where features are stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from bundle_mllm.data.files import sha256
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.encoders.base import Encoded, ItemIssue, Progress
from bundle_mllm.encoders.media import UnreadableFileError, file_below
from bundle_mllm.errors import BundleMLLMError

FEW_ITEMS = 256
"""Up to this many items are read in this process by default: starting workers would take longer."""
MAX_WORKERS = 8
_DIGESTING_THREADS = 8
_T = TypeVar("_T")


@dataclass(frozen=True)
class Reading:
    """The content of one file or text, ready to be embedded.

    Attributes:
        inputs: Arguments of `embed`, by name, `[windows, …]` each; one window, or several that are averaged.
        note: What is unusual about the file, or `None`.
    """

    inputs: Mapping[str, torch.Tensor]
    note: str | None = None


class BatchEncoder(ABC):
    """An encoder whose items do not depend on each other, so that the work can be cut up, resumed and spread.

    Attributes:
        name: Name of the model or method; goes into the manifest.
        modality: The modality of its features.
        dim: Length of a vector.
        field: The field of an item that it reads.
        batch_size: Items embedded at once by default.
        device: Where `embed` runs.
        reader: Turns a path (or a text) into a `Reading` or raises `UnreadableFileError`. It is sent to worker
            processes, so it can be pickled; the same source gives the same reading.
        provenance: Further entries of the manifest, as JSON values; features count as up to date as long as these and
            the items' files stay the same.
    """

    name: str
    modality: str
    dim: int
    field: Literal["image", "audio", "text"]
    batch_size: int = 64
    device: torch.device = torch.device("cpu")
    reader: Callable[[Any], Reading]
    provenance: Mapping[str, Any]
    volatile: ClassVar[tuple[str, ...]] = ("precision", "revision", "versions")
    """Keys of `provenance` whose change alone is no reason to encode again."""

    @abstractmethod
    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Turn inputs `[n, …]` on `device` into vectors `[n, dim]`."""

    def pool(self, windows: torch.Tensor) -> torch.Tensor:
        """Turn the vectors `[windows, dim]` of one item into its own, `[dim]`."""
        return windows.mean(dim=0)

    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Encode all items of a folder in this process, in one go."""
        sources = Sources(self.field, folder)
        batches = cut(sources.rows, self.batch_size)

        def parts() -> Iterator[tuple[Sequence[int], Rows]]:
            done = len(sources.of_item) - len(sources.rows)
            for number, rows in embed_batches(self, sources, batches, self.batch_size, workers=0):
                yield batches[number], rows
                done += len(batches[number])
                if progress is not None:
                    progress(done, len(sources.of_item))

        return put_together(self, folder, sources, parts())


class Sources:
    """What an encoder reads of each item of a folder.

    Attributes:
        root: The folder, links resolved; `None` if the sources are texts.
        of_item: A path relative to the folder, a text, or `None`, for each item of the catalog.
        rows: The catalog rows of the items that have a source.
    """

    def __init__(self, field: str, folder: DatasetFolder):
        self.root = None if field == "text" else folder.path.resolve()
        self.of_item: list[str | None] = [getattr(item, field) or None for item in folder.catalog]
        self.rows = [row for row, source in enumerate(self.of_item) if source is not None]

    def digests(self, rows: Sequence[int]) -> list[bytes]:
        """Return the SHA-256 of the source of each row; see `digest_source`."""
        with ThreadPoolExecutor(_DIGESTING_THREADS) as pool:
            return list(pool.map(lambda row: digest_source(self.root, self.of_item[row] or "")[0], rows))

    def sha256(self, digests: bytes) -> str:
        """Return SHA-256 over `rows` and the digests of their sources."""
        return hashlib.sha256(np.asarray(self.rows, dtype="<i8").tobytes() + digests).hexdigest()


def cut(entries: Sequence[_T], size: int) -> list[Sequence[_T]]:
    """Cut a sequence into parts of a length, the last of them maybe shorter."""
    return [entries[start : start + size] for start in range(0, len(entries), size)]


@dataclass(frozen=True)
class Rows:
    """Features of some items.

    Attributes:
        features: `[n, dim]` float32; zero where absent.
        present: `[n]` bool.
        digests: `[n, 32]` uint8, SHA-256 of each source (see `digest_source`).
        issues: (position, reason, whether the item has features nevertheless) of each issue.
    """

    features: torch.Tensor
    present: torch.Tensor
    digests: torch.Tensor
    issues: tuple[tuple[int, str, bool], ...]

    def to_host(self) -> Rows:
        """Wait for the device; vectors of NaN or infinity become issues."""
        features, present = self.features.cpu(), self.present.clone()
        bad = present & ~features.isfinite().all(dim=1)
        if bad.any():
            features, present[bad] = features.masked_fill(bad[:, None], 0.0), False
        more = ((position, "described by NaN or infinity", False) for position in bad.nonzero()[:, 0].tolist())
        return Rows(features, present, self.digests, (*self.issues, *more))

    @staticmethod
    def join(parts: Sequence[Rows]) -> Rows:
        """Put the rows of several batches one after another."""
        starts = np.cumsum([0, *(len(part.present) for part in parts)]).tolist()
        return Rows(
            torch.cat([part.features for part in parts]),
            torch.cat([part.present for part in parts]),
            torch.cat([part.digests for part in parts]),
            tuple(
                (start + position, reason, used)
                for start, part in zip(starts, parts, strict=False)
                for position, reason, used in part.issues
            ),
        )

    def digest_list(self) -> list[bytes]:
        """Return the digest of each source as bytes."""
        return [digest.tobytes() for digest in self.digests.numpy()]

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return everything as tensors, for a file."""
        return {
            "features": self.features,
            "present": self.present.to(torch.uint8),
            "digests": self.digests,
            "issues": torch.frombuffer(bytearray(json.dumps(self.issues).encode()), dtype=torch.uint8),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Rows:
        """Undo `to_tensors`."""
        issues = tuple(tuple(issue) for issue in json.loads(tensors["issues"].numpy().tobytes()))
        return cls(tensors["features"], tensors["present"].bool(), tensors["digests"], issues)


def put_together(
    encoder: BatchEncoder, folder: DatasetFolder, sources: Sources, parts: Iterable[tuple[Sequence[int], Rows]]
) -> Encoded:
    """Put parts into the order of the catalog, given the catalog rows of each."""
    features = np.zeros((len(sources.of_item), encoder.dim), dtype=np.float32)  # [num_items, dim]
    present = np.zeros(len(features), dtype=bool)  # [num_items]
    issues: list[ItemIssue] = []
    for rows, part in parts:
        part = part.to_host()
        features[rows], present[rows] = part.features.numpy(), part.present.numpy()
        for position, reason, used in part.issues:
            row = rows[position]
            issues.append(ItemIssue(folder.catalog.item_ids[row], sources.of_item[row] or "", reason, used))
    return Encoded(features, present, tuple(issues))


@dataclass(frozen=True)
class Batch:
    """The content of some items, ready to be embedded; `digests` and `issues` as in `Rows`.

    Attributes:
        inputs: Arguments of `embed`, by name, `[windows of all items, …]` each; empty if nothing could be read.
        counts: `[n]` int64, number of windows per item; 0 where absent.
    """

    inputs: dict[str, torch.Tensor]
    counts: torch.Tensor
    digests: torch.Tensor
    issues: tuple[tuple[int, str, bool], ...]

    def pin_memory(self) -> Batch:
        """Called by torch's DataLoader: page-locked inputs reach a GPU while it computes."""
        return replace(self, inputs={name: value.pin_memory() for name, value in self.inputs.items()})


def read_source(reader: Callable[[Any], Reading], root: Path | None, source: str) -> tuple[bytes, Reading | str]:
    """Return the digest of an item's source, and its content or the reason why it cannot be read."""
    digest, target = digest_source(root, source)
    if isinstance(target, str) and root is not None:
        return digest, target
    try:
        return digest, reader(target)
    except UnreadableFileError as error:
        return digest, str(error)
    except Exception as error:  # A decoder may fail on a broken file in any way; that must not stop the run.
        return digest, f"cannot be read ({type(error).__name__})"


def read_batch(reader: Callable[[Any], Reading], root: Path | None, sources: Sequence[str | None]) -> Batch:
    """Read the sources of some items."""
    results = [read_source(reader, root, source or "") for source in sources]
    readings = [reading if isinstance(reading, Reading) else None for _, reading in results]
    used = [reading for reading in readings if reading is not None]
    notes = (reading.note if isinstance(reading, Reading) else reading for _, reading in results)
    return Batch(
        {name: torch.cat([reading.inputs[name] for reading in used]) for name in (used[0].inputs if used else ())},
        torch.tensor([0 if r is None else len(next(iter(r.inputs.values()))) for r in readings]),
        torch.frombuffer(bytearray(b"".join(digest for digest, _ in results)), dtype=torch.uint8).view(-1, 32),
        tuple((at, note, readings[at] is not None) for at, note in enumerate(notes) if note is not None),
    )


def digest_source(root: Path | None, source: str) -> tuple[bytes, Path | str]:
    """Return SHA-256 of a text, and the text; or of a file's bytes, and the file below `root`.

    If the file cannot be opened, both are of the reason, so that a file which appears later counts as a change.
    """
    if root is None:
        return hashlib.sha256(source.encode()).digest(), source
    try:
        file, reason = file_below(root, source), "the file is empty"
        if file.stat().st_size:
            return bytes.fromhex(sha256(file)), file
    except UnreadableFileError as error:
        reason = str(error)
    except OSError:  # no permission
        reason = "cannot be opened"
    return hashlib.sha256(reason.encode()).digest(), reason


def read_batches(
    encoder: BatchEncoder, sources: Sources, batches: Sequence[Sequence[int]], workers: int | None = None
) -> Iterator[Batch]:
    """Read batches of items ahead of their use.

    Args:
        encoder: Whose reader to use.
        sources: The sources of the catalog's items.
        batches: Rows of the catalog, for each batch.
        workers: Processes that read; 0 reads in this one. `None` takes one per processor, at most 8, and 0 for up to
            256 items.

    Raises:
        BundleMLLMError: If a process dies (a decoder crashed, or memory ran out).
    """
    if workers is None:
        processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        workers = min(MAX_WORKERS, processors) if sum(map(len, batches)) > FEW_ITEMS else 0
    workers = min(workers, len(batches))
    loader = DataLoader(
        sources.of_item,  # pyright: ignore[reportArgumentType]  # any sequence
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]  # any iterable of lists of rows
        collate_fn=partial(read_batch, encoder.reader, sources.root),  # in the worker
        num_workers=workers,
        # Forked workers start at once and end when this process is killed; those of a fork server would stay.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=encoder.device.type == "cuda",
        generator=torch.Generator(),  # so that none is drawn from the caller's
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise BundleMLLMError(
            f"A process that reads files died ({str(error).splitlines()[0]}), most likely for lack of memory: start "
            "the same command again to continue, with fewer workers or a smaller batch if it dies again."
        ) from error


def embed_batches(
    encoder: BatchEncoder, sources: Sources, batches: Sequence[Sequence[int]], batch_size: int, workers: int | None
) -> Iterator[tuple[int, Rows]]:
    """Encode batches in this process; see [`read_batches`] and [`embed_batch`].

    Yields:
        The number of each batch and its rows, which are still on the device.
    """
    for number, batch in enumerate(read_batches(encoder, sources, batches, workers)):
        yield number, embed_batch(encoder, batch, batch_size)


@torch.inference_mode()
def embed_batch(encoder: BatchEncoder, batch: Batch, batch_size: int) -> Rows:
    """Embed the content of a batch, at most `batch_size` windows at once.

    The rows stay on the device: a GPU need not wait for the host between batches.
    """
    device = encoder.device
    present = batch.counts > 0  # [n]
    features = torch.zeros(len(present), encoder.dim, device=device)  # [n, dim]
    if present.any():
        inputs = {name: value.to(device, non_blocking=True) for name, value in batch.inputs.items()}
        total = int(batch.counts.sum())
        vectors = torch.cat(
            [
                encoder.embed({name: value[start : start + batch_size] for name, value in inputs.items()}).float()
                for start in range(0, total, batch_size)
            ]
        )  # [windows, dim]
        if total > int(present.sum()):
            vectors = torch.stack([encoder.pool(part) for part in vectors.split(batch.counts[present].tolist())])
        features.index_copy_(0, present.nonzero()[:, 0].to(device), vectors)
    return Rows(features, present, batch.digests, batch.issues)
