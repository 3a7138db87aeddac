"""Make the demo studio: a small invented world of items, users and bundles, written as a dataset folder.

It must not know encoders, prompts or models: whoever opens the folder learns from its files only.

Each item has a kind, a style, a look and a taste group, all independent of each other. The title tells kind and style;
only the picture or sound tells the look; only the user log tells the taste group. A bundle agrees in style, look and
taste group and takes no kind twice. Every title stands for one item of each look and taste group, so that not even a
model that learns all bundles by heart can read them off a title.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.stats import hypergeom

from bundle_mllm.data.tables import write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.synthetic.studio_media import PICTURE_KINDS, PICTURE_LOOKS, SOUND_LOOKS, draw_picture, draw_sound

BUNDLE_SIZES = (4, 5, 6)
NUM_GROUPS = 2
NUM_COPIES = 2  # Items that agree in everything, each with a title of its own.
COLD_SHARE = 0.1  # Share of items in no training bundle.
OWN_GROUP_SHARE = 0.9  # Share of a user's items that are of the user's taste group.
ITEMS_PER_USER = 24

_TRAITS = ("style", "look", "group", "kind", "copy")
_STUDIO_FILES = ("items.jsonl", "bundles.jsonl", "interactions.csv", "README.md")
_STUDIO_FOLDERS = ("images", "audio", "features", "questions")


@dataclass(frozen=True)
class Domain:
    """A domain of the studio: its words, its looks, and the kind of file that shows a look.

    Attributes:
        name: name of the domain.
        thing: what a bundle is called.
        kinds: nouns that end a title; also the item's category.
        styles: for each style the adjectives that can stand in a title.
        looks: names of the looks.
        media: the item field that holds the file's path: "image" or "audio".
    """

    name: DomainName
    thing: str
    kinds: tuple[str, ...]
    styles: dict[str, tuple[str, ...]]
    looks: tuple[str, ...]
    media: Literal["image", "audio"]


DomainName = Literal["fashion", "playlist"]
DOMAINS: dict[DomainName, Domain] = {
    "fashion": Domain(
        name="fashion",
        thing="outfit",
        kinds=PICTURE_KINDS,
        styles={
            "sporty": ("sporty", "athletic", "agile", "training", "running", "gym"),
            "elegant": ("elegant", "evening", "refined", "formal", "festive", "noble"),
            "rugged": ("rugged", "hiking", "outdoor", "sturdy", "workwear", "alpine"),
            "romantic": ("romantic", "dreamy", "delicate", "tender", "poetic", "sweet"),
        },
        looks=PICTURE_LOOKS,
        media="image",
    ),
    "playlist": Domain(
        name="playlist",
        thing="playlist",
        kinds=("song", "tune", "theme", "jam", "suite", "sketch", "medley", "refrain", "remix"),
        styles={
            "calm": ("calm", "quiet", "drowsy", "gentle", "floating", "hushed"),
            "party": ("party", "dancing", "wild", "neon", "glitter", "weekend"),
            "folk": ("folk", "rural", "harvest", "village", "campfire", "meadow"),
            "gloomy": ("gloomy", "gothic", "haunted", "stormy", "midnight", "bitter"),
        },
        looks=SOUND_LOOKS,
        media="audio",
    ),
}


@dataclass(frozen=True)
class StudioWorld:
    """The plan of a studio, with what no file says outright: style, look and taste group of each item.

    Attributes:
        domain: the domain's words and looks.
        seed: seed that the plan was drawn with.
        titles: one title per item.
        kind, style, look, group: int64 [num_items], the item's hidden and visible traits.
        cold: bool [num_items], whether the item is kept out of training bundles.
        bundles: for each split its bundles, as tuples of rows.
        log: int64 [num_interactions, 2], pairs of user and row.
    """

    domain: Domain
    seed: int
    titles: tuple[str, ...]
    kind: np.ndarray
    style: np.ndarray
    look: np.ndarray
    group: np.ndarray
    cold: np.ndarray
    bundles: dict[str, tuple[tuple[int, ...], ...]]
    log: np.ndarray

    @cached_property
    def item_ids(self) -> tuple[str, ...]:
        """The item ids, in row order."""
        return tuple(f"invented-{self.domain.name}-{row:04d}" for row in range(len(self.titles)))

    @cached_property
    def media_paths(self) -> tuple[str, ...]:
        """The path of each item's picture or sound, relative to the folder."""
        folder, suffix = {"image": ("images", "png"), "audio": ("audio", "wav")}[self.domain.media]
        return tuple(f"{folder}/{item_id}.{suffix}" for item_id in self.item_ids)


def _draw_items(domain: Domain, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Lay out one item per combination of traits and copy, in random order."""
    shape = (len(domain.styles), len(domain.looks), NUM_GROUPS, len(domain.kinds), NUM_COPIES)
    traits = np.indices(shape).reshape(len(shape), -1)
    num_items = traits.shape[1]
    # At most one copy of a combination is cold, so that the other one is there for training.
    combinations = rng.choice(num_items // NUM_COPIES, size=round(COLD_SHARE * num_items), replace=False)
    cold = np.zeros(num_items, dtype=bool)
    cold[combinations * NUM_COPIES + rng.integers(NUM_COPIES, size=combinations.size)] = True
    order = rng.permutation(num_items)
    return {**dict(zip(_TRAITS, traits[:, order], strict=True)), "cold": cold[order]}


def _draw_titles(domain: Domain, items: dict[str, np.ndarray], rng: np.random.Generator) -> tuple[str, ...]:
    """Give each (style, kind, copy) one title of two adjectives and a noun."""
    title_of = {}
    for style, words in enumerate(domain.styles.values()):
        pairs = [(first, second) for first in words for second in words if first < second]
        for kind, noun in enumerate(domain.kinds):
            for copy, pair in enumerate(rng.choice(len(pairs), size=NUM_COPIES, replace=False)):
                first, second = rng.permutation(pairs[pair])
                title_of[style, kind, copy] = f"{first} {second} {noun}"
    columns = (items[name].tolist() for name in ("style", "kind", "copy"))
    return tuple(title_of[key] for key in zip(*columns, strict=True))


def _draw_bundles(
    domain: Domain, items: dict[str, np.ndarray], sizes: dict[str, int], rng: np.random.Generator
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Draw bundles that agree in style, look and group and take no kind twice; no bundle is drawn twice."""
    columns = (items[name].tolist() for name in _TRAITS)
    row_of = {traits: row for row, traits in enumerate(zip(*columns, strict=True))}
    cold = items["cold"]
    seen: set[frozenset[int]] = set()
    bundles: dict[str, tuple[tuple[int, ...], ...]] = {}
    for split, number in sizes.items():
        drawn: list[tuple[int, ...]] = []
        while len(drawn) < number:
            cell = (rng.integers(len(domain.styles)), rng.integers(len(domain.looks)), rng.integers(NUM_GROUPS))
            kinds = rng.choice(len(domain.kinds), size=rng.choice(BUNDLE_SIZES), replace=False).tolist()
            copies = rng.integers(NUM_COPIES, size=len(kinds)).tolist()
            rows = [row_of[(*cell, kind, copy)] for kind, copy in zip(kinds, copies, strict=True)]
            if split == "train":  # Another copy stands in for a cold one.
                copies = [
                    (copy + 1) % NUM_COPIES if cold[row] else copy for row, copy in zip(rows, copies, strict=True)
                ]
                rows = [row_of[(*cell, kind, copy)] for kind, copy in zip(kinds, copies, strict=True)]
            if frozenset(rows) not in seen:
                seen.add(frozenset(rows))
                drawn.append(tuple(rows))
        bundles[split] = tuple(drawn)
    return bundles


def _draw_log(group: np.ndarray, num_users: int, rng: np.random.Generator) -> np.ndarray:
    """Let each user of a taste group meet items, most of them of that group."""
    pairs = []
    for user in range(num_users):
        own = group == user % NUM_GROUPS
        weights = np.where(own, OWN_GROUP_SHARE / own.sum(), (1 - OWN_GROUP_SHARE) / (~own).sum())
        met = rng.choice(group.size, size=ITEMS_PER_USER, replace=False, p=weights)
        pairs.append(np.stack([np.full(ITEMS_PER_USER, user), np.sort(met)], axis=1))
    return np.concatenate(pairs)


def plan_studio(
    domain: DomainName,
    *,
    seed: int = 0,
    num_train: int = 2400,
    num_validation: int = 200,
    num_test: int = 300,
    num_users: int = 600,
) -> StudioWorld:
    """Draw a studio's items, bundles and user log without writing anything.

    Args:
        domain: "fashion" (pictures) or "playlist" (sounds).
        seed: the same seed gives the same world.
        num_train: number of training bundles.
        num_validation: number of validation bundles.
        num_test: number of test bundles.
        num_users: number of users in the log.

    Returns:
        The world, with the traits that its files do not say outright.

    Raises:
        BundleMLLMError: when the domain is unknown or a number is out of range.
    """
    if domain not in DOMAINS:
        names = ", ".join(DOMAINS)
        raise BundleMLLMError(f"The studio has no domain {domain!r}, so nothing can be made: choose one of {names}.")
    if seed < 0:
        raise BundleMLLMError(f"The seed {seed} is negative, so nothing can be drawn: choose 0 or more.")
    sizes: dict[str, int] = {"train": num_train, "validation": num_validation, "test": num_test}
    for name, number in (*sizes.items(), ("users", num_users)):
        if not 1 <= number <= 20_000:
            raise BundleMLLMError(f"This small world cannot hold {number} ({name}): choose 1 to 20,000.")
    chosen = DOMAINS[domain]
    rng = np.random.default_rng([seed, list(DOMAINS).index(domain)])
    items = _draw_items(chosen, rng)
    titles = _draw_titles(chosen, items, rng)
    bundles = _draw_bundles(chosen, items, sizes, rng)
    log = _draw_log(items["group"], num_users, rng)
    traits = {name: items[name] for name in ("kind", "style", "look", "group", "cold")}
    return StudioWorld(domain=chosen, seed=seed, titles=titles, bundles=bundles, log=log, **traits)


def bayes_hit_rate(
    domain: DomainName,
    *,
    media: bool,
    log: bool,
    num_candidates: int = 10,
    partial: Literal["half", "leave_one_out"] = "half",
) -> float:
    """Compute the best possible HitRate@1 on the studio's questions with uniform negatives.

    Whoever knows the rules drops each candidate of another style, look or group and of a kind that is already shown;
    N negatives are left beside the answer, and all are equally likely to be it. N is hypergeometric, so the rate is
    E[1 / (1 + N)], here summed exactly over N and the bundle sizes. (Among three or more candidates left, kinds that
    occur once or twice among them differ in chance by a hair; that is worth less than .001.)

    Args:
        domain: "fashion" or "playlist".
        media: whether the look of every item is known; the title's style and kind always are.
        log: whether the taste group of every item is known.
        num_candidates: number of options per question, the answer included.
        partial: how much of the bundle is shown: its first half, or all but the answer.

    Returns:
        The rate, between 1 / num_candidates and 1.
    """
    world = DOMAINS[domain]
    per_kind = NUM_COPIES * (1 if media else len(world.looks)) * (1 if log else NUM_GROUPS)
    num_items = len(world.kinds) * NUM_COPIES * len(world.styles) * len(world.looks) * NUM_GROUPS
    rates = []
    for size in BUNDLE_SIZES:
        shown = size // 2 if partial == "half" else size - 1
        fitting = per_kind * (len(world.kinds) - shown) - (size - shown)  # The bundle's own items are never negatives.
        number = np.arange(num_candidates)
        chance = hypergeom.pmf(number, num_items - size, fitting, num_candidates - 1)
        rates.append(float((chance / (1 + number)).sum()))
    return float(np.mean(rates))


_README = """# An invented {name} studio

Everything in this folder is **invented** by `bundle_mllm` (seed {seed}): items, {files}, users and {thing}s.
Nothing in it describes a real product, song or person. It exists to show, in a few minutes, what pictures, sounds
and user logs add to titles.

- `items.jsonl`: {num_items} items. A title tells the kind and the style; several items share each title.
- `{folder}/`: one small {file} per item. It tells the look.
- `interactions.csv`: {num_interactions} meetings of {num_users} users and items. They tell the taste group.
- `bundles.jsonl`: {bundles}.
  Each {thing} agrees in style, look and taste group and takes no kind twice.
  {num_cold} items occur in no training bundle.

Best possible HitRate@1 with 10 candidates, half of the {thing} shown, uniform negatives (random: .100):
titles alone {text:.3f}; titles and {files} {media:.3f}; titles, {files} and user log {all:.3f}.
"""


def _write_papers(folder: Path, world: StudioWorld) -> None:
    """Write README.md for people and studio.json for programs."""
    name = world.domain.name
    ceilings = {
        "titles": bayes_hit_rate(name, media=False, log=False),
        "titles_media": bayes_hit_rate(name, media=True, log=False),
        "titles_media_log": bayes_hit_rate(name, media=True, log=True),
    }
    sizes = {split: len(bundles) for split, bundles in world.bundles.items()}
    text = _README.format(
        name=name,
        seed=world.seed,
        thing=world.domain.thing,
        files={"image": "pictures", "audio": "sounds"}[world.domain.media],
        file={"image": "PNG picture", "audio": "WAV sound"}[world.domain.media],
        folder={"image": "images", "audio": "audio"}[world.domain.media],
        num_items=len(world.titles),
        num_interactions=len(world.log),
        num_users=len(np.unique(world.log[:, 0])),
        num_cold=int(world.cold.sum()),
        bundles=", ".join(f"{number} {split}" for split, number in sizes.items()),
        text=ceilings["titles"],
        media=ceilings["titles_media"],
        all=ceilings["titles_media_log"],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    facts = {"invented": True, "domain": name, "seed": world.seed, "bundles": sizes, "bayes_hit_rate@1": ceilings}
    (folder / "studio.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def make_studio(
    folder: str | Path,
    domain: DomainName,
    *,
    seed: int = 0,
    num_train: int = 2400,
    num_validation: int = 200,
    num_test: int = 300,
    num_users: int = 600,
    progress: Callable[[int, int], None] | None = None,
) -> StudioWorld:
    """Write an invented dataset folder: items, bundles, user log, pictures or sounds, README.md and studio.json.

    The same arguments give byte-identical files. A studio that is already there is replaced.

    Args:
        folder: where to write; created when missing.
        domain: "fashion" (PNG pictures) or "playlist" (WAV sounds).
        seed: seed of everything in the folder.
        num_train: number of training bundles.
        num_validation: number of validation bundles.
        num_test: number of test bundles.
        num_users: number of users in the log.
        progress: called with (files drawn, files in all).

    Returns:
        The world that was written.

    Raises:
        BundleMLLMError: when the folder holds anything else than a studio, or an argument is out of range.
    """
    folder = Path(folder)
    world = plan_studio(
        domain, seed=seed, num_train=num_train, num_validation=num_validation, num_test=num_test, num_users=num_users
    )
    clear_studio(folder)
    ids = world.item_ids
    for row, path in enumerate(world.media_paths):
        rng = np.random.default_rng([seed, list(DOMAINS).index(domain), 1, row])
        look = world.domain.looks[world.look[row]]
        kind = world.domain.kinds[world.kind[row]]
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(draw_picture(kind, look, rng) if world.domain.media == "image" else draw_sound(look, rng))
        if progress is not None:
            progress(row + 1, len(ids))
    items = [
        {"item_id": item_id, "title": title, "category": world.domain.kinds[kind], world.domain.media: path}
        for item_id, title, kind, path in zip(ids, world.titles, world.kind, world.media_paths, strict=True)
    ]
    bundles = [
        {"bundle_id": f"{split}-{number:04d}", "items": [ids[row] for row in rows], "split": split}
        for split, drawn in world.bundles.items()
        for number, rows in enumerate(drawn)
    ]
    log = [{"user_id": f"user-{user:03d}", "item_id": ids[row]} for user, row in world.log.tolist()]
    write_records(folder / "items.jsonl", items)
    write_records(folder / "bundles.jsonl", bundles)
    write_records(folder / "interactions.csv", log)
    _write_papers(folder, world)
    return world


def clear_studio(folder: Path) -> None:
    """Make room for a studio, and refuse to touch a folder that holds anything else."""
    if folder.exists() and not folder.is_dir():
        raise BundleMLLMError(f"{folder} is a file, so no studio can be written there: name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / "studio.json"
    if any(folder.iterdir()) and not marker.exists():
        raise BundleMLLMError(
            f"{folder} holds files that are not a studio's, and writing one there could overwrite them: "
            "name a new folder."
        )
    marker.write_text("{}\n", encoding="utf-8")  # First of all, so that an interrupted run can be repeated.
    for name in _STUDIO_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in _STUDIO_FILES:
        (folder / name).unlink(missing_ok=True)
