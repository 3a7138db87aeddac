"""Define the encoders of items, their features, and the issues with single items.

Knows nothing about any particular encoder, nor where features are stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.memberships import ItemGroups

Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""


@dataclass(frozen=True)
class ItemIssue:
    """One item whose source is unusable, or was used although something about it is unusual.

    Attributes:
        item_id: The item.
        path: The file, as in the items table.
        reason: The cause, in the same words for all such items.
        used: Whether the item has features nevertheless (such as the first frame of an animation).
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
        issues: Items whose source is unusable or unusual. An item without a source is absent and no issue.
    """

    features: np.ndarray
    present: np.ndarray
    issues: tuple[ItemIssue, ...] = ()


class ItemEncoder(Protocol):
    """One modality in, one vector per item out.

    Attributes:
        name: Name, version and settings of the method; goes into the manifest. Features count as up to date as long
            as it and the tables of the folder stay the same.
        modality: The modality of its features: `"visual"`, `"acoustic"`, `"user_item"`, `"bundle_item"`, …
        dim: Length of a vector.
    """

    name: str
    modality: str
    dim: int

    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Encode all items of a folder; the same folder gives the same bytes."""
        ...


@dataclass(frozen=True)
class FittedState:
    """What an encoder learned from the items of a data set, such as a vocabulary.

    Attributes:
        values: JSON values.
        arrays: Arrays by name.
    """

    values: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


class FittingEncoder(ABC):
    """An encoder that learns something from all items before it encodes any, and encodes new items by the same.

    Attributes:
        fitted: What it learned; `None` before. Setting it makes the encoder one that was fitted.
        name, modality, dim: See [`ItemEncoder`].
    """

    name: str
    modality: str
    dim: int
    fitted: FittedState | None = None

    @property
    def read_columns(self) -> tuple[str, ...]:
        """The columns of the items table that it reads."""
        return ("title", "description", "category")

    @abstractmethod
    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Encode all items of a folder; fit to them first if `fitted` is `None`.

        Once fitted, the row of an item depends on that item alone.
        """

    @abstractmethod
    def still_fits(self, folder: DatasetFolder) -> bool:
        """Return whether `fitted` describes the items of a folder as well as those that it was fitted to."""

    def groups(self, folder: DatasetFolder) -> ItemGroups | None:
        """Return the groups of a folder's items that go with the features, numbered as when it was fitted, if any."""
        return None


@dataclass(frozen=True)
class IssueGroup:
    """The number of issues of one modality with the same reason, and the first few paths; see `ItemIssue`."""

    reason: str
    used: bool
    count: int
    first: tuple[str, ...]

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.first) else ""
        return f"{self.count} {'used' if self.used else 'left out'}, {self.reason}: {', '.join(self.first)}{more}"


def group_issues(issues: Iterable[ItemIssue]) -> tuple[IssueGroup, ...]:
    """Group issues by reason: those that leave items out first, and the most frequent first."""
    paths_of: dict[tuple[bool, str], list[str]] = {}
    for issue in issues:
        paths_of.setdefault((issue.used, issue.reason), []).append(issue.path)
    groups = [IssueGroup(reason, used, len(paths), tuple(paths[:3])) for (used, reason), paths in paths_of.items()]
    return tuple(sorted(groups, key=lambda group: (group.used, -group.count, group.reason)))
