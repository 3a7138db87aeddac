"""Encode a dataset folder: run one encoder per modality and write its features into the folder.

Knows nothing about how an encoder works, nor about questions.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle_mllm.data.features import (
    FITTED_TO,
    MANIFEST,
    features_path,
    read_feature_manifest,
    renew_items_hash,
    write_modality,
)
from bundle_mllm.data.files import sha256
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import count_folds, remove_folds
from bundle_mllm.data.leakage import check_interactions
from bundle_mllm.data.tables import find_table
from bundle_mllm.encoders.base import Encoded, IssueGroup, ItemEncoder, group_issues
from bundle_mllm.encoders.batches import BatchEncoder, Rows, embed_batch, item_sources, read_batches, source_root
from bundle_mllm.encoders.distributed import Process
from bundle_mllm.encoders.registry import make_encoder
from bundle_mllm.encoders.relational import BundleItemEncoder
from bundle_mllm.encoders.select import MARK, available, kept_file, refuse_to_replace, requested
from bundle_mllm.encoders.settings import EncodingSettings
from bundle_mllm.encoders.shards import Shards, digests
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.settings import configured_by

PARTIAL = ".partial"
_FORMAT = 2  # of the files in PARTIAL
_ABANDONED = 3600  # seconds; no file takes that long to write


@dataclass(frozen=True)
class ModalitySummary:
    """The result of encoding one modality.

    Attributes:
        modality: Name of the modality.
        encoder: Name of the encoder.
        dim: Length of a vector.
        num_items: Number of items of the catalog.
        num_present: Number of items that have features.
        issues: Unusable and unusual sources by reason; an item without a source is absent and no issue.
        up_to_date: Whether the features existed already, made of the same sources.
        num_folds: Number of folds of the training bundles with out-of-fold features; `None` if the encoder makes none,
            0 if there are fewer bundles than folds.
        kept: Name of the file, if the modality was not requested and another encoder had made its features; all else
            is then unknown.
    """

    modality: str
    encoder: str
    dim: int
    num_items: int
    num_present: int
    issues: tuple[IssueGroup, ...]
    up_to_date: bool = False
    num_folds: int | None = None
    kept: str | None = None

    def __str__(self) -> str:
        if self.kept is not None:
            return (
                f"{self.modality}: kept {self.kept}, not made by the default encoder (name an encoder to make others)"
            )
        text = f"{self.modality}: {self.num_present} of {self.num_items} items, {self.dim} wide ({self.encoder})"
        if not self.num_present:
            text += ", so this modality is empty"
        elif self.num_folds is not None:
            text += f", cross-fitted in {self.num_folds} folds" if self.num_folds else ", too few bundles to cross-fit"
        return "\n  ".join([text + ", up to date" * self.up_to_date, *map(str, self.issues)])


@configured_by(EncodingSettings)
def encode_folder(settings: EncodingSettings) -> dict[str, ModalitySummary]:
    """Write `features/<modality>.safetensors` for each requested modality.

    An item whose file cannot be read is absent in that modality and an issue in the summary; the run goes on. A killed
    run continues when it is started again with the same arguments, and ends with the bytes of an uninterrupted one.
    Features that were made by the same encoder of the same items and files are left as they are; to compare, the files
    are read, but not decoded. Under `accelerate launch` the processes share the work, and must share the folder.

    Args:
        settings: Whose fields are the arguments: see `EncodingSettings`.

    Returns:
        One summary per modality, in the order in which they were made; under `accelerate launch`, nothing in processes
        other than the main one.

    Raises:
        BundleMLLMError: If an encoder is unknown, a model cannot be loaded, there is nothing to encode, requested
            features would replace some of other origin, the user log encodes held-out bundles, or `strict` refuses.
    """
    folder = DatasetFolder.open(settings.data)
    for name, value, least in (("batch_size", settings.batch_size, 1), ("workers", settings.workers, 0)):
        if value is not None and value < least:
            raise BundleMLLMError(f"{name} is {value}: give at least {least}, or leave it out.")
    features = folder.path / "features"
    selected = requested(settings.visual, settings.acoustic, settings.textual, settings.relational)
    process = Process.join(settings.device)
    if settings.engine == "ray" and process.count > 1:
        raise BundleMLLMError('engine="ray" and `accelerate launch` both spread the work: use one of them.')
    progress = settings.progress if process.is_main else None
    run = _Run(folder, process, settings.strict, settings.engine, settings.batch_size, settings.workers, progress)
    # All models are loaded before the first item is encoded: a wrong name shows at once, not after hours.
    makers = [_maker(modality, spec) for modality, spec in selected or available(folder)]
    encoders = [make(process.device) for make in makers]
    names = [encoder.modality for encoder in encoders]

    def check() -> list[str | None]:
        """Check the folder before anything is written to it; return the files to keep."""
        if features.exists() and not features.is_dir():
            raise BundleMLLMError(f"{features} is not a folder, so no features can be written there: move it away.")
        kept: list[str | None] = []
        for encoder in encoders:
            file = None if selected else kept_file(features, encoder.modality, encoder.name)
            kept.append(None if file is None else file.name)
            if file is None:
                features_path(features, encoder.modality)
                refuse_to_replace(features, encoder.modality)
                if encoder.modality == "user_item":
                    check_interactions(folder, allow_leakage=settings.allow_leakage)
        return kept

    for name in names:
        if names.count(name) > 1:
            raise BundleMLLMError(f"Two encoders make the modality {name!r}, which has one file: name one of them.")
    summaries = {}
    for encoder, make, kept in zip(encoders, makers, process.from_main(check), strict=True):
        if kept is not None:
            summaries[encoder.modality] = ModalitySummary(encoder.modality, "", 0, 0, 0, (), kept=kept)
        else:
            summaries[encoder.modality] = run.encode(encoder, make)
    return summaries if process.is_main else {}


def _maker(modality: str, spec: str | ItemEncoder) -> Callable[[torch.device], Any]:
    if isinstance(spec, str):
        return partial(make_encoder, modality, spec)
    return lambda device: spec


@dataclass(frozen=True)
class _Run:
    """Encodes the modalities of one call."""

    folder: DatasetFolder
    process: Process
    strict: bool
    engine: str
    batch_size: int | None
    workers: int | None
    progress: Callable[[str, int, int], None] | None

    @property
    def _features(self) -> Path:
        return self.folder.path / "features"

    def encode(self, encoder: ItemEncoder, make: Callable[[torch.device], Any]) -> ModalitySummary:
        if isinstance(encoder, BatchEncoder):
            return self._encode_batches(encoder, make)
        return self.process.from_main(lambda: self._encode_whole(encoder))

    def _encode_whole(self, encoder: ItemEncoder) -> ModalitySummary:
        """Run an encoder that needs all items together."""
        identity = {"encoder": encoder.name, "dim": encoder.dim, "sources_sha256": _tables_sha256(self.folder)}
        if isinstance(encoder, BundleItemEncoder):
            identity[FITTED_TO] = self.folder.bundles.train_sha256
        summary = self._up_to_date(encoder, identity)
        if summary is None:
            progress = None if self.progress is None else partial(self.progress, encoder.modality)
            encoded = encoder.encode(self.folder, progress)
            log_issues = _log_issues(self.folder) if encoder.modality == "user_item" else ()
            summary = self._write(encoder, encoded, identity, log_issues)
        return self._cross_fit(encoder, summary) if isinstance(encoder, BundleItemEncoder) else summary

    def _cross_fit(self, encoder: BundleItemEncoder, summary: ModalitySummary) -> ModalitySummary:
        """Make the out-of-fold features, unless they exist or there are too few bundles."""
        name = encoder.modality
        num_folds = count_folds(self._features, name)
        if num_folds:
            return replace(summary, num_folds=num_folds)
        store = self.folder.features([name])
        assert store is not None
        progress = None if self.progress is None else partial(self.progress, f"{name}, cross-fitting")
        out_of_fold = encoder.cross_fit(self.folder, store.load()[0][name].numpy(), progress)
        self._sweep(f"{name}.safetensors")
        if out_of_fold is None:
            remove_folds(self._features, name)
            return replace(summary, num_folds=0)
        out_of_fold.save(self.folder)
        return replace(summary, num_folds=out_of_fold.num_folds, up_to_date=False)

    def _encode_batches(self, encoder: BatchEncoder, make: Callable[[torch.device], Any]) -> ModalitySummary:
        """Encode the unfinished shards, each process its share, and put all together."""
        folder, process = self.folder, self.process
        sources = item_sources(encoder.field, folder)
        root = source_root(encoder, folder)
        batch_size = self.batch_size or encoder.batch_size
        identity = {"encoder": encoder.name, "dim": encoder.dim, **encoder.provenance}
        settings = {"device": encoder.device.type, "format": _FORMAT}
        shards = Shards(self._features / PARTIAL, encoder.modality, identity | settings, sources, batch_size)

        def sources_sha256() -> str:
            return _sources_sha256(shards.rows, digests(root, (sources[row] or "" for row in shards.rows)))

        def plan() -> tuple[ModalitySummary | None, list[int]]:
            done = self._up_to_date(encoder, identity, sources_sha256)
            if done:
                shards.delete()
            return done, [] if done else shards.pending(root)

        done, pending = process.from_main(plan)
        if done:
            return done
        own = pending[process.index :: process.count]
        left = sum(len(shards.shard_rows(shard)) for shard in own)
        others = sum(len(shards.shard_rows(shard)) for shard in pending) - left
        advance = _Counter(self.progress, encoder.modality, total=len(sources) - others, left=left)
        if self.engine == "ray":
            from bundle_mllm.encoders.ray_engine import encode_on_ray

            parts = encode_on_ray(make, encoder, root, sources, shards, own, batch_size, advance)
        else:
            parts = _encode_here(encoder, root, sources, shards, own, batch_size, self.workers, advance)
        for shard, rows in parts:
            shards.save(shard, rows)
        process.wait()
        return process.from_main(lambda: self._gather(encoder, identity, sources, shards))

    def _gather(
        self, encoder: BatchEncoder, identity: dict[str, Any], sources: Sequence[str | None], shards: Shards
    ) -> ModalitySummary:
        parts = [shards.load(shard) for shard in range(len(shards))]
        if lost := [shard for shard, part in enumerate(parts) if part is None]:
            raise BundleMLLMError(
                f"{len(lost)} of {len(parts)} parts of {encoder.modality!r} are not in {shards.folder}: all processes "
                "must see the dataset folder on one file system, and only one encoding of it may run; start again."
            )
        num_items = len(self.folder.catalog)
        features = np.zeros((num_items, encoder.dim), dtype=np.float32)  # [num_items, dim]
        present = np.zeros(num_items, dtype=bool)  # [num_items]
        issues, source_digests = [], []
        for shard, part in enumerate(parts):
            assert part is not None
            rows = shards.shard_rows(shard)
            features[rows], present[rows] = part.features.numpy(), part.present.numpy()
            issues += part.item_issues(rows, self.folder, sources)
            source_digests.append(part.digests.numpy().tobytes())
        identity = identity | {"sources_sha256": _sources_sha256(shards.rows, b"".join(source_digests))}
        summary = self._write(encoder, Encoded(features, present, tuple(issues)), identity)
        shards.delete()
        return summary

    def _up_to_date(
        self, encoder: ItemEncoder, identity: dict[str, Any], sources: Callable[[], str] | None = None
    ) -> ModalitySummary | None:
        """Return the summary of the existing features, if the encoder would make the same again.

        Where items have sources, rows depend on these alone, so that new ids or titles change nothing.
        """
        entry = read_feature_manifest(self._features).get(encoder.modality, {})
        provenance = entry.get("provenance", {})
        volatile = encoder.volatile if isinstance(encoder, BatchEncoder) else ()
        path = features_path(self._features, encoder.modality)
        if (
            any(provenance.get(key) != value for key, value in _as_json(identity).items() if key not in volatile)
            or entry.get("num_items") != len(self.folder.catalog)
            or entry.get("file") != path.name
            or not path.is_file()
            or entry.get("sha256") != sha256(path)
            or (sources is not None and provenance.get("sources_sha256") != sources())
            or "issues" not in provenance
        ):
            return None
        issues = tuple(IssueGroup(**{**group, "first": tuple(group["first"])}) for group in provenance["issues"])
        self._refuse(encoder.modality, issues)
        if entry.get("items_hash") != self.folder.catalog.content_hash:
            renew_items_hash(self._features, encoder.modality, self.folder.catalog.content_hash)
        return ModalitySummary(
            encoder.modality,
            encoder.name,
            entry["dim"],
            entry["num_items"],
            entry["num_present"],
            issues,
            up_to_date=True,
        )

    def _write(
        self,
        encoder: ItemEncoder,
        encoded: Encoded,
        identity: dict[str, Any],
        more_issues: tuple[IssueGroup, ...] = (),
    ) -> ModalitySummary:
        issues = (*group_issues(encoded.issues), *more_issues)
        self._refuse(encoder.modality, issues)
        self._sweep(f"{encoder.modality}.safetensors", MANIFEST)
        # Before the features: a kill at any moment leaves no out-of-fold features of others behind.
        remove_folds(self._features, encoder.modality)
        write_modality(
            self._features,
            encoder.modality,
            encoded.features,
            encoded.present,
            {**identity, "issues": [asdict(group) for group in issues]},
            items_hash=self.folder.catalog.content_hash,
            mark={MARK: encoder.name},
        )
        return ModalitySummary(
            encoder.modality,
            encoder.name,
            encoder.dim,
            len(self.folder.catalog),
            int(encoded.present.sum()),
            issues,
        )

    def _sweep(self, *names: str) -> None:
        """Delete the temporary files of runs that were killed while writing these files an hour ago or more."""
        for name in names:
            for leftover in self._features.rglob(f".{name}.*.tmp"):  # a recent one may be of a run beside this one
                with suppress(FileNotFoundError):
                    if leftover.stat().st_mtime < time.time() - _ABANDONED:
                        leftover.unlink()

    def _refuse(self, modality: str, issues: tuple[IssueGroup, ...]) -> None:
        if self.strict and issues:
            raise BundleMLLMError(
                f"{modality}: {'; '.join(map(str, issues))}. `strict` allows none of that, so no features were "
                "written: mend or remove the sources, or encode without `strict`."
            )


class _Counter:
    """Reports how many items are done."""

    def __init__(self, progress: Callable[[str, int, int], None] | None, modality: str, total: int, left: int):
        self._progress, self._modality, self._total, self._done = progress, modality, total, total - left

    def __call__(self, number: int) -> None:
        self._done += number
        if self._progress is not None:
            self._progress(self._modality, self._done, self._total)


def _encode_here(
    encoder: BatchEncoder,
    root: Path | None,
    sources: Sequence[str | None],
    shards: Shards,
    pending: Sequence[int],
    batch_size: int,
    workers: int | None,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, Rows]]:
    """Encode shards in this process, one after another; worker processes read ahead across their borders."""
    batches = [(shard, rows) for shard in pending for rows in shards.batches(shard)]
    parts: list[Rows] = []
    read = read_batches(encoder, root, sources, [rows for _, rows in batches], workers)
    for (shard, rows), batch in zip(batches, read, strict=True):
        parts.append(embed_batch(encoder, batch, batch_size))
        advance(len(rows))
        if len(parts) == len(shards.batches(shard)):
            yield shard, Rows.join([part.to_host() for part in parts])
            parts = []


def _sources_sha256(rows: Sequence[int], source_digests: bytes) -> str:
    """Return SHA-256 over the rows of items with a source and the digests of their sources."""
    return hashlib.sha256(np.asarray(rows, dtype="<i8").tobytes() + source_digests).hexdigest()


def _tables_sha256(folder: DatasetFolder) -> str:
    """Return SHA-256 over all tables of a folder, the input of encoders that need all items together."""
    digest, log = hashlib.sha256(), find_table(folder.path, "interactions")
    for path in (*folder.tables(), *([] if log is None else [log])):
        digest.update(f"{path.relative_to(folder.path).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()


def _log_issues(folder: DatasetFolder) -> tuple[IssueGroup, ...]:
    log = folder.interactions
    if log is None or not log.num_unknown:
        return ()
    reason = "records of the user log whose item the catalog lacks"
    return (IssueGroup(reason, False, log.num_unknown, tuple(item_id for _, item_id in log.unknown)),)


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))
