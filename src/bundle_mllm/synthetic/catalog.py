"""The generative process of a synthetic catalog: draws items, titles, bundles and interactions from its settings.

Knows nothing about files, pictures, sounds, encoders or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import Any, get_args

import numpy as np

from bundle_mllm.synthetic.settings import NUM_COPIES, NUM_KINDS, Domain, Signal, SyntheticSettings

NUM_IDLE_TAGS = 30
OWN_VALUE_SHARE = 0.9
"""Share of a user's items that have the user's own value."""

KINDS: dict[Domain, tuple[str, ...]] = {
    "fashion": ("jacket", "shirt", "trousers", "skirt", "dress", "shoes", "hat", "bag", "scarf"),
    "playlist": ("song", "tune", "theme", "jam", "suite", "sketch", "medley", "refrain", "remix"),
}
_ADJECTIVES: dict[Domain, str] = {
    "fashion": "sporty athletic agile training running gym elegant evening refined formal festive noble "
    "rugged hiking outdoor sturdy workwear alpine romantic dreamy delicate tender poetic sweet",
    "playlist": "calm quiet drowsy gentle floating hushed party dancing wild neon glitter weekend "
    "folk rural harvest village campfire meadow gloomy gothic haunted stormy midnight bitter",
}
_VARIANTS = ("plain", "simple")  # Distinguish copies where a value has too few adjectives for two pairs.


@dataclass(frozen=True, eq=False)
class SyntheticCatalog:
    """A drawn catalog, with the theme of each item, which no file for encoders or models contains.

    Attributes:
        settings: The settings it was drawn with.
        titles: One title per item.
        kind: `[num_items]` int64, the item's kind.
        theme: `[num_items]` int64, the item's theme.
        levels: For each signal that carries the theme `[num_items]` int64, the level of each item.
        values: For these, media and user_item `[num_items]` int64, the value that the signal shows of each item.
        cold: `[num_items]` bool, whether the item is in no training bundle.
        bundles: For each split its bundles, as tuples of rows.
        interactions: `[num_interactions, 2]` int64, pairs of user and row.
    """

    settings: SyntheticSettings
    titles: tuple[str, ...]
    kind: np.ndarray
    theme: np.ndarray
    levels: dict[Signal, np.ndarray]
    values: dict[Signal, np.ndarray]
    cold: np.ndarray
    bundles: dict[str, tuple[tuple[int, ...], ...]]
    interactions: np.ndarray

    @cached_property
    def item_ids(self) -> tuple[str, ...]:
        """The item ids, in row order."""
        return tuple(f"invented-{self.settings.domain}-{row:04d}" for row in range(len(self.titles)))


def random_generator(settings: SyntheticSettings, *purpose: int) -> np.random.Generator:
    """Return the generator of one purpose: none for the catalog, 1 and a row for a file, 2 for what adds noise."""
    return np.random.default_rng([settings.seed, get_args(Domain).index(settings.domain), *purpose])


def draw_catalog(settings: SyntheticSettings) -> SyntheticCatalog:
    """Draw items, titles, bundles and interactions, without writing anything; the same settings give the same.

    Each combination of theme, value, kind and copy is one item. A title shows kind and, if titles carry the theme, the
    value, so that each title stands for one item of each combination of what other signals carry.
    """
    rng, noise = random_generator(settings), random_generator(settings, 2)
    signals, num_themes = settings.signals, settings.num_themes
    shape = (num_themes, settings.values_per_level, NUM_KINDS, NUM_COPIES)
    num_items = settings.num_items
    # At most one copy of a combination is cold, so that the other one can take its place in training bundles.
    combinations = rng.choice(num_items // NUM_COPIES, size=round(settings.cold_share * num_items), replace=False)
    cold = np.zeros(num_items, dtype=bool)
    cold[combinations * NUM_COPIES + rng.integers(NUM_COPIES, size=combinations.size)] = True
    order = rng.permutation(num_items)
    cold = cold[order]
    theme, value, kind, copy = np.unravel_index(order, shape)
    levels = dict(zip(signals, np.unravel_index(theme, tuple(signals.values())), strict=True))
    values: dict[Signal, np.ndarray] = {signal: value * signals[signal] + levels[signal] for signal in signals}
    for signal in ("media", "user_item"):  # Independent of the theme: the value of another item.
        values.setdefault(signal, noise.permutation(value * num_themes + theme))
    titles = _draw_titles(settings, values.get("title", np.zeros_like(kind)), kind, copy, rng)
    rows = np.argsort(order).reshape(shape).swapaxes(1, 2).reshape(num_themes, NUM_KINDS, -1)
    bundles = _draw_bundles(settings, rows, cold, rng, noise)
    interactions = _draw_interactions(settings, values["user_item"], rng)
    return SyntheticCatalog(settings, titles, kind, theme, levels, values, cold, bundles, interactions)


def adjectives(settings: SyntheticSettings) -> list[tuple[str, ...]]:
    """Return, for each value that a title can show, its adjectives: the words of the domain in equal shares."""
    if "title" not in settings.signals:
        return [()]
    number = settings.signals["title"] * settings.values_per_level
    words = _ADJECTIVES[settings.domain].split()
    if number > len(words):
        words = [word for domain in get_args(Domain) for word in _ADJECTIVES[domain].split()]
    return [tuple(part.tolist()) for part in np.array_split(words, number)]


def _draw_titles(
    settings: SyntheticSettings, value: np.ndarray, kind: np.ndarray, copy: np.ndarray, rng: np.random.Generator
) -> tuple[str, ...]:
    """Give each (value, kind, copy) one title of adjectives and a noun."""
    title_of = {}
    for number, words in enumerate(adjectives(settings)):
        phrases = [(first, second) for first in words for second in words if first < second]
        if len(phrases) < NUM_COPIES:
            phrases = [(variant, *words) for variant in _VARIANTS]
        for kind_number, noun in enumerate(KINDS[settings.domain]):
            for copy_number, phrase in enumerate(rng.choice(len(phrases), size=NUM_COPIES, replace=False)):
                title = " ".join([*rng.permutation(phrases[phrase]), noun])
                title_of[number, kind_number, copy_number] = title
    return tuple(title_of[key] for key in zip(value.tolist(), kind.tolist(), copy.tolist(), strict=True))


def attribute_cells(catalog: SyntheticCatalog) -> tuple[str, list[Any]]:
    """Return the name of the column that shows the values of the signal "attribute", and its cell for each item.

    A label; a tag among two that say nothing; a price, 8 % higher for each value and within 2 %; or a day of a year.
    """
    rng, values = random_generator(catalog.settings, 3), catalog.values["attribute"]
    number = len(values)
    form = catalog.settings.attribute
    if form == "category":
        return "label", [f"label {value:02d}" for value in values]
    if form == "list":
        others = rng.integers(NUM_IDLE_TAGS, size=(number, 2))
        tags = [
            [f"tag {value:02d}", *(f"idle {idle:02d}" for idle in others[row])] for row, value in enumerate(values)
        ]
        return "tags", [rng.permutation(of_item).tolist() for of_item in tags]
    if form == "number":
        return "price", np.round(5 * 1.08**values * rng.uniform(0.98, 1.02, size=number), 2).tolist()
    first_days = (date(1970 + value, 1, 1) for value in values.tolist())
    return "released", [str(day + timedelta(int(rng.integers(365)))) for day in first_days]


def _draw_bundles(
    settings: SyntheticSettings,
    rows: np.ndarray,
    cold: np.ndarray,
    rng: np.random.Generator,
    noise: np.random.Generator,
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Draw the bundles of each split, none of them twice.

    `rows` `[num_themes, num_kinds, num_members]` are the items of each theme and kind, copies beside each other;
    `noise` is the source of which items are of another theme, and of which.
    """
    num_themes, num_kinds, num_members = rows.shape
    levels = tuple(settings.signals.values())
    seen: set[frozenset[int]] = set()
    bundles: dict[str, tuple[tuple[int, ...], ...]] = {}
    for split in ("train", "validation", "test"):
        drawn: list[tuple[int, ...]] = []
        while len(drawn) < getattr(settings, f"num_{split}"):
            theme = np.ravel_multi_index([rng.integers(number) for number in levels], levels)
            size = rng.choice(settings.bundle_sizes)
            other = noise.random(size) >= settings.theme_purity
            items = np.empty(0, dtype=np.int64)
            while len(np.unique(items)) < size:  # Until no item is drawn twice.
                kinds = rng.choice(num_kinds, size=size, replace=not settings.distinct_kinds)
                members = rng.integers(num_members, size=size)
                themes = (theme + other * noise.integers(1, num_themes, size=size)) % num_themes
                items = rows[themes, kinds, members]
                if split == "train":  # The other copy takes the place of a cold one.
                    items = np.where(cold[items], rows[themes, kinds, members ^ 1], items)
            bundle = tuple(items.tolist())
            if frozenset(bundle) not in seen:
                seen.add(frozenset(bundle))
                drawn.append(bundle)
        bundles[split] = tuple(drawn)
    return bundles


def _draw_interactions(settings: SyntheticSettings, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Let each user of a value interact with items, most of them of that value."""
    pairs, number, num_values = [], settings.items_per_user, int(value.max()) + 1
    for user in range(settings.num_users):
        own = value == user % num_values
        weights = np.where(own, OWN_VALUE_SHARE / own.sum(), (1 - OWN_VALUE_SHARE) / (~own).sum())
        items = rng.choice(value.size, size=number, replace=False, p=weights)
        pairs.append(np.stack([np.full(number, user), np.sort(items)], axis=1))
    return np.concatenate(pairs)
