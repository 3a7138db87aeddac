"""Bundles of planted complementarity: a known random process, and the exact posterior of a question's answer under it.

It must not know what shows an item's theme (title, picture, user log), nor any model.

Each item has a theme; all themes have as many items. A bundle draws a theme, all alike. Each of its places is then,
with probability `fidelity` and independently, an item of that theme, else one of another theme; which items those are
is uniform over all sets of distinct ones. So some answers do not fit what is shown, and some wrong options do: nobody
is always right.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from bundle_mllm.errors import BundleMLLMError

FACTS = "studio.json"
"""The file of a studio's folder that says what was planted."""


@dataclass(frozen=True, eq=False)
class PlantedBundles:
    """The process that bundles were drawn from.

    Attributes:
        themes: the theme of each item, by item id: 0 to number of themes - 1.
        bundle_size: items of every bundle.
        fidelity: probability that an item of a bundle is of the bundle's theme, above 0 and below 1.
    """

    themes: Mapping[str, int]
    bundle_size: int
    fidelity: float

    def __post_init__(self) -> None:
        if not 0 < self.fidelity < 1:
            raise BundleMLLMError(
                f"The fidelity is {self.fidelity}, which is no chance: choose one above 0 and below 1, such as .9."
            )
        sizes = Counter(self.themes.values())
        if set(sizes) != set(range(len(sizes))) or len(set(sizes.values())) > 1 or len(sizes) < 2:
            raise BundleMLLMError(
                f"The themes have {sorted(sizes.values())} items, and the posterior holds for two or more themes of "
                "equal size only: give each as many items."
            )
        if not 2 <= self.bundle_size <= min(sizes[0], len(self.themes) - sizes[0]):
            raise BundleMLLMError(
                f"A bundle of {self.bundle_size} items cannot be drawn from themes of {sizes[0]}: choose 2 or more, "
                "and no more than a theme has."
            )

    @cached_property
    def num_themes(self) -> int:
        """Number of themes."""
        return max(self.themes.values()) + 1

    @cached_property
    def theme_size(self) -> int:
        """Items of each theme."""
        return len(self.themes) // self.num_themes

    @classmethod
    def load(cls, folder: str | os.PathLike) -> PlantedBundles:
        """Read what was planted in a folder that `make_ceiling_studio` wrote.

        Raises:
            BundleMLLMError: The folder says nothing of the kind.
        """
        path = Path(folder) / FACTS
        try:
            planted = json.loads(path.read_text(encoding="utf-8"))["planted"]
            return cls(planted["themes"], planted["bundle_size"], planted["fidelity"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, BundleMLLMError):
                raise
            raise BundleMLLMError(
                f"{path} does not say how bundles were drawn ({type(error).__name__}: {error}), so the best possible "
                "answers are unknown: give a folder that `bundle-mllm studio` made."
            ) from error

    def to_record(self) -> dict[str, object]:
        """Return what [`~PlantedBundles.load`] reads, under the key `planted` of the facts."""
        return {"bundle_size": self.bundle_size, "fidelity": self.fidelity, "themes": dict(self.themes)}

    def draw(self, number: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
        """Draw bundles, independently of each other, each in random order."""
        ids, theme_of = np.array(list(self.themes)), np.array(list(self.themes.values()))
        inside = [np.flatnonzero(theme_of == theme) for theme in range(self.num_themes)]
        outside = [np.flatnonzero(theme_of != theme) for theme in range(self.num_themes)]
        bundles = []
        for _ in range(number):
            theme = rng.integers(self.num_themes)
            fitting = rng.binomial(self.bundle_size, self.fidelity)
            rows = np.concatenate(
                [
                    rng.choice(inside[theme], fitting, replace=False),
                    rng.choice(outside[theme], self.bundle_size - fitting, replace=False),
                ]
            )
            bundles.append(tuple(ids[rng.permutation(rows)].tolist()))
        return bundles

    def posterior(self, shown: Sequence[str], candidates: Sequence[str]) -> list[Fraction]:
        """Compute, for each candidate, the probability that it is the answer, given all that the question shows.

        The items shown and the answer are a random part of a bundle. The wrong options are drawn uniformly from all
        items outside the bundle, so they are not among its hidden items either: given a bundle that holds one
        candidate, each set of them is as likely as any other, and with two or more it is impossible. What remains is
        the probability of all bundles that hold the items shown, the candidate, and no other candidate. Themes and
        the number of items of the theme are enumerated, sets of hidden items counted; the arithmetic is rational, so
        that candidates which are equally likely are exactly so.

        Args:
            shown: the items shown, distinct, at least one and fewer than a bundle has.
            candidates: the distinct items to choose from, none of which is shown.

        Returns:
            One probability per candidate; they sum to 1.

        Raises:
            BundleMLLMError: An item is unknown, twice there, or too many are shown.
        """
        items = [*shown, *candidates]
        if unknown := [item_id for item_id in items if item_id not in self.themes]:
            raise BundleMLLMError(f"{unknown[0]!r} is no item of this studio, so it has no theme: use its own items.")
        if len(set(items)) < len(items) or not 1 <= len(shown) < self.bundle_size or not candidates:
            raise BundleMLLMError(
                f"{len(shown)} items are shown and {len(candidates)} offered, {len(set(items))} different in all, but "
                f"bundles of {self.bundle_size} show 1 to {self.bundle_size - 1}, offer one or more, and nothing "
                "twice: ask a proper question."
            )
        counts = Counter(self.themes[item_id] for item_id in shown), Counter(self.themes[i] for i in candidates)

        def chance(theme: int, fits: bool) -> Fraction:
            return _chance(self, len(shown), len(candidates), counts[0][theme], counts[1][theme], fits)

        # The sum over all bundle themes; those that no item of the question has are alike.
        seen = counts[0].keys() | counts[1].keys()
        unseen = [theme for theme in range(self.num_themes) if theme not in seen]
        without = {theme: chance(theme, fits=False) for theme in seen}
        base = sum(without.values()) + (len(unseen) * chance(unseen[0], fits=False) if unseen else 0)
        chance_of = {theme: base - without[theme] + chance(theme, fits=True) for theme in counts[1]}
        chances = [chance_of[self.themes[item_id]] for item_id in candidates]
        total = sum(chances)
        return [chance / total for chance in chances]


@lru_cache(maxsize=100_000)
def _chance(
    planted: PlantedBundles, num_shown: int, num_candidates: int, shown: int, offered: int, fits: bool
) -> Fraction:
    """Return the probability of all bundles of one theme that go with a question and one answer to it.

    Args:
        planted: the process.
        num_shown: items shown.
        num_candidates: items offered.
        shown: how many of the items shown are of the theme.
        offered: how many of the candidates are.
        fits: whether the answer is.
    """
    size, theme_size = planted.bundle_size, planted.theme_size
    others = len(planted.themes) - theme_size
    hidden = size - num_shown - 1
    known = shown + fits  # Items of the theme among those shown and the answer.
    free = theme_size - shown - offered  # Items of the theme that may be hidden ...
    free_others = others - (num_shown - shown) - (num_candidates - offered)  # ... and of other themes.
    fidelity = Fraction(str(planted.fidelity))
    chance = Fraction(0)
    for fitting in range(known, known + hidden + 1):  # Items of the theme in the whole bundle.
        sets = math.comb(free, fitting - known) * math.comb(free_others, hidden - (fitting - known))
        drawn = math.comb(size, fitting) * fidelity**fitting * (1 - fidelity) ** (size - fitting)
        chance += sets * drawn / (math.comb(theme_size, fitting) * math.comb(others, size - fitting))
    return chance
