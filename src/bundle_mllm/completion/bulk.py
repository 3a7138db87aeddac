"""Complete many bundles into one file: in parts that a killed run keeps, here, on several processes or on Ray.

Knows nothing about how a bundle is completed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundle_mllm.completion.columns import ITEM_TABLE, ItemColumns
from bundle_mllm.completion.complete import RuledCompleter, load_ruled_completer
from bundle_mllm.completion.product_table import PRODUCT_COLUMN, product_rows
from bundle_mllm.completion.rules import Rules
from bundle_mllm.completion.settings import BulkSettings
from bundle_mllm.data.files import atomic_path, read_json, sha256, write_json
from bundle_mllm.data.records import require_fields, to_ids
from bundle_mllm.data.tables import find_table, iter_records, suffix_of, write_records
from bundle_mllm.encoders.distributed import Process
from bundle_mllm.errors import BundleMLLMError, check_at_least
from bundle_mllm.model_folder import fingerprint
from bundle_mllm.modeling.item_processing_bundle_mllm import BundleItemProcessor
from bundle_mllm.settings import as_dict, refuse_beside

PART_SIZE = 256
"""Questions of a part: what a kill costs at most, for each process."""
Progress = Callable[[str, int, int], None]
"""Takes the name of the job, how many questions are answered, and how many there are."""


def complete_bulk(settings: BulkSettings | None = None, *, progress: Progress | None = None, **fields: Any) -> Path:
    """Complete many bundles, or the bundle of each item alone, and write one row of answers for each.

    Answers are those of `RuledCompleter.complete`. The output is written in one step at the end, and the same settings
    give the same bytes, killed or not.

    Args:
        settings: What to do.
        progress: Called after every part.
        **fields: Instead of `settings`, its fields.

    Returns:
        The path of the output.

    Raises:
        BundleMLLMError: If a setting is missing or contradicts another, a question cannot be read, parts of another
            run are there, another process writes the same output, or a file that was read has changed by the end.
    """
    if settings is not None:
        refuse_beside(settings, fields)
    return _BulkRun(settings or BulkSettings(**fields), progress).run()


class _BulkRun:
    """One run: what is asked, and the parts that are answered."""

    def __init__(self, settings: BulkSettings, progress: Progress | None = None):
        self.settings, self.progress = settings, progress or (lambda name, done, total: None)
        if settings.output is None or (settings.input is None) != settings.every_item:
            raise BundleMLLMError(
                "Many bundles need a file of questions or the items themselves, and a file of answers: give --input "
                "FILE or --every-item, and --output FILE."
            )
        check_at_least("top_k", settings.top_k, 1, "there would be no answers")
        self.output = settings.output
        suffix_of(self.output)
        self.parts = self.output.with_name(self.output.name + ".parts")
        if settings.layout != "table":
            if not settings.every_item or self.output.suffix != ".csv":
                raise BundleMLLMError(
                    f"The layout {settings.layout} has a row for each product in a .csv file: give --every-item and "
                    "--output FILE.csv, or leave --layout out."
                )
            rules = settings.rules or Rules()
            one_of_each = rules.variant_column or PRODUCT_COLUMN[settings.layout]
            self.settings = replace(settings, rules=replace(rules, variant_column=one_of_each))

    def run(self) -> Path:
        """Answer what is not answered yet, and join the parts."""
        settings = self.settings
        process = Process.join(settings.device)
        if settings.engine == "ray" and process.count > 1:
            raise BundleMLLMError('engine="ray" and `accelerate launch` both spread the work: use one of them.')
        hashes = self._hashes()  # before anything is read
        device = str(process.device)
        shop = load_ruled_completer(
            settings.model, settings.rules, settings.items, device, settings.ranker, settings.retrieval
        )
        questions = self._questions(shop)
        with process.locked(self.parts):
            process.from_main(lambda: self._open(hashes))
            chunks = [questions[start : start + PART_SIZE] for start in range(0, len(questions), PART_SIZE)]
            mine = [n for n in range(process.index, len(chunks), process.count) if not self._part(n).exists()]

            def report() -> None:  # what all processes have answered
                if process.is_main:
                    number = sum(1 for _ in self.parts.glob("[0-9]*.jsonl"))
                    self.progress("Completing", min(number * PART_SIZE, len(questions)), len(questions))

            report()
            if settings.engine == "ray":
                from bundle_mllm.completion.ray_bulk import answer_on_ray

                answered = answer_on_ray(settings, answer, [(number, chunks[number]) for number in mine])
            else:
                answered = ((number, answer(shop, chunks[number], settings)) for number in mine)
            for number, rows in answered:
                with atomic_path(self._part(number)) as temporary:
                    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
                report()
            process.wait()
            if process.count > 1:
                report()
            process.from_main(lambda: self._join(hashes, len(chunks), shop.completer.processor))
        return self.output

    def _questions(self, shop: RuledCompleter) -> list[dict[str, Any]]:
        """Return all questions; refuse one that cannot be read before any is answered."""
        processor, path = shop.completer.processor, self.settings.input
        if path is None:
            return [{"item_id": item_id, "partial": [item_id]} for item_id in processor.item_ids]
        questions = []
        for number, record in enumerate(iter_records(path), start=1):
            where = f"{path} row {number}"
            require_fields(record, ("partial",), where)
            question_id = record.get("question_id")
            question: dict[str, Any] = {"question_id": str(number if question_id in (None, "") else question_id)}
            for name in ("partial", "candidates"):
                if record.get(name) is not None:
                    question[name] = _entries(record[name], name, where)
            try:
                processor.read_question(question)
            except ValueError as error:
                raise BundleMLLMError(f"{where}: {error}") from error
            questions.append(question)
        if not questions:
            raise BundleMLLMError(f"{path} holds no question, so there is nothing to answer: write one row for each.")
        return questions

    # Files

    def _hashes(self) -> dict[str, Any]:
        """Return what decides the answers."""
        settings, rules = self.settings, self.settings.rules or Rules()
        files = [settings.input, rules.allowed_file, rules.excluded_file, Path(settings.model) / ITEM_TABLE]
        if settings.items is not None:
            files.append(settings.items if settings.items.is_file() else find_table(settings.items, "items"))
        return {
            "model": settings.model,
            "fingerprint": fingerprint(settings.model),
            "ranker": settings.ranker,
            "files": {str(path): sha256(path) for path in files if path is not None and path.is_file()},
            "rules": as_dict(rules),
            "top_k": settings.top_k,
            "batch_size": settings.batch_size,
            "every_item": settings.every_item,
            "layout": settings.layout,
            "retrieval": settings.retrieval,
            "part_size": PART_SIZE,
        }

    def _open(self, hashes: Mapping[str, Any]) -> None:
        """Make the folder of parts, or find that of the same run."""
        note = self.parts / "run.json"
        if not note.exists():
            write_json(note, hashes)
        elif (before := read_json(note)) != json.loads(json.dumps(hashes)):
            raise BundleMLLMError(
                f"{self.parts} holds parts of another run ({_difference(before, hashes)}), so the output would mix "
                "both: give what was given then to continue it, or delete the folder to start anew."
            )

    def _part(self, number: int) -> Path:
        return self.parts / f"{number:06}.jsonl"

    def _join(self, hashes: Mapping[str, Any], count: int, processor: BundleItemProcessor) -> None:
        """Write the output, unless a file has changed meanwhile."""
        if (now := self._hashes()) != hashes:
            raise BundleMLLMError(
                f"{_difference(hashes, now)} since this run began, so nothing is written: undo the change and start "
                f"the same command again, which takes seconds, or delete {self.parts} to answer anew."
            )
        settings, rows = self.settings, self._rows(count)
        if settings.layout != "table":
            item_ids = processor.item_ids
            columns = ItemColumns.of_model(settings.model, item_ids, processor.titles, settings.items)
            rows = product_rows(rows, columns, item_ids, settings.top_k, settings.layout)
        write_records(self.output, rows)
        shutil.rmtree(self.parts)

    def _rows(self, count: int) -> Iterator[dict[str, Any]]:
        for number in range(count):
            with open(self._part(number), encoding="utf-8") as stream:
                yield from map(json.loads, stream)


def answer(shop: RuledCompleter, questions: Sequence[dict[str, Any]], settings: BulkSettings) -> list[dict[str, Any]]:
    """Return one row of answers for each question."""
    asked = [{name: value for name, value in each.items() if name != "item_id"} for each in questions]
    found = shop.complete(asked, top_k=settings.top_k, batch_size=settings.batch_size)
    key = "item_id" if settings.every_item else "question_id"
    return [
        {
            key: question[key],
            "answers": [item["item_id"] for item in answers.items],
            "scores": [float(f"{item['score']:.6g}") for item in answers.items],
            "notes": "; ".join(answers.notes) or None,
        }
        for question, answers in zip(questions, found, strict=True)
    ]


def _entries(value: Any, name: str, where: str) -> list[Any]:
    """Return items of a question: ids, or in JSON Lines dictionaries of new items."""
    if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        return value
    return to_ids(value, name, where)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the first thing that is not the same."""
    files, others = before.get("files", {}), now.get("files", {})
    changed = sorted(path for path in files.keys() | others.keys() if files.get(path) != others.get(path))
    if changed:
        return f"{changed[0]} has changed"
    names = [name for name in before if before[name] != json.loads(json.dumps(now.get(name)))]
    return f"{', '.join(names) or 'its settings'} changed"
