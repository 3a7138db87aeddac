"""Versions of a modality that were each fitted without one fold of the training bundles.

It must not know how they were fitted nor how questions are asked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.features import read_manifest
from bundle_mllm.data.files import atomic_path
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.errors import BundleMLLMError

FOLDER = "cross_fitted"
BUNDLE_ITEM = "bundle_item"
"""The modality that knows the training bundles."""


@dataclass(frozen=True, eq=False)
class CrossFitted:
    """What the items look like to a question about a training bundle.

    A question about a bundle of fold `f` is asked with the features `features[f]`, which were fitted without the
    bundles of that fold; hard negatives are to be matched on frequencies counted without them, too. All other
    questions are asked with the modality's own features, in whose space the versions are.

    Attributes:
        modality: The modality the versions stand for.
        fold_of_bundle: The fold of each training bundle, 0 to K - 1.
        features: `[K, num_items, dim]`; zero where absent.
        present: `[K, num_items]` bool.
    """

    modality: str
    fold_of_bundle: Mapping[str, int]
    features: torch.Tensor
    present: torch.Tensor

    @property
    def num_folds(self) -> int:
        """K."""
        return len(self.features)

    @classmethod
    def load(cls, folder: DatasetFolder, modality: str = BUNDLE_ITEM) -> CrossFitted | None:
        """Read the versions of a modality.

        Args:
            folder: A dataset folder.
            modality: The modality.

        Returns:
            The versions (mapped from the file), or `None` if the folder has none of this modality.

        Raises:
            BundleMLLMError: If they are of other features, items or bundles than the folder has.
        """
        path = _path(folder.path / "features", modality)
        if not path.is_file():
            return None
        again = f"so they would tell training questions other things than the features tell: encode {modality!r} again"
        if not is_current(folder.path / "features", modality):
            raise BundleMLLMError(
                f"{path} belongs to other features than the {modality!r} of the folder, or is damaged, {again}."
            )
        with safe_open(path, framework="pt") as file:
            fold_of_bundle = json.loads(bytes(file.get_tensor("folds").numpy()))
            features, present = file.get_tensor("features"), file.get_tensor("present").bool()
        train = {bundle.bundle_id for bundle in folder.bundles.train}
        if train != set(fold_of_bundle) or features.shape[1] != len(folder.catalog):
            raise BundleMLLMError(
                f"{path} was fitted to other items or training bundles than the folder has, {again}."
            )
        return cls(modality, fold_of_bundle, features, present)

    def save(self, folder: DatasetFolder) -> Path:
        """Write the versions in one step, beside the modality's own features, which must have been written before.

        Args:
            folder: The dataset folder.

        Returns:
            The path of the file written, `features/cross_fitted/<modality>.safetensors`.

        Raises:
            BundleMLLMError: If the folder's manifest has no features of this modality.
        """
        features_folder = folder.path / "features"
        if not _identity(features_folder, self.modality):
            raise BundleMLLMError(
                f"{features_folder} has no {self.modality!r} features in its manifest, so versions would belong "
                "to nothing: write the features first (write_modality)."
            )
        path = _path(features_folder, self.modality)
        tensors = {
            "features": self.features.contiguous(),
            "present": self.present.to(torch.uint8),
            "folds": torch.from_numpy(np.frombuffer(json.dumps(self.fold_of_bundle).encode(), np.uint8).copy()),
        }
        with atomic_path(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(tensors, temporary, {"of": _identity(features_folder, self.modality)})
            temporary.chmod(mode)  # save_file leaves a file that only its owner can read
        return path

    def without_fold(self, bundles: Sequence[Bundle], fold: int) -> list[Bundle]:
        """Return the bundles that version `fold` was fitted to."""
        return [bundle for bundle in bundles if self.fold_of_bundle.get(bundle.bundle_id) != fold]


def num_folds(features_folder: str | os.PathLike, modality: str) -> int:
    """Return how many cross-fitted versions belong to the present features of a modality; 0 if there are none."""
    path = _path(Path(features_folder), modality)
    if not path.is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            made_for = (file.metadata() or {}).get("of")
            number = file.get_slice("features").get_shape()[0]
    except SafetensorError:  # damaged: made again, like those of other features
        return 0
    return number if made_for and made_for == _identity(Path(features_folder), modality) else 0


def is_current(features_folder: str | os.PathLike, modality: str) -> bool:
    """Tell whether a modality has cross-fitted versions that belong to its present features."""
    return num_folds(features_folder, modality) > 0


def _identity(features_folder: Path, modality: str) -> str:
    """Return the SHA-256 of the modality's own features, as the manifest has it."""
    return read_manifest(features_folder).get(modality, {}).get("sha256", "")


def _path(features_folder: Path, modality: str) -> Path:
    return features_folder / FOLDER / f"{modality}.safetensors"


def remove(features_folder: str | os.PathLike, modality: str) -> None:
    """Delete the versions of a modality, if there are any."""
    _path(Path(features_folder), modality).unlink(missing_ok=True)
