"""Encode items that a model has not seen by the encoders of its model folder.

Knows nothing about models, questions or how an encoder works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download

from bundle_mllm.completion.item_table import GROUP_NAMES, read_categories, read_group_names
from bundle_mllm.data.bundles import BundleSplits
from bundle_mllm.data.catalog import MEDIA, ItemCatalog
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.memberships import TEXTUAL
from bundle_mllm.data.words import words
from bundle_mllm.device import choose_device
from bundle_mllm.encoders.base import FittingEncoder, ItemEncoder
from bundle_mllm.encoders.batches import BatchEncoder
from bundle_mllm.encoders.fitted import ENCODERS_FOLDER, KeptEncoder, read_encoders
from bundle_mllm.encoders.media import is_web_address
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.modeling.questions_bundle_mllm import EncodedItem, name_of, shorten


def find_item_encoder(name: str, subfolder: str = "", **files: Any) -> NewItemEncoder | None:
    """Return the encoder of new items of a model folder or Hub repository, if it keeps any encoder.

    Args:
        name: The folder or repository.
        subfolder: Where in it the model is.
        **files: Which files of the repository, such as `revision` and `token`; see `HUB_ARGUMENTS`.

    Raises:
        BundleMLLMError: If the repository's encoders cannot be read from the Hub or its cache.
    """
    folder = Path(name)
    if not folder.is_dir():
        patterns = [str(PurePosixPath(subfolder, each)) for each in (f"{ENCODERS_FOLDER}/*", GROUP_NAMES)]
        files.pop("proxies", None)  # that of the environment counts: snapshot_download takes none
        try:
            folder = Path(snapshot_download(name, allow_patterns=patterns, **files))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise BundleMLLMError(
                f"The encoders of {name} cannot be loaded ({reason}), so new items cannot be encoded: give the items "
                "features, or load the model from its folder."
            ) from error
    folder /= subfolder
    return NewItemEncoder(folder) if (folder / ENCODERS_FOLDER).is_dir() else None


@dataclass(frozen=True)
class NewItems:
    """What is known about some new items.

    Attributes:
        features: `[n, width]` float32 of each modality that could be encoded; zero where absent.
        present: `[n]` bool of each.
        groups: Of each membership that follows from what an item is, the numbers of each item's groups.
        kept: `[n]` bool of each modality whose file was not read, since that of an updated item is the same as before.
    """

    features: Mapping[str, np.ndarray]
    present: Mapping[str, np.ndarray]
    groups: Mapping[str, Sequence[Sequence[int]]]
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)


class NewItemEncoder:
    """The encoders of a model folder, made when they are first used.

    Args:
        folder: The model folder.
        device: Where the encoders' models run; the GPU if there is one.
    """

    def __init__(self, folder: Path, device: str | None = None):
        self.folder, self._device = folder, device

    @cached_property
    def kept(self) -> dict[str, KeptEncoder]:
        """The records of all encoders of the folder, by modality."""
        return read_encoders(self.folder / ENCODERS_FOLDER)

    @cached_property
    def encoders(self) -> dict[str, BatchEncoder | FittingEncoder]:
        """The encoders of what an item is, by modality; those of users and bundles say nothing about new items."""
        made: dict[str, ItemEncoder] = {m: kept.make(choose_device(self._device)) for m, kept in self.kept.items()}
        return {m: encoder for m, encoder in made.items() if isinstance(encoder, BatchEncoder | FittingEncoder)}

    @cached_property
    def _number_of_word(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(read_group_names(self.folder).get(TEXTUAL, ()))}

    @cached_property
    def _item_of_category(self) -> dict[str | None, str]:
        first_last = reversed(read_categories(self.folder))
        return {category: item_id for item_id, category in first_last if category is not None}

    @property
    def read_columns(self) -> tuple[str, ...]:
        """The columns of an item that are read; its words and its category always are."""
        columns = ["title", "description", "category"]
        for encoder in self.encoders.values():
            columns += encoder.read_columns if isinstance(encoder, FittingEncoder) else [encoder.field]
        return tuple(dict.fromkeys(name for name in columns if name != "text"))

    def encode_items(self, entries: Sequence[Mapping[str, Any]]) -> list[EncodedItem]:
        """Encode dict items of questions; relative paths of pictures and sounds begin in the working directory.

        Raises:
            BundleMLLMError: If an item has something that no encoder reads, or that cannot be read.
        """
        allowed = ("item_id", *self.read_columns)
        for entry in entries:
            if unread := [name for name in entry if name not in allowed and name != "features"]:
                raise BundleMLLMError(
                    f"Item {name_of(entry)} has {shorten(unread)}, which no encoder of {self.folder} reads, so it "
                    f"would be ignored: drop it; what is read is {', '.join(allowed)}."
                )
            if not any(entry.get(name) for name in self.read_columns):
                raise BundleMLLMError(
                    f"Item {shorten(dict(entry))} has nothing but an id, so nothing would be known about it: give one "
                    f"of {', '.join(self.read_columns)}, or the plain id of an item of the catalog."
                )
        records = [{**entry, "item_id": f"new item {number}"} for number, entry in enumerate(entries, start=1)]
        new = self.encode(records, Path.cwd())
        items = []
        for number, entry in enumerate(entries):
            features = {
                name: rows[number].tolist() for name, rows in new.features.items() if new.present[name][number]
            }
            named = {name: entry[name] for name in ("item_id", "title") if entry.get(name)}
            groups = {name: of_items[number] for name, of_items in new.groups.items()}
            items.append(EncodedItem(named, features, groups, self._item_of_category.get(entry.get("category"))))
        return items

    def encode(self, records: Sequence[Mapping[str, Any]], root: Path) -> NewItems:
        """Encode items as the items of the training data were.

        Args:
            records: Rows of an items table, each with an `item_id`.
            root: The folder that paths of pictures and sounds begin in.

        Raises:
            BundleMLLMError: If a record is malformed, or a picture or sound cannot be read.
        """
        root = root.resolve()
        records = [{**r, **{name: _path(root, r[name]) for name in MEDIA if r.get(name)}} for r in records]
        catalog = ItemCatalog.from_records(records, source="The new items")
        folder = DatasetFolder(Path(root.anchor), catalog, BundleSplits())
        features, present, groups = {}, {}, {}
        if self._number_of_word:
            groups[TEXTUAL] = [self._word_groups(item.text) for item in catalog]
        for modality, encoder in self.encoders.items():
            encoded = encoder.encode(folder)
            for issue in encoded.issues:
                if not issue.used:
                    raise BundleMLLMError(
                        f"{issue.path} of the item {issue.item_id!r} cannot be used ({issue.reason}), so the item "
                        f"would lack its {modality} features: mend the path or the file, or leave it out."
                    )
            features[modality], present[modality] = encoded.features, encoded.present
            of_items = encoder.groups(folder) if isinstance(encoder, FittingEncoder) else None
            if of_items is not None:
                groups[of_items.name] = of_items.csr().tolil().rows.tolist()
        return NewItems(features, present, groups)

    def _word_groups(self, text: str) -> list[int]:
        numbers = (self._number_of_word.get(word) for word in words(text))
        return sorted({number for number in numbers if number is not None})


def _path(root: Path, name: Any) -> str:
    return name if is_web_address(name) else str(root / name)
