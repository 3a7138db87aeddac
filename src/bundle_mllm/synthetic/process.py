"""The exact probability of each answer to a question about bundles that a known process drew.

Knows nothing about models, metrics or what shows the theme of an item.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property, lru_cache
from itertools import product
from pathlib import Path

from bundle_mllm.data.files import read_json
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.settings import with_overrides
from bundle_mllm.synthetic.settings import NUM_COPIES, NUM_KINDS, PROCESS, Signal, SyntheticSettings

Counts = tuple[tuple[int, int], ...]
"""For each kind the number of items of a theme, and of all other themes."""


@dataclass(frozen=True, eq=False)
class GenerativeProcess:
    """How bundles are drawn, as far as it decides which items go together.

    A bundle draws a theme and a size, all equally likely. Each of its items is, with probability `theme_purity` and
    independently, of that theme, else of another one; which items these are is uniform over all sets of distinct ones
    (of distinct kinds). So with a purity below 1 some answers do not fit, and nobody is always right.

    Attributes:
        themes: The theme of each item, by item id: 0 to number of themes - 1.
        kinds: The kind of each item: 0 to number of kinds - 1. All themes have the same number of items of each kind.
        bundle_sizes: Sizes of bundles.
        theme_purity: Probability that an item of a bundle is of the bundle's theme.
        distinct_kinds: Whether a bundle takes no kind twice.
    """

    themes: Mapping[str, int]
    kinds: Mapping[str, int]
    bundle_sizes: tuple[int, ...]
    theme_purity: float | Fraction
    distinct_kinds: bool

    @cached_property
    def num_themes(self) -> int:
        return max(self.themes.values()) + 1

    @cached_property
    def num_kinds(self) -> int:
        return max(self.kinds.values()) + 1

    @cached_property
    def cell(self) -> tuple[int, int]:
        """Number of items of one kind and one theme, and of one kind and all other themes."""
        own = len(self.themes) // (self.num_themes * self.num_kinds)
        return own, own * (self.num_themes - 1)

    @classmethod
    def load(cls, folder: str | os.PathLike, signals: Collection[Signal] | None = None) -> GenerativeProcess:
        """Read the process of a folder that `make_synthetic` wrote.

        Args:
            folder: The dataset folder.
            signals: The signals that are known; all if not given. Themes that differ in none of these are one theme,
                of the purity that bundles have then. (Items that only other signals distinguish count as equally
                likely, which is exact but for less than .001.)

        Raises:
            BundleMLLMError: If the folder has no such process.
        """
        path = Path(folder) / PROCESS
        try:
            record = read_json(path)
            settings: SyntheticSettings = with_overrides(SyntheticSettings(), record["settings"])
            numbers, levels = settings.signals, record["levels"]
            kinds = dict(record["kinds"])
            cells = Counter((kind, *(levels[signal][item] for signal in numbers)) for item, kind in kinds.items())
            members = NUM_COPIES * settings.values_per_level
            if cells != dict.fromkeys(product(range(NUM_KINDS), *map(range, numbers.values())), members):
                raise ValueError(f"not all themes have {members} items of each kind")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleMLLMError(
                f"{path} does not describe how bundles were drawn ({type(error).__name__}: {error}), so the best "
                "possible answers are unknown: give a folder that `bundle-mllm synthetic` made."
            ) from error
        kinds = {item_id: int(kind) for item_id, kind in kinds.items()}  # 2.0 counts as 2
        known: list[Signal] = [signal for signal in numbers if signals is None or signal in signals]
        level_of = {item_id: tuple(levels[signal][item_id] for signal in known) for item_id in kinds}
        number_of = {level: number for number, level in enumerate(sorted(set(level_of.values())))}
        themes = {item_id: number_of[level] for item_id, level in level_of.items()}
        purity, num_themes = Fraction(str(settings.theme_purity)), settings.num_themes
        merged = num_themes // math.prod(numbers[signal] for signal in known)
        purity += (1 - purity) * Fraction(merged - 1, num_themes - 1)
        return cls(themes, kinds, settings.bundle_sizes, purity, settings.distinct_kinds)

    def posterior(self, shown: Sequence[str], candidates: Sequence[str], partial: str | None = None) -> list[Fraction]:
        """Compute, for each candidate, the probability that it is the answer, given the question; they sum to 1.

        Wrong options are drawn uniformly from all items outside the bundle, so what counts is the probability of all
        bundles that contain the items shown, the candidate, and no other candidate. Themes, sizes and the number of
        items of the theme are enumerated, sets of hidden items counted; the arithmetic is rational, so that candidates
        which are equally likely are exactly so.

        Args:
            shown: The items shown, distinct, at least one and fewer than a bundle has.
            candidates: The distinct items to choose from, none of which is shown.
            partial: How much of a bundle is shown: "half", "leave_one_out", or any number of items if not given.

        Raises:
            BundleMLLMError: If no bundle contains the items shown and a candidate.
        """
        theme, kind = self.themes, self.kinds
        used = Counter((theme[i], kind[i]) for i in (*shown, *candidates))
        used_of_kind = Counter(kind[i] for i in (*shown, *candidates))
        kinds_shown = [kind[i] for i in shown] if self.distinct_kinds else []
        possible = len(set(kinds_shown)) == len(kinds_shown)
        weights = self._weights(len(shown), len(candidates), partial)
        own, others = self.cell

        @cache
        def probability(of: int, fits: bool, taken: int | None) -> int:
            """Of all bundles of one theme with an answer that fits it or not and takes a kind."""
            if not possible or taken in kinds_shown:
                return 0
            fitting = sum(theme[i] == of for i in shown) + fits
            unfitting = len(shown) + 1 - fitting
            free = tuple(
                (own - used[of, k], others - used_of_kind[k] + used[of, k])
                for k in range(self.num_kinds)
                if k not in kinds_shown and k != taken
            )
            return sum(
                weight * _num_sets(free, number - fitting, size - number - unfitting, self.distinct_kinds)
                for (size, number), weight in weights.items()
            )

        @cache
        def of_no_theme(taken: int | None) -> int:
            """Of all bundles of all themes with an answer that does not fit."""
            return sum(probability(of, False, taken) for of in range(self.num_themes))

        totals: list[int] = []
        for candidate in candidates:
            of, taken = theme[candidate], kind[candidate] if self.distinct_kinds else None
            totals.append(of_no_theme(taken) - probability(of, False, taken) + probability(of, True, taken))
        if not (whole := sum(totals)):
            raise BundleMLLMError(
                f"No bundle of {self.bundle_sizes} items can contain the {len(shown)} items shown and a candidate: "
                "use questions about bundles of this catalog."
            )
        return [Fraction(total, whole) for total in totals]

    def _weights(self, num_shown: int, num_candidates: int, partial: str | None) -> dict[tuple[int, int], int]:
        """Return the probability of a bundle and a question about it, by size and number of items of the theme.

        All are multiplied by the least number that makes them whole.
        """
        weights: dict[tuple[int, int], Fraction] = {}
        everything = (self.cell,) * self.num_kinds
        purity = Fraction(str(self.theme_purity))
        for size in self.bundle_sizes:
            if num_shown not in {"half": [size // 2], "leave_one_out": [size - 1]}.get(partial or "", range(1, size)):
                continue
            questions = math.comb(size, num_shown) * (size - num_shown) * (1 if partial else size - 1)
            questions *= math.comb(len(self.themes) - size, num_candidates - 1)
            for number in range(size + 1):
                if chance := math.comb(size, number) * purity**number * (1 - purity) ** (size - number):
                    sets = _num_sets(everything, number, size - number, self.distinct_kinds)
                    weights[size, number] = chance / sets / questions
        common = math.lcm(*(weight.denominator for weight in weights.values()))
        return {key: int(weight * common) for key, weight in weights.items()}


@lru_cache(maxsize=100_000)
def _num_sets(counts: Counts, fitting: int, others: int, distinct: bool) -> int:
    """Count sets of so many items of a theme and of others; `distinct` ones take no kind twice."""
    if fitting < 0 or others < 0:
        return 0
    if not distinct:
        return math.comb(sum(own for own, _ in counts), fitting) * math.comb(sum(o for _, o in counts), others)
    if not counts:
        return fitting == others == 0
    (own, other), rest = counts[0], counts[1:]
    return (
        _num_sets(rest, fitting, others, True)
        + own * _num_sets(rest, fitting - 1, others, True)
        + other * _num_sets(rest, fitting, others - 1, True)
    )
