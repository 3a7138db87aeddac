"""Read the data layout that the authors of Bundle-MLLM published (`xhLiu/BundleConstruction`).

Knows nothing about models, prompts or who uses the data.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle_mllm.bounds import check
from bundle_mllm.data.bundles import BundleSplits
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.features import write_modality
from bundle_mllm.data.files import new_folder, require_file, require_folder, sha256
from bundle_mllm.data.interactions import Interactions
from bundle_mllm.data.json_text import parse_json
from bundle_mllm.data.questions import MIN_CANDIDATES, Question, save_questions
from bundle_mllm.data.tables import open_text
from bundle_mllm.data.torch_files import load_matrix
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.assemble import warn_of_near_duplicates, write_dataset
from bundle_mllm.importers.summary import ImportNotes, ImportSummary

TITLE = "title_en"
BUNDLE_ITEM_FEATURES = "_LightGCN_bi_feature.pt"
MODALITIES = {
    "visual": "content_feature.pt",
    "bundle_item": f"*{BUNDLE_ITEM_FEATURES}",
    "user_item": "item_cf_feature.pt",
    "textual": "description_feature.pt",
}
"""The file of each modality. The official fusion uses all but the last."""
_SPLIT_OF = {"valid": "validation", "test": "test"}
_CANDIDATES_FILE = re.compile(r"bi_(valid|test)_cans(\d+)\.txt")
_OWN_FIELDS = ("item_id", "title", "description", "category", "image", "audio")


@dataclass(frozen=True, eq=False)
class OfficialItems:
    """The items of a published data folder.

    Attributes:
        name: The data set's name, such as `"pog"`; the file of LightGCN features begins with it.
        catalog: The items; `item_id` is the official index as text, and the title is `title_en`.
        features: By modality (see `MODALITIES`), the feature matrix `[num_items, dim]`.
        feature_files: By modality, the file its matrix was read from.
    """

    name: str
    catalog: ItemCatalog
    features: Mapping[str, torch.Tensor]
    feature_files: Mapping[str, Path]


@dataclass(frozen=True, eq=False)
class OfficialData:
    """A published data folder.

    Attributes:
        items: Its items and their features.
        bundles: All bundles; a bundle of validation or test has the items of its input and its ground truth.
        questions: The questions of each candidate file, by a name such as `"test_cans10"`; `question_id` is the
            bundle's id and the number of the question about it, such as `"20-0"`.
        interactions: The distinct pairs of user and item.
        dropped: How many entries were left out, by what they are and why.
    """

    items: OfficialItems
    bundles: BundleSplits
    questions: Mapping[str, Sequence[Question]]
    interactions: Interactions
    dropped: Mapping[str, int]


def read_official_items(folder: str | os.PathLike, modalities: Iterable[str] = MODALITIES) -> OfficialItems:
    """Read the items of a published data folder, and no other file.

    Args:
        folder: It holds `count.json`, `item_info.json` and the feature files of `modalities`.
        modalities: Which of `MODALITIES` to read.

    Raises:
        BundleMLLMError: If a file is missing or malformed, or the number of items differs between them.
    """
    folder = Path(folder)
    _, _, num_items = _read_counts(folder)
    catalog = _read_catalog(folder / "item_info.json", num_items)
    files = {modality: _find_one(folder, MODALITIES[modality]) for modality in modalities}
    name = _find_one(folder, MODALITIES["bundle_item"]).name.removesuffix(BUNDLE_ITEM_FEATURES)
    features = {modality: _read_features(path, num_items) for modality, path in files.items()}
    return OfficialItems(name, catalog, features, files)


def read_official(folder: str | os.PathLike) -> OfficialData:
    """Read a published data folder.

    Two repetitions are harmless and counted in `dropped`: a pair of user and item counts once, and a wrong option that
    a candidate list repeats (the official code draws them with replacement) is kept once.

    Args:
        folder: It holds `count.json`, `item_info.json`, `bi_train.txt`, `bi_{valid,test}_{input,gt}.txt`,
            `ui_full.txt`, the feature files of `MODALITIES` and any number of `bi_{valid,test}_cans{K}.txt`. Other
            files are ignored.

    Raises:
        BundleMLLMError: If a file is missing, a line is malformed, `count.json` does not cover an index, or a question
            contradicts its bundle; the message names file and line.
    """
    folder = Path(folder)
    num_users, num_bundles, num_items = _read_counts(folder)
    items = read_official_items(folder)
    parts = {
        part: _read_lists(folder / f"bi_{part}.txt", "bundle", num_bundles, num_items)
        for part in ("train", "valid_input", "valid_gt", "test_input", "test_gt")
    }
    bundles = _to_bundles(folder, parts, items.catalog)
    questions, num_repeated_candidates = {}, 0
    for path in sorted(folder.glob("bi_*_cans*.txt")):
        match = _CANDIDATES_FILE.fullmatch(path.name)
        if match is None:
            raise BundleMLLMError(f"{path} is no candidate file: call it bi_valid_cans10.txt or bi_test_cans10.txt.")
        shown, answers = parts[f"{match[1]}_input"], parts[f"{match[1]}_gt"]
        in_file, repeated = _read_questions(path, int(match[2]), num_items, shown, answers)
        questions[f"{_SPLIT_OF[match[1]]}_cans{int(match[2])}"] = in_file
        num_repeated_candidates += repeated
    interactions = _read_interactions(folder / "ui_full.txt", num_users, num_items)
    dropped = {
        "repeated interactions": interactions.num_repeated,
        "items repeated in their bundle": bundles.num_repeated_items,
        "wrong options repeated in their question": num_repeated_candidates,
    }
    return OfficialData(items, bundles, questions, interactions, dropped)


def import_official(
    source: str | os.PathLike, output_dir: str | os.PathLike, *, strict: bool = False
) -> ImportSummary:
    """Turn a published data folder into a dataset folder, which `DatasetFolder.open` and `load_questions` read.

    Args:
        source: The published folder, see [`read_official`].
        output_dir: A new or empty folder for items, bundles, interactions, `features/` and, for each candidate file,
            `questions/{validation,test}_cans{K}.jsonl`.
        strict: Changes nothing, since what [`read_official`] does not refuse is harmless; the other imports have it.

    Raises:
        BundleMLLMError: If the source cannot be read, or `output_dir` is not empty.
    """
    with new_folder(output_dir) as folder:
        data = read_official(source)
        items = data.items
        notes = ImportNotes(strict)
        for what, number in data.dropped.items():
            notes.add(what, count=number, harmless=True)
        warn_of_near_duplicates(data.bundles, notes)
        summary = write_dataset(folder, Path(output_dir), items.catalog, data.bundles, data.interactions, notes)
        for modality, features in items.features.items():
            path, of_items = items.feature_files[modality], items.catalog.content_hash
            provenance = {"reader": "official", "file": path.name, "sha256": sha256(path)}
            write_modality(folder / "features", modality, features, None, provenance, items_hash=of_items)
        for name, questions in data.questions.items():
            save_questions(folder / "questions" / f"{name}.jsonl", questions)
    return replace(
        summary,
        num_questions={f"questions/{name}.jsonl": len(questions) for name, questions in data.questions.items()},
        modalities={modality: features.shape[1] for modality, features in items.features.items()},
    )


def _read_counts(folder: Path) -> tuple[int, int, int]:
    """Return the numbers of users, bundles and items."""
    require_folder(folder, "give the folder that holds count.json")
    path = folder / "count.json"
    counts = _read_object(path)
    for name in ("#U", "#B", "#I"):
        if type(counts.get(name)) is not int or counts[name] < 1:
            raise BundleMLLMError(f"{path} has {counts.get(name)!r} as {name!r}: write a positive number.")
    return counts["#U"], counts["#B"], counts["#I"]


def _read_catalog(path: Path, num_items: int) -> ItemCatalog:
    info = _read_object(path)
    records = []
    for index in map(str, range(num_items)):
        entry = info.get(index)
        if not isinstance(entry, dict) or not isinstance(title := entry.get(TITLE), str):
            raise BundleMLLMError(
                f"{path} has no {TITLE} for the item {index!r}: give one for each of the {num_items} items."
            )
        others = {name: value for name, value in entry.items() if name != TITLE and name not in _OWN_FIELDS}
        records.append({"item_id": index, "title": title, **others})
    if unknown := info.keys() - {record["item_id"] for record in records}:
        raise BundleMLLMError(
            f"{path} describes the item {min(unknown)!r}, but count.json has {num_items} items, 0 to {num_items - 1}: "
            "the two files are not of one data set."
        )
    return ItemCatalog.from_records(records, source=str(path))


def _to_bundles(folder: Path, parts: Mapping[str, Mapping[int, list[int]]], catalog: ItemCatalog) -> BundleSplits:
    members = {"train": parts["train"]}
    for part, split in _SPLIT_OF.items():
        shown, answers = parts[f"{part}_input"], parts[f"{part}_gt"]
        for bundle in shown.keys() ^ answers.keys():
            have, lack = ("input", "gt") if bundle in shown else ("gt", "input")
            raise BundleMLLMError(
                f"{folder}/bi_{part}_{have}.txt has the bundle {bundle}, which bi_{part}_{lack}.txt lacks: copy both."
            )
        members[split] = {bundle: items + answers[bundle] for bundle, items in shown.items()}
    records = (
        {"bundle_id": bundle, "items": items, "split": split}
        for split, items_of in members.items()
        for bundle, items in items_of.items()
    )
    return BundleSplits.from_records(records, catalog, str(folder))


def _read_interactions(path: Path, num_users: int, num_items: int) -> Interactions:
    """Return the distinct pairs, user by user."""
    items_of: dict[int, np.ndarray] = {}
    num_pairs = 0
    for user, items in _iter_lists(path, "user", num_users, num_items, may_be_empty=True):
        num_pairs += len(items)
        if distinct := dict.fromkeys([*items_of.get(user, ()), *items]):
            items_of[user] = np.fromiter(distinct, dtype=np.int64, count=len(distinct))
    user_index = np.repeat(np.arange(len(items_of)), [len(items) for items in items_of.values()])
    rows = np.concatenate([np.empty(0, dtype=np.int64), *items_of.values()])
    return Interactions(tuple(map(str, items_of)), user_index, rows, num_repeated=num_pairs - len(rows))


def _read_questions(
    path: Path,
    num_candidates: int,
    num_items: int,
    shown: Mapping[int, list[int]],
    answers: Mapping[int, list[int]],
) -> tuple[list[Question], int]:
    """Return the questions, and how many repeated wrong options were dropped."""
    if num_candidates < MIN_CANDIDATES:
        raise BundleMLLMError(f"{path} has {num_candidates} candidates per question, nothing to choose: move it away.")
    questions: list[Question] = []
    number_of: defaultdict[int, Iterator[int]] = defaultdict(count)
    num_repeated = 0
    for where, line in _iter_lines(path):
        match line:
            case [bundle, [*partial], [answer_index], [*candidates]] if type(bundle) is type(answer_index) is int:
                pass
            case _:
                raise BundleMLLMError(f"{where} is not [bundle, [partial], [answer index], [candidates]]: correct it.")
        if bundle not in shown:
            raise BundleMLLMError(f"{where} is about the bundle {bundle}, which has no input: remove the line.")
        while partial and partial[-1] == num_items:  # padding
            partial.pop()
        _check_items(partial, num_items, f"{where}, the partial bundle,")
        _check_items(candidates, num_items, f"{where}, the candidates,")
        if len(candidates) != num_candidates or not 0 <= answer_index < num_candidates:
            raise BundleMLLMError(
                f"{where} has {len(candidates)} candidates and the answer index {answer_index}, but the file's name "
                f"has {num_candidates} candidates: correct one."
            )
        answer = candidates[answer_index]
        _check_question(where, bundle, partial, candidates, answer, shown[bundle], answers[bundle])
        distinct = list(dict.fromkeys(candidates))
        num_repeated += len(candidates) - len(distinct)
        texts = tuple(map(str, partial)), tuple(map(str, distinct))
        number = next(number_of[bundle])
        questions.append(Question(f"{bundle}-{number}", str(bundle), *texts, distinct.index(answer)))
    return questions, num_repeated


def _check_question(
    where: str, bundle: int, partial: list[int], candidates: list[int], answer: int, shown: list[int], gt: list[int]
) -> None:
    """Check that a question agrees with its bundle's input and ground truth."""
    if not partial or len(set(partial)) < len(partial):
        raise BundleMLLMError(f"{where} has the partial bundle {partial}, empty or with an item twice: correct it.")
    if foreign := sorted(set(partial) - set(shown)):
        raise BundleMLLMError(f"{where} shows {foreign}, which the input of bundle {bundle} lacks: correct it.")
    if answer not in gt or answer in partial or candidates.count(answer) > 1:
        raise BundleMLLMError(
            f"{where} has the answer {answer}. It must be in the ground truth of bundle {bundle}, not be shown and be "
            "offered once: correct the answer index or the lists."
        )
    if right := sorted((set(candidates) - {answer}) & {*shown, *gt}):
        raise BundleMLLMError(f"{where} offers {right} as wrong options, but bundle {bundle} has them: replace them.")
    if len(set(candidates)) < MIN_CANDIDATES:
        raise BundleMLLMError(f"{where} has no wrong option: a question needs at least {MIN_CANDIDATES} candidates.")


def _read_lists(path: Path, owner: str, num_owners: int, num_items: int) -> dict[int, list[int]]:
    """Read lines `owner, item, item, …`; lines of one owner add up, as in the official code."""
    lists: dict[int, list[int]] = {}
    for index, items in _iter_lists(path, owner, num_owners, num_items):
        lists.setdefault(index, []).extend(items)
    return lists


def _iter_lists(
    path: Path, owner: str, num_owners: int, num_items: int, may_be_empty: bool = False
) -> Iterator[tuple[int, list[int]]]:
    for where, line in _iter_lines(path, "[%s]"):
        if not line or not all(type(value) is int for value in line):
            raise BundleMLLMError(f'{where} is not a list of indices such as "{owner}, item, item": correct the line.')
        index, *items = line
        if not 0 <= index < num_owners:
            raise BundleMLLMError(
                f"{where} has the {owner} {index}, but count.json has {num_owners}: use files of one data set."
            )
        if not items and not may_be_empty:
            raise BundleMLLMError(f"{where} has the {owner} {index} without items: remove the line.")
        _check_items(items, num_items, where)
        yield index, items


def _check_items(items: list[Any], num_items: int, where: str) -> None:
    for item in items:
        if type(item) is not int or not 0 <= item < num_items:
            raise BundleMLLMError(
                f"{where} has the item {item!r}, but those of count.json are 0 to {num_items - 1}: correct it."
            )


def _read_features(path: Path, num_items: int) -> torch.Tensor:
    if len(features := load_matrix(path)) != num_items:
        raise BundleMLLMError(
            f"{path} has {len(features)} rows, but count.json has {num_items} items: use files of one data set."
        )
    return features


def _find_one(folder: Path, pattern: str) -> Path:
    matching = sorted(folder.glob(pattern))
    if len(matching) != 1:
        names = " and ".join(path.name for path in matching) or "none"
        raise BundleMLLMError(f"{folder} needs one file {pattern}, and has {names}: copy it again, or keep one.")
    return matching[0]


def _iter_lines(path: Path, template: str = "%s") -> Iterator[tuple[str, Any]]:
    """Yield what to call each line and its value as JSON, once it stands in `template`; blank lines are skipped."""
    empty = True
    with open_text(require_file(path, "copy the whole data folder")) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where, empty = f"{path} line {number}", False
            try:
                value = parse_json(template % line, where, constants=False)
            except BundleMLLMError as error:
                shown = line.strip() if len(line) < 60 else f"{line.strip()[:57]}…"
                raise BundleMLLMError(f"{where} cannot be read ({shown!r}): correct or remove the line.") from error
            yield where, value
    if empty:
        raise BundleMLLMError(f"{path} is empty: copy it again.")


def _read_object(path: Path) -> dict[str, Any]:
    check("json_bytes", require_file(path, "copy the whole data folder").stat().st_size, str(path))
    with open_text(path) as stream:
        text = stream.read()
    value = parse_json(text, str(path), constants=False)  # NaN stands in fields that are not read
    if not isinstance(value, dict):
        raise BundleMLLMError(f"{path} holds a {type(value).__name__}, not an object {{…}}: copy it again.")
    return value
