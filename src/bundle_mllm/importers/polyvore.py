"""Import Polyvore Outfits (Vasileva et al., "Learning Type-Aware Embeddings for Fashion Compatibility", ECCV 2018).

Knows nothing about the other formats.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundle_mllm.bounds import check
from bundle_mllm.data.files import new_folder, require_file, require_folder
from bundle_mllm.data.json_text import parse_json
from bundle_mllm.data.questions import MIN_CANDIDATES, Question, save_questions
from bundle_mllm.data.records import to_id
from bundle_mllm.data.tables import open_text
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.assemble import Place, RawBundle, collect_items, settle_bundles, write_dataset
from bundle_mllm.importers.media import MediaFolder
from bundle_mllm.importers.summary import ImportNotes, ImportSummary

ITEMS, OUTFIT_TITLES = "polyvore_item_metadata.json", "polyvore_outfit_titles.json"
SPLIT_FILES = {"train": "train.json", "validation": "valid.json", "test": "test.json"}


def import_polyvore(
    source: str | os.PathLike, output_dir: str | os.PathLike, *, strict: bool = False
) -> ImportSummary:
    """Turn one version of Polyvore Outfits into a dataset folder.

    Items are those of the outfits; their category is the published semantic one, and the first of `title` and
    `url_name` that is not empty is their title. An outfit's title is the name of its bundle, which no question shows.
    The published fill-in-the-blank questions become `questions/{split}_fill_in_blank.jsonl`.

    Args:
        source: The folder `nondisjoint` or `disjoint`, with `train.json`, `valid.json`, `test.json` and, optionally,
            `fill_in_blank_{train,valid,test}.json`. The folder above it, or the same, holds
            `polyvore_item_metadata.json` and, optionally, `polyvore_outfit_titles.json` and `images/`.
        output_dir: A new or empty folder.
        strict: Stop at anything that would be left out.

    Raises:
        BundleMLLMError: If a file is missing or not what it should be, or `output_dir` is not empty.
    """
    source = Path(source)
    _check_folder(source)
    top = source if (source / ITEMS).is_file() else source.parent
    notes = ImportNotes(strict)
    with new_folder(output_dir) as folder:
        outfits = dict(_iter_outfits(source))
        names = _read(top / OUTFIT_TITLES, dict) if (top / OUTFIT_TITLES).is_file() else {}
        media = MediaFolder(folder, top, notes)
        metadata = _read(top / ITEMS, dict)
        catalog = collect_items(_iter_items(outfits, metadata, top, notes), str(top / ITEMS), notes, media)
        notes.refuse_problems()
        raw = {
            outfit_id: RawBundle(list(items.values()), split, _name(names.get(outfit_id)))
            for outfit_id, (split, items) in outfits.items()
        }
        bundles = settle_bundles(raw, catalog, str(source), notes, fractions=(1.0, 0.0, 0.0), seed=0)
        if any(bundle.name for bundle in bundles):
            notes.warn("titles of outfits are about whole outfits: they are kept as the bundles' names only.")
        media.sound_alarm()
        num_questions = {}
        for split, name in SPLIT_FILES.items():
            path = source / f"fill_in_blank_{name}"
            if path.is_file() and (questions := list(_iter_questions(path, outfits, notes))):
                target = f"questions/{split}_fill_in_blank.jsonl"
                save_questions(folder / target, questions)
                num_questions[target] = len(questions)
        summary = write_dataset(folder, Path(output_dir), catalog, bundles, None, notes)
    return replace(summary, num_questions=num_questions)


def _check_folder(source: Path) -> None:
    require_folder(source, "give the folder nondisjoint or disjoint of polyvore_outfits")
    if not (source / "train.json").is_file():
        versions = sorted(path.parent.name for path in source.glob("*/train.json"))
        older = (source / "train_no_dup.json").is_file()
        problem = (
            "the items of this older version have no ids of their own, so no two outfits share one: take Polyvore "
            "Outfits of 2018"
            if older
            else f"give one of its folders {', '.join(versions)}"
            if versions
            else "give the folder nondisjoint or disjoint of polyvore_outfits"
        )
        raise BundleMLLMError(f"{source} holds no train.json: {problem}.")
    if not any((place / ITEMS).is_file() for place in (source, source.parent)):
        raise BundleMLLMError(f"Neither {source} nor the folder above it holds {ITEMS}: copy it there.")


def _iter_outfits(source: Path) -> Iterator[tuple[str, tuple[str, dict[str, str]]]]:
    """Yield the id of each outfit, its split, and its items by their index in the outfit."""
    seen: dict[str, str] = {}
    for split, name in SPLIT_FILES.items():
        for number, record in enumerate(_read(source / name, list), start=1):
            where = f"{source / name} entry {number}"
            match record:
                case {"set_id": outfit, "items": [*entries]}:
                    outfit_id = to_id(outfit, where)
                case _:
                    raise BundleMLLMError(f"{where} has no `set_id` or no list `items`: copy the file again.")
            if outfit_id in seen:
                raise BundleMLLMError(f"{where} repeats the outfit {outfit_id!r} of {seen[outfit_id]}: keep one.")
            seen[outfit_id] = where
            items = {}
            for entry in entries:
                match entry:
                    case {"item_id": item, "index": int(index)}:
                        items[str(index)] = to_id(item, where)
                    case _:
                        raise BundleMLLMError(
                            f"{where} (outfit {outfit_id!r}) has an item without `item_id` or `index`: correct it."
                        )
            yield outfit_id, (split, items)


def _iter_items(
    outfits: Mapping[str, tuple[str, Mapping[str, str]]], metadata: Mapping[str, Any], top: Path, notes: ImportNotes
) -> Iterator[Place]:
    """Yield the items of the outfits, each once, in the order of the outfits."""
    has_images = (top / "images").is_dir()
    for item_id in dict.fromkeys(item_id for _, items in outfits.values() for item_id in items.values()):
        entry = metadata.get(item_id)
        if not isinstance(entry, dict):
            notes.add(f"items of outfits without an entry in {ITEMS}, without a title", f"item {item_id!r}")
            entry = {}
        item = {
            "item_id": item_id,
            "title": entry.get("title") or entry.get("url_name"),
            "description": entry.get("description"),
            "category": entry.get("semantic_category"),
            "category_id": entry.get("category_id"),
        }
        if has_images:
            item["image"] = f"images/{item_id}.jpg"
        yield f"{ITEMS} item {item_id!r}", {name: value for name, value in item.items() if value not in (None, "")}


def _name(entry: Any) -> str | None:
    """Return the title of an outfit, or the one in its address."""
    if not isinstance(entry, dict):
        return None
    return entry.get("title") or entry.get("url_name") or None


def _iter_questions(
    path: Path, outfits: Mapping[str, tuple[str, Mapping[str, str]]], notes: ImportNotes
) -> Iterator[Question]:
    """Yield the published questions; items are named by outfit and index, and the answer is of the same outfit."""
    for number, record in enumerate(_read(path, list)):
        where = f"{path.name} entry {number + 1}"
        match record:
            case {"question": [str(first), *others], "answers": [*answers]}:
                shown, options = [first, *others], list(map(str, answers))
            case _:
                raise BundleMLLMError(f"{where} has no list `question` or no list `answers`: copy the file again.")
        outfit_id = first.rpartition("_")[0]
        right = [index for index, option in enumerate(options) if option.rpartition("_")[0] == outfit_id]
        ids = [_item_of(name, outfits) for name in (*shown, *options)]
        partial, candidates = ids[: len(shown)], ids[len(shown) :]
        proper = None not in ids and len(set(ids)) == len(ids) and len(right) == 1
        if not proper or len(candidates) < MIN_CANDIDATES:
            notes.add("questions with unknown or repeated items, or without one right answer, left out", where)
            continue
        yield Question(
            f"{outfit_id}-{number}", outfit_id, tuple(map(str, partial)), tuple(map(str, candidates)), right[0]
        )


def _item_of(name: Any, outfits: Mapping[str, tuple[str, Mapping[str, str]]]) -> str | None:
    outfit_id, _, index = str(name).rpartition("_")
    return outfits[outfit_id][1].get(index) if outfit_id in outfits else None


def _read(path: Path, kind: type) -> Any:
    check("json_bytes", require_file(path, "copy the whole data set").stat().st_size, str(path))
    with open_text(path) as stream:
        value = parse_json(stream.read(), str(path))
    if not isinstance(value, kind):
        raise BundleMLLMError(f"{path} holds a {type(value).__name__}, not a {kind.__name__}: copy it again.")
    return value
