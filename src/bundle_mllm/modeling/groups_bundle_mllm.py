"""Which item is in which group (bundles, users, words), as buffers that are saved with the retriever.

Knows nothing about features, scores or where the groups come from.
"""

from typing import NamedTuple

import torch
from torch import nn


class ItemPairs(NamedTuple):
    """Pairs of item and group, each there once or more.

    Attributes:
        nodes: `[num_pairs]` catalog row of the item; or, with `node_of_item`, the number of a node that items share.
        groups: `[num_pairs]` number of the group, from 0.
        node_of_item: `[num_items]` node of each item, -1 for none; `None`: every item is its own node.
        fold_of_group: `[num_groups]` fold of each group, for training on out-of-fold rows; not saved.
        sizes: `[num_groups]` size of each group in nodes; the number of its pairs if not given. Items that are added
            to a trained model or removed from it leave the sizes as they were, and with them all other scores.
    """

    nodes: torch.Tensor
    groups: torch.Tensor
    node_of_item: torch.Tensor | None = None
    fold_of_group: torch.Tensor | None = None
    sizes: torch.Tensor | None = None


class BundleRetrieverGroups(nn.Module):
    """The groups of each item, in compressed rows.

    Items may share a node, such as their category, and are then in the same groups.
    """

    node_of_item: torch.Tensor
    offsets: torch.Tensor
    groups: torch.Tensor
    sizes: torch.Tensor
    fold_of_group: torch.Tensor | None

    def __init__(self, num_items: int, num_pairs: int):
        super().__init__()
        self.register_buffer("node_of_item", torch.zeros(num_items, dtype=torch.int32))
        self.register_buffer("offsets", torch.zeros(num_items + 1, dtype=torch.long))
        for name in ("groups", "sizes"):
            self.register_buffer(name, torch.zeros(num_pairs, dtype=torch.int32))
        self.register_buffer("fold_of_group", None, persistent=False)
        self._inverse: tuple[torch.Tensor, ...] | None = None

    @property
    def num_pairs(self) -> int:
        """Number of different pairs."""
        return len(self.groups)

    def replace(self, num_items: int, pairs: ItemPairs | None) -> None:
        """Replace all pairs by those of a catalog of `num_items` items, or by none; see `checked_pairs` for errors."""
        nodes, groups, node_of_item, fold_of_group, sizes = checked_pairs(num_items, pairs)
        device = self.offsets.device
        self.node_of_item = node_of_item.to(device=device, dtype=torch.int32)
        pairs_by_node = torch.stack([nodes, groups]).unique(dim=1).to(device)  # sorted by node, each pair once
        self.offsets = _offsets(pairs_by_node[0], num_items)
        self.groups = pairs_by_node[1].int()
        sizes = pairs_by_node[1].bincount() if sizes is None else sizes.to(device)
        self.sizes = sizes[pairs_by_node[1]].int()
        folds = None if fold_of_group is None else fold_of_group.to(device)
        self.register_buffer("fold_of_group", folds, persistent=False)
        self._inverse = None

    def pairs(self) -> ItemPairs:
        """Return all pairs, as `replace` takes them."""
        nodes = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        nodes = nodes.repeat_interleave(self.offsets.diff())
        return ItemPairs(nodes, self.groups.long(), self.node_of_item.long(), self.fold_of_group, self.group_sizes())

    def group_sizes(self) -> torch.Tensor:
        """Return the size of each group in nodes, `[num_groups]`; 1 of a group that has lost all its items."""
        groups = self.groups.long()
        num_groups = int(groups.max()) + 1 if len(groups) else 0
        return groups.new_ones(num_groups).scatter_(0, groups, self.sizes.long())

    def degree(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the number of groups `[n]` of the items in catalog rows `[n]`."""
        first, end = self._range(rows, len(self.node_of_item))
        return end - first

    def gather(
        self, rows: torch.Tensor, num_rows: int, extra: ItemPairs | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read the groups of the given rows.

        Row `(f + 1) * num_items + r` is item `r` without the groups of fold `f`, where groups have folds.

        Args:
            rows: `[n]`
            num_rows: `BundleMLLMItemCatalog.num_rows`, folds included.
            extra: Nodes and groups of items beyond them: node `j` is row `num_rows + j`, in no group if not given.
                Groups that no item of the catalog has do not count.

        Returns:
            The number of groups of each row `[n]`; and for every pair `[num_pairs]` each the index below n (rising),
            the group, and the group's size in nodes.
        """
        first, end = self._range(rows, num_rows)
        owner, place = expand(first, end - first)
        group, size = self.groups[place].long(), self.sizes[place]
        if self.fold_of_group is not None:
            fold = torch.div(rows, len(self.node_of_item), rounding_mode="floor") - 1
            kept = self.fold_of_group[group] != fold[owner]
            owner, group, size = owner[kept], group[kept], size[kept]
        if extra is not None:
            more_owner, more_group, more_size = self._gather_extra(rows - num_rows, extra)
            owner, order = torch.cat([owner, more_owner]).sort(stable=True)
            group, size = torch.cat([group, more_group])[order], torch.cat([size, more_size])[order]
        return owner.bincount(minlength=len(rows)), owner, group, size

    def _gather_extra(self, rows: torch.Tensor, extra: ItemPairs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return index, group and group size of each pair of the extra items `rows` `[n]`; negative rows have none."""
        sizes = self.group_sizes()
        known = extra.groups.to(rows.device) < len(sizes)
        nodes, order = extra.nodes.to(rows.device)[known].sort(stable=True)
        groups = extra.groups.to(rows.device)[known][order]
        offsets = _offsets(nodes, int(torch.cat([rows, nodes]).max().clamp(min=-1)) + 1)
        [index] = (rows >= 0).nonzero(as_tuple=True)
        first = offsets[rows[index]]
        owner, place = expand(first, offsets[rows[index] + 1] - first)
        return index[owner], groups[place], sizes[groups[place]]

    def members(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read the nodes of the given groups `[n]`; [`items`] has those of a node.

        Returns:
            For every node `[num_members]` each the index below n (rising), the node, the group's size in nodes and the
            number of groups of the node.
        """
        nodes, offsets, sizes, _, _ = self._inverted()
        first = offsets[groups]
        owner, place = expand(first, offsets[groups + 1] - first)
        node = nodes[place]
        return owner, node, sizes[groups][owner], self.offsets[node + 1] - self.offsets[node]

    def items(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the items of the given nodes `[n]`: of each item the index below n (rising) and the catalog row."""
        _, _, _, items, offsets = self._inverted()
        first = offsets[nodes]
        owner, place = expand(first, offsets[nodes + 1] - first)
        return owner, items[place]

    def _inverted(self) -> tuple[torch.Tensor, ...]:
        """Nodes by group, where those of each group begin, and its size; items by node, and where these begin."""
        if self._inverse is None:
            nodes, all_groups, _, _, sizes = self.pairs()
            assert sizes is not None
            node_of_item = self.node_of_item.long()
            by_group = all_groups.argsort(stable=True)
            num_groups = len(sizes)
            items = (node_of_item >= 0).nonzero().flatten()
            by_node = node_of_item[items].argsort(stable=True)
            self._inverse = (
                nodes[by_group],
                _offsets(all_groups, num_groups),
                sizes,
                items[by_node],
                _offsets(node_of_item[items], len(node_of_item)),
            )
        return self._inverse

    def _range(self, rows: torch.Tensor, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first and the end place of the groups of each row `[n]`."""
        num_items = len(self.node_of_item)
        if num_items == 0:
            return torch.zeros_like(rows), torch.zeros_like(rows)
        node = torch.where(rows < num_rows, self.node_of_item[rows % num_items].long(), -1)
        first, end = self.offsets[node.clamp(min=0)], self.offsets[node + 1]
        return first, torch.where(node < 0, first, end)

    def _apply(self, *args, **kwargs):
        self._inverse = None
        return super()._apply(*args, **kwargs)


def checked_pairs(
    num_items: int, pairs: ItemPairs | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return the fields of pairs, with a node for each item, if all are in the catalog; else raise `ValueError`."""
    nothing = torch.zeros(0, dtype=torch.long)
    nodes, groups, node_of_item, fold_of_group, sizes = pairs or ItemPairs(nothing, nothing)
    if node_of_item is None:
        node_of_item = torch.arange(num_items)
    is_whole = nodes.shape == groups.shape and (len(nodes) == 0 or int(torch.minimum(nodes, groups).min()) >= 0)
    if not is_whole or (len(nodes) and int(nodes.max()) >= num_items):
        raise ValueError(
            f"A membership has {len(nodes)} rows and {len(groups)} groups for {num_items} items, so some pairs have "
            "no item: give one catalog row below the number of items per group, and groups from 0."
        )
    if node_of_item.shape != (num_items,) or bool(((node_of_item < -1) | (node_of_item >= num_items)).any()):
        raise ValueError(
            f"node_of_item has shape {list(node_of_item.shape)} for {num_items} items, or a node outside -1 to "
            f"{num_items - 1}, so some items would be in the groups of others: give one node per item."
        )
    if sizes is not None and (sizes.ndim != 1 or (len(groups) and len(sizes) <= int(groups.max()))):
        raise ValueError(
            f"A membership has {len(sizes)} sizes of groups and pairs of group {int(groups.max())}: give one size for "
            "each group, or none."
        )
    return nodes, groups, node_of_item, fold_of_group, sizes


def expand(first: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """List the members of each range `first[i], …, first[i] + counts[i] - 1`: the numbers i, and the members."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) + (first - before)[owner]


def _offsets(numbers: torch.Tensor, size: int) -> torch.Tensor:
    """Return where the entries of each number below `size` begin, `[size + 1]`, once they are sorted."""
    offsets = torch.zeros(size + 1, dtype=torch.long, device=numbers.device)
    offsets[1:] = numbers.bincount(minlength=size).cumsum(0)
    return offsets
