"""Make bundles and a user log of order lines: one row per order and item.

Knows nothing about where the lines come from.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bundle_mllm.data.bundles import SPLITS, BundleSplits
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.cells import to_number
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.assemble import Place, RawBundle, clean_id, need_column, note_unmet, text_of, to_price
from bundle_mllm.importers.columns import LINE_FIELDS
from bundle_mllm.importers.settings import OrderOptions
from bundle_mllm.importers.summary import ImportNotes
from bundle_mllm.importers.text import clean_text
from bundle_mllm.importers.times import to_seconds

_CANCELLATION = re.compile(r"[Cc](\d+)")
_DESCRIBED = ("title", "category", "price")
_USED = frozenset({*LINE_FIELDS})
_NO_ORDER = frozenset({"cancelled", "canceled", "refunded", "voided", "failed", "trash", "expired"})
"""What the status of an order may be that was not kept, in lower case and without WooCommerce's `wc-`."""


@dataclass
class Order:
    """What one order holds: the quantity of each item, returns taken off, in the order of the lines."""

    quantities: dict[str, float] = field(default_factory=dict)
    time: str | None = None
    user: str | None = None
    is_void: bool = False


@dataclass
class Orders:
    """All orders of a table.

    Attributes:
        of: The orders by their number.
        described: Of each item, how often lines that sell it have each value of `title`, `category` and `price`.
    """

    of: dict[str, Order] = field(default_factory=dict)
    described: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)


def names_of(catalog: ItemCatalog) -> dict[str, str]:
    """Return the item of each title that no other item has, in lower case."""
    counts = Counter(item.title.casefold() for item in catalog)
    return {title: item.item_id for item in catalog if counts[title := item.title.casefold()] == 1 and title}


def collect_orders(
    records: Iterable[Place], options: OrderOptions, notes: ImportNotes, names: Mapping[str, str] | None = None
) -> Orders:
    """Gather order lines.

    A negative quantity is a return, and so is every line of an order whose number is that of a cancellation (`C536379`
    where other numbers are `536365`): it is taken off the order of that number. An item of which nothing is left was
    returned. An order that was cancelled, refunded as a whole or never paid, by its status or the time of its
    cancellation, is no order. Lines without an order or an item, and those of excluded items, are counted and left
    out.

    Args:
        records: Mappings with `order_id` and `item_id`; optionally `quantity` (1 if absent), `timestamp`, `user_id`,
            `status`, `cancelled_at` and what describes the item.
        options: Which ids are excluded.
        notes: Receives what was left out, and problems.
        names: The item of each title, for lines that have a title and no `item_id`, as in a shop without SKUs.

    Raises:
        BundleMLLMError: If no line names an item.
    """
    orders = Orders()
    excluded, num_without_item = set(options.exclude), 0
    number = -1
    for number, (where, record) in enumerate(records):
        if not number:
            for name in ("order_id", "item_id"):
                need_column(record, name, where)
        if not number and (unused := [name for name in record if name and name not in _USED]):
            notes.warn(f"columns of orders that say nothing about items were left out: {', '.join(unused)}.")
        with notes.problems():
            order_id, item_id = (clean_id(record.get(name), where, notes) for name in ("order_id", "item_id"))
            if item_id is None and (item_id := _by_name(record.get("title"), names or {})) is not None:
                notes.add("order lines without an id, whose item was found by its name", where, harmless=True)
            if item_id is None and (item_id := clean_id(record.get("product_handle"), where, notes)) is not None:
                notes.add("order lines without an SKU, whose product is their item", where, harmless=True)
            num_without_item += item_id is None
            if order_id is not None:  # shops write what concerns the order in its first line alone
                order = orders.of.setdefault(order_id, Order())
                order.time = order.time or text_of(record, "timestamp", where)
                order.user = order.user or text_of(record, "user_id", where)
                order.is_void = order.is_void or _is_void(record)
            if order_id is None or item_id is None:
                notes.add(f"order lines without an {'order' if order_id is None else 'item'}, left out", where)
                continue
            if item_id in excluded:
                notes.add("order lines of excluded ids, left out", where, harmless=True)
                continue
            quantity = _to_quantity(record, where)
            quantities = orders.of[order_id].quantities
            quantities[item_id] = quantities.get(item_id, 0) + quantity
            if quantity > 0 or item_id not in orders.described:
                _describe(orders.described, item_id, record, where)
    if number >= 0 and num_without_item == number + 1:
        raise BundleMLLMError(
            f"None of {number + 1} order lines names an item by its id, or by the title of one product alone, so "
            "orders make no bundles: fill in the SKUs in the shop and export again, or name the column that tells the "
            "item, orders.item_id=COLUMN."
        )
    for order_id in [order_id for order_id, order in orders.of.items() if order.is_void]:
        del orders.of[order_id]
        notes.add(
            "orders that were cancelled, refunded, voided or failed, left out", f"order {order_id!r}", harmless=True
        )
    _take_off_cancellations(orders.of, notes)
    for order_id, order in orders.of.items():
        for item_id in [item_id for item_id, quantity in order.quantities.items() if quantity <= 0]:
            del order.quantities[item_id]
            notes.add(
                "items of orders that were returned or cancelled, taken out of them",
                f"{item_id!r} in order {order_id!r}",
                harmless=True,
            )
    orders.of = {order_id: order for order_id, order in orders.of.items() if order.quantities}
    return orders


def catalog_records(orders: Orders, notes: ImportNotes) -> Iterator[Place]:
    """Yield an item for each one that was sold; the most frequent of several titles, categories or prices counts."""
    for item_id, columns in orders.described.items():
        record: dict[str, Any] = {"item_id": item_id}
        for name, spellings in columns.items():
            (best, _), *others = spellings.most_common()
            record[name] = to_price(best, f"item {item_id!r}", notes) if name == "price" else best
            if others and name != "price":
                shown = f"{item_id!r}: {best!r} ({spellings[best]}) rather than {others[0][0]!r} ({others[0][1]})"
                notes.add(
                    f"items with several spellings of their {name}, of which the most frequent was taken",
                    shown,
                    harmless=True,
                )
        yield f"item {item_id!r}", record


def to_bundles(
    orders: Orders, catalog: ItemCatalog, options: OrderOptions, fractions: Sequence[float], notes: ImportNotes
) -> dict[str, RawBundle]:
    """Make a bundle of each order of the wanted size, with its split if orders are split by time.

    Items that the catalog lacks or that too few orders have are taken out first.

    Raises:
        BundleMLLMError: If limits contradict each other, or times are missing where they decide the split.
    """
    fewest, most = options.order_size
    if not 2 <= fewest <= most:
        raise BundleMLLMError(
            f"order_size is {fewest} to {most}, which no order has: give the fewest (2 or more) and most."
        )
    sold = [(order_id, item_id) for order_id, order in orders.of.items() for item_id in order.quantities]
    note_unmet(sold, catalog, notes)
    support = Counter(item_id for _, item_id in sold if item_id in catalog)
    rare = {item_id for item_id, number in support.items() if number < options.min_support}
    notes.add(
        f"items of fewer than {options.min_support} orders, taken out of bundles", map(repr, rare), harmless=True
    )
    raw: dict[str, RawBundle] = {}
    for order_id, order in orders.of.items():
        items = [item_id for item_id in order.quantities if item_id in support and item_id not in rare]
        if len(items) > most:
            notes.add(f"orders of more than {most} items, which are no bundles", f"order {order_id!r}", harmless=True)
        elif len(items) < fewest:
            notes.add(
                f"orders of fewer than {fewest} items, which are no bundles", f"order {order_id!r}", harmless=True
            )
        else:
            raw[order_id] = RawBundle(items=items)
    if options.split_by == "time" and raw:
        _split_by_time(raw, orders.of, fractions)
    return raw


def user_log(
    orders: Orders, bundles: BundleSplits, options: OrderOptions, notes: ImportNotes
) -> list[Mapping[str, str | None]]:
    """Return who bought what, without the orders that became bundles: these are the questions and their answers.

    Of a training bundle, too, the log would tell the answer, and a model would learn to trust it more than it may
    later. Where orders are split by time, those after the first validation or test bundle are left out as well.
    """
    of_bundles = {bundle.bundle_id: split for split in SPLITS for bundle in bundles[split]}
    logged = {order_id: order for order_id, order in orders.of.items() if order.user and order_id not in of_bundles}
    with_user = sum(order.user is not None for order in orders.of.values())
    notes.add("orders that became bundles, left out of the user log", count=with_user - len(logged), harmless=True)
    held_out = [order_id for order_id, split in of_bundles.items() if split != SPLITS[0]]
    if options.split_by == "time" and held_out:
        dated = {order_id: order.time for order_id, order in orders.of.items() if order.time}
        when = dict(zip(dated, to_seconds(list(dated.values())), strict=True))
        first = min(when[order_id] for order_id in held_out)
        earlier = {order_id: order for order_id, order in logged.items() if when.get(order_id, math.inf) < first}
        late = len(logged) - len(earlier)
        notes.add("orders after the first of validation, left out of the user log", count=late, harmless=True)
        logged = earlier
    if any("@" in (order.user or "") for order in logged.values()):
        notes.warn(
            "the user log names customers by their e-mail addresses: before you share the data or a model of it, map "
            "another column, such as a customer number (user_id=COLUMN)."
        )
    return [
        {"user_id": order.user, "item_id": item_id, "timestamp": order.time}
        for order in logged.values()
        for item_id in order.quantities
    ]


def number_bundles(bundles: BundleSplits) -> BundleSplits:
    """Return the bundles with the numbers from 1 as ids, in the order of a hash, which tells no time."""
    by_hash = sorted(bundles, key=lambda bundle: hashlib.sha256(bundle.bundle_id.encode()).digest())
    number_of = {bundle.bundle_id: str(number) for number, bundle in enumerate(by_hash, start=1)}
    renamed = {
        split: tuple(replace(bundle, bundle_id=number_of[bundle.bundle_id]) for bundle in bundles[split])
        for split in SPLITS
    }
    return replace(bundles, **renamed)


def _by_name(title: Any, names: Mapping[str, str]) -> str | None:
    """Return the item of a title, after which shops write the options of a variant: `Hat - S / Red`."""
    text = " ".join(title.split()).casefold() if isinstance(title, str) else ""
    return names.get(text) or names.get(text.rpartition(" - ")[0])


def _is_void(record: Mapping[str, Any]) -> bool:
    """Return whether the order of a line was cancelled, refunded as a whole or never paid."""
    status = record.get("status")
    kept = not isinstance(status, str) or status.strip().lower().removeprefix("wc-") not in _NO_ORDER
    return bool(record.get("cancelled_at")) or not kept


def _to_quantity(record: Mapping[str, Any], where: str) -> float:
    text = text_of(record, "quantity", where)
    if text is None or not text.strip():
        return 1.0
    quantity = to_number(text)
    if math.isnan(quantity):
        raise BundleMLLMError(f"{where} has the quantity {text!r}: write a number such as 2, or -2 for a return.")
    return quantity


def _describe(
    described: dict[str, dict[str, Counter[str]]], item_id: str, record: Mapping[str, Any], where: str
) -> None:
    of_item = described.setdefault(item_id, {})
    for name in _DESCRIBED:
        text = " ".join(clean_text(text_of(record, name, where) or "").split())
        if text:
            of_item.setdefault(name, Counter())[text] += 1


def _take_off_cancellations(orders: dict[str, Order], notes: ImportNotes) -> None:
    """Take the lines of cancellations off the orders that they cancel, if these have the same number."""
    marked = {order_id: match[1] for order_id in orders if (match := _CANCELLATION.fullmatch(order_id))}
    if not marked or not any(order_id.isdecimal() for order_id in orders):
        return  # else all numbers are like this
    for order_id, cancelled in marked.items():
        notes.add(
            "cancellations (their number has a C before it), which are no orders", f"order {order_id!r}", harmless=True
        )
        taken = orders.pop(order_id).quantities
        if (order := orders.get(cancelled)) is not None:
            for item_id, quantity in taken.items():
                order.quantities[item_id] = order.quantities.get(item_id, 0) - abs(quantity)


def _split_by_time(raw: dict[str, RawBundle], orders: Mapping[str, Order], fractions: Sequence[float]) -> None:
    times = {order_id: orders[order_id].time for order_id in raw}
    if missing := [order_id for order_id, time in times.items() if time is None]:
        raise BundleMLLMError(
            f"{len(missing)} orders have no time, such as {missing[0]!r}, so they cannot be split by time: map the "
            "column, timestamp=COLUMN, or split by bundle."
        )
    seconds = dict(zip(times, to_seconds([time or "" for time in times.values()]), strict=True))
    ordered = sorted(raw, key=lambda order_id: (seconds[order_id], order_id))
    ends = [round(sum(fractions[: split + 1]) * len(ordered)) for split in range(len(SPLITS))]
    for position, order_id in enumerate(ordered):
        raw[order_id].split = SPLITS[next(split for split, end in enumerate(ends) if position < end or split == 2)]
