"""The model of a worker: it follows the items of its folder, and answers questions in batches.

Knows nothing about HTTP or queues.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any, Literal

from bundle_mllm.completion.approximate import ApproximateIndex
from bundle_mllm.completion.columns import ITEM_TABLE, ItemColumns
from bundle_mllm.completion.complete import Answers, RuledCompleter
from bundle_mllm.completion.rules import Rules
from bundle_mllm.data.catalog import MEDIA
from bundle_mllm.device import choose_device
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.item_processing_bundle_mllm import ITEMS_FILE
from bundle_mllm.served_ranker import ServedRanker

logger = logging.getLogger(__name__)

MAX_RULES = 64
"""Rules whose reading of the catalog is kept, those that were used last."""
Stamp = tuple[int, int] | None


class NoRankerError(Exception):
    """The ranker is elsewhere and does not answer, and there is no retriever that could."""


@dataclass(frozen=True)
class Asked:
    """A question with how it is to be answered.

    Attributes:
        partial: The partial bundle: ids, and new items as mappings whose pictures and sounds are bytes.
        candidates: The candidates; `None` for the whole catalog.
        rules: The rules as plain values; see `Rules.from_dict`.
        top_k: How many answers.
        page: Which of them.
        explain: Whether to say what each model contributes.
        coverage: The probability with which the answers hold the right one, where only such answers are wanted.
    """

    partial: Sequence[Any]
    candidates: Sequence[Any] | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)
    top_k: int = 10
    page: int = 1
    explain: bool = False
    coverage: float | None = None

    @cached_property
    def way(self) -> tuple[Any, ...]:
        """What questions must have in common to be answered together; the rules are the first of it."""
        return json.dumps(self.rules, sort_keys=True), self.top_k, self.page, self.explain, self.coverage


@dataclass(frozen=True, eq=False)
class _Loaded:
    """The models over the items of one state of the folder."""

    folder: Path
    completer: BundleCompleter
    stamps: tuple[Stamp, Stamp]
    index: ApproximateIndex | None = None
    ruled: OrderedDict[str, RuledCompleter] = field(default_factory=OrderedDict)

    @cached_property
    def columns(self) -> ItemColumns:
        """The columns of the items, read when they are first needed."""
        processor = self.completer.processor
        return ItemColumns.of_model(self.folder, processor.item_ids, processor.titles)

    def under(self, rules: Mapping[str, Any], key: str) -> RuledCompleter:
        """Return the completer under rules; those that were used last are kept under their key."""
        if key not in self.ruled:
            applied = None
            if rules:
                applied = Rules.from_dict(rules).apply(self.completer.processor.item_ids, self.columns)
            self.ruled[key] = RuledCompleter(self.completer, applied, index=self.index)
            if len(self.ruled) > MAX_RULES:
                self.ruled.popitem(last=False)
        self.ruled.move_to_end(key)
        return self.ruled[key]


class ServedModel:
    """A model folder in the memory of a worker.

    Items that another process adds, changes or removes are there at the next question: files that are written anew
    with them have another inode and time, which are the folder's generation number.

    Args:
        folder: The model folder.
        device: Where the models run; a GPU if there is one.
        ranker: Address of the server that runs the exported ranker, where that is elsewhere.
        retrieval: How whole catalogs are searched; see `load_ruled_completer`.

    Raises:
        BundleMLLMError: If the folder holds no model.
    """

    def __init__(
        self,
        folder: Path,
        device: str | None = None,
        ranker: str | None = None,
        retrieval: Literal["exact", "approximate"] = "exact",
    ):
        self.folder, self._ranker, self._retrieval = folder, ranker, retrieval
        self._device = str(choose_device(device))
        self._lock = RLock()
        self._failed: tuple[Stamp, Stamp] | None = None
        self._loaded = self._load(None)

    @property
    def num_items(self) -> int:
        """Number of items."""
        return self._loaded.completer.processor.num_items

    def warm_up(self) -> None:
        """Answer a question: the first one takes longer than others."""
        self.complete([Asked(self._loaded.completer.processor.item_ids[:1])])

    def ranker_problem(self) -> str | None:
        """Return why the ranker does not answer, where it is elsewhere and does not."""
        completer = self._loaded.completer
        return completer.ranker.problem(completer.processor) if isinstance(completer.ranker, ServedRanker) else None

    def item(self, item_id: str) -> dict[str, Any] | None:
        """Return an item with its columns but those that name files; `None` if there is none of this id."""
        loaded = self._current()
        processor = loaded.completer.processor
        if item_id not in processor:
            return None
        record = loaded.columns.record(processor.row(item_id))
        known = {"item_id": item_id, "title": processor.title(item_id)}
        return {**{name: value for name, value in record.items() if name not in MEDIA}, **known}

    def unknown(self, item_ids: Sequence[str]) -> list[str]:
        """Return those ids that no item has."""
        processor = self._current().completer.processor
        return [item_id for item_id in item_ids if item_id not in processor]

    def complete(self, asked: Sequence[Asked]) -> list[Answers | Exception]:
        """Answer questions, those that may be answered together in one pass.

        Returns:
            The answers to each question, or the error of one that has none.
        """
        loaded, answers = self._current(), dict[int, Answers | Exception]()
        groups: dict[Any, dict[int, Any]] = {}
        for number, each in enumerate(asked):
            try:
                question = self._read(loaded.completer, each)
                groups.setdefault(each.way, {})[number] = question
            except ValueError as error:
                answers[number] = error
        for questions in groups.values():
            each = asked[next(iter(questions))]
            answers |= self._complete_group(loaded, each, questions)
        return [answers[number] for number in range(len(asked))]

    def _complete_group(
        self, loaded: _Loaded, way: Asked, questions: Mapping[int, Any]
    ) -> Mapping[int, Answers | Exception]:
        try:
            completer = loaded.under(way.rules, way.way[0])
            options = {name: getattr(way, name) for name in ("top_k", "page", "explain", "coverage")}
            found = completer.complete(list(questions.values()), **options)
            return dict(zip(questions, found, strict=True))
        except ValueError as error:
            if loaded.completer.retriever is None and (problem := self.ranker_problem()):
                return dict.fromkeys(questions, NoRankerError(problem))
            if len(questions) == 1:
                return dict.fromkeys(questions, error)
        alone = [self._complete_group(loaded, way, {number: each}) for number, each in questions.items()]
        return {number: answer for each in alone for number, answer in each.items()}

    def _read(self, completer: BundleCompleter, asked: Asked) -> dict[str, Any]:
        """Return a question whose new items are encoded; refuse one that cannot be read."""
        with media_folder() as folder:

            def stored(entry: Any) -> Any:
                if not isinstance(entry, Mapping):
                    return entry
                return {**entry, **{name: str(path) for name, path in write_media(entry, folder).items()}}

            [question] = completer.prepare(
                [
                    {
                        "partial": [stored(entry) for entry in asked.partial],
                        "candidates": None if asked.candidates is None else [stored(e) for e in asked.candidates],
                    }
                ]
            )
            completer.processor.read_question(question)
        return question

    def _current(self) -> _Loaded:
        """Return the model over the items that the folder has now."""
        if self._stamps() != self._loaded.stamps:
            with self._lock:
                if (stamps := self._stamps()) not in (self._loaded.stamps, self._failed):
                    try:
                        self._loaded = self._load(self._loaded)
                        gc.collect()  # models refer to themselves, and would stay until the collector comes round
                    except (BundleMLLMError, OSError):
                        logger.exception("the changed items cannot be read: answers go on with those of before")
                        self._failed = stamps
        return self._loaded

    def _stamps(self) -> tuple[Stamp, Stamp]:
        return _stamp(self.folder / ITEMS_FILE), _stamp(self.folder / ITEM_TABLE)

    def _load(self, before: _Loaded | None) -> _Loaded:
        """Load what has changed; what changes meanwhile is loaded by the next question."""
        while True:
            stamps = self._stamps()
            if before is not None and before.stamps[0] == stamps[0]:  # only columns, such as prices, have changed
                return replace(before, stamps=stamps, ruled=OrderedDict())
            try:
                completer = load_completer(self.folder, self._device, self._ranker)
                index = ApproximateIndex.of(completer) if self._retrieval == "approximate" else None
                return _Loaded(self.folder, completer, stamps, index)
            except BundleMLLMError:
                if self._stamps() == stamps:
                    raise


def _stamp(path: Path) -> Stamp:
    """Return inode and time of a file, which differ once it is written anew; `None` if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


@contextmanager
def media_folder() -> Iterator[Path]:
    """Yield a folder for the files of items, which is deleted afterwards; errors do not show where it was."""
    with TemporaryDirectory(prefix="bundle-mllm-") as folder:
        try:
            yield Path(folder)
        except ValueError as error:
            raise BundleMLLMError(str(error).replace(f"{folder}/", "")) from error


def write_media(item: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write the pictures and sounds of an item, which are bytes, into a folder; the same content gets the same name.

    Returns:
        Their paths by column.
    """
    paths = {}
    for name in MEDIA:
        if (content := item.get(name)) is not None:
            paths[name] = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
            paths[name].write_bytes(content)
    return paths
