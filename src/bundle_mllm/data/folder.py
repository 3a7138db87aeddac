"""Open a dataset folder: items, bundles and, where present, interactions and features.

Knows nothing about how questions are made or how models read features.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bundle_mllm.data.bundles import BundleSplits, find_bundles
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.files import sha256
from bundle_mllm.data.interactions import Interactions
from bundle_mllm.data.tables import find_table
from bundle_mllm.errors import BundleMLLMError

if TYPE_CHECKING:
    from bundle_mllm.data.features import FeatureStore

OUT_OF_FOLD = "cross_fitted"
"""The folder of out-of-fold features, inside that of features."""


@dataclass(frozen=True, eq=False)
class DatasetFolder:
    """A data set on disk; open one with [`~DatasetFolder.open`].

    Attributes:
        path: The folder.
        catalog: Its items.
        bundles: Its bundles, by split.
    """

    path: Path
    catalog: ItemCatalog
    bundles: BundleSplits

    @classmethod
    def open(cls, path: str | os.PathLike) -> DatasetFolder:
        """Read items and bundles of a folder; interactions and features are read when they are used.

        Args:
            path: A folder with `items` and `bundles` (JSON Lines, CSV or Parquet; instead of `bundles`, one table for
                each split in a folder of that name), and optionally `interactions` and `features/*.safetensors`.

        Raises:
            BundleMLLMError: If the folder or a file is missing, or a record is malformed.
        """
        path = Path(path)
        if not path.is_dir():
            problem = "is a file" if path.exists() else "does not exist"
            raise BundleMLLMError(f"{path} {problem}: give the folder that holds the items and bundles files.")
        catalog = ItemCatalog.load(path)
        return cls(path, catalog, BundleSplits.load(path, catalog))

    @cached_property
    def interactions(self) -> Interactions | None:
        """The interactions of users with items, or `None` if the folder has none."""
        return None if find_table(self.path, "interactions") is None else Interactions.load(self.path, self.catalog)

    @cached_property
    def near_duplicates_together(self) -> bool:
        """Whether near-duplicates share a split: at most a tenth of the validation bundles have one in training.

        What is set aside of the training bundles has to be as new to a model as validation bundles are.
        """
        from bundle_mllm.data.splitting import held_out_near_duplicates

        pairs = [(bundle, split) for split in ("train", "validation") for bundle in self.bundles[split]]
        members = {bundle.bundle_id: bundle.items for bundle, _ in pairs}
        crossing = held_out_near_duplicates(members, {bundle.bundle_id: split for bundle, split in pairs})
        return len(crossing) <= 0.1 * len(self.bundles.validation)

    def features(self, modalities: Sequence[str] | None = None) -> FeatureStore | None:
        """Open the features of some modalities, or of all; `None` if there are none at all.

        Raises:
            BundleMLLMError: If a modality is missing, its file does not fit the catalog, or it was fitted to other
                training bundles.
        """
        from bundle_mllm.data.features import FeatureStore

        folder, train = self.path / "features", self.bundles.train_sha256 if self.bundles.train else None
        if modalities is None and not any(folder.glob("[!.]*.safetensors")):
            return None
        of_items = self.catalog.content_hash
        return FeatureStore.open(folder, len(self.catalog), modalities, items_hash=of_items, train_sha256=train)

    def tables(self) -> list[Path]:
        """Return the files of items and bundles; the bundles may be one table per split."""
        return tables_of(self.path)

    def input_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file a training run reads: tables, features, out-of-fold features."""
        folders = (self.path / "features", self.path / "features" / OUT_OF_FOLD)
        features = [path for folder in folders for path in sorted(folder.glob("[!.]*.safetensors"))]
        files = (*self.tables(), find_table(self.path, "interactions"), *features)
        return {path.relative_to(self.path).as_posix(): sha256(path) for path in files if path is not None}


def tables_of(folder: Path) -> list[Path]:
    """Return the files of items and bundles in a dataset folder, as far as there are any."""
    items = find_table(folder, "items")
    return [*([] if items is None else [items]), *(path for path, _ in find_bundles(folder))]
