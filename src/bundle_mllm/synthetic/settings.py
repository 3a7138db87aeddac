"""Settings of a synthetic catalog: how many items and bundles, and which signals carry the theme of an item.

Knows nothing about files, models or how a catalog is drawn: it imports the standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from bundle_mllm.errors import BundleMLLMError, check_at_least, check_choice

Domain = Literal["fashion", "playlist"]
Signal = Literal["title", "media", "user_item", "bundle_item", "attribute"]
Attribute = Literal["category", "list", "number", "date"]

PROCESS = "synthetic.json"
"""File of a synthetic dataset folder with its settings, and the kind and the levels of each item."""

NUM_KINDS = 9
NUM_COPIES = 2  # Items that agree in theme, kind and value.
NUM_WORDS = 48  # Adjectives of titles, in both domains.
NUM_ATTRIBUTE_VALUES = 100
MEDIA_VALUES: dict[Domain, int] = {"fashion": 48, "playlist": 4}  # Looks that a picture or a sound can have.


@dataclass(frozen=True)
class SyntheticSettings:
    """How a synthetic catalog is drawn; the defaults are the demo's.

    The theme of an item is one level of each signal in `signals`. Items of a level have `values_per_level` different
    values of that signal: other words, opposite hues, other users. A bundle draws a theme and a size; each of its
    items is, with probability `theme_purity`, of that theme, else of another one.

    Attributes:
        domain: "fashion" (PNG pictures) or "playlist" (WAV sounds).
        seed: The same settings give the same files, byte by byte.
        signals: Number of levels that each signal carries: "title" (adjectives), "media" (look of the picture or
            sound), "user_item" (who interacts with an item), "bundle_item" (nothing but the training bundles) and
            "attribute" (a column of the items table, which is there only if it is listed). The others are in the
            folder even if they are not listed, and then are independent of the theme.
        attribute: What the column of the signal "attribute" holds: a label, tags, a price or a release date.
        values_per_level: Values of a signal that belong to one level, and so go together without being alike.
        theme_purity: Probability that an item of a bundle is of the bundle's theme, above 0.
        bundle_sizes: Sizes of bundles, all equally likely.
        distinct_kinds: Whether a bundle takes no kind (jacket, shoes, …) twice.
        cold_share: Share of the items that are in no training bundle.
        num_train, num_validation, num_test: Number of bundles of each split.
        num_users: Number of users in the interactions.
        items_per_user: Items that each user interacts with.
    """

    domain: Domain = "fashion"
    seed: int = 0
    signals: dict[Signal, int] = field(default_factory=lambda: {"title": 4, "media": 4, "user_item": 2})
    attribute: Attribute = "category"
    values_per_level: int = 1
    theme_purity: float = 1.0
    bundle_sizes: tuple[int, ...] = (4, 5, 6)
    distinct_kinds: bool = True
    cold_share: float = 0.1
    num_train: int = 2400
    num_validation: int = 200
    num_test: int = 300
    num_users: int = 600
    items_per_user: int = 24

    @property
    def num_themes(self) -> int:
        """Number of combinations of the levels of all signals."""
        return math.prod(self.signals.values())

    @property
    def num_items(self) -> int:
        """Number of items: each combination of theme, value, kind and copy once."""
        return self.num_themes * self.values_per_level * NUM_KINDS * NUM_COPIES

    def __post_init__(self) -> None:
        check_choice("The domain", self.domain, get_args(Domain))
        check_choice("An attribute", self.attribute, get_args(Attribute))
        for signal in self.signals:
            check_choice("A signal", signal, get_args(Signal))
        check_at_least("The seed", self.seed, 0, "nothing can be drawn")
        if not 0 < self.theme_purity <= 1:
            raise BundleMLLMError(f"The theme purity is {self.theme_purity}, no probability above 0: choose 0.9.")
        members = NUM_COPIES * self.values_per_level
        most_items = NUM_KINDS if self.distinct_kinds else 10
        possible = self.num_themes * sum(
            math.comb(NUM_KINDS, size) * members**size if self.distinct_kinds else math.comb(NUM_KINDS * members, size)
            for size in self.bundle_sizes
        )
        num_bundles = self.num_train + self.num_validation + self.num_test
        for name, value, least, most in (
            ("themes", self.num_themes, 2, 1_000),
            ("values_per_level", self.values_per_level, 1, 4),
            ("values of the titles", self._num_values("title"), 0, NUM_WORDS),
            (f"values of the media in {self.domain}", self._num_values("media"), 0, MEDIA_VALUES[self.domain]),
            *(("items of a bundle", size, 2, most_items) for size in self.bundle_sizes or (0,)),
            *((name, getattr(self, name), 1, 100_000) for name in ("num_train", "num_validation", "num_test")),
            ("bundles, no two of them alike", num_bundles, 3, possible // 2),
            ("values of the attribute", self._num_values("attribute"), 0, NUM_ATTRIBUTE_VALUES),
            ("num_users", self.num_users, self._num_values("user_item"), 100_000),
            ("items_per_user", self.items_per_user, 1, self.num_items // 2),
            ("cold_share", self.cold_share, 0, 1 / NUM_COPIES),
        ):
            if not least <= value <= most:
                raise BundleMLLMError(f"A catalog cannot have {value} for {name}: choose {least} to {most:,}.")

    def _num_values(self, signal: Signal) -> int:
        return self.signals.get(signal, 0) * self.values_per_level


def one_signal(
    signal: Signal, *, domain: Domain = "fashion", seed: int = 0, attribute: Attribute = "category"
) -> SyntheticSettings:
    """Return the settings of a catalog whose 24 themes one signal alone carries.

    Two values of the signal belong to a theme, so an encoder that puts like beside like does not suffice; one item of
    ten in a bundle is of another theme. Sounds have too few looks to carry it.
    """
    return SyntheticSettings(
        domain=domain,
        seed=seed,
        signals={signal: 24},
        attribute=attribute,
        values_per_level=2,
        theme_purity=0.9,
        bundle_sizes=(6,),
        distinct_kinds=False,
        cold_share=0.0,
        num_test=1000,
        num_users=960,
        items_per_user=12,
    )
