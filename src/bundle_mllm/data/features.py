"""Keep one matrix of item features per modality in safetensors files, and read single rows of them.

Knows nothing about how features are made or what a question shows.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bundle_mllm.data.files import atomic_path, read_json, require_folder, sha256
from bundle_mllm.errors import BundleMLLMError

KNOWN_MODALITIES = ("acoustic", "attributes", "bundle_item", "textual", "user_item", "visual")
MANIFEST = "manifest.json"
FEATURES, PRESENT = "features", "present"
FITTED_TO = "train_bundles_sha256"
"""Key of provenance: the hash of the training bundles that features were fitted to; see `BundleSplits`."""
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


class FeatureMatrix:
    """A matrix in a safetensors file of which single rows are read.

    Rows are read and not mapped: the kernel maps up to two megabytes around a row that is touched, so that a hundred
    random questions made a map of 2 GB resident as a whole. The file's header must have been checked.
    """

    def __init__(self, path: Path, name: str):
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with the store
        length = int.from_bytes(self._file.read(8), "little")
        entry = json.loads(self._file.read(length))[name]
        if entry["dtype"] not in _DTYPES:
            raise BundleMLLMError(f"The {name} of {path} are {entry['dtype']}: convert them to float16 or float32.")
        self.shape, self.dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
        self._start = 8 + length + entry["data_offsets"][0]

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, runs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Read runs of rows (first row and number, below `len(self)`) as one new tensor `[n, width]` of its dtype."""
        rows = torch.empty(sum(number for _, number in runs), self.shape[1], dtype=self.dtype)
        size, at = self.shape[1] * self.dtype.itemsize, 0  # in bytes
        target = rows.view(torch.uint8).numpy().data.cast("B") if len(rows) else memoryview(b"")
        for first, number in runs:
            self._fill(target[at : at + number * size], self._start + first * size)
            at += number * size
        return rows

    def _fill(self, target: memoryview, offset: int) -> None:
        while (left := len(target)) > 0:
            if sys.platform == "win32":
                self._file.seek(offset)
                number = self._file.readinto(target)
            else:
                number = os.preadv(self._file.fileno(), [target], offset)  # safe in threads and forked processes
            if number == left:
                return
            if not number:
                raise BundleMLLMError(f"{self.path} ends before its last row: encode this modality again.")
            target, offset = target[number:], offset + number

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.path, FEATURES)


def _runs(rows: np.ndarray) -> list[tuple[int, int]]:
    """Return the first row and the length of each run of consecutive rows."""
    if not len(rows):
        return []
    starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) != 1)
    lengths = np.diff(starts, append=len(rows))
    return list(zip(rows[starts].tolist(), lengths.tolist(), strict=True))


class FeatureStore:
    """Features of all items on disk, one matrix per modality, of which single rows are read.

    Open one with [`~FeatureStore.open`].
    """

    def __init__(self, num_items: int, features: Mapping[str, FeatureMatrix], present: Mapping[str, torch.Tensor]):
        self.num_items = num_items
        self._features = dict(sorted(features.items()))
        self._present = dict(sorted(present.items()))

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike,
        num_items: int,
        modalities: Sequence[str] | None = None,
        *,
        items_hash: str | None = None,
        train_sha256: str | None = None,
    ) -> FeatureStore:
        """Open the files of a folder; this reads their headers and presence masks, not the features.

        Args:
            folder: A folder of `*.safetensors` files, each with `features` `[num_items, dim]` (floating point) and,
                optionally, `present` `[num_items]` (uint8; without it all items are present). A file's name starts
                with its modality: `visual.safetensors` and `visual_clip.safetensors` are both `"visual"`.
            num_items: Length of the catalog the rows belong to.
            modalities: The modalities to open; `None` opens all.
            items_hash: `catalog.content_hash`; when given, features whose manifest names another one are refused.
            train_sha256: The same of the training bundles, see `BundleSplits`.

        Raises:
            BundleMLLMError: If a file is missing, malformed, of another catalog or the second of its modality.
        """
        folder = Path(folder)
        files = find_features(folder)
        if not files:
            raise BundleMLLMError(f"{folder} holds no *.safetensors file, so no item has features: encode some first.")
        for modality in modalities or ():
            if modality not in files:
                raise BundleMLLMError(
                    f"{folder} has no features of modality {modality!r}: it has {', '.join(files)}; encode them."
                )
        manifest = read_feature_manifest(folder)
        features, present = {}, {}
        for modality in files if modalities is None else modalities:
            path = files[modality]
            entry = manifest.get(modality, {})
            if entry.get("file") != path.name:
                entry = {}
            written_for, fitted_to = entry.get("items_hash"), entry.get("provenance", {}).get(FITTED_TO)
            if items_hash is not None and written_for is not None and written_for != items_hash:
                raise BundleMLLMError(
                    f"{path} was written for other items (hash {written_for[:12]}…, now {items_hash[:12]}…): encode "
                    f"{modality!r} again (bundle-mllm encode), or restore the items file."
                )
            if None not in (train_sha256, fitted_to) and train_sha256 != fitted_to:
                raise BundleMLLMError(
                    f"{path} was fitted to other training bundles than the folder has now, so it may contain held-out "
                    f"ones: encode {modality!r} again (bundle-mllm encode), or restore the bundles file."
                )
            features[modality], present[modality] = _open_file(path, num_items)
        return cls(num_items, features, present)

    @property
    def modalities(self) -> dict[str, int]:
        """The width of each modality's features, sorted by name."""
        return {modality: features.shape[1] for modality, features in self._features.items()}

    @property
    def is_empty(self) -> bool:
        """Whether no item has any modality."""
        return not any(bool(mask.any()) for mask in self._present.values())

    def gather(
        self, rows: Sequence[int] | np.ndarray | torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Read the features of some items, and only theirs.

        Args:
            rows: `n` catalog rows, in any order, repeated or not.

        Returns:
            Per modality, the features `[n, dim]` (float32; zero where absent) and the presence mask `[n]` (bool).

        Raises:
            BundleMLLMError: If a row is outside the catalog, or a present row holds NaN or infinity.
        """
        index = torch.as_tensor(rows, dtype=torch.long)  # [n]
        outside = (index < 0) | (index >= self.num_items)
        if outside.any():
            raise BundleMLLMError(f"Row {int(index[outside][0])} is outside the catalog of {self.num_items} items.")
        runs = _runs(index.numpy())
        features, present = {}, {}
        for modality, matrix in self._features.items():
            mask = self._present[modality][index]  # [n]
            values = matrix.read(runs).to(torch.float32)  # [n, dim]
            if not mask.all():
                values[~mask] = 0.0
            _check_finite(modality, values, index)
            features[modality], present[modality] = values, mask
        return features, present

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Read the features of all items; returns and errors are those of [`~FeatureStore.gather`]."""
        return self.gather(torch.arange(self.num_items))

    def __repr__(self) -> str:
        return f"FeatureStore({self.num_items} items, {self.modalities})"


def write_modality(
    folder: str | os.PathLike,
    name: str,
    features: torch.Tensor | np.ndarray,
    present: torch.Tensor | np.ndarray | None,
    provenance: Mapping[str, Any],
    *,
    items_hash: str | None = None,
    mark: Mapping[str, str] | None = None,
) -> Path:
    """Write the features of one modality in one step and enter them in `manifest.json`.

    Args:
        folder: The `features` folder of a data set; created when missing.
        name: Stem of the file: a modality such as `"visual"`, or one with a suffix such as `"visual_clip"`.
        features: `[num_items, dim]`, floating point, in the order of the catalog. The dtype is kept, except that
            float64 becomes float32.
        present: `[num_items]`, bool or 0/1; `None` means that all items have this modality. The values of absent
            items are written as zero.
        provenance: How the features were made, as JSON values; stored in the manifest.
        items_hash: `catalog.content_hash`; lets [`FeatureStore.open`] notice that the items have changed since.
        mark: Metadata of the file; of one key, since the order of several would vary from run to run.

    Returns:
        The path of the file written.

    Raises:
        BundleMLLMError: If shapes, dtypes or values do not fit, or another file of the same modality is in the way.
    """
    folder = Path(folder)
    path = features_path(folder, name)
    features = torch.as_tensor(features).detach().cpu()
    present = torch.ones(len(features), dtype=torch.bool) if present is None else torch.as_tensor(present).cpu()
    _check_shapes(f"{name!r}", features, present)
    present = present.bool()
    dtype = torch.float32 if features.dtype == torch.float64 else features.dtype
    features = features.to(dtype, copy=True).contiguous()  # [num_items, dim]
    features[~present] = 0.0
    _check_finite(name, features, torch.arange(len(features)))

    read_feature_manifest(folder)  # refused before anything is written
    entry: dict[str, Any] = {
        "file": path.name,
        "dim": features.shape[1],
        "num_items": len(features),
        "num_present": int(present.sum()),
        "dtype": str(dtype).removeprefix("torch."),
        "items_hash": items_hash,
        "provenance": _to_json_values(provenance),
    }
    with atomic_path(path) as temporary:
        tensors = {FEATURES: features, PRESENT: present.to(torch.uint8)}
        save_file(tensors, temporary, None if mark is None else dict(mark))
        entry["sha256"] = sha256(temporary)
    _write_manifest(folder, {**read_feature_manifest(folder), _modality_of(name): entry})
    return path


def renew_items_hash(folder: str | os.PathLike, modality: str, items_hash: str) -> None:
    """Enter in `manifest.json` that the features of a modality belong to the items of this `catalog.content_hash`."""
    folder = Path(folder)
    manifest = read_feature_manifest(folder)
    _write_manifest(folder, {**manifest, modality: {**manifest[modality], "items_hash": items_hash}})


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def features_path(folder: str | os.PathLike, name: str) -> Path:
    """Return where the features of a name belong, see [`write_modality`]; refuse a second file of its modality."""
    folder = Path(folder)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise BundleMLLMError(f"{name!r} cannot name features: use lower-case letters, digits and underscores.")
    modality, path = _modality_of(name), folder / f"{name}.safetensors"
    if folder.is_dir() and (other := find_features(folder).get(modality, path)) != path:
        raise BundleMLLMError(
            f"{other} already holds modality {modality!r}, so {path.name} would be a second one: delete or rename it."
        )
    return path


def _modality_of(stem: str) -> str:
    return next((known for known in KNOWN_MODALITIES if f"{stem}_".startswith(f"{known}_")), stem)


def find_features(folder: Path) -> dict[str, Path]:
    """Return the features file of each modality; refuse a folder with two files of one modality."""
    require_folder(folder, "check the path, or encode some features first")
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*.safetensors")):
        modality = _modality_of(path.stem)
        if modality in files:
            raise BundleMLLMError(
                f"{folder} has two files of modality {modality!r}, {files[modality].name} and {path.name}: keep one."
            )
        files[modality] = path
    return files


def _open_file(path: Path, num_items: int) -> tuple[FeatureMatrix, torch.Tensor]:
    """Return features `[num_items, dim]`, still on disk, and the presence mask `[num_items]` (bool)."""
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            present = file.get_tensor(PRESENT) if PRESENT in names else None
        if FEATURES not in names:
            raise BundleMLLMError(f"{path} has no tensor `features` (it has {', '.join(names)}): rename it.")
        features = FeatureMatrix(path, FEATURES)
    except SafetensorError as error:
        raise BundleMLLMError(f"{path} is not a safetensors file ({error}): write it again.") from error
    if present is None:
        present = torch.ones(features.shape[:1], dtype=torch.uint8)
    _check_shapes(str(path), features, present)
    if len(features) != num_items:
        raise BundleMLLMError(
            f"{path} has {len(features)} rows for a catalog of {num_items} items: write one row per item, in order."
        )
    return features, present.bool()


def _check_shapes(what: str, features: torch.Tensor | FeatureMatrix, present: torch.Tensor) -> None:
    if len(features.shape) != 2 or 0 in features.shape:
        raise BundleMLLMError(f"The features of {what} have the shape {list(features.shape)}: they need two.")
    if features.dtype not in _DTYPES.values():
        raise BundleMLLMError(f"The features of {what} are {features.dtype}: convert them to float16 or float32.")
    if tuple(present.shape) != tuple(features.shape[:1]):
        raise BundleMLLMError(
            f"The presence mask of {what} has the shape {list(present.shape)} for {len(features)} rows: "
            f"it needs [{len(features)}], one 0 or 1 per item."
        )
    if not ((present == 0) | (present == 1)).all():
        raise BundleMLLMError(f"The presence mask of {what} holds other values than 0 and 1: 1 means present.")


def _check_finite(modality: str, values: torch.Tensor, index: torch.Tensor) -> None:
    bad = ~values.isfinite().all(dim=1)  # [n]
    if bad.any():
        rows = index[bad]
        named = ", ".join(map(str, rows[:3].tolist())) + (", …" if len(rows) > 3 else "")
        raise BundleMLLMError(
            f"Modality {modality!r} holds NaN or infinity in {len(rows)} present row(s) ({named}), which would spoil "
            "scores: encode these items again, or mark them absent (present = 0)."
        )


def read_feature_manifest(folder: Path) -> dict[str, Any]:
    """Return the entry of each modality in the manifest of a features folder; nothing if there is none."""
    path = folder / MANIFEST
    manifest = read_json(path) if path.is_file() else {}
    if not all(
        isinstance(entry, dict)
        and isinstance(provenance := entry.get("provenance", {}), dict)
        and all(isinstance(value, str | None) for value in (entry.get("items_hash"), provenance.get(FITTED_TO)))
        for entry in manifest.values()
    ):
        raise BundleMLLMError(f"{path} does not map modalities to objects: delete it, or encode again.")
    return manifest


def _to_json_values(provenance: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BundleMLLMError(f"The provenance cannot be stored ({error}): use JSON values.") from error
