"""Writes a synthetic catalog as a dataset folder, with the generative process beside it.

Knows nothing about encoders, prompts or models: they learn from the files alone.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from bundle_mllm.data.files import written_folder
from bundle_mllm.data.tables import write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.synthetic.catalog import (
    KINDS,
    SyntheticCatalog,
    attribute_cells,
    draw_catalog,
    random_generator,
)
from bundle_mllm.synthetic.media import draw_picture, draw_sound, picture_look
from bundle_mllm.synthetic.settings import PROCESS, SyntheticSettings

_FILES = ("items.jsonl", "bundles.jsonl", "interactions.csv", "README.md", PROCESS)
_FOLDERS = ("images", "audio", "features", "questions")
_MEDIA = {"fashion": ("image", "images", "png", "picture"), "playlist": ("audio", "audio", "wav", "sound")}

_README = """# An invented {domain} catalog

Everything in this folder is **invented** by `bundle_mllm` (seed {seed}): items, {media}s, users and bundles. Nothing
in it describes a real product, song or person.

- `items.jsonl`: {num_items} items. The noun of a title is the item's kind; several items share each title.
- `{folder}/`: one small {media} per item.
- `interactions.csv`: {num_interactions} interactions of {num_users} users.
- `bundles.jsonl`: {bundles}. {num_cold} items occur in no training bundle.

Items have {num_themes} themes. The theme of an item shows in: {carried}. Each item of a bundle is, with
probability {theme_purity}, of the bundle's theme, else of another.{distinct}
`{process}` contains the theme of each item, for `bundle-mllm best-accuracy`, which computes the Bayes-optimal accuracy
on a question file. Encoders and models never read it.
"""


def make_synthetic(folder: str | os.PathLike, settings: SyntheticSettings) -> SyntheticCatalog:
    """Write an invented dataset folder: items, bundles, interactions, pictures or sounds, README.md and the process.

    The same settings give the same files, byte by byte. A synthetic catalog that is already there is replaced in one
    step, with its features and questions; other files of the folder stay.

    Raises:
        BundleMLLMError: If the folder holds anything else than a synthetic catalog.
    """
    _check_replaceable(Path(folder))
    with written_folder(folder) as temporary:
        catalog = _write(temporary, settings)
        _keep_others(Path(folder), temporary)
    return catalog


def _write(folder: Path, settings: SyntheticSettings) -> SyntheticCatalog:
    """Write the catalog into an empty folder."""
    catalog = draw_catalog(settings)
    field, subfolder, suffix, _ = _MEDIA[settings.domain]
    (folder / subfolder).mkdir()
    ids = catalog.item_ids
    kinds = [KINDS[settings.domain][kind] for kind in catalog.kind]
    paths = [f"{subfolder}/{item_id}.{suffix}" for item_id in ids]
    for row, path in enumerate(paths):
        (folder / path).write_bytes(_draw_file(catalog, row, kinds[row]))
    columns = zip(ids, catalog.titles, kinds, paths, strict=True)
    items = [dict(zip(("item_id", "title", "category", field), values, strict=True)) for values in columns]
    if "attribute" in settings.signals:
        name, cells = attribute_cells(catalog)
        items = [item | {name: cell} for item, cell in zip(items, cells, strict=True)]
    bundles = (
        {"bundle_id": f"{split}-{number:04d}", "items": [ids[row] for row in rows], "split": split}
        for split, drawn in catalog.bundles.items()
        for number, rows in enumerate(drawn)
    )
    pairs = ({"user_id": f"user-{user:03d}", "item_id": ids[row]} for user, row in catalog.interactions.tolist())
    write_records(folder / "items.jsonl", items)
    write_records(folder / "bundles.jsonl", bundles)
    write_records(folder / "interactions.csv", pairs)
    write_process(folder, catalog)
    return catalog


def _draw_file(catalog: SyntheticCatalog, row: int, kind: str) -> bytes:
    """Draw the picture or the sound of one item."""
    settings, value = catalog.settings, int(catalog.values["media"][row])
    rng = random_generator(settings, 1, row)
    if settings.domain == "playlist":
        return draw_sound(value % 4, rng)
    num_levels, num_sides = settings.signals.get("media", settings.num_themes), settings.values_per_level
    side, level = divmod(value, num_levels)
    spread = min(0.035, 0.5 / (num_levels * num_sides))  # Neighboring hues of a texture hardly overlap.
    return draw_picture(kind, *picture_look(level, side, num_levels, num_sides), spread, rng)


def write_process(folder: Path, catalog: SyntheticCatalog) -> None:
    """Write README.md for people and the process for programs."""
    settings, ids = catalog.settings, catalog.item_ids
    text = _README.format(
        **asdict(settings),
        folder=_MEDIA[settings.domain][1],
        media=_MEDIA[settings.domain][3],
        num_items=len(ids),
        num_interactions=len(catalog.interactions),
        num_cold=int(catalog.cold.sum()),
        num_themes=settings.num_themes,
        bundles=", ".join(f"{len(drawn)} {split}" for split, drawn in catalog.bundles.items()),
        carried=", ".join(settings.signals),
        distinct=" No bundle takes a kind twice." if settings.distinct_kinds else "",
        process=PROCESS,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    process = {
        "invented": True,
        "settings": asdict(settings),
        "kinds": dict(zip(ids, catalog.kind.tolist(), strict=True)),
        "levels": {signal: dict(zip(ids, level.tolist(), strict=True)) for signal, level in catalog.levels.items()},
    }
    (folder / PROCESS).write_text(json.dumps(process, indent=1) + "\n", encoding="utf-8")


def _check_replaceable(folder: Path) -> None:
    """Refuse a folder that holds anything else than a synthetic catalog."""
    if folder.is_file():
        raise BundleMLLMError(f"{folder} is a file, so no catalog can be written there: name a new folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PROCESS).exists():
        raise BundleMLLMError(f"{folder} holds other files than a synthetic catalog, which stay: name a new folder.")


def _keep_others(before: Path, after: Path) -> None:
    """Copy what a folder holds beside a synthetic catalog and what is made of it."""
    for path in before.iterdir() if before.is_dir() else ():
        if path.name not in (*_FILES, *_FOLDERS):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, after / path.name)
