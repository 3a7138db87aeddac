"""What every encoder of items looks like, and the loop over files that the file encoders share.

It must not know any particular encoder, nor where features are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..data.folder import DatasetFolder

Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""


class UnreadableFileError(Exception):
    """A file that cannot be described; the message is the reason in a few words, the same for like cases."""


@dataclass(frozen=True)
class Problem:
    """One item that got no features although it names a source for them.

    Attributes:
        item_id: The item.
        path: The file as the items table names it.
        reason: Why it was left out, in words shared by all like cases.
    """

    item_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Encoded:
    """Features of all items, one row per item in the order of the catalog.

    Attributes:
        features: `[num_items, dim]` float32; zero where absent.
        present: `[num_items]` bool.
        problems: The items whose file could not be used. An item that names no file is absent without being a problem.
    """

    features: np.ndarray
    present: np.ndarray
    problems: tuple[Problem, ...] = ()


class ItemEncoder(Protocol):
    """One modality in, one vector per item out.

    Attributes:
        name: Name and version of the method; goes into the manifest.
        modality: The modality it makes: `"visual"`, `"acoustic"`, `"user_item"`, `"bundle_item"`, …
        dim: Length of a vector.
    """

    @property
    def name(self) -> str: ...

    @property
    def modality(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Encode all items of a folder; the same folder gives the same bytes."""
        ...


def encode_files(
    folder: DatasetFolder,
    paths: Sequence[str | None],
    describe: Callable[[Path], np.ndarray],
    dim: int,
    progress: Progress | None = None,
) -> Encoded:
    """Describe one file per item; a file that cannot be used makes its own item absent and nothing else.

    Args:
        folder: The dataset folder that the paths are relative to.
        paths: One per item, `None` where the item has no such file.
        describe: Turns a file into `[dim]` finite numbers, or raises `UnreadableFileError`.
        dim: Length of a vector.
        progress: Called after each item.

    Returns:
        Features, presence mask and the problems met.
    """
    root = folder.path.resolve()
    features = np.zeros((len(paths), dim), dtype=np.float32)  # [num_items, dim]
    present = np.zeros(len(paths), dtype=bool)  # [num_items]
    problems = []
    for row, path in enumerate(paths):
        if path is not None:
            try:
                vector = np.asarray(describe(_inside(root, path)), dtype=np.float32)
                if not np.isfinite(vector).all():
                    raise UnreadableFileError("described by NaN or infinity")
                features[row], present[row] = vector, True
            except UnreadableFileError as error:
                problems.append(Problem(folder.catalog.item_ids[row], path, str(error)))
        if progress is not None:
            progress(row + 1, len(paths))
    return Encoded(features, present, tuple(problems))


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
