"""Keep the encoders of features in a folder (JSON and safetensors, what they fitted included), and make them again.

Knows nothing about how an encoder works, nor what its features are used for.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bundle_mllm.data.files import atomic_path, read_json, sha256, without_nan, write_json
from bundle_mllm.encoders.base import FittedState, FittingEncoder, ItemEncoder
from bundle_mllm.encoders.batches import BatchEncoder
from bundle_mllm.encoders.registry import make_encoder
from bundle_mllm.errors import BundleMLLMError

ENCODERS_FOLDER = "encoders"
"""Where the encoders of features are kept: in the folder `features` of a data set, and in a model folder."""
_WEIGHTS = "weights_sha256"
_OF_VALUES = "values_sha256"
_TYPES = {
    **dict.fromkeys(("encoder", "spec"), (str,)),
    **dict.fromkeys((_WEIGHTS, "arrays_sha256", _OF_VALUES), (str, NoneType)),
    "fitted": (dict, NoneType),
}
"""Types of the entries of a record."""


@dataclass(frozen=True)
class KeptEncoder:
    """The record of an encoder.

    Attributes:
        modality: Its modality.
        name: Its name, version and settings.
        spec: What makes it, see `make_encoder`.
        weights_sha256: The digest of its weights, if it has any.
        fitted: What it fitted, if it is a `FittingEncoder`.
        sha256: The digest of the record.
    """

    modality: str
    name: str
    spec: str
    weights_sha256: str | None
    fitted: FittedState | None
    sha256: str

    def make(self, device: torch.device) -> ItemEncoder:
        """Make the encoder again.

        Raises:
            BundleMLLMError: If it cannot be loaded, or is not the same any more.
        """
        encoder = make_encoder(self.modality, self.spec, device)
        weights = encoder.provenance.get(_WEIGHTS) if isinstance(encoder, BatchEncoder) else None
        if (encoder.name, weights) != (self.name, self.weights_sha256):
            raise BundleMLLMError(
                f"The {self.modality} encoder {self.spec!r} is {encoder.name!r} with other weights or in another "
                f"version than the {self.name!r} that made the features, so new items would not fit them: restore the "
                "encoder, or encode and train again."
            )
        if isinstance(encoder, FittingEncoder):
            encoder.fitted = self.fitted
        return encoder


def save_encoder(folder: Path, encoder: ItemEncoder | FittingEncoder, spec: str) -> str:
    """Write the record of an encoder into a folder such as `features/encoders`; return its SHA-256.

    `<modality>.json` is written last; it names the arrays in `<modality>.safetensors`, if there are any.
    """
    values: dict[str, Any] = {"encoder": encoder.name, "spec": spec}
    if isinstance(encoder, BatchEncoder) and _WEIGHTS in encoder.provenance:
        values[_WEIGHTS] = encoder.provenance[_WEIGHTS]
    if isinstance(encoder, FittingEncoder) and encoder.fitted is not None:
        values["fitted"] = without_nan(encoder.fitted.values)
        values[_OF_VALUES] = _digest(values["fitted"])
        if encoder.fitted.arrays:
            with atomic_path(folder / f"{encoder.modality}.safetensors") as temporary:
                save_file(dict(encoder.fitted.arrays), temporary)
                values["arrays_sha256"] = sha256(temporary)
    path = folder / f"{encoder.modality}.json"
    write_json(path, values)
    return sha256(path)


def _digest(fitted: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fitted, sort_keys=True).encode()).hexdigest()


def read_encoder(folder: Path, modality: str) -> KeptEncoder | None:
    """Read the record of an encoder; `None` if there is none.

    Raises:
        BundleMLLMError: If it is damaged.
    """
    path = folder / f"{modality}.json"
    if not path.is_file():
        return None
    values, arrays = read_json(path), {}
    try:
        for name, types in _TYPES.items():
            if not isinstance(value := values.get(name), types):
                raise ValueError(f"{name} is {str(value)[:60]}")
        if _OF_VALUES in values and values[_OF_VALUES] != _digest(values["fitted"]):
            raise ValueError("what it fitted was changed")
        if digest := values.get("arrays_sha256"):
            of_arrays = path.with_suffix(".safetensors")
            if sha256(of_arrays) != digest:
                raise ValueError(f"{of_arrays.name} is of another encoding")
            arrays = load_file(of_arrays)
        fitted = FittedState(values["fitted"], arrays) if values.get("fitted") is not None else None
        return KeptEncoder(modality, values["encoder"], values["spec"], values.get(_WEIGHTS), fitted, sha256(path))
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise BundleMLLMError(
            f"{path} does not describe an encoder ({error}): delete it and encode {modality!r} again, or copy the "
            "model folder again."
        ) from error


def read_encoders(folder: Path) -> dict[str, KeptEncoder]:
    """Read the records of all encoders of a folder by modality; none if there is no such folder."""
    kept = {path.stem: read_encoder(folder, path.stem) for path in sorted(folder.glob("[!.]*.json"))}
    return {modality: encoder for modality, encoder in kept.items() if encoder is not None}


def copy_encoders(source: Path, target: Path, modalities: Iterable[str]) -> None:
    """Copy the records of the encoders of some modalities, if there are any: each file in one step, arrays first."""
    for modality in modalities:
        for path in (source / f"{modality}.safetensors", source / f"{modality}.json"):
            if path.is_file():
                with atomic_path(target / path.name) as temporary:
                    shutil.copyfile(path, temporary)


def forget_encoder(folder: Path, modality: str) -> None:
    """Delete the record of an encoder: its features are to be replaced by those of one that cannot be kept."""
    for name in (f"{modality}.json", f"{modality}.safetensors"):
        (folder / name).unlink(missing_ok=True)
