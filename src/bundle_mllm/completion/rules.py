"""The rules of a shop about answers, and what they say about the items of one catalog.

Knows nothing about models, scores or how items are selected.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bundle_mllm.completion.columns import Column, ItemColumns
from bundle_mllm.completion.conditions import Condition
from bundle_mllm.completion.selection import Groups, Limits, Prices
from bundle_mllm.data.files import read_json, require_file
from bundle_mllm.data.records import require_fields, to_id
from bundle_mllm.data.tables import SUFFIXES, iter_records
from bundle_mllm.errors import BundleMLLMError, did_you_mean
from bundle_mllm.settings import Settings, read_overrides, with_overrides

Relaxable = Literal["max_similarity", "variants", "max_per_category", "budget"]
PRICE_STEPS, MAX_PRICE = 10_000, 1e9
"""Prices are added up in whole ten-thousandths, so that sums are exact."""


@dataclass(frozen=True)
class Rules(Settings):
    """What may be answered, and how answers are selected.

    1. Filters (`allowed`, `excluded`, `where`, the bundle's own items) decide which items are scored at all.
       Probabilities are among these.
    2. The retriever scores all of them, and `boost` adds to the scores.
    3. The ranker scores the best `num_ranked` (M) of them, taken by the selection of step 5 for M instead of k items:
       with at most ceil(n M / k) items of a category, and without `budget` and `diversity`.
    4. Both scores are joined (see `BundleCompleter`), and `boost` is added again.
    5. Selection takes k items one after the other: each time the best that no limit excludes and with which the
       answer can still reach its full length, hold the required categories and keep to the budget. If no k items do,
       it takes as many as possible.

    Limits count the answers, not the partial bundle; but a variant of an item of the bundle is never an answer.
    """

    where: str | None = None
    """Condition on item columns, such as: in_stock == true and price <= 50 and category != "gift card"."""
    allowed: tuple[str, ...] | None = None
    """Ids of the only items that may be answers."""
    allowed_file: Path | None = None
    """File of such ids: a table with `item_id`, or text with one id a line."""
    excluded: tuple[str, ...] = ()
    """Ids of items that are never answers, also if they are allowed."""
    excluded_file: Path | None = None
    """File of such ids."""
    max_per_category: int | None = None
    """At most so many answers of one category; items without a category are not limited."""
    required_categories: tuple[str, ...] = ()
    """Categories that the answers must hold at least one item of. The earlier ones go first where not all fit."""
    category_column: str = "category"
    """Column of the categories."""
    budget: float | None = None
    """The most that all answers together may cost. Items without a price are no answers then."""
    price_column: str = "price"
    """Column of the prices."""
    variant_column: str | None = None
    """Column whose equal values (case and blanks aside) mark variants of one product, such as a handle or `title`: one
    of them is answered at most. They count as of the category of the first of them."""
    max_similarity: float | None = None
    """Leave out an item whose features have a larger cosine with an answer or an item of the bundle: near-duplicates
    without a column that marks them; 0 to 1."""
    boost: Mapping[str, float] = field(default_factory=dict)
    """What is added to the log-probability, for each column of numbers (times its standardized value) and each
    condition (where it holds): 0.69 doubles the odds, -0.69 halves them (buries)."""
    promoted: str | None = None
    """Condition of promoted items."""
    promoted_share: float = 0.0
    """Of the first i answers at least floor(share * i) are promoted, as far as there are promoted items; 0 to 1."""
    diversity: float = 0.0
    """d of maximal marginal relevance (Carbonell and Goldstein, 1998): each item maximizes (1 - d) * r - d * s with r
    its log-probability, scaled to 0 to 1 over the best 100 items, and s its largest cosine with an item taken so far;
    0 to 1. Items beyond the best 100 are taken only where none of these can be."""
    relax: tuple[Relaxable, ...] = ()
    """If the rules leave too few answers: the limits that are dropped one after the other, in this order, until there
    are enough; answers that were selected before stay. By default none: fewer answers come back."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "boost", {str(name): _number(f"boost {name}", v) for name, v in self.boost.items()})
        if self.max_per_category is not None and self.max_per_category < 1:
            raise BundleMLLMError(
                f"max_per_category is {self.max_per_category}, so no item would be allowed: give 1 or more, or "
                "exclude categories by where."
            )
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise BundleMLLMError(
                f"budget is {self.budget:g}, which no item costs: give a positive number, or leave it out."
            )
        for name in ("promoted_share", "diversity", "max_similarity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise BundleMLLMError(f"{name} is {value:g}, which is no share: give a number from 0 to 1.")
        if (self.promoted is None) != (self.promoted_share == 0):
            raise BundleMLLMError(
                "promoted says which items are promoted and promoted_share how many of the answers, and one alone "
                "does nothing: give both, or neither."
            )
        if len(set(self.required_categories)) < len(self.required_categories):
            raise BundleMLLMError(
                f"required_categories names {list(self.required_categories)}, one of them twice: one answer of each "
                "is required, so name each once."
            )
        for name in self.relax:
            if self.relax.count(name) > 1 or not self._has(name):
                problem = "twice" if self.relax.count(name) > 1 else "but there is no such rule"
                raise BundleMLLMError(f"relax names {name!r}, {problem}: name each rule that may be dropped once.")
        _ = self._conditions  # refused here if it is none

    @classmethod
    def load(cls, path: str | os.PathLike) -> Rules:
        """Read rules from a file, JSON or YAML; paths in it are relative to its folder.

        Raises:
            BundleMLLMError: If the file is missing or holds something else, a rule is unknown or does not fit.
        """
        path = Path(path)
        values = read_json(path) if path.suffix == ".json" else read_overrides(path)
        return cls.from_dict(values, path.parent, str(path))

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], folder: str | Path | None = None, source: str = "The rules"
    ) -> Rules:
        """Make rules of plain values, as JSON and YAML give them; see [`~Rules.load`].

        Raises:
            BundleMLLMError: If there is no such rule, or a value is not what it takes.
        """
        names = [each.name for each in fields(cls)]
        for name in values:
            if name not in names:
                hint = did_you_mean(str(name), names, "the rules are")
                raise BundleMLLMError(f"{source} has {name!r}, which is no rule: {hint}")
        try:
            rules = with_overrides(cls(), values)
        except BundleMLLMError as error:
            raise BundleMLLMError(f"{source}: {error}") from error
        for name in ("allowed_file", "excluded_file"):
            if folder is not None and (file := getattr(rules, name)) is not None:
                object.__setattr__(rules, name, Path(folder, file))
        return rules

    def apply(self, item_ids: Sequence[str], columns: ItemColumns) -> CatalogRules:
        """Read what the rules say about the items of a catalog, once for all questions.

        Args:
            item_ids: Ids of the items, in row order.
            columns: Their columns.

        Raises:
            BundleMLLMError: If a column, an id or a category does not exist, rules contradict each other, or no item
                is left; the message says how many each rule removes.
        """
        removed_by, filters, notes = np.full(len(item_ids), -1, dtype=np.int32), {}, []

        def remove(rule: str, kept: np.ndarray) -> None:
            removed_by[(removed_by < 0) & ~kept] = filters.setdefault(rule, len(filters))

        rows = {item_id: row for row, item_id in enumerate(item_ids)}
        only, never = self._ids("allowed"), self._ids("excluded")
        if only is not None:
            remove("allowed", _members(only, rows, "allowed", notes))
        if never is not None:
            remove("excluded", ~_members(never, rows, "excluded", notes))
        for condition in self._conditions["where"]:
            remove(f"where {condition.text}", condition.mask(columns))
        category, names, price, variant = None, (), None, None
        if self.max_per_category is not None or self.required_categories:
            category, names = _codes(columns[self.category_column])
        if self.variant_column is not None:
            column = columns[self.variant_column]
            variant, _ = _codes(column, folded=True)
        if category is not None and variant is not None:
            category = _of_first_variant(category, variant)
        required = [self._category(name, names) for name in self.required_categories]
        if self.budget is not None:
            price = _prices(columns[self.price_column])
            remove("no price, or one above the budget", (price >= 0) & (price <= _steps(self.budget)))
        allowed, removed = removed_by < 0, _removed(tuple(filters), removed_by)
        if not allowed.any():
            raise BundleMLLMError(
                f"The rules leave none of the {len(item_ids)} items ({'; '.join([_counts(removed), *notes])}), so "
                "there is no answer: loosen one of them."
            )
        for code in required:
            if not (allowed & (category == code)).any():
                raise BundleMLLMError(
                    f"The category {names[code]!r} is required, but the other rules leave none of its items "
                    f"({_counts(removed)}): loosen one of them, or do not require it."
                )
        if columns.num_unknown:
            notes.append(
                f"{columns.source} does not list {columns.num_unknown} of the {len(item_ids)} items, whose columns "
                "are empty for the rules"
            )
        promoted = None if self.promoted is None else self._conditions["promoted"][0].mask(columns)
        if promoted is not None and not (promoted & allowed).any():
            raise BundleMLLMError(
                f"No allowed item is promoted ({self.promoted!r} holds for {int(promoted.sum())} of {len(item_ids)} "
                f"items; {_counts(removed) or 'no rule removes any'}): loosen a rule, or leave promoted out."
            )
        return CatalogRules(
            rules=self,
            allowed=allowed,
            removed_by=removed_by,
            filters=tuple(filters),
            notes=tuple(notes),
            offsets=self._offsets(columns),
            category=category,
            category_names=names,
            required=tuple(required),
            variant=variant,
            price=price,
            promoted=promoted,
        )

    @cached_property
    def _conditions(self) -> dict[str, list[Condition]]:
        where = [] if self.where is None else Condition.parse(self.where).parts
        promoted = [] if self.promoted is None else [Condition.parse(self.promoted)]
        return {"where": where, "promoted": promoted}

    def _has(self, limit: str) -> bool:
        return getattr(self, {"variants": "variant_column"}.get(limit, limit)) is not None

    def _ids(self, name: str) -> list[str] | None:
        """Return the ids of a list and its file; `None` if there is neither."""
        listed, file = getattr(self, name), getattr(self, f"{name}_file")
        if file is None:
            return None if listed is None or (not listed and name == "excluded") else list(listed)
        return [*(listed or ()), *_read_ids(file)]

    def _category(self, name: str, names: Sequence[str]) -> int:
        if name not in names:
            raise BundleMLLMError(
                f"The category {name!r} is required, but no item of the catalog has it in {self.category_column!r}: "
                f"{did_you_mean(name, names, 'the categories are')}"
            )
        return list(names).index(name)

    def _offsets(self, columns: ItemColumns) -> np.ndarray | None:
        """Return what `boost` adds to each item, `[num_items]` float32."""
        if not self.boost:
            return None
        total = np.zeros(columns.num_items, dtype=np.float64)
        for text, weight in self.boost.items():
            if text in columns.names and (column := columns[text]).kind == "number":
                present = ~column.missing
                spread = column.values[present].std() if present.any() else 0.0
                if not spread > 0:
                    raise BundleMLLMError(
                        f"boost names the column {text!r}, which has the same value for all items, so it would change "
                        "nothing: leave it out."
                    )
                total[present] += weight * (column.values[present] - column.values[present].mean()) / spread
            else:
                total += weight * Condition.parse(text).mask(columns)
        return total.astype(np.float32)


@dataclass(frozen=True, eq=False)
class CatalogRules:
    """What rules say about each of the `n` items of a catalog.

    Attributes:
        rules: The rules.
        allowed: `[n]` bool, which items may be answers to any question.
        removed_by: `[n]` int32, the first filter that removes an item, -1 for none.
        filters: Names of the filters.
        notes: What should be known about lists of ids and the items table, one line each.
        offsets: `[n]` float32, what `boost` adds; `None` for nothing.
        category: `[n]` int64, -1 for none; `None` if no rule asks for it.
        category_names: Names of the categories.
        required: The required categories.
        variant: `[n]` int64, equal for variants of one product, -1 for none; `None` if no rule asks for it.
        price: `[n]` int64 in steps of 1 / `PRICE_STEPS`, -1 for none; `None` without a budget.
        promoted: `[n]` bool; `None` if no rule asks for it.
    """

    rules: Rules
    allowed: np.ndarray
    removed_by: np.ndarray
    filters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    offsets: np.ndarray | None = None
    category: np.ndarray | None = None
    category_names: Sequence[str] = ()
    required: tuple[int, ...] = ()
    variant: np.ndarray | None = None
    price: np.ndarray | None = None
    promoted: np.ndarray | None = None

    @classmethod
    def none(cls, num_items: int) -> CatalogRules:
        """Return no rules for a catalog of so many items."""
        return cls(Rules(), np.ones(num_items, dtype=bool), np.full(num_items, -1, dtype=np.int32))

    def removed(self, rows: np.ndarray | None = None) -> dict[str, int]:
        """Return how many items each filter removes, those before it aside: of the catalog, or of the items `rows`."""
        return _removed(self.filters, self.removed_by if rows is None else self.removed_by[rows])

    @property
    def is_empty(self) -> bool:
        """Whether there is no rule."""
        return self.rules == Rules()

    @cached_property
    def limits(self) -> Limits:
        """What a selection of answers must keep to."""
        rules = self.rules
        return Limits(
            category=None if self.category is None else Groups(self.category),
            max_per_category=rules.max_per_category,
            required=self.required,
            variant=None if self.variant is None else Groups(self.variant),
            price=None if self.price is None else Prices(self.price),
            budget=None if rules.budget is None else _steps(rules.budget),
            promoted=self.promoted,
            promoted_share=rules.promoted_share,
            diversity=rules.diversity,
            max_similarity=rules.max_similarity,
            relax=rules.relax,
        )

    def limits_of_ranked(self, num_ranked: int, number: int) -> Limits:
        """Return what the selection of the `num_ranked` items that the ranker scores must keep to."""
        quota = self.rules.max_per_category
        quota = None if quota is None else -(-quota * num_ranked // number)
        return replace(self.limits, max_per_category=quota, budget=None, diversity=0.0, relax=())

    @property
    def selects(self) -> bool:
        """Whether answers depend on each other, so that the best k items need not be the answers."""
        rules = self.rules
        limits = any(rules._has(name) for name in get_args(Relaxable))
        return limits or bool(self.required) or self.promoted is not None or rules.diversity > 0

    @property
    def summary(self) -> str:
        """How many items each filter removed, in one line."""
        return _counts(self.removed())


def _removed(filters: Sequence[str], removed_by: np.ndarray) -> dict[str, int]:
    counts = np.bincount(removed_by + 1, minlength=len(filters) + 1)[1:]
    return dict(zip(filters, counts.tolist(), strict=True))


def _counts(removed: Mapping[str, int]) -> str:
    return ", ".join(f"{rule} removes {number}" for rule, number in removed.items())


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BundleMLLMError(
            f"{name} is {value!r}: give a finite number, 0.69 to double the odds, -0.69 to halve them."
        )
    return float(value)


def _steps(price: float) -> int:
    return round(price * PRICE_STEPS)


def _read_ids(path: Path) -> list[str]:
    if path.name.endswith(SUFFIXES):
        ids = []
        for number, record in enumerate(iter_records(path), start=1):
            require_fields(record, ("item_id",), f"{path} row {number}")
            ids.append(to_id(record["item_id"], f"{path} row {number}"))
        return ids
    try:
        lines = require_file(path, "check allowed_file and excluded_file").read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BundleMLLMError(f"{path} is not UTF-8 text ({error}): save it as UTF-8, one item id a line.") from error
    return [line.strip() for line in lines if line.strip()]


def _members(ids: Sequence[str], rows: Mapping[str, int], rule: str, notes: list[str]) -> np.ndarray:
    """Return which items of the catalog are listed, `[n]` bool; note ids that it does not have."""
    if unknown := [item_id for item_id in ids if item_id not in rows]:
        notes.append(f"{rule} lists {len(unknown)} ids that are not in the catalog, such as {unknown[0]!r}")
    listed = np.zeros(len(rows), dtype=bool)
    listed[[rows[item_id] for item_id in ids if item_id in rows]] = True
    return listed


def _codes(column: Column, folded: bool = False) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return a number for each distinct value `[n]` int64, -1 where missing, and the values as text."""
    if column.kind == "list":
        raise BundleMLLMError(
            f"The column {column.name!r} holds lists such as {column.example}, so an item has no single value in it: "
            "name a column with one value per item."
        )
    if column.kind == "text":
        names, codes = column.names, column.values
    else:
        distinct, codes = np.unique(column.values, return_inverse=True)  # NaN last, once
        codes = np.where(column.missing, -1, codes)
        names = tuple(map(column.text_of, distinct[~np.isnan(distinct)]))
    if folded:
        normal = [" ".join(name.casefold().split()) for name in names]
        place = {name: number for number, name in enumerate(dict.fromkeys(normal))}
        codes, names = np.array([*(place[name] for name in normal), -1])[codes], tuple(place)
    return codes.astype(np.int64), names


def _of_first_variant(category: np.ndarray, variant: np.ndarray) -> np.ndarray:
    """Return the categories `[n]`, that of a variant being the one of the first item of its product that has one."""
    rows = np.flatnonzero((variant >= 0) & (category >= 0))
    products, first = np.unique(variant[rows], return_index=True)
    of_product = np.full(int(variant.max(initial=-1)) + 2, -1, dtype=np.int64)
    of_product[products] = category[rows[first]]
    return np.where(variant >= 0, of_product[variant], category)


def _prices(column: Column) -> np.ndarray:
    """Return prices in steps `[n]` int64, -1 where missing."""
    if column.kind != "number":
        raise BundleMLLMError(
            f"budget adds up the column {column.name!r}, but it holds {column.example}, which is no number: write "
            "prices as plain numbers, such as 12.50, or name another price_column."
        )
    least, most = (float(f(column.values)) for f in (np.nanmin, np.nanmax))
    if least < 0 or most > MAX_PRICE:
        bad = column.text_of(least if least < 0 else most)
        raise BundleMLLMError(
            f"The column {column.name!r} holds the price {bad}, so a budget would mean nothing: correct it."
        )
    return np.where(column.missing, -1, np.round(np.nan_to_num(column.values) * PRICE_STEPS)).astype(np.int64)
