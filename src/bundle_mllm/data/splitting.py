"""Split bundles into train, validation and test so that near-duplicates stay on one side.

Knows nothing about files, catalogs or what the items are.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, compress

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from bundle_mllm.data.bundles import SPLITS
from bundle_mllm.errors import BundleMLLMError

NEAR_DUPLICATE = 0.5
"""Jaccard similarity (shared items / all items of both) from which two bundles are near-duplicates (ours)."""
FRACTIONS = (0.8, 0.1, 0.1)
_BLOCK = 8_000_000  # candidate pairs looked at together


def split_bundles(
    bundles: Mapping[str, Collection[str]],
    *,
    fractions: Sequence[float] = FRACTIONS,
    seed: int,
    min_jaccard: float = NEAR_DUPLICATE,
) -> dict[str, str]:
    """Choose a split for each bundle.

    A group of near-duplicates (see [`near_duplicate_groups`]) goes to one split, so no bundle has a Jaccard similarity
    of `min_jaccard` or more with a bundle of another split.

    Args:
        bundles: The items of each bundle, by bundle id.
        fractions: The shares of train, validation and test; they sum to 1. They are exact unless large groups of
            near-duplicates prevent it; a group too large for every split goes where most bundles are missing.
        seed: The same seed gives the same splits, whatever the order of the bundles.
        min_jaccard: The similarity from which bundles stay together, in (0, 1].

    Returns:
        The split of each bundle, in the order of `bundles`.

    Raises:
        BundleMLLMError: If the fractions are no shares or the similarity is out of range.
    """
    check_fractions(fractions)
    missing = _quotas(len(bundles), fractions)
    split_of: dict[str, str] = {}
    for digest, group in near_duplicate_groups(bundles, seed=seed, min_jaccard=min_jaccard):
        fitting = [split for split, number in enumerate(missing) if number >= len(group)]
        if fitting:
            ends = list(accumulate(missing[split] for split in fitting))
            draw = int.from_bytes(digest[:8], "big") / 2**64 * ends[-1]
            split = fitting[min(bisect_right(ends, draw), len(fitting) - 1)]
        else:
            split = missing.index(max(missing))
        missing[split] -= len(group)
        split_of.update(dict.fromkeys(group, SPLITS[split]))
    return {bundle_id: split_of[bundle_id] for bundle_id in bundles}


def near_duplicate_groups(
    bundles: Mapping[str, Collection[str]], *, seed: int, min_jaccard: float = NEAR_DUPLICATE
) -> list[tuple[bytes, list[str]]]:
    """Group bundles that are near-duplicates, directly or through a chain of others.

    Args:
        bundles: The items of each bundle, by bundle id.
        seed: The same seed gives the same order, whatever that of the bundles.
        min_jaccard: The similarity from which bundles are near-duplicates, in (0, 1].

    Returns:
        Random bytes and the ids of each group, most of which are one bundle. Large groups are first, so that the small
        ones can fill up what they leave.
    """
    groups: dict[int, list[str]] = {}
    labels = _near_duplicate_groups(_Sets.build(bundles), min_jaccard).tolist()
    for bundle_id, label in zip(bundles, labels, strict=True):
        groups.setdefault(label, []).append(bundle_id)
    keyed = ((hashlib.sha256(f"{seed}\0{min(group)}".encode()).digest(), group) for group in groups.values())
    return sorted(keyed, key=lambda entry: (-len(entry[1]), entry[0]))


def held_out_near_duplicates(
    bundles: Mapping[str, Collection[str]], split_of: Mapping[str, str], min_jaccard: float = NEAR_DUPLICATE
) -> list[str]:
    """Return the ids of validation and test bundles that have a near-duplicate in another split.

    Arguments are those of [`near_duplicate_groups`]. There are none if [`split_bundles`] made the splits.
    """
    sets = _Sets.build(bundles)
    bit = np.array([1 << SPLITS.index(split_of[bundle_id]) for bundle_id in bundles], dtype=np.uint8)  # [num_bundles]
    own = np.zeros(sets.num_sets, dtype=np.uint8)
    np.bitwise_or.at(own, sets.set_of, bit)
    near = own.copy()  # the splits that hold a set or one of its near-duplicates

    for left, right in _near_duplicate_sets(
        sets, min_jaccard, lambda left, right: ((own[right] & ~near[left]) | (own[left] & ~near[right])) != 0
    ):
        np.bitwise_or.at(near, left, own[right])
        np.bitwise_or.at(near, right, own[left])
    elsewhere = (near[sets.set_of] & ~bit) != 0
    held_out = bit != 1 << SPLITS.index("train")
    return list(compress(bundles, elsewhere & held_out))


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuse fractions that are not three numbers of at least 0 that sum to 1, the first above 0."""
    proper = len(fractions) == len(SPLITS) and all(0 <= fraction <= 1 for fraction in fractions)
    if not proper or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise BundleMLLMError(
            f"The fractions {tuple(fractions)} are not shares of train, validation and test: give three numbers from "
            "0 to 1 that sum to 1, the first above 0, such as 0.8 0.1 0.1."
        )


def _quotas(number: int, fractions: Sequence[float]) -> list[int]:
    """Return integers in proportion to `fractions` that sum to `number` (largest remainders)."""
    quotas = [math.floor(number * fraction + 1e-9) for fraction in fractions]
    by_remainder = sorted(range(len(quotas)), key=lambda split: quotas[split] - number * fractions[split])
    for split in by_remainder[: number - sum(quotas)]:
        quotas[split] += 1
    return quotas


@dataclass(frozen=True, eq=False)
class _Sets:
    """The distinct item sets of some bundles; bundles with the same items share one."""

    matrix: csr_matrix  # [num_sets, num_items], 1 where a set has an item: from rare to frequent, sorted within a row
    set_of: np.ndarray  # [num_bundles], the set of each bundle

    @classmethod
    def build(cls, bundles: Mapping[str, Collection[str]]) -> _Sets:
        number_of: dict[str, int] = {}
        set_numbers: dict[frozenset[int], int] = {}
        set_of = np.empty(len(bundles), dtype=np.int64)
        for position, items in enumerate(bundles.values()):
            key = frozenset(number_of.setdefault(item, len(number_of)) for item in items)
            set_of[position] = set_numbers.setdefault(key, len(set_numbers))
        sizes = np.fromiter(map(len, set_numbers), dtype=np.int64, count=len(set_numbers))
        items = np.fromiter((item for key in set_numbers for item in key), dtype=np.int64, count=int(sizes.sum()))
        rank = np.argsort(np.argsort(np.bincount(items, minlength=len(number_of)), kind="stable"))
        starts, ones = np.concatenate([[0], np.cumsum(sizes)]), np.ones(len(items), dtype=np.int32)
        matrix = csr_matrix((ones, rank[items], starts), shape=(len(sizes), len(number_of)))
        matrix.sort_indices()
        return cls(matrix, set_of)

    @property
    def num_sets(self) -> int:
        return len(self.sizes)

    @cached_property
    def sizes(self) -> np.ndarray:
        return np.diff(self.matrix.indptr)


def _near_duplicate_groups(sets: _Sets, min_jaccard: float) -> np.ndarray:
    """Return the number of each bundle's group: near-duplicates, and near-duplicates of those, share one."""
    label = np.arange(sets.num_sets)

    def apart(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return label[left] != label[right]

    for left, right in _near_duplicate_sets(sets, min_jaccard, apart):
        edges = coo_matrix((np.ones(len(left), dtype=bool), (label[left], label[right])), shape=(sets.num_sets,) * 2)
        label = connected_components(edges, directed=False)[1][label]
    return label[sets.set_of]


def _near_duplicate_sets(
    sets: _Sets, min_jaccard: float, wanted: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of pairs of near-duplicate sets, each pair once.

    Two sets that are similar enough share one of their rarest items (prefix filtering, as in similarity joins: Bayardo
    et al. 2007, Xiao et al. 2008), so only sets that do are compared, if `wanted` returns that they are of interest.
    """
    if not 0 < min_jaccard <= 1:
        raise BundleMLLMError(f"min_jaccard is {min_jaccard}, not a similarity: choose 0.5 to 1.")
    sizes = sets.sizes
    if not sizes.any():
        return
    least = int(sizes[sizes > 0].min())
    smallest_partner = np.maximum(least, _ceil(min_jaccard * sizes))
    least_shared = _ceil(min_jaccard / (1 + min_jaccard) * (sizes + smallest_partner))
    last = sets.matrix.indptr[:-1] + sizes - least_shared  # of the prefix of each set
    in_prefix = np.arange(sets.matrix.nnz) <= np.repeat(last, sizes)
    rows = np.repeat(np.arange(sets.num_sets), sizes)[in_prefix]
    columns = sets.matrix.indices[in_prefix]
    prefixes = csr_matrix((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=sets.matrix.shape)
    having = prefixes.T.tocsr()  # [num_items, num_sets]
    num_candidates = prefixes @ np.diff(having.indptr)  # [num_sets], an upper bound
    for start, stop in _blocks(num_candidates, _BLOCK):
        candidates = (prefixes[start:stop] @ having[:, start:]).tocoo()
        left, right = candidates.row.astype(np.int64) + start, candidates.col.astype(np.int64) + start
        small, large = np.minimum(sizes[left], sizes[right]), np.maximum(sizes[left], sizes[right])
        possible = (left < right) & (small >= min_jaccard * large - 1e-9)
        left, right = left[possible], right[possible]
        for at in range(0, len(left), _BLOCK // 8):
            some_left, some_right = left[at : at + _BLOCK // 8], right[at : at + _BLOCK // 8]
            interesting = wanted(some_left, some_right)
            some_left, some_right = some_left[interesting], some_right[interesting]
            if not len(some_left):
                continue
            shared = np.asarray(sets.matrix[some_left].multiply(sets.matrix[some_right]).sum(axis=1)).ravel()
            similar = shared >= min_jaccard * (sizes[some_left] + sizes[some_right] - shared) - 1e-9
            if similar.any():
                yield some_left[similar], some_right[similar]


def _blocks(costs: np.ndarray, budget: int) -> Iterator[tuple[int, int]]:
    """Cut a sequence into runs whose costs sum to at most `budget`, or that are one element long."""
    total = np.cumsum(costs)
    start = 0
    while start < len(costs):
        before = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, before + budget, side="right")))
        yield start, stop
        start = stop


def _ceil(values: np.ndarray) -> np.ndarray:
    return np.ceil(values - 1e-9).astype(np.int64)
