"""Encode a dataset folder: run one encoder per modality and write its features into the folder.

It must not know how an encoder works, nor what questions will be asked.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..data.features import write_modality
from ..data.folder import DatasetFolder
from ..errors import BundleMLLMError
from .base import ItemEncoder, Problem
from .descriptors import ImageDescriptor, SoundDescriptor
from .relational import BundleItemSVD, UserItemSVD

NO_DOWNLOAD_ENCODERS: Mapping[str, Callable[[], ItemEncoder]] = {
    "visual": ImageDescriptor,
    "acoustic": SoundDescriptor,
    "user_item": UserItemSVD,
    "bundle_item": BundleItemSVD,
}


@dataclass(frozen=True)
class ModalitySummary:
    """What became of one modality.

    Attributes:
        modality: Name of the modality.
        encoder: Name of the encoder.
        dim: Length of a vector.
        num_items: Number of items of the catalog.
        num_present: Number of items that have features.
        problems: The items whose file could not be used; an item that names no file is absent, but no problem.
    """

    modality: str
    encoder: str
    dim: int
    num_items: int
    num_present: int
    problems: tuple[Problem, ...]

    def __str__(self) -> str:
        text = f"{self.modality}: {self.num_present} of {self.num_items} items, {self.dim} wide ({self.encoder})"
        for reason, number in Counter(problem.reason for problem in self.problems).most_common():
            paths = [problem.path for problem in self.problems if problem.reason == reason]
            text += f"\n  {number} left out, {reason}: {', '.join(paths[:3])}{', …' if number > 3 else ''}"
        return text


def encode_folder(
    folder: DatasetFolder | str | os.PathLike,
    *,
    modalities: Sequence[str] | None = None,
    encoders: Mapping[str, ItemEncoder] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, ModalitySummary]:
    """Write `features/<modality>.safetensors` for each modality, with encoders that need no download.

    A file that cannot be read makes its item absent in that modality and is reported; it stops nothing.

    Args:
        folder: A dataset folder.
        modalities: Any of `"visual"`, `"acoustic"`, `"user_item"`, `"bundle_item"`. `None` takes what the folder
            offers: pictures, sounds, the user log. `"bundle_item"` is made only when it is named, since it knows the
            bundles that training questions are asked about.
        encoders: Encoders to use in place of the standard ones, by modality.
        progress: Called with (modality, items done, items in all).

    Returns:
        One summary per modality, in the order in which they were made.

    Raises:
        BundleMLLMError: If there is no encoder for a modality, or nothing to encode.
    """
    if not isinstance(folder, DatasetFolder):
        folder = DatasetFolder.open(folder)
    encoders = encoders or {}
    if modalities is None:
        modalities = [*dict.fromkeys([*_offered(folder), *encoders])]
    known = [*dict.fromkeys([*NO_DOWNLOAD_ENCODERS, *encoders])]
    for modality in modalities:
        if modality not in known:
            raise BundleMLLMError(
                f"No encoder makes the modality {modality!r}, so it cannot be encoded: choose from {', '.join(known)}."
            )
    if not modalities:
        raise BundleMLLMError(
            f"{folder.path} offers nothing to encode: its items name neither `image` nor `audio` and it has no "
            "interactions table; add one of them."
        )
    summaries = {}
    for modality in modalities:
        encoder = encoders[modality] if modality in encoders else NO_DOWNLOAD_ENCODERS[modality]()
        report = None if progress is None else _named(progress, modality)
        encoded = encoder.encode(folder, report)
        provenance = {"encoder": encoder.name, "num_problems": len(encoded.problems)}
        write_modality(
            folder.path / "features",
            modality,
            encoded.features,
            encoded.present,
            provenance,
            items_hash=folder.catalog.content_hash,
        )
        summaries[modality] = ModalitySummary(
            modality=modality,
            encoder=encoder.name,
            dim=encoder.dim,
            num_items=len(folder.catalog),
            num_present=int(encoded.present.sum()),
            problems=encoded.problems,
        )
    return summaries


def _offered(folder: DatasetFolder) -> list[str]:
    """Return the modalities that the folder itself can give."""
    offers = {
        "visual": any(item.image for item in folder.catalog),
        "acoustic": any(item.audio for item in folder.catalog),
        "user_item": folder.interactions is not None,
    }
    return [modality for modality, offered in offers.items() if offered]


def _named(progress: Callable[[str, int, int], None], modality: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(modality, done, total)
