"""Make a studio of known ceiling: which items go together is told by one modality, and the best accuracy is known.

It must not know encoders, prompts or models: whoever opens the folder learns from its files only.

Items have 48 values, two of which make a theme and go together (`planted.py` says how bundles are drawn). One modality
tells an item's value; every other one is there, too, and tells something that has to do with nothing:

- `title`: each value has a word of its own.
- `visual`: each value has a texture and a hue, and hues that go together are *opposite* on the color circle.
- `user_item`: each user meets mostly items of one value.
- `bundle_item`: none of these; only the company that items keep in the training bundles tells their themes.

Unless it decides, a title stands for one item of each value.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from bundle_mllm.data.tables import write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.synthetic.planted import FACTS, PlantedBundles
from bundle_mllm.synthetic.studio import DOMAINS, OWN_GROUP_SHARE, clear_studio
from bundle_mllm.synthetic.studio_media import NUM_HUES, PICTURE_KINDS, draw_palette

Needs = Literal["title", "visual", "user_item", "bundle_item"]

NUM_TEXTURES = 4
NUM_VALUES = NUM_HUES * NUM_TEXTURES
NUM_THEMES = NUM_VALUES // 2
BUNDLE_SIZE = 6
USERS_PER_VALUE = 20
ITEMS_PER_USER = 12

_VARIANTS = ("plain", "simple")  # Adjectives that tell two items of one value and kind apart.
_NUM_ITEMS = NUM_VALUES * len(PICTURE_KINDS) * len(_VARIANTS)
_WORDS = tuple(word for domain in DOMAINS.values() for words in domain.styles.values() for word in words)


@dataclass(frozen=True)
class CeilingWorld:
    """The plan of a studio of known ceiling.

    Attributes:
        needs: the modality that tells an item's value.
        seed: seed that the plan was drawn with.
        planted: how bundles are drawn.
        kind, variant: int64 [num_items], what a title tells that has to do with nothing.
        shown: for title, visual and user_item int64 [num_items], the value that each shows: the item's own, or one
            drawn at random.
        bundles: for each split its bundles, as tuples of item ids.
        log: int64 [num_interactions, 2], pairs of user and row.
    """

    needs: Needs
    seed: int
    planted: PlantedBundles
    kind: np.ndarray
    variant: np.ndarray
    shown: dict[str, np.ndarray]
    bundles: dict[str, list[tuple[str, ...]]]
    log: np.ndarray

    @cached_property
    def item_ids(self) -> tuple[str, ...]:
        """The item ids, in row order."""
        return tuple(self.planted.themes)

    @cached_property
    def titles(self) -> tuple[str, ...]:
        """One title per item; the word of a value is in it only where titles decide."""
        words = np.random.default_rng([self.seed, 1]).permutation(_WORDS) if self.needs == "title" else None
        return tuple(
            " ".join(filter(None, (_VARIANTS[variant], None if words is None else words[value], PICTURE_KINDS[kind])))
            for variant, value, kind in zip(self.variant, self.shown["title"], self.kind, strict=True)
        )


def plan_ceiling_studio(
    needs: Needs,
    *,
    seed: int = 0,
    fidelity: float = 0.9,
    num_train: int = 2400,
    num_validation: int = 200,
    num_test: int = 1000,
) -> CeilingWorld:
    """Draw items, bundles and user log without writing anything.

    Args:
        needs: the modality that tells which items go together.
        seed: the same seed gives the same world.
        fidelity: probability that an item of a bundle fits it; the ceiling rises with it.
        num_train: number of training bundles.
        num_validation: number of validation bundles.
        num_test: number of test bundles.

    Returns:
        The world.

    Raises:
        BundleMLLMError: when the modality is unknown or a number is out of range.
    """
    if needs not in get_args(Needs):
        names = ", ".join(get_args(Needs))
        raise BundleMLLMError(f"No studio can be made that needs {needs!r}: choose one of {names}.")
    if seed < 0:
        raise BundleMLLMError(f"The seed {seed} is negative, so nothing can be drawn: choose 0 or more.")
    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    for split, number in sizes.items():
        if not 1 <= number <= 100_000:
            raise BundleMLLMError(f"This small world cannot hold {number} bundles ({split}): choose 1 to 100,000.")
    rng = np.random.default_rng([seed, get_args(Needs).index(needs)])
    shape = (NUM_VALUES, len(PICTURE_KINDS), len(_VARIANTS))
    value, kind, variant = np.indices(shape).reshape(len(shape), -1)[:, rng.permutation(_NUM_ITEMS)]
    ids = [f"invented-{needs.replace('_', '-')}-{row:04d}" for row in range(_NUM_ITEMS)]
    themes = dict(zip(ids, (value % NUM_THEMES).tolist(), strict=True))
    planted = PlantedBundles(themes, BUNDLE_SIZE, fidelity)
    shown = {name: value if name == needs else rng.permutation(value) for name in ("title", "visual", "user_item")}
    bundles = {split: planted.draw(number, rng) for split, number in sizes.items()}
    log = _draw_log(shown["user_item"], rng)
    return CeilingWorld(
        needs=needs, seed=seed, planted=planted, kind=kind, variant=variant, shown=shown, bundles=bundles, log=log
    )


def _draw_log(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Let each user meet items, most of them of one value."""
    pairs = []
    for user in range(NUM_VALUES * USERS_PER_VALUE):
        own = value == user % NUM_VALUES
        weights = np.where(own, OWN_GROUP_SHARE / own.sum(), (1 - OWN_GROUP_SHARE) / (~own).sum())
        met = rng.choice(value.size, size=ITEMS_PER_USER, replace=False, p=weights)
        pairs.append(np.stack([np.full(ITEMS_PER_USER, user), np.sort(met)], axis=1))
    return np.concatenate(pairs)


_TELLS = {
    "title": "The second word of its title tells an item's value.",
    "visual": "Its picture tells an item's value: a texture and a hue. Opposite hues go together.",
    "user_item": "The user log tells an item's value: each user meets mostly items of one.",
    "bundle_item": "Only the training bundles tell which items go together.",
}
_README = """# An invented studio of known ceiling: needs {needs}

Everything in this folder is **invented** by `bundle_mllm` (seed {seed}): items, pictures, users and bundles.

{num_items} items, {num_values} values, {num_themes} themes of two values each. {tells} Nothing else does, but for
the training bundles themselves. A bundle has {size} items; each of them is of the bundle's theme with probability
{fidelity}, else of another. `studio.json` gives away the theme of each item: it is for `bundle-mllm ceiling`, which
computes the best possible accuracy on a question file. Encoders and models never read it.
"""


def make_ceiling_studio(
    folder: str | Path,
    needs: Needs,
    *,
    seed: int = 0,
    fidelity: float = 0.9,
    num_train: int = 2400,
    num_validation: int = 200,
    num_test: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> CeilingWorld:
    """Write a dataset folder whose best possible accuracy is known: see `bundle_mllm.synthetic.ceiling`.

    The same arguments give byte-identical files. A studio that is already there is replaced.

    Args:
        folder: where to write; created when missing.
        needs: "title", "visual", "user_item" or "bundle_item": the modality that tells which items go together.
        seed: seed of everything in the folder.
        fidelity: probability that an item of a bundle fits it, above 0 and below 1; the ceiling rises with it.
        num_train: number of training bundles.
        num_validation: number of validation bundles.
        num_test: number of test bundles.
        progress: called with (pictures drawn, pictures in all).

    Returns:
        The world that was written.

    Raises:
        BundleMLLMError: when the folder holds anything else than a studio, or an argument is out of range.
    """
    folder = Path(folder)
    sizes = {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}
    world = plan_ceiling_studio(needs, seed=seed, fidelity=fidelity, **sizes)
    clear_studio(folder)
    (folder / "images").mkdir()
    ids = world.item_ids
    for row, (item_id, kind, look) in enumerate(zip(ids, world.kind, world.shown["visual"], strict=True)):
        rng = np.random.default_rng([seed, 2, row])
        side, theme = divmod(int(look), NUM_THEMES)
        texture, hue = divmod(theme, NUM_HUES // 2)
        picture = draw_palette(PICTURE_KINDS[kind], texture, hue + side * NUM_HUES // 2, rng)
        (folder / "images" / f"{item_id}.png").write_bytes(picture)
        if progress is not None:
            progress(row + 1, len(ids))
    items = [
        {"item_id": item_id, "title": title, "category": PICTURE_KINDS[kind], "image": f"images/{item_id}.png"}
        for item_id, title, kind in zip(ids, world.titles, world.kind, strict=True)
    ]
    bundles = [
        {"bundle_id": f"{split}-{number:04d}", "items": list(drawn), "split": split}
        for split, all_drawn in world.bundles.items()
        for number, drawn in enumerate(all_drawn)
    ]
    write_records(folder / "items.jsonl", items)
    write_records(folder / "bundles.jsonl", bundles)
    log = [{"user_id": f"user-{user:03d}", "item_id": ids[row]} for user, row in world.log.tolist()]
    write_records(folder / "interactions.csv", log)
    text = _README.format(
        needs=needs,
        seed=seed,
        num_items=len(ids),
        num_values=NUM_VALUES,
        num_themes=NUM_THEMES,
        tells=_TELLS[needs],
        size=BUNDLE_SIZE,
        fidelity=fidelity,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    sizes = {split: len(drawn) for split, drawn in world.bundles.items()}
    facts = {"invented": True, "needs": needs, "seed": seed, "bundles": sizes, "planted": world.planted.to_record()}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return world
