"""Measure what a report shows, one step at a time; a step that was measured before is read back.

Knows nothing about how the figures look.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers.utils import logging

from bundle_mllm.data.files import atomic_path
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.ablation import TITLES, ablations, masked, permuted, sources
from bundle_mllm.evaluation.by_length import accuracy_by_num_candidates
from bundle_mllm.evaluation.evaluate import answer_part, describe_parts, resolved, save_parts
from bundle_mllm.evaluation.metrics import ScoredQuestion
from bundle_mllm.evaluation.results import load_results, part_path, without_nan
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.evaluation.settings import ScoringOptions
from bundle_mllm.model_folder import HISTORIES, RUN_RECORD, STAGE_ONE_MODEL, fingerprint, load_completer
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.ranking_bundle_mllm import GROUP_SIZE, num_prompts
from bundle_mllm.report.questions import QuestionSet

logger = logging.get_logger(__name__)

WHOLE, STAGE_ONE, PERMUTED = "whole", "stage one", "features permuted"
"""Names of the variants of a model."""
LONGEST_HARD = 100
"""Longest list that hard negatives are drawn for: among more, few would resemble the answer."""
LENGTH_PROMPTS = 4000
"""Most prompts that one point of the figure by number of candidates may cost; beyond, it has fewer questions."""

Measured = dict[str, dict[str, list[ScoredQuestion]]]
"""The scored questions of each part of a model (ranker, retriever, both; the answer is last), by question set."""
Opener = Callable[[], AbstractContextManager[BundleCompleter]]


@dataclass(frozen=True)
class MeasuringSettings:
    """What every step of a report has in common.

    Attributes:
        output_dir: The report's folder.
        folder: The data set.
        train_items: The items of all training bundles; `None` if there are none.
        key: What a step depends on besides its model and questions: versions and the data's tables.
        scoring: Batch size and device.
        seed: Seed of permuted features, and of the questions by number of candidates.
        progress: Whether to show progress bars.
    """

    output_dir: Path
    folder: DatasetFolder
    train_items: frozenset[str] | None
    key: Mapping[str, Any]
    scoring: ScoringOptions
    seed: int
    progress: bool


class MeasuredModel:
    """A model folder and what has been measured of it.

    Every step writes a file of its own under `measured/`, with what it depends on: weights, questions, settings. A
    step whose file depends on the same is not measured again, so a report that was killed continues.

    Args:
        path: The model folder.
        name: Its name in figures.
        settings: See [`MeasuringSettings`].

    Raises:
        BundleMLLMError: If it is no model folder.
    """

    def __init__(self, path: Path, name: str, settings: MeasuringSettings):
        if not path.is_dir() or (digest := fingerprint(path)) is None:
            raise BundleMLLMError(
                f"{path} is no model folder, so nothing can be measured: give the output folder of `bundle-mllm "
                "train`, or what `hf download` made of a published model."
            )
        self.path, self.name, self.settings, self.fingerprint = path, name, settings, digest
        self.seconds: dict[str, float] = {}

    @cached_property
    def completer(self) -> BundleCompleter:
        """The models, loaded when the first step needs them."""
        return self._load(self.path)

    @cached_property
    def info(self) -> dict[str, Any]:
        """Base model, modalities, numbers of parameters, `sources` of information, `max_options` of a prompt."""
        return self._step("model", {}, self._info)

    def check_items(self, sets: Sequence[QuestionSet]) -> None:
        """Check that every item of the questions is in the model's catalog.

        Raises:
            BundleMLLMError: If one is not.
        """
        known = set(self.completer.processor.item_ids)
        for each in sets:
            items = {item_id for q in each.questions for item_id in (*q.partial, *q.candidates)}
            if unknown := sorted(items - known):
                raise BundleMLLMError(
                    f"{len(unknown)} items of the questions {each.name!r} are not in the catalog of {self.path} "
                    f"(such as {unknown[:3]}), so they cannot be scored: report on the data it was trained with."
                )

    def whole(self, sets: Sequence[QuestionSet]) -> Measured:
        """Score with the model as it is."""
        return self._measure(WHOLE, lambda: nullcontext(self.completer), sets)

    def stage_one(self, sets: Sequence[QuestionSet]) -> Measured | None:
        """Score with the ranker that stage one ended with; `None` where the folder does not hold it."""
        path = self.path / STAGE_ONE_MODEL
        digest = fingerprint(path)
        if digest is None:
            return None
        return self._measure(STAGE_ONE, lambda: nullcontext(self._load(path)), sets, {"stage_one": digest})

    def permuted(self, sets: Sequence[QuestionSet]) -> Measured | None:
        """Score with the features permuted among items; `None` where there are none."""
        if not set(self.info["sources"]) - {TITLES}:
            return None
        seed = self.settings.seed
        return self._measure(PERMUTED, lambda: permuted(self.completer, seed=seed), sets, {"permute_seed": seed})

    def ablations(self, sets: Sequence[QuestionSet]) -> dict[str, tuple[tuple[str, ...], Measured]]:
        """Score with each source of information dropped, and with each alone; see `ablation.ablations`.

        Returns:
            By label, what was kept and the scored questions.
        """
        return {
            label: (kept, self._measure(label, self._opener(kept), sets, {"kept": list(kept)}))
            for label, kept in ablations(self.info["sources"]).items()
        }

    def by_length(self, split: str, sizes: Sequence[int], max_questions: int) -> list[dict[str, Any]]:
        """Measure accuracy by number of candidates, uniform and hard; see `accuracy_by_num_candidates`.

        Args:
            split: Whose bundles the questions are about.
            sizes: Numbers of candidates.
            max_questions: Most questions of one size; fewer where they would cost more than `LENGTH_PROMPTS`.

        Returns:
            Its rows, with `negatives` and `chance` in front.
        """
        group_size = min(GROUP_SIZE, self.info["max_options"])
        rows = []
        for negatives in ("uniform", "hard"):
            for size in sorted(set(sizes)):
                if negatives == "hard" and size > LONGEST_HARD:
                    continue
                number = max(1, min(max_questions, LENGTH_PROMPTS // num_prompts(size, group_size)))
                options = {
                    "split": split,
                    "sizes": [size],
                    "negatives": negatives,
                    "max_questions": number,
                    "group_size": group_size,
                    "seed": self.settings.seed,
                }
                step = f"by_length.{negatives}.{size}"
                measured = self._step(step, options, lambda options=options: {"rows": self._by_length(**options)})
                rows += [{"negatives": negatives, "chance": 1 / size, **row} for row in measured["rows"]]
        return rows

    def history(self) -> dict[str, list[dict[str, Any]]]:
        """Return the logged losses and validations of each stage that the folder has a record of."""
        histories = {}
        for stage in ("stage_one", "stage_two"):
            path = self.path / HISTORIES.format(stage=stage)
            if path.is_file():
                try:
                    histories[stage] = [dict(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
                except (ValueError, TypeError) as error:
                    raise BundleMLLMError(
                        f"{path} is no training history ({error}), so there is no loss to draw: delete it, or copy it "
                        "again."
                    ) from error
        return histories

    def metrics_file(self, questions: QuestionSet) -> Path:
        """Return the metrics file of the model as it is, in the report's folder."""
        return self._path(WHOLE, questions).relative_to(self.settings.output_dir)

    def _load(self, path: Path) -> BundleCompleter:
        return load_completer(path, self.settings.scoring.device)

    def _info(self) -> dict[str, Any]:
        completer = self.completer
        models = {"ranker": completer.ranker, "retriever": completer.retriever}
        has_titles = any(completer.processor.titles)
        sizes = {
            part: sum(p.numel() for p in model.parameters()) for part, model in models.items() if model is not None
        }
        return {
            "base_model": self._base_model(),
            "modalities": dict(completer.processor.modalities or {}),
            "parameters": sum(sizes.values()),
            **{f"{part}_parameters": size for part, size in sizes.items()},
            "sources": [name for name in sources(completer) if name != TITLES or has_titles],
            "max_options": resolved(ScoringOptions(), completer)["max_options"],
        }

    def _base_model(self) -> str | None:
        """Return the base model of the run's record; of a folder of this machine its name alone."""
        path = self.path / RUN_RECORD
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        base = record.get("settings", {}).get("base_model")
        is_folder = record.get("base_model_is_folder", base is not None and Path(base).exists())
        return Path(base).name if base is not None and is_folder else base

    def _by_length(self, **options: Any) -> list[dict[str, Any]]:
        settings = self.settings
        options |= {"batch_size": settings.scoring.batch_size, "progress": settings.progress}
        return accuracy_by_num_candidates(self.completer, settings.folder, **options)

    def _opener(self, kept: tuple[str, ...]) -> Opener:
        return lambda: masked(self.completer, [name for name in self.info["sources"] if name not in kept])

    def _measure(
        self, variant: str, opener: Opener, sets: Sequence[QuestionSet], changed: Mapping[str, Any] | None = None
    ) -> Measured:
        """Score every question set, but for those that this variant has scored before."""
        keys = {each.name: self._key(variant, each.sha256, changed) for each in sets}
        measured = {each.name: self._read(each, variant, keys[each.name]) for each in sets}
        if missing := [each for each in sets if measured[each.name] is None]:
            with opener() as completer:
                for each in missing:
                    measured[each.name] = self._score(completer, each, variant, keys[each.name], not changed)
        return {name: scored for name, scored in measured.items() if scored is not None}

    def _score(
        self, completer: BundleCompleter, questions: QuestionSet, variant: str, key: Mapping[str, Any], is_whole: bool
    ) -> dict[str, list[ScoredQuestion]]:
        settings = self.settings
        logger.info(f"{self.name}, {variant}: {len(questions.questions)} questions of {questions.name}")
        start, options = time.monotonic(), resolved(settings.scoring, completer)
        scored = score_questions(completer, questions.questions, settings.scoring, progress=settings.progress)
        seconds = round(time.monotonic() - start, 1)
        shared = {
            "options": options,
            # an altered model is another model: a card must not take its figures for those of this one
            "fingerprint": self.fingerprint if is_whole else None,
            "model": str(self.path),
            "data": str(settings.folder.path),
            "report": {**key, "seconds": seconds},
        }
        metrics = describe_parts(
            questions.manifest,
            questions.questions,
            scored,
            settings.train_items,
            shared,
            max_options=options["max_options"],
        )
        save_parts(self._path(variant, questions), metrics, scored)
        self.seconds[f"{variant}, {questions.name}"] = seconds
        return scored

    def _read(
        self, questions: QuestionSet, variant: str, key: Mapping[str, Any]
    ) -> dict[str, list[ScoredQuestion]] | None:
        """Read scored questions back, if they are of the same variant, model, data and question file."""
        path = self._path(variant, questions)
        try:
            metrics, _ = load_results(path)
            answer = answer_part(metrics["parts"])
            scored = {}
            for part in metrics["parts"]:
                metrics, scored[part] = load_results(path if part == answer else part_path(path, part))
                known = dict(metrics["report"])
                seconds = known.pop("seconds")
                if known != key:
                    return None
        except (BundleMLLMError, KeyError, TypeError, ValueError):  # missing, or cut short: it is measured again
            return None
        self.seconds[f"{variant}, {questions.name}"] = seconds
        return scored

    def _step(self, step: str, options: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what a step measured before, or measure it and write that down."""
        path = self._folder / f"{_slug(step)}.json"
        key = self._key(step, None, options)
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["report"] == key:
                self.seconds[step] = known["seconds"]
                return known["result"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        start = time.monotonic()
        result = without_nan(compute())
        seconds = round(time.monotonic() - start, 1)
        write_json(path, {"report": key, "seconds": seconds, "result": result})
        self.seconds[step] = seconds
        return result

    def _key(self, step: str, questions: str | None, changed: Mapping[str, Any] | None) -> dict[str, Any]:
        key = {"step": step, "model": self.fingerprint, "questions": questions, **self.settings.key, **(changed or {})}
        return json.loads(json.dumps(key))

    @property
    def _folder(self) -> Path:
        return self.settings.output_dir / "measured" / _slug(self.name)

    def _path(self, variant: str, questions: QuestionSet) -> Path:
        return self._folder / f"{_slug(variant)}.{questions.name}.json"


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step; what is not defined (NaN) as null."""
    with atomic_path(path) as temporary:
        text = json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
