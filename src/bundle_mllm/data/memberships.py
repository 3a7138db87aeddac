"""Hold which item is in which group: training bundles, users, words, bundles of a category.

Knows nothing about features, models or how groups are compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.interactions import Interactions
from bundle_mllm.data.words import words

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MAX_GROUPS = 512
"""An item keeps so many of its smallest groups, which are the most specific: the cost of a question has a bound."""
BUNDLE_ITEM, BUNDLE_CATEGORY, USER_ITEM = "bundle_item", "bundle_category", "user_item"
TEXTUAL, ATTRIBUTES = "textual", "attributes"


@dataclass(frozen=True, eq=False)
class ItemGroups:
    """The pairs of an item and a group that it is in.

    Items may share a node, such as their category, and then are in the same groups. Pairs are kept distinct and
    sorted by node, then by group, whatever is given.

    Attributes:
        name: The kind of membership, such as `BUNDLE_ITEM`.
        nodes: `[num_pairs]` int64, the catalog row of an item, or the number of a node that items share.
        groups: `[num_pairs]` int64, the number of the group, from 0.
        num_items: Length of the catalog.
        node_of_item: `[num_items]` int64, the node of each item, -1 for none; `None` if each item is its own.
        names: The name of each group, where it has one, such as a word.
    """

    name: str
    nodes: np.ndarray
    groups: np.ndarray
    num_items: int
    node_of_item: np.ndarray | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        width = self.num_groups
        keys = np.asarray(self.nodes, dtype=np.int64) * width + self.groups
        if not np.all(np.diff(keys) > 0):
            keys = np.unique(keys)
        nodes, groups = np.divmod(keys, max(width, 1))
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "groups", groups)

    @classmethod
    def of_bundles(cls, bundles: Sequence[Bundle], catalog: ItemCatalog) -> ItemGroups:
        """Take bundles as groups, numbered in the order of their sorted ids, whatever the order given."""
        bundles = sorted(bundles, key=lambda bundle: bundle.bundle_id)
        return cls(BUNDLE_ITEM, *_pairs([catalog.rows(bundle.items) for bundle in bundles]), len(catalog))

    @classmethod
    def of_bundles_of_categories(cls, bundles: Sequence[Bundle], catalog: ItemCatalog) -> ItemGroups:
        """Let items share the bundles of their category.

        Nodes are the categories of the catalog in sorted order; groups are numbered as by [`~ItemGroups.of_bundles`].
        """
        names = sorted({category for category in catalog.categories if category is not None})
        number = {name: index for index, name in enumerate(names)}
        node_of_item = np.array([-1 if name is None else number[name] for name in catalog.categories], dtype=np.int64)
        of_items = cls.of_bundles(bundles, catalog)
        nodes = node_of_item[of_items.nodes]
        return cls(BUNDLE_CATEGORY, nodes[nodes >= 0], of_items.groups[nodes >= 0], len(catalog), node_of_item)

    @classmethod
    def of_users(cls, interactions: Interactions, num_items: int) -> ItemGroups:
        """Take users as groups, numbered as by `interactions`."""
        return cls(USER_ITEM, interactions.rows, interactions.user_index, num_items)

    @classmethod
    def of_words(cls, catalog: ItemCatalog) -> ItemGroups:
        """Take the distinct words of the items' texts as groups, numbered in sorted order."""
        return cls.of_names([set(words(item.text)) for item in catalog], TEXTUAL)

    @classmethod
    def of_names(cls, of_items: Sequence[Collection[str]], name: str = ATTRIBUTES) -> ItemGroups:
        """Take the distinct names that each item has as groups, numbered in sorted order."""
        number = {each: index for index, each in enumerate(sorted(set().union(*of_items)))}
        groups, nodes = _pairs([[number[each] for each in names] for names in of_items])
        return cls(name, nodes, groups, len(of_items), names=tuple(number))

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.nodes)

    @property
    def num_groups(self) -> int:
        """One more than the largest number of a group; 0 without a pair."""
        return int(self.groups.max(initial=-1)) + 1

    @property
    def num_nodes(self) -> int:
        """Number of nodes: of items, or of what they share."""
        return self.num_items if self.node_of_item is None else int(self.node_of_item.max(initial=-1)) + 1

    @cached_property
    def group_sizes(self) -> np.ndarray:
        """How many nodes each group has: `[num_groups]` int64."""
        return np.bincount(self.groups, minlength=self.num_groups)

    @cached_property
    def groups_per_node(self) -> np.ndarray:
        """In how many groups each node is: `[num_nodes]` int64."""
        return np.bincount(self.nodes, minlength=self.num_nodes)

    def csr(self) -> csr_array:
        """Return the incidence matrix: `[num_nodes, num_groups]` float64, 1 where the node is in the group."""
        from scipy.sparse import csr_array

        ends = np.concatenate([[0], np.cumsum(self.groups_per_node)])
        return csr_array((np.ones(len(self)), self.groups, ends), shape=(self.num_nodes, self.num_groups))

    def smallest_groups(self, number: int) -> ItemGroups:
        """Keep, of each node, only so many of its smallest groups; of equal ones those numbered first."""
        order = np.lexsort((self.groups, self.group_sizes[self.groups], self.nodes))
        nodes = self.nodes[order]
        kept = order[np.arange(len(nodes)) - np.searchsorted(nodes, nodes) < number]
        return replace(self, nodes=self.nodes[kept], groups=self.groups[kept])

    def without(self, groups: np.ndarray) -> ItemGroups:
        """Leave out the pairs of these groups; the others keep their numbers."""
        kept = ~np.isin(self.groups, groups)
        return replace(self, nodes=self.nodes[kept], groups=self.groups[kept])


def _pairs(lists: Sequence[Iterable[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return each member of lists, one list after the other, and the number of its list: `[total]` int64 twice."""
    members = [np.fromiter(each, dtype=np.int64) for each in lists]
    numbers = np.repeat(np.arange(len(members)), [len(each) for each in members])
    return np.concatenate([np.empty(0, dtype=np.int64), *members]), numbers
