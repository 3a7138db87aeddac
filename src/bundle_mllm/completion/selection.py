"""Select items by score under limits: greedy, but never into a dead end.

Knows nothing about models, questions or where the limits come from.

Without a look at what is left, a greedy choice may spend the budget on its first items, or fill all places before a
required category is met. So an item is taken only if the selection can still reach its full length with it. Category
quotas, required categories and variants (which lie within a category) are a matroid, hence this is decided exactly by
one list: the cheapest completion. Another item may be taken if it can replace an item of that list, and the dearest
one that it can replace decides what it may cost (exchange property of matroid bases; Schrijver, 2003, ch. 39).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

POOL_SIZE = 100
"""Items that diversity chooses among."""

Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From rows `[a]` and rows `[b]` to cosines `[a, b]`."""


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of each of n items.

    Attributes:
        of: `[n]` int64, -1 for none.
    """

    of: np.ndarray

    @cached_property
    def _by_group(self) -> tuple[np.ndarray, np.ndarray]:
        return self.of.argsort(kind="stable"), np.append(0, (np.bincount(self.of + 1)).cumsum())

    def members(self, group: int) -> np.ndarray:
        """Return the items of a group; none if no item is of it."""
        rows, ends = self._by_group
        if group + 2 >= len(ends):
            return rows[:0]
        return rows[ends[group + 1] : ends[group + 2]]


@dataclass(frozen=True, eq=False)
class Prices:
    """What each of n items costs.

    Attributes:
        of: `[n]` int64, not negative for items that can be selected.
    """

    of: np.ndarray

    @cached_property
    def rising(self) -> np.ndarray:
        """`[n]` the items from the cheapest to the dearest."""
        return self.of.argsort(kind="stable")


@dataclass(frozen=True, eq=False)
class Limits:
    """What a selection of n items must keep to; see `Rules` for what each means.

    Attributes:
        category: Their categories.
        max_per_category: Most items of a category.
        required: Categories of which an item is required, the most important first.
        variant: Their products; variants of one product are of one category.
        price: Their prices, where there is a budget.
        budget: Most that all selected items may cost.
        promoted: `[n]` bool.
        promoted_share: Least share of promoted items.
        diversity: Weight of dissimilarity, 0 to 1.
        max_similarity: Largest cosine of two selected items.
        relax: Limits to drop, one after the other, while items are missing.
    """

    category: Groups | None = None
    max_per_category: int | None = None
    required: tuple[int, ...] = ()
    variant: Groups | None = None
    price: Prices | None = None
    budget: int | None = None
    promoted: np.ndarray | None = None
    promoted_share: float = 0.0
    diversity: float = 0.0
    max_similarity: float | None = None
    relax: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selected:
    """What was selected.

    Attributes:
        rows: The items, in the order in which they were taken.
        blocked: If there are too few: how many items each limit kept from being taken, in the end.
        relaxed: The limits that were dropped.
        unmet: The required categories that no item could be taken of.
        missing_promoted: How many promoted items are missing.
    """

    rows: list[int]
    blocked: dict[str, int] = field(default_factory=dict)
    relaxed: tuple[str, ...] = ()
    unmet: tuple[int, ...] = ()
    missing_promoted: int = 0


def select(
    scores: np.ndarray,
    limits: Limits,
    number: int,
    *,
    shown: Sequence[int] = (),
    similarity: Similarity | None = None,
) -> Selected:
    """Select up to `number` items.

    Each time the item with the highest score (or, with `diversity`, of the highest marginal relevance) is taken that
    no limit excludes and with which the selection can still reach its length: the largest one, up to `number`, that
    is possible when the item is taken. `max_similarity` is looked at when an item is about to be taken, and not
    beforehand.

    Args:
        scores: `[n]` float, `-inf` for items that cannot be selected.
        limits: What to keep to.
        number: How many items to select.
        shown: Rows of the items of the partial bundle, whose variants and near-duplicates are excluded.
        similarity: Cosines of the items' features, where `diversity` or `max_similarity` is set.
    """
    selection = _Selection(scores, limits, number, shown, similarity)
    selection.extend()
    relaxed = []
    for name in limits.relax:
        if len(selection.chosen) < number:
            selection.drop(name)
            relaxed.append(name)
            selection.extend()
    return selection.result(tuple(relaxed))


class _Selection:
    """The items taken so far, and why others cannot be."""

    OPEN, TAKEN, NOT_ALLOWED, VARIANT, CATEGORY, SIMILAR, LEADS_NOWHERE = range(7)

    def __init__(
        self, scores: np.ndarray, limits: Limits, number: int, shown: Sequence[int], similarity: Similarity | None
    ):
        self.scores, self.limits, self.number = scores.astype(np.float64), limits, number
        self.shown, self.similarity = list(shown), similarity
        self.active = {"variants", "max_per_category", "budget", "max_similarity"}
        self.chosen: list[int] = []
        self.spent, self.num_promoted = 0, 0
        self.required: list[int] = []  # categories that the selection can still meet
        self.pool: np.ndarray | None = None
        if limits.diversity > 0:
            size = min(POOL_SIZE, int(np.isfinite(self.scores).sum()))
            self.pool = np.sort(np.argpartition(-self.scores, size - 1)[:size]) if size else np.arange(0)
            self.relevance = _scaled(self.scores[self.pool])
            self.nearest = np.full(size, -np.inf)
        self._close_all()

    # What is active

    @property
    def quota(self) -> int | None:
        return self.limits.max_per_category if "max_per_category" in self.active else None

    @property
    def budget(self) -> int | None:
        return self.limits.budget if "budget" in self.active else None

    @property
    def variant(self) -> Groups | None:
        return self.limits.variant if "variants" in self.active else None

    def category_of(self, row: int) -> int:
        return -1 if self.limits.category is None else int(self.limits.category.of[row])

    def variant_of(self, row: int) -> int:
        return -1 if self.variant is None else int(self.variant.of[row])

    def drop(self, name: str) -> None:
        """Drop a limit."""
        self.active.discard(name)
        self._close_all()

    def _close_all(self) -> None:
        """Find out anew which items cannot be taken."""
        self.state = np.where(np.isfinite(self.scores), self.OPEN, self.NOT_ALLOWED).astype(np.int8)
        self.values = self.scores.copy()  # -inf where closed
        self.state[self.chosen] = self.TAKEN
        self.values[self.chosen] = -np.inf
        self.counts: Counter[int] = Counter()
        for row in (*self.shown, *self.chosen):
            self._close_variants(row)
        for row in self.chosen:
            self._count(row)

    def _close(self, rows: np.ndarray, reason: int) -> None:
        """Close items for good, also those that led nowhere so far and could be opened again."""
        rows = rows[np.isin(self.state[rows], (self.OPEN, self.LEADS_NOWHERE))]
        self.state[rows] = reason
        self.values[rows] = -np.inf

    def _close_variants(self, row: int) -> None:
        if self.variant is not None and self.variant_of(row) >= 0:
            self._close(self.variant.members(self.variant_of(row)), self.VARIANT)

    def _count(self, row: int) -> None:
        code = self.category_of(row)
        if self.limits.category is None or code < 0:
            return
        self.counts[code] += 1
        if self.quota is not None and self.counts[code] == self.quota:
            self._close(self.limits.category.members(code), self.CATEGORY)

    def _reopen(self) -> None:
        """Open the items that led nowhere."""
        rows = np.flatnonzero(self.state == self.LEADS_NOWHERE)
        self.state[rows], self.values[rows] = self.OPEN, self.scores[rows]

    # Taking items

    def extend(self) -> None:
        """Take items until there are enough, or none can be taken."""
        completion = self._completion()
        while len(self.chosen) < self.number:
            if completion is not None and not completion.rows:
                break
            row = self._next(completion)
            if row is None:
                break
            if self._is_too_similar(row):
                self.state[row], self.values[row] = self.SIMILAR, -np.inf
                if completion is not None and row in completion.rows:
                    self._reopen()  # the selection may become shorter, and leave more for each item
                    completion = self._completion()
                continue
            if completion is not None:
                completion.take(row)
            self._take(row)

    def _take(self, row: int) -> None:
        limits = self.limits
        self.chosen.append(row)
        self.state[row], self.values[row] = self.TAKEN, -np.inf
        self.spent += 0 if limits.price is None else int(limits.price.of[row])
        self.num_promoted += int(limits.promoted is not None and limits.promoted[row])
        self._close_variants(row)
        if self.category_of(row) in self.required:
            self.required.remove(self.category_of(row))
        self._count(row)
        if self.pool is not None:
            self.nearest = np.maximum(self.nearest, self._cosines(self.pool, [row])[:, 0])

    def _next(self, completion: _Completion | None) -> int | None:
        """Return the best item that can be taken."""
        row = self._best()
        if row is None or completion is None or completion.admits(row):
            return row
        open_rows = np.flatnonzero(self.state == self.OPEN)
        self._close(open_rows[~completion.admitted(open_rows)], self.LEADS_NOWHERE)  # for good: less will be left
        return self._best()

    def _best(self) -> int | None:
        """Return the best open item."""
        limits, values = self.limits, self.values
        if not len(values):
            return None
        if limits.promoted is not None:
            due = math.floor(limits.promoted_share * (len(self.chosen) + 1) + 1e-9)
            if self.num_promoted < due:
                promoted = np.where(limits.promoted, values, -np.inf)
                values = promoted if np.isfinite(promoted).any() else values
        if self.pool is not None:
            nearest = np.where(np.isfinite(self.nearest), self.nearest, 0.0)
            marginal = (1 - limits.diversity) * self.relevance - limits.diversity * nearest
            marginal = np.where(np.isfinite(values[self.pool]), marginal, -np.inf)
            if np.isfinite(marginal).any():
                return int(self.pool[marginal.argmax()])
        row = int(values.argmax())
        return row if np.isfinite(values[row]) else None

    def _is_too_similar(self, row: int) -> bool:
        others = [*self.shown, *self.chosen]
        if self.limits.max_similarity is None or "max_similarity" not in self.active or not others:
            return False
        return bool(self._cosines([row], others).max() > self.limits.max_similarity)

    def _cosines(self, rows: Sequence[int] | np.ndarray, others: Sequence[int]) -> np.ndarray:
        if self.similarity is None:
            raise ValueError("diversity and max_similarity compare items, and no similarity is given: give one.")
        return self.similarity(np.asarray(rows), np.asarray(others))

    def result(self, relaxed: tuple[str, ...]) -> Selected:
        """Return what was taken, and what is missing."""
        blocked = {}
        if len(self.chosen) < self.number:
            names = {self.VARIANT: "variants", self.CATEGORY: "max_per_category", self.SIMILAR: "max_similarity"}
            blocked = {name: int((self.state == reason).sum()) for reason, name in names.items()}
            left = (self.state == self.OPEN) | (self.state == self.LEADS_NOWHERE)
            blocked["budget"] = int(left.sum()) if self.budget is not None else 0
        due = math.floor(self.limits.promoted_share * len(self.chosen) + 1e-9)
        return Selected(
            rows=self.chosen,
            blocked={name: number for name, number in blocked.items() if number},
            relaxed=relaxed,
            unmet=tuple(self._missing()),
            missing_promoted=max(0, due - self.num_promoted),
        )

    # Looking ahead

    def _missing(self) -> list[int]:
        """Return the required categories of which no item is taken."""
        taken = set(map(self.category_of, self.chosen))
        return [code for code in self.limits.required if code not in taken]

    def _completion(self) -> _Completion | None:
        """Return the cheapest completion, as long as possible; `None` where none is needed, since any item will do."""
        missing, self.required = self._missing(), []
        if self.budget is None and not missing:
            return None
        limits, rows, cost = self.limits, [], 0
        prices = limits.price if self.budget is not None else None
        price = np.zeros(len(self.scores), dtype=np.int64) if prices is None else prices.of
        room = math.inf if self.budget is None else self.budget - self.spent
        places = self.number - len(self.chosen)
        for code in missing:
            assert limits.category is not None
            members = limits.category.members(code)
            members = members[self.state[members] == self.OPEN]
            cheapest = int(members[price[members].argmin()]) if len(members) else None
            if cheapest is not None and len(rows) < places and cost + int(price[cheapest]) <= room:
                self.required.append(code)
                rows.append(cheapest)
                cost += int(price[cheapest])
        num_required = len(rows)
        counts = self.counts + Counter(map(self.category_of, rows))
        variants = set(map(self.variant_of, rows))
        for row in self._open(np.arange(len(price)) if prices is None else prices.rising):
            if len(rows) == places or cost + int(price[row]) > room:
                break
            code, product = self.category_of(row), self.variant_of(row)
            is_full = self.quota is not None and code >= 0 and counts[code] == self.quota
            if is_full or (product >= 0 and product in variants) or row in rows[:num_required]:
                continue
            rows.append(row)
            cost += int(price[row])
            counts[code] += 1
            variants.add(product)
        return _Completion(self, rows, price, room - cost)

    def _open(self, rows: np.ndarray, size: int = 1024) -> Iterator[int]:
        """Yield those of some rows that are open, without looking at all of them at once."""
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            yield from block[self.state[block] == self.OPEN].tolist()


class _Completion:
    """The cheapest items that bring a selection to its full length, and which other items may replace one of them."""

    def __init__(self, selection: _Selection, rows: list[int], price: np.ndarray, slack: float):
        self.selection, self.rows, self.price, self.slack = selection, rows, price, slack

    def admits(self, row: int) -> bool:
        """Return whether the selection can still be completed with an item."""
        return row in self.rows or int(self.price[row]) <= self._most(self._replaceable_by(row))

    def admitted(self, rows: np.ndarray) -> np.ndarray:
        """Return with which items `[n]` the selection can still be completed, `[n]` bool."""
        category, variant = self.selection.limits.category, self.selection.variant
        default = self._most(self._replaceable(-1))
        if category is None:
            admitted = self.price[rows] <= default
        else:
            most = np.full(int(category.of.max(initial=-1)) + 2, float(default))  # the last for items without one
            for code in set(map(self.selection.category_of, self.rows)):
                most[code] = self._most(self._replaceable(code))
            admitted = self.price[rows] <= most[category.of[rows]]
        if variant is not None:
            products = {int(variant.of[row]): row for row in self.rows if variant.of[row] >= 0}
            for place in np.flatnonzero(np.isin(variant.of[rows], list(products))):
                admitted[place] = self.price[rows[place]] <= self._most([products[int(variant.of[rows[place]])]])
        return admitted

    def take(self, row: int) -> None:
        """Take an item that is admitted: it replaces the dearest item that it can."""
        replaced = [row] if row in self.rows else self._replaceable_by(row)
        other = max(replaced, key=lambda each: self.price[each])
        self.rows.remove(other)
        self.slack -= int(self.price[row]) - int(self.price[other])

    def _replaceable_by(self, row: int) -> list[int]:
        """Return the items that another item can replace."""
        product = self.selection.variant_of(row)
        same = [other for other in self.rows if product >= 0 and self.selection.variant_of(other) == product]
        return same or self._replaceable(self.selection.category_of(row))

    def _replaceable(self, code: int) -> list[int]:
        """Return the items that an item of a category can replace, if it is no variant of one of them."""
        selection = self.selection
        codes = [selection.category_of(row) for row in self.rows]
        counts = Counter(codes)
        if code >= 0 and selection.quota is not None and counts[code] + selection.counts[code] >= selection.quota:
            return [row for row, of_row in zip(self.rows, codes, strict=True) if of_row == code]
        return [
            row
            for row, of_row in zip(self.rows, codes, strict=True)
            if of_row == code or of_row not in selection.required or counts[of_row] > 1
        ]

    def _most(self, rows: Sequence[int]) -> float:
        """Return what an item may cost that replaces one of these; less than any price if there is none."""
        return self.slack + max(int(self.price[row]) for row in rows) if rows else -1


def _scaled(scores: np.ndarray) -> np.ndarray:
    """Scale scores to 0 to 1."""
    spread = scores.max() - scores.min() if len(scores) else 0.0
    return (scores - scores.min()) / spread if spread > 0 else np.ones(len(scores))
