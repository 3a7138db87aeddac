"""Encode items batch by batch: worker processes read their files, the model embeds what they read.

It must not know any particular model, nor where features are stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bundle_mllm.data.files import sha256
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.encoders.base import Encoded, Problem, Progress
from bundle_mllm.encoders.media import UnreadableFileError
from bundle_mllm.errors import BundleMLLMError

FEW_ITEMS = 256
"""Up to this many items are read in this process unless told otherwise: starting workers would take longer."""
MAX_WORKERS = 8


@dataclass(frozen=True)
class Reading:
    """What a reader made of one file or text.

    Attributes:
        inputs: What `embed` takes, by name, `[windows, …]` each; one window, or several that are averaged.
        note: What the owner of the file may want to know, or `None`.
    """

    inputs: Mapping[str, torch.Tensor]
    note: str | None = None


class BatchEncoder(ABC):
    """An encoder whose items do not depend on each other, so that the work can be cut up, resumed and spread.

    Attributes:
        name: Name of the model or method; goes into the manifest.
        modality: The modality it makes.
        dim: Length of a vector.
        field: What of an item it reads.
        batch_size: How many items are embedded at once unless told otherwise.
        device: Where `embed` runs.
        provenance: What else the manifest says of it, as JSON values; features count as up to date as long as it and
            the items' files stay the same.
    """

    name: str
    modality: str
    dim: int
    field: Literal["image", "audio", "text"]
    batch_size: int = 64
    device: torch.device = torch.device("cpu")
    provenance: Mapping[str, Any]
    volatile: ClassVar[tuple[str, ...]] = ("precision", "revision", "versions")
    """The parts of `provenance` whose change alone is no reason to encode again."""

    @property
    @abstractmethod
    def reader(self) -> Callable[[Any], Reading]:
        """What turns a path (or a text) into a `Reading` or raises `UnreadableFileError`; it goes to worker processes.

        It can be pickled, and the same source gives the same reading.
        """

    @abstractmethod
    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Turn inputs `[n, …]` on `device` into vectors `[n, dim]`."""

    def pool(self, windows: torch.Tensor) -> torch.Tensor:
        """Turn the vectors `[windows, dim]` of one item into its own, `[dim]`."""
        return windows.mean(dim=0)

    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Encode all items of a folder in this process, in one go."""
        sources = item_sources(self.field, folder)
        rows = [row for row, source in enumerate(sources) if source is not None]
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        features = np.zeros((len(sources), self.dim), dtype=np.float32)  # [num_items, dim]
        present = np.zeros(len(sources), dtype=bool)  # [num_items]
        problems: list[Problem] = []
        done = len(sources) - len(rows)
        read = read_batches(self, source_root(self, folder), sources, batches, workers=0)
        for chosen, batch in zip(batches, read, strict=True):
            result = embed_batch(self, batch, self.batch_size).to_host()
            features[chosen], present[chosen] = result.features.numpy(), result.present.numpy()
            problems += result.problems(chosen, folder, sources)
            done += len(chosen)
            if progress is not None:
                progress(done, len(sources))
        return Encoded(features, present, tuple(problems))


def item_sources(field: str, folder: DatasetFolder) -> list[str | None]:
    """Return what an encoder reads of each item: a path relative to the folder, a text, or `None`."""
    if field == "text":
        return [item.text or None for item in folder.catalog]
    return [item.image if field == "image" else item.audio for item in folder.catalog]


@dataclass(frozen=True)
class Rows:
    """Features of some items, and what they were made of.

    Attributes:
        features: `[n, dim]` float32; zero where absent.
        present: `[n]` bool.
        digests: `[n, 32]` uint8, SHA-256 of each source (see `digest_source`).
        reports: (position, reason, whether the item has features nevertheless) of each problem.
    """

    features: torch.Tensor
    present: torch.Tensor
    digests: torch.Tensor
    reports: tuple[tuple[int, str, bool], ...]

    def to_host(self) -> Rows:
        """Wait for the device; vectors of NaN or infinity become problems."""
        features, present = self.features.cpu(), self.present.clone()
        bad = present & ~features.isfinite().all(dim=1)
        if not bad.any():
            return Rows(features, present, self.digests, self.reports)
        features, present[bad] = features.masked_fill(bad[:, None], 0.0), False
        worse = ((int(position), "described by NaN or infinity", False) for position in bad.nonzero()[:, 0])
        return Rows(features, present, self.digests, (*self.reports, *worse))

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
                for position, reason, used in part.reports
            ),
        )

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return everything as tensors, for a file or another machine."""
        return {
            "features": self.features,
            "present": self.present.to(torch.uint8),
            "digests": self.digests,
            "reports": _to_tensor(self.reports),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Rows:
        """Undo `to_tensors`."""
        reports = _from_tensor(tensors["reports"])
        return cls(tensors["features"], tensors["present"].bool(), tensors["digests"], reports)

    def problems(self, rows: Sequence[int], folder: DatasetFolder, sources: Sequence[str | None]) -> list[Problem]:
        """Name the items of the reports, given the catalog row of each position."""
        ids = folder.catalog.item_ids
        return [
            Problem(ids[rows[position]], sources[rows[position]] or "", reason, used)
            for position, reason, used in self.reports
        ]


@dataclass(frozen=True)
class Batch:
    """What was read for some items.

    Attributes:
        inputs: What `embed` takes, by name, `[windows of all items, …]` each; empty if nothing could be read.
        counts: `[n]` int64, number of windows per item; 0 where absent.
        digests: As in `Rows`.
        reports: As in `Rows`.
    """

    inputs: dict[str, torch.Tensor]
    counts: torch.Tensor
    digests: torch.Tensor
    reports: tuple[tuple[int, str, bool], ...]

    def pin_memory(self) -> Batch:
        """Called by torch's DataLoader: page-locked inputs reach a GPU while it computes."""
        inputs = {name: value.pin_memory() for name, value in self.inputs.items()}
        return Batch(inputs, self.counts, self.digests, self.reports)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return everything as tensors, for the way to another machine."""
        inputs = {f"inputs.{name}": value.contiguous() for name, value in self.inputs.items()}
        return {"counts": self.counts, "digests": self.digests, "reports": _to_tensor(self.reports), **inputs}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Batch:
        """Undo `to_tensors`."""
        inputs = {name.removeprefix("inputs."): v for name, v in tensors.items() if name.startswith("inputs.")}
        return cls(inputs, tensors["counts"], tensors["digests"], _from_tensor(tensors["reports"]))


def _to_tensor(reports: Sequence[tuple[int, str, bool]]) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(reports).encode()), dtype=torch.uint8)


def _from_tensor(reports: torch.Tensor) -> tuple[tuple[int, str, bool], ...]:
    return tuple(tuple(report) for report in json.loads(reports.numpy().tobytes()))


class Readings(Dataset):
    """Reads items by row; for worker processes."""

    def __init__(self, reader: Callable[[Any], Reading], root: Path | None, sources: Sequence[str | None]):
        self._reader, self._root, self._sources = reader, root, sources

    def __getitem__(self, row: int) -> tuple[bytes, Reading | str]:
        """Return what `read_source` returns for an item."""
        return read_source(self._reader, self._root, self._sources[row] or "")

    def __len__(self) -> int:
        return len(self._sources)


def source_root(encoder: BatchEncoder, folder: DatasetFolder) -> Path | None:
    """Return the folder that an encoder's sources are relative to, links resolved; `None` if they are texts."""
    return None if encoder.field == "text" else folder.path.resolve()


def read_source(reader: Callable[[Any], Reading], root: Path | None, source: str) -> tuple[bytes, Reading | str]:
    """Return the digest of an item's source and what was read, or the reason why nothing was."""
    digest, found = digest_source(root, source)
    if isinstance(found, str) and root is not None:
        return digest, found
    try:
        return digest, reader(found)
    except UnreadableFileError as error:
        return digest, str(error)
    except Exception as error:  # A decoder may fail on a broken file in any way; that must not stop the run.
        return digest, f"cannot be read ({type(error).__name__})"


def collate(found: Sequence[tuple[bytes, Reading | str]]) -> Batch:
    """Put what was read for several items into one batch."""
    readings = [reading if isinstance(reading, Reading) else None for _, reading in found]
    used = [reading for reading in readings if reading is not None]
    names = used[0].inputs if used else ()
    reports = []
    for position, (_, reading) in enumerate(found):
        reason = reading.note if isinstance(reading, Reading) else reading
        if reason is not None:
            reports.append((position, reason, isinstance(reading, Reading)))
    return Batch(
        {name: torch.cat([reading.inputs[name] for reading in used]) for name in names},
        torch.tensor([0 if r is None else len(next(iter(r.inputs.values()))) for r in readings]),
        torch.frombuffer(bytearray(b"".join(digest for digest, _ in found)), dtype=torch.uint8).view(-1, 32),
        tuple(reports),
    )


def digest_source(root: Path | None, source: str) -> tuple[bytes, Path | str]:
    """Tell the content of an item's source.

    Args:
        root: The dataset folder, links resolved; `None` if the source is a text.
        source: The text, or a path relative to the folder.

    Returns:
        SHA-256 of the file's bytes or of the text, and the file, the text, or the reason why there is no such file
        (then the digest is that of the reason, so that a file which appears later counts as a change).
    """
    if root is None:
        return hashlib.sha256(source.encode()).digest(), source
    try:
        file = _inside(root, source)
        return bytes.fromhex(sha256(file)), file
    except UnreadableFileError as error:
        reason = str(error)
    except OSError:
        reason = "cannot be opened"
    return hashlib.sha256(reason.encode()).digest(), reason


def _inside(root: Path, path: str) -> Path:
    """Return the file that `path` names, if it exists and lies inside `root`, links followed."""
    try:
        file = (root / path).resolve()
        if not file.is_relative_to(root):
            raise UnreadableFileError("the path leaves the dataset folder")
        if not file.is_file():
            raise UnreadableFileError("no such file")
        if file.stat().st_size == 0:
            raise UnreadableFileError("the file is empty")
    except (OSError, ValueError, RuntimeError) as error:  # A name too long, a NUL in it, a loop of links.
        raise UnreadableFileError("not a path that can be followed") from error
    return file


def read_batches(
    encoder: BatchEncoder,
    root: Path | None,
    sources: Sequence[str | None],
    batches: Sequence[Sequence[int]],
    workers: int | None = None,
) -> Iterator[Batch]:
    """Read batches of items ahead of their use.

    Args:
        encoder: Whose reader to use.
        root: See `source_root`.
        sources: What to read of each item of the catalog.
        batches: Rows of the catalog; one batch comes out for each.
        workers: Processes that read; 0 reads in this one. `None` takes one per processor, at most 8, and 0 for up to
            256 items.

    Raises:
        BundleMLLMError: If a process dies (a decoder crashed, or memory ran out).
    """
    if workers is None:
        many = sum(len(rows) for rows in batches) > FEW_ITEMS
        workers = min(MAX_WORKERS, _num_processors()) if many else 0
    workers = min(workers, len(batches))
    loader = DataLoader(
        Readings(encoder.reader, root, sources),
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]  # any iterable of lists of rows
        collate_fn=collate,
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


def _num_processors() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@torch.inference_mode()
def embed_batch(encoder: BatchEncoder, batch: Batch, batch_size: int) -> Rows:
    """Embed what was read, at most `batch_size` windows at once.

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
    return Rows(features, present, batch.digests, batch.reports)
