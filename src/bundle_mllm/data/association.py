"""Tell which columns of the items have nothing to do with which items are bundled.

Knows nothing about features or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from scipy import sparse

from bundle_mllm.data.attributes import AttributeColumn, quantiles
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.memberships import ItemGroups

NUM_PAIRS = 20_000
"""Pairs of items in one bundle after which no further bundle is read; one that has more by itself is not (ours)."""
FEWEST_PAIRS = 200
"""With fewer pairs nothing is said of any column (ours)."""
NUM_PERMUTATIONS = 199
"""Permutations that a column has to exceed, so that chance takes at most 4 in 200 columns that say nothing (ours)."""
NUM_RANGES = 8
"""Ranges between quantiles, each of which is a name of the numbers in it (ours)."""
NUM_NAMES = 31
"""Most frequent names whose pairs are counted, the others together (ours)."""


def unrelated_columns(folder: DatasetFolder, columns: Iterable[AttributeColumn], *, seed: int = 0) -> list[str]:
    """Return the columns of which permuting the cells among items changes nothing that training bundles show.

    A column is related to them if one of these is larger than after each of 199 permutations: how often items of a
    bundle share a name, how rarely they do, how far pairs of names differ from what the names' frequencies make
    likely (chi-squared), and how unequally often items of different names are bundled. In the last two, the rarer
    names and missing cells count as one.

    Args:
        folder: The dataset folder.
        columns: The columns to examine.
        seed: The same seed reads the same bundles and permutes in the same way.

    Returns:
        Their names; none where fewer than 200 pairs of items share a training bundle.
    """
    rng = np.random.default_rng(seed)
    together, rows = _pairs(folder, rng)
    if together.sum() < 2 * FEWEST_PAIRS:
        return []
    unrelated = []
    for column in columns:
        cells = folder.catalog.cells(column.name)
        if not _is_related(together, _names(column, [cells[row] for row in rows]), rng):
            unrelated.append(column.name)
    return unrelated


def _pairs(folder: DatasetFolder, rng: np.random.Generator) -> tuple[sparse.csr_array, np.ndarray]:
    """Return how many training bundles two items share, `[n, n]`, 0 with itself, and the items' rows, `[n]`."""
    bundles, num_pairs = [], 0
    for place in rng.permutation(len(folder.bundles.train)):
        bundle = folder.bundles.train[place]
        if (pairs := len(bundle.items) * (len(bundle.items) - 1) // 2) > NUM_PAIRS:
            continue  # it would be all that is read, and its table of pairs may not fit into memory
        bundles.append(bundle)
        num_pairs += pairs
        if num_pairs >= NUM_PAIRS:
            break
    members = ItemGroups.of_bundles(bundles, folder.catalog).csr()
    rows = np.flatnonzero(np.diff(members.indptr))
    together = sparse.csr_array(members[rows] @ members[rows].T)
    together.setdiag(0)
    return together, rows


def _names(column: AttributeColumn, cells: Sequence[object]) -> list[Sequence[object]]:
    """Return the names of each item; a number or date has that of the range that it is in."""
    if not column.is_quantity:
        return list(column.names(cells))
    numbers = column.numbers(cells)
    edges = quantiles(numbers, NUM_RANGES)[1:-1]
    return [() if np.isnan(number) else (int(np.searchsorted(edges, number, side="right")),) for number in numbers]


def _is_related(together: sparse.csr_array, of_items: Sequence[Sequence[object]], rng: np.random.Generator) -> bool:
    counts = Counter(chain(*of_items))
    several = [name for name, count in counts.items() if count > 1]
    shared = _weights(of_items, {name: index for index, name in enumerate(several)})
    frequent = {name: index for index, (name, _) in enumerate(counts.most_common(NUM_NAMES))}
    in_table = [[name if name in frequent else None for name in names] or [None] for names in of_items]
    table = _weights(in_table, {**frequent, None: len(frequent)})
    found = _statistics(together, shared, table)
    exceeds = np.ones(len(found), dtype=bool)
    for _ in range(NUM_PERMUTATIONS):
        order = rng.permutation(len(of_items))
        exceeds &= found > _statistics(together, shared[order], table[order])
        if not exceeds.any():
            return False
    return True


def _weights(of_items: Sequence[Sequence[object]], number: dict[object, int]) -> sparse.csr_array:
    """Return the names of each item, `[num_items, num_names]`; the weights of an item add up to 1."""
    numbers = [[number[name] for name in names if name in number] for names in of_items]
    weights = [1 / len(each) for each in numbers for _ in each]
    pointers = np.cumsum([0, *map(len, numbers)])
    return sparse.csr_array((weights, [*chain(*numbers)], pointers), shape=(len(of_items), max(1, len(number))))


def _statistics(together: sparse.csr_array, shared: sparse.csr_array, table: sparse.csr_array) -> np.ndarray:
    """Return the four statistics that `unrelated_columns` names; the larger, the less likely by chance."""
    same = float(shared.multiply(together @ shared).sum())
    pairs = (table.T @ (together @ table)).toarray()  # [num_names, num_names]
    of_names = pairs.sum(axis=1)
    total = of_names.sum()
    items = np.asarray(table.mean(axis=0))  # share of the items that have a name
    association = _chi_squared(pairs, np.outer(of_names, of_names) / total)
    return np.array([same, -same, association, _chi_squared(of_names, items * total)])


def _chi_squared(found: np.ndarray, expected: np.ndarray) -> float:
    return float(((found - expected) ** 2 / np.where(expected > 0, expected, 1)).sum())
