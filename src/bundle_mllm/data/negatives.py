"""Draw the wrong options of a question, at random or like the answer in category and popularity.

Knows nothing about how a question is shown.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence, Set
from itertools import chain

from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.errors import BundleMLLMError

MIN_POOL = 50  # ours: hard negatives are drawn from at least this many items …
POOL_PER_CANDIDATE = 5  # … and from at least this many per candidate


class NegativeSampler:
    """Draw distinct items that are not in a bundle.

    Hard negatives share the answer's category and are near it in the order of train frequency (in how many training
    bundles an item is), so that neither category nor popularity singles out the answer. Items of one frequency
    are in random order. Where the category is too small to fill a pool of items that are near the answer, frequency
    comes first and the pool is taken from the order of the whole catalog.

    The answer is at a random position of its pool; in the middle, its popularity would give it away.
    """

    def __init__(self, catalog: ItemCatalog, train: Iterable[Bundle], seed: int):
        frequency = [0] * len(catalog)
        for bundle in train:
            for row in catalog.rows(bundle.items):
                frequency[row] += 1
        self._rows = range(len(catalog))
        order = list(self._rows)
        random.Random(seed).shuffle(order)
        self._order = sorted(order, key=frequency.__getitem__)
        self._position = _positions([self._order], len(catalog))
        self._category = catalog.categories
        self._category_order: dict[str | None, list[int]] = {}
        for row in self._order:
            self._category_order.setdefault(self._category[row], []).append(row)
        self._category_position = _positions(self._category_order.values(), len(catalog))

    def check(self, bundle: Bundle, num_candidates: int) -> None:
        """Refuse a bundle that leaves too few items of the catalog for a question of `num_candidates` options."""
        left = len(self._rows) - len(bundle.items)
        if left < num_candidates - 1:
            raise BundleMLLMError(
                f"Bundle {bundle.bundle_id!r} has {len(bundle.items)} of the catalog's {len(self._rows)} items, which "
                f"leaves {left} for the {num_candidates - 1} wrong options of {num_candidates} candidates: give "
                f"{left + 1} candidates or fewer, or add items to the catalog."
            )

    def draw(self, answer: int, bundle: Set[int], number: int, hard: bool, rng: random.Random) -> list[int]:
        """Draw `number` distinct rows outside the bundle, which must be there (see [`~NegativeSampler.check`]).

        `bundle` has the rows of the whole bundle, with the answer; `hard` rows resemble the answer.
        """
        pool = self._hard_pool(answer, len(bundle), number, rng) if hard else self._rows
        size, taken, negatives = len(pool), set(bundle), []
        while len(negatives) < number:
            row = pool[int(rng.random() * size)]
            if row not in taken:
                taken.add(row)
                negatives.append(row)
        return negatives

    def _hard_pool(self, answer: int, bundle_size: int, number: int, rng: random.Random) -> Sequence[int]:
        """Return neighbors of the answer in an order, with enough of them outside the bundle."""
        width = max(MIN_POOL, POOL_PER_CANDIDATE * (number + 1)) + bundle_size
        order, position = self._category_order[self._category[answer]], self._category_position[answer]
        if len(order) < width:
            order, position = self._order, self._position[answer]
        start = max(0, min(position - int(rng.random() * width), len(order) - width))
        return order[start : start + width]


def _positions(orders: Iterable[list[int]], num_items: int) -> list[int]:
    """Return the position of each row in the order that holds it."""
    positions = [0] * num_items
    for position, row in chain.from_iterable(map(enumerate, orders)):
        positions[row] = position
    return positions
