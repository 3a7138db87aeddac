"""What every encoder of items looks like, and what it says about the items it could not encode.

It must not know any particular encoder, nor where features are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bundle_mllm.data.folder import DatasetFolder

Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""


@dataclass(frozen=True)
class Problem:
    """One item whose source could not be used, or was used with a change that its owner may want to know.

    Attributes:
        item_id: The item.
        path: The file as the items table names it.
        reason: What is wrong with it, in words shared by all like cases.
        used: Whether the item has features nevertheless (the first frame of an animation, say).
    """

    item_id: str
    path: str
    reason: str
    used: bool = False


@dataclass(frozen=True)
class Encoded:
    """Features of all items, one row per item in the order of the catalog.

    Attributes:
        features: `[num_items, dim]` float32; zero where absent.
        present: `[num_items]` bool.
        problems: What was met on the way. An item that names no file is absent without being a problem.
    """

    features: np.ndarray
    present: np.ndarray
    problems: tuple[Problem, ...] = ()


class ItemEncoder(Protocol):
    """One modality in, one vector per item out.

    Attributes:
        name: Name, version and settings of the method; goes into the manifest. Features count as up to date as long
            as it and the tables of the folder stay the same.
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


@dataclass(frozen=True)
class Report:
    """All like problems of one modality.

    Attributes:
        reason: What is wrong.
        used: Whether these items have features nevertheless.
        count: How many there are.
        first: The first few paths.
    """

    reason: str
    used: bool
    count: int
    first: tuple[str, ...]

    NUM_FIRST = 3

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.first) else ""
        return f"{self.count} {'used' if self.used else 'left out'}, {self.reason}: {', '.join(self.first)}{more}"


def to_reports(problems: Iterable[Problem]) -> tuple[Report, ...]:
    """Gather like problems, those that leave items out first, and the most frequent first."""
    groups: dict[tuple[bool, str], list[str]] = {}
    for problem in problems:
        groups.setdefault((problem.used, problem.reason), []).append(problem.path)
    ordered = sorted(groups.items(), key=lambda group: (group[0][0], -len(group[1]), group[0][1]))
    return tuple(
        Report(reason, used, len(paths), tuple(paths[: Report.NUM_FIRST])) for (used, reason), paths in ordered
    )
