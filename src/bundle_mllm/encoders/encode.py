"""Encode a dataset folder: run one encoder per modality and write its features into the folder.

Knows nothing about how an encoder works, nor about questions.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bundle_mllm.data.features import (
    FITTED_TO,
    features_path,
    find_features,
    read_feature_manifest,
    renew_items_hash,
    write_modality,
)
from bundle_mllm.data.files import require_folder, sha256
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import count_folds, remove_folds
from bundle_mllm.data.leakage import check_columns, check_interactions
from bundle_mllm.data.tables import find_table
from bundle_mllm.encoders.attributes import AttributeEncoder
from bundle_mllm.encoders.base import Encoded, FittingEncoder, IssueGroup, ItemEncoder, Progress, group_issues
from bundle_mllm.encoders.batches import BatchEncoder, Rows, Sources, embed_batches, put_together
from bundle_mllm.encoders.distributed import Process
from bundle_mllm.encoders.earlier import digests_of_rows, find_earlier, read_digests, read_earlier, save_digests
from bundle_mllm.encoders.fitted import (
    ENCODERS_FOLDER,
    KeptEncoder,
    forget_encoder,
    read_encoder,
    read_encoders,
    save_encoder,
)
from bundle_mllm.encoders.registry import available, make_encoder, requested
from bundle_mllm.encoders.relational import BundleItemEncoder
from bundle_mllm.encoders.settings import EncodingSettings
from bundle_mllm.encoders.shards import Shards
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.settings import configured_by

PARTIAL = ".partial"
FITTED = "fitted_sha256"
"""Key of provenance: the hash of the record of what an encoder fitted."""
MARK = "encoded_by"
"""Metadata key for the encoder in features files that `encode` made, so that no others are replaced."""
_FORMAT = 2  # of the files in PARTIAL


@dataclass(frozen=True)
class ModalitySummary:
    """The result of encoding one modality.

    Attributes:
        modality: Name of the modality.
        encoder: Name of the encoder.
        dim: Length of a vector.
        num_items: Length of the catalog.
        num_present: Number of items that have features.
        issues: Unusable and unusual sources by reason; an item without a source is absent and no issue.
        up_to_date: Whether the features existed already, made of the same sources.
        num_folds: Number of out-of-fold features; `None` if the encoder makes none, 0 if there are too few bundles.
        num_taken: Number of items whose features an earlier encoding had made, of the same sources.
        notes: What else is to be said.
        kept: Name of the file, if no encoder was requested and the default one had not made the features, as `notes`
            says; the rest is unknown.
    """

    modality: str
    encoder: str
    dim: int
    num_items: int
    num_present: int
    issues: tuple[IssueGroup, ...]
    up_to_date: bool = False
    num_folds: int | None = None
    num_taken: int = 0
    notes: tuple[str, ...] = ()
    kept: str | None = None

    def __str__(self) -> str:
        if self.kept is not None:
            return f"{self.modality}: kept {self.kept}, {' '.join(self.notes)}"
        text = f"{self.modality}: {self.num_present} of {self.num_items} items, {self.dim} wide ({self.encoder})"
        if not self.num_present:
            text += ", so this modality is empty"
        elif self.num_folds is not None:
            text += f", cross-fitted in {self.num_folds} folds" if self.num_folds else ", too few bundles to cross-fit"
        if self.num_taken:
            text += f", {self.num_taken} of them as before"
        return "\n  ".join([text + ", up to date" * self.up_to_date, *map(str, self.issues), *self.notes])


class EncodingSummary(dict[str, ModalitySummary]):
    """The summaries of `encode_folder` by modality, which print and show themselves in a notebook as text."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.values()))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


@configured_by(EncodingSettings)
def encode_folder(settings: EncodingSettings) -> EncodingSummary:
    """Write `features/<modality>.safetensors` for each requested modality; see `EncodingSettings`.

    An item whose file cannot be read is absent in that modality and an issue in the summary; the run goes on. A
    continued run ends with the bytes of an uninterrupted one. Features that were made by the same encoder of the same
    items and files are left as they are; to compare, the files are read, but not decoded.

    Returns:
        One summary per modality, in the order in which they were made; under `accelerate launch`, only in the main
        process.

    Raises:
        BundleMLLMError: If an encoder is unknown, a model cannot be loaded, there is nothing to encode, requested
            features would replace some of other origin, another process encodes this folder, the user log encodes
            held-out bundles, or `strict` refuses.
    """
    folder = DatasetFolder.open(settings.data)
    for name, value, least in (("batch_size", settings.batch_size, 1), ("workers", settings.workers, 0)):
        if value is not None and value < least:
            raise BundleMLLMError(f"{name} is {value}: give at least {least}, or leave it out.")
    selected = requested(settings)
    process = Process.join(settings.device)
    if settings.engine == "ray" and process.count > 1:
        raise BundleMLLMError('engine="ray" and `accelerate launch` both spread the work: use one of them.')
    run = _Run(settings, folder, process)
    # All models are loaded before the first item is encoded: a wrong name shows at once, not after hours.
    if settings.like is not None:
        like = read_encoders(require_folder(settings.like, "give a model folder") / ENCODERS_FOLDER)
        if not like or selected or settings.refit:
            raise BundleMLLMError(
                f"like={settings.like} chooses the encoders and what they fitted, so it excludes others and `refit`, "
                f"and has to be a model folder that keeps some (this one keeps {len(like)}): drop one of them."
            )
        run = replace(run, like=like)
    chosen = selected or [(modality, run.spec_of(modality, spec)) for modality, spec in available(folder, run.like)]
    makers = [partial(make_encoder, modality, spec) for modality, spec in chosen]
    encoders = [make(process.device) for make in makers]
    for modality, count in Counter(encoder.modality for encoder in encoders).items():
        if count > 1:
            raise BundleMLLMError(f"Two encoders make the modality {modality!r}, which has one file: name one.")
    summaries = EncodingSummary()
    with process.locked(run.features):
        keeps = process.from_main(lambda: [run.check(encoder, is_named=bool(selected)) for encoder in encoders])
        for encoder, make, kept, (_, spec) in zip(encoders, makers, keeps, chosen, strict=True):
            if kept is not None:
                summaries[encoder.modality] = _kept(
                    encoder.modality, kept, "not made by the default encoder (name an encoder to make others)"
                )
            elif isinstance(encoder, BatchEncoder):
                summaries[encoder.modality] = run.encode_batches(encoder, make, spec)
            else:
                summaries[encoder.modality] = process.from_main(partial(run.encode_whole, encoder, spec))
            if kept is None and process.is_main and not isinstance(encoder, FittingEncoder):  # which is recorded first
                run.record(encoder, spec)
    if process.is_main and not selected:
        summaries.update(run.others(made=summaries))
    return summaries if process.is_main else EncodingSummary()


@dataclass(frozen=True)
class _Run:
    """Encodes the modalities of one call."""

    settings: EncodingSettings
    folder: DatasetFolder
    process: Process
    like: Mapping[str, KeptEncoder] = field(default_factory=dict)

    def spec_of(self, modality: str, default: str) -> str:
        """Return the spec of the encoder that a model folder keeps, if it is to be used."""
        return self.like[modality].spec if modality in self.like else default

    @property
    def features(self) -> Path:
        """Where features are written."""
        return self.folder.path / "features"

    def _progress(self, name: str) -> Progress | None:
        report = self.settings.progress if self.process.is_main else None
        return None if report is None else partial(report, name)

    def check(self, encoder: ItemEncoder | FittingEncoder, *, is_named: bool) -> str | None:
        """Check that an encoder may write its file, before anything is written; return the name of one to keep."""
        features, modality = self.features, encoder.modality
        path, made_by = _existing(features, modality) or (None, None)
        if path is not None and not is_named and made_by != encoder.name:
            return path.name
        features_path(features, modality)
        if path is not None and made_by is None:
            raise BundleMLLMError(
                f"{path} already holds modality {modality!r} and was not made by `encode`, which would replace it: "
                "delete it or move it out of this folder first, or leave this modality out."
            )
        if modality == "user_item":
            check_interactions(self.folder, allow_leakage=self.settings.allow_leakage)
        if isinstance(encoder, AttributeEncoder) and encoder.columns is not None:
            check_columns(self.folder, encoder.columns, allow_leakage=self.settings.allow_leakage)
        return None

    def others(self, made: Collection[str]) -> dict[str, ModalitySummary]:
        """Return the summaries of features in the folder that no default encoder makes of what it holds."""
        summaries = {}
        for modality in sorted(find_features(self.features).keys() - made) if self.features.is_dir() else ():
            path, made_by = _existing(self.features, modality) or (self.features, None)
            entry = read_feature_manifest(self.features).get(modality, {})
            made_by = made_by or entry.get("provenance", {}).get("encoder")
            text = f"made by {made_by or 'another program'}, and no default encoder makes it of this folder"
            if entry.get("items_hash") not in (None, self.folder.catalog.content_hash):
                text += "; it was written for other items, so training refuses it: make it again, or delete it"
            summaries[modality] = _kept(modality, path.name, text)
        return summaries

    def encode_whole(self, encoder: ItemEncoder | FittingEncoder, spec: str | ItemEncoder) -> ModalitySummary:
        """Run an encoder that needs all items together, with what it fitted earlier as long as that describes them."""
        identity = {"encoder": encoder.name, "dim": encoder.dim, "sources_sha256": _tables_sha256(self.folder)}
        if isinstance(encoder, BundleItemEncoder):
            identity[FITTED_TO] = self.folder.bundles.train_sha256
        if not isinstance(encoder, FittingEncoder):
            summary = self._up_to_date(encoder, identity)
        else:
            summary, given = None, self.like.get(encoder.modality)
            kept = given or read_encoder(self.features / ENCODERS_FOLDER, encoder.modality)
            if kept is not None and kept.name == encoder.name and not self.settings.refit:
                encoder.fitted = kept.fitted
                summary = self._up_to_date(encoder, {**identity, FITTED: kept.sha256})
                if summary is None and encoder.fitted and given is None and not encoder.still_fits(self.folder):
                    encoder.fitted = None
        if summary is None:
            encoded = encoder.encode(self.folder, self._progress(encoder.modality))
            log_issues = _log_issues(self.folder) if encoder.modality == "user_item" else ()
            summary = self._write(encoder, spec, encoded, identity, log_issues)
        if isinstance(encoder, AttributeEncoder):
            summary = replace(summary, notes=encoder.notes)
        return self._cross_fit(encoder, summary) if isinstance(encoder, BundleItemEncoder) else summary

    def _cross_fit(self, encoder: BundleItemEncoder, summary: ModalitySummary) -> ModalitySummary:
        """Make the out-of-fold features, unless they exist or there are too few bundles."""
        name = encoder.modality
        if num_folds := count_folds(self.features, name):
            return replace(summary, num_folds=num_folds)
        store = self.folder.features([name])
        assert store is not None
        features = store.load()[0][name].numpy()
        out_of_fold = encoder.cross_fit(self.folder, features, self._progress(f"{name}, cross-fitting"))
        if out_of_fold is None:
            remove_folds(self.features, name)
            return replace(summary, num_folds=0)
        out_of_fold.save(self.folder)
        return replace(summary, num_folds=out_of_fold.num_folds, up_to_date=False)

    def encode_batches(
        self, encoder: BatchEncoder, make: Callable[[torch.device], Any], spec: str | ItemEncoder
    ) -> ModalitySummary:
        """Encode the unfinished shards of the items that are new, each process its share, and put all together."""
        process = self.process
        sources = Sources(encoder.field, self.folder)
        batch_size = self.settings.batch_size or encoder.batch_size
        identity = {"encoder": encoder.name, "dim": encoder.dim, **encoder.provenance}
        of_shards = {**identity, "device": encoder.device.type, "format": _FORMAT}
        make_shards = partial(Shards, self.features / PARTIAL, encoder.modality, of_shards, sources, batch_size)
        done, taken, pending = process.from_main(lambda: self._plan(encoder, identity, sources, make_shards))
        if done:
            return done
        shards = make_shards([row for row in sources.rows if row not in taken])
        own = pending[process.index :: process.count]
        shard_of = [shard for shard in own for _ in shards.batches[shard]]
        batches = [rows for shard in own for rows in shards.batches[shard]]
        if self.settings.engine == "ray":
            from bundle_mllm.encoders.ray_engine import embed_on_ray

            embedded = embed_on_ray(make, encoder, sources, batches, batch_size)
        else:
            embedded = embed_batches(encoder, sources, batches, batch_size, self.settings.workers)
        progress = self._progress(encoder.modality)
        left = sum(map(len, batches))
        total = len(sources.of_item) - sum(len(shards.rows[shard]) for shard in pending) + left
        parts: dict[int, dict[int, Rows]] = defaultdict(dict)
        for number, rows in embedded:
            shard, left = shard_of[number], left - len(rows.present)
            parts[shard][number] = rows
            if progress is not None:
                progress(total - left, total)
            if len(parts[shard]) == len(shards.batches[shard]):
                shards.save(shard, Rows.join([part.to_host() for _, part in sorted(parts.pop(shard).items())]))
        process.wait()
        return process.from_main(lambda: self._gather(encoder, spec, identity, sources, shards, taken))

    def _plan(
        self,
        encoder: BatchEncoder,
        identity: dict[str, Any],
        sources: Sources,
        make_shards: Callable[[list[int]], Shards],
    ) -> tuple[ModalitySummary | None, dict[int, tuple[int, bytes]], list[int]]:
        """Find out what is left to do.

        Returns:
            The summary of features that are up to date; or the row of earlier features of each row that has one, with
            the digest of its source; and the shards of all other rows that are not done.
        """
        taken: dict[int, tuple[int, bytes]] = {}
        if entry := self._made_by(encoder, identity):
            digests = sources.digests(sources.rows)
            if done := self._up_to_date(encoder, {**identity, "sources_sha256": sources.sha256(b"".join(digests))}):
                shards = make_shards(list(sources.rows))
                if read_digests(self.features, encoder.modality, entry["sha256"]) is None and not shards.pending():
                    return None, {}, []  # a kill came before the digests: the shards have them
                shards.delete()
                return done, {}, []
            places = find_earlier(self.features, encoder.modality, entry["sha256"], digests)
            found = zip(sources.rows, places, digests, strict=True)
            taken = {row: (place, digest) for row, place, digest in found if place is not None}
        return None, taken, make_shards([row for row in sources.rows if row not in taken]).pending()

    def _gather(
        self,
        encoder: BatchEncoder,
        spec: str | ItemEncoder,
        identity: dict[str, Any],
        sources: Sources,
        shards: Shards,
        taken: dict[int, tuple[int, bytes]],
    ) -> ModalitySummary:
        """Put the features of all shards, and the earlier ones of rows that are taken, into one file."""
        done = [part for shard in range(len(shards)) if (part := shards.load(shard)) is not None]
        if lost := len(shards) - len(done):
            raise BundleMLLMError(
                f"{lost} of {len(shards)} parts of {encoder.modality!r} are not in {shards.folder}: all processes "
                "must see the dataset folder on one file system, and only one encoding of it may run; start again."
            )
        parts: list[tuple[Sequence[int], Rows]] = list(zip(shards.rows, done, strict=True))
        if taken:
            places, digests = zip(*taken.values(), strict=True)
            parts.append((list(taken), read_earlier(features_path(self.features, encoder.modality), places, digests)))
        encoded = put_together(encoder, self.folder, sources, parts)
        digest_of = {row: digest for rows, part in parts for row, digest in zip(rows, part.digest_list(), strict=True)}
        all_digests = b"".join(digest_of[row] for row in sources.rows)
        summary = self._write(encoder, spec, encoded, {**identity, "sources_sha256": sources.sha256(all_digests)})
        written = read_feature_manifest(self.features)[encoder.modality]["sha256"]
        save_digests(self.features, encoder.modality, digests_of_rows(len(self.folder.catalog), parts), written)
        shards.delete()
        return replace(summary, num_taken=len(taken))

    def _made_by(self, encoder: ItemEncoder | FittingEncoder, identity: dict[str, Any]) -> dict[str, Any] | None:
        """Return the entry of the existing features in the manifest, if the encoder made them as it would now."""
        entry = read_feature_manifest(self.features).get(encoder.modality, {})
        provenance = entry.get("provenance", {})
        volatile = encoder.volatile if isinstance(encoder, BatchEncoder) else ()
        path = features_path(self.features, encoder.modality)
        as_json = json.loads(json.dumps(identity))
        if (
            any(provenance.get(key) != value for key, value in as_json.items() if key not in volatile)
            or entry.get("file") != path.name
            or not path.is_file()
            or entry.get("sha256") != sha256(path)
            or "issues" not in provenance
        ):
            return None
        return entry

    def _up_to_date(self, encoder: ItemEncoder | FittingEncoder, identity: dict[str, Any]) -> ModalitySummary | None:
        """Return the summary of the existing features, if the encoder would make the same again.

        Where items have sources, rows depend on these alone, so that new ids or titles change nothing.
        """
        entry = self._made_by(encoder, identity)
        if entry is None or entry.get("num_items") != len(self.folder.catalog):
            return None
        groups = entry["provenance"]["issues"]
        issues = tuple(IssueGroup(**{**group, "first": tuple(group["first"])}) for group in groups)
        self._refuse(encoder.modality, issues)
        if entry.get("items_hash") != self.folder.catalog.content_hash:
            renew_items_hash(self.features, encoder.modality, self.folder.catalog.content_hash)
        return replace(self._summary(encoder, entry["num_present"], issues), up_to_date=True)

    def _write(
        self,
        encoder: ItemEncoder | FittingEncoder,
        spec: str | ItemEncoder,
        encoded: Encoded,
        identity: dict[str, Any],
        more_issues: tuple[IssueGroup, ...] = (),
    ) -> ModalitySummary:
        """Write features after what was fitted: a kill between the two leaves features that are not up to date."""
        issues = (*group_issues(encoded.issues), *more_issues)
        self._refuse(encoder.modality, issues)
        # Before the features: a kill at any moment leaves no out-of-fold features of others behind.
        remove_folds(self.features, encoder.modality)
        if isinstance(encoder, FittingEncoder):
            identity |= self.record(encoder, spec)
        write_modality(
            self.features,
            encoder.modality,
            encoded.features,
            encoded.present,
            {**identity, "issues": [asdict(group) for group in issues]},
            items_hash=self.folder.catalog.content_hash,
            mark={MARK: encoder.name},
        )
        return self._summary(encoder, int(encoded.present.sum()), issues)

    def record(self, encoder: ItemEncoder | FittingEncoder, spec: str | ItemEncoder) -> dict[str, str]:
        """Keep what makes the encoder again, for new items; return what this adds to the identity of features."""
        folder = self.features / ENCODERS_FOLDER
        if not isinstance(spec, str):
            forget_encoder(folder, encoder.modality)
            return {}
        return {FITTED: save_encoder(folder, encoder, spec)}

    def _summary(
        self, encoder: ItemEncoder | FittingEncoder, num_present: int, issues: tuple[IssueGroup, ...]
    ) -> ModalitySummary:
        num_items = len(self.folder.catalog)
        return ModalitySummary(encoder.modality, encoder.name, encoder.dim, num_items, num_present, issues)

    def _refuse(self, modality: str, issues: tuple[IssueGroup, ...]) -> None:
        if self.settings.strict and issues:
            raise BundleMLLMError(
                f"{modality}: {'; '.join(map(str, issues))}. `strict` allows none of that, so no features were "
                "written: mend or remove the sources, or encode without `strict`."
            )


def _kept(modality: str, name: str, reason: str) -> ModalitySummary:
    return ModalitySummary(modality, "", 0, 0, 0, (), notes=(reason,), kept=name)


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
    reason = f"records of the user log that name {log.num_unknown_items} items which the catalog lacks"
    return (IssueGroup(reason, False, log.num_unknown, tuple(item_id for _, item_id in log.unknown)),)


def _existing(features: Path, modality: str) -> tuple[Path, str | None] | None:
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
