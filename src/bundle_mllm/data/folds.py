"""Cut training bundles into folds, and store the features that were fitted without each of them.

Knows nothing about how features are fitted or how questions are put.

Features that are fitted to all training bundles contain the answers of training questions, so a model that trains on
them would learn to trust them too much. The bundles are therefore cut into K folds, and a question about a bundle uses
*out-of-fold* features, fitted without the bundle's own fold. Folds stand to each other as the splits do. Where splits
keep near-duplicates together, so do folds: a quarter of real outfits have one, which would give the answer away. Where
validation bundles have near-duplicates among the training bundles, as orders that are split by time do, a fold has
them in other folds, too: otherwise a model would learn that co-occurrence says less than it will.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.features import read_feature_manifest
from bundle_mllm.data.files import atomic_path
from bundle_mllm.data.folder import OUT_OF_FOLD, DatasetFolder
from bundle_mllm.data.memberships import BUNDLE_ITEM
from bundle_mllm.data.splitting import near_duplicate_groups
from bundle_mllm.errors import BundleMLLMError


def assign_folds(
    bundles: Mapping[str, Collection[str]], num_folds: int, *, seed: int, near_duplicates_together: bool = True
) -> dict[str, int]:
    """Cut bundles into folds of about equal size.

    Args:
        bundles: The items of each bundle, by bundle id.
        num_folds: Number of folds, 2 or more.
        seed: The same seed gives the same folds, whatever the order of the bundles.
        near_duplicates_together: Whether near-duplicates share a fold; see `DatasetFolder.near_duplicates_together`.

    Returns:
        The fold of each bundle, in the order of `bundles`. If near-duplicates share one, fold 0 has the largest group.
    """
    if num_folds < 2:
        raise BundleMLLMError(f"{num_folds} folds leave nothing to fit without: choose 2 or more.")
    if not near_duplicates_together:
        by_hash = sorted(bundles, key=lambda bundle_id: hashlib.sha256(f"{seed} {bundle_id}".encode()).digest())
        place_of = {bundle_id: place for place, bundle_id in enumerate(by_hash)}
        return {bundle_id: place_of[bundle_id] * num_folds // len(bundles) for bundle_id in bundles}
    sizes, fold_of = [0] * num_folds, {}
    for _, group in near_duplicate_groups(bundles, seed=seed):
        fold = sizes.index(min(sizes))
        sizes[fold] += len(group)
        fold_of.update(dict.fromkeys(group, fold))
    return {bundle_id: fold_of[bundle_id] for bundle_id in bundles}


def part_bundles(
    bundles: Iterable[Bundle],
    shares: Sequence[float],
    *,
    out_of_fold: OutOfFoldFeatures | None = None,
    near_duplicates_together: bool = True,
) -> list[set[str]]:
    """Set parts of the training bundles aside.

    The parts are whole folds, from the last on: the first holds the largest group of near-duplicates, which may be all
    bundles of one kind.

    Args:
        bundles: The training bundles.
        shares: About which share each part has, such as `(0.1, 0.2)`.
        out_of_fold: Features whose folds are used; ten new folds if not given.
        near_duplicates_together: Of the new folds; see `assign_folds`.

    Returns:
        The ids of the bundles of each part; the parts are disjoint, and the same bundles give the same parts.
    """
    members = {bundle.bundle_id: bundle.items for bundle in bundles}
    if out_of_fold is not None:
        fold_of = out_of_fold.fold_of_bundle
    else:
        fold_of = assign_folds(members, 10, seed=0, near_duplicates_together=near_duplicates_together)
    num_folds = max(fold_of.values(), default=-1) + 1
    end, parts = num_folds, []
    for share in shares:
        start = max(0, end - max(1, round(share * num_folds)))
        parts.append({bundle_id for bundle_id, fold in fold_of.items() if start <= fold < end})
        end = start
    return parts


@dataclass(frozen=True, eq=False)
class OutOfFoldFeatures:
    """Features of one modality that were each fitted without one fold of the training bundles.

    A question about a bundle of fold `f` uses `features[f]`; its hard negatives are matched on frequencies that are
    counted without that fold, too. All other questions use the modality's own features, in whose space these are.

    Attributes:
        modality: The modality.
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
    def load(cls, folder: DatasetFolder, modality: str = BUNDLE_ITEM) -> OutOfFoldFeatures | None:
        """Read (map) the out-of-fold features of a modality; `None` if the folder has none.

        Raises:
            BundleMLLMError: If they belong to other features, items or bundles than the folder has.
        """
        path = _path(folder.path / "features", modality)
        if not path.is_file():
            return None
        again = f"so training questions would use features that do not fit: encode {modality!r} again"
        if not count_folds(folder.path / "features", modality):
            raise BundleMLLMError(f"{path} is damaged or belongs to other features of the folder, {again}.")
        with safe_open(path, framework="pt") as file:
            fold_of_bundle = json.loads(bytes(file.get_tensor("folds").numpy()))
            features, present = file.get_tensor("features"), file.get_tensor("present").bool()
        train = {bundle.bundle_id for bundle in folder.bundles.train}
        if train != set(fold_of_bundle) or features.shape[1] != len(folder.catalog):
            raise BundleMLLMError(f"{path} was fitted to other items or training bundles, {again}.")
        return cls(modality, fold_of_bundle, features, present)

    def save(self, folder: DatasetFolder) -> Path:
        """Write `features/cross_fitted/<modality>.safetensors`, after the modality's own features; return its path.

        Raises:
            BundleMLLMError: If the folder's manifest has no features of this modality.
        """
        features_folder = folder.path / "features"
        if not (identity := _identity(features_folder, self.modality)):
            raise BundleMLLMError(
                f"{features_folder} has no {self.modality!r} in its manifest: write the features first."
            )
        path = _path(features_folder, self.modality)
        tensors = {
            "features": self.features.contiguous(),
            "present": self.present.to(torch.uint8),
            "folds": torch.from_numpy(np.frombuffer(json.dumps(self.fold_of_bundle).encode(), np.uint8).copy()),
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"of": identity})
        return path

    def without_fold(self, bundles: Sequence[Bundle], fold: int) -> list[Bundle]:
        """Return the bundles that `features[fold]` was fitted to."""
        return [bundle for bundle in bundles if self.fold_of_bundle.get(bundle.bundle_id) != fold]


def count_folds(features_folder: str | os.PathLike, modality: str) -> int:
    """Return how many folds the present features of a modality have out-of-fold features of; 0 if there are none."""
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


def remove_folds(features_folder: str | os.PathLike, modality: str) -> None:
    """Delete the out-of-fold features of a modality, if there are any."""
    _path(Path(features_folder), modality).unlink(missing_ok=True)


def _identity(features_folder: Path, modality: str) -> str:
    """Return the SHA-256 of the modality's own features, as the manifest has it."""
    return read_feature_manifest(features_folder).get(modality, {}).get("sha256", "")


def _path(features_folder: Path, modality: str) -> Path:
    return features_folder / OUT_OF_FOLD / f"{modality}.safetensors"
