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
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from bundle_mllm.data.files import atomic_path
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.ablation import TITLES, ablations, masked, permuted
from bundle_mllm.evaluation.by_length import accuracy_by_num_candidates
from bundle_mllm.evaluation.evaluate import describe
from bundle_mllm.evaluation.metrics import ScoredQuestion
from bundle_mllm.evaluation.results import load_results, save_results, without_nan
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.model_folder import fingerprint, load_completer, load_processor
from bundle_mllm.modeling.ranking_bundle_mllm import GROUP_SIZE, num_prompts
from bundle_mllm.report.questions import QuestionSet

if TYPE_CHECKING:
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

logger = logging.get_logger(__name__)

FULL, STAGE_ONE, SHUFFLED = "stage two", "stage one", "stage two, features shuffled"
"""What the variants of a model are called."""
LONGEST_HARD = 100
"""Longest list that hard negatives are drawn for: among more, few would resemble the answer."""
LENGTH_PROMPTS = 4000
"""Most prompts that one point of the figure by number of candidates may cost; beyond, it asks fewer questions."""
STAGE_ONE_MODEL = Path("training", "stage_one", "model")

Measured = dict[str, list[ScoredQuestion]]
"""What was said to each question, by question set."""
Opener = Callable[[], AbstractContextManager[tuple["BundleMLLMForCausalLM", "BundleMLLMProcessor"]]]


@dataclass(frozen=True)
class Settings:
    """What every step of a report has in common.

    Attributes:
        output_dir: The report's folder.
        folder: The data set.
        train_items: The items of all training bundles; `None` if there are none.
        key: What a step depends on besides its model and questions: versions and the data's tables.
        batch_size: Prompts per forward pass.
        seed: Of shuffling and groups.
        device: Where models run.
        progress: Whether to show progress bars.
    """

    output_dir: Path
    folder: DatasetFolder
    train_items: frozenset[str] | None
    key: Mapping[str, Any]
    batch_size: int
    seed: int
    device: torch.device
    progress: bool


class MeasuredModel:
    """A model folder and what has been measured of it.

    Every step writes a file of its own under `measured/`, with what it depends on: weights, questions, settings. A
    step whose file depends on the same is not measured again, so a report that was killed continues.

    Args:
        path: The model folder.
        name: What figures call it.
        settings: See [`Settings`].

    Raises:
        BundleMLLMError: It is no model folder.
    """

    def __init__(self, path: Path, name: str, settings: Settings):
        if not path.is_dir() or (digest := fingerprint(path)) is None:
            raise BundleMLLMError(
                f"{path} is no model folder, so nothing can be measured: give the output folder of `bundle-mllm "
                "train`, or what `hf download` made of a published model."
            )
        self.path, self.name, self.settings, self.fingerprint = path, name, settings, digest
        self.seconds: dict[str, float] = {}
        self._processor = load_processor(path)

    @cached_property
    def loaded(self) -> tuple[BundleMLLMForCausalLM, BundleMLLMProcessor]:
        """Model and processor, loaded when the first step needs them."""
        return self._load(self.path)

    @property
    def max_options(self) -> int:
        """Longest list that the model is asked in one prompt."""
        return self._processor.max_options

    @property
    def sources(self) -> tuple[str, ...]:
        """What the model knows of an item: its title, and its modalities; nothing but titles without item tokens."""
        modalities = self.info["modalities"] if self._processor.show_items else {}
        return (*([TITLES] if any(self._processor.titles) else []), *modalities)

    @cached_property
    def info(self) -> dict[str, Any]:
        """Name, fingerprint, base model, modalities and numbers of parameters."""
        return self._step("model", {}, self._info)

    def check_knows(self, sets: Sequence[QuestionSet]) -> None:
        """Check that every item that is asked about is in the model's catalog.

        Raises:
            BundleMLLMError: One is not.
        """
        known = set(self._processor.item_ids)
        for asked in sets:
            items = {item_id for q in asked.questions for item_id in (*q.partial, *q.candidates)}
            if unknown := sorted(items - known):
                raise BundleMLLMError(
                    f"{len(unknown)} items of the questions {asked.name!r} are not in the catalog of {self.path} "
                    f"(such as {unknown[:3]}), so they cannot be asked about: report on the data it was trained with."
                )

    def full(self, sets: Sequence[QuestionSet]) -> Measured:
        """Ask the model as it is."""
        return self._ask(FULL, lambda: nullcontext(self.loaded), sets)

    def stage_one(self, sets: Sequence[QuestionSet]) -> Measured | None:
        """Ask the model that stage one ended with; `None` where the folder does not hold it."""
        path = self.path / STAGE_ONE_MODEL
        digest = fingerprint(path)
        if digest is None:
            return None
        return self._ask(STAGE_ONE, lambda: nullcontext(self._load(path)), sets, {"stage_one": digest})

    def shuffled(self, sets: Sequence[QuestionSet]) -> Measured | None:
        """Ask with the features shuffled among items; `None` where there are none."""
        if not set(self.sources) - {TITLES}:
            return None
        seed = self.settings.seed
        return self._ask(SHUFFLED, lambda: permuted(*self.loaded, seed), sets, {"shuffle_seed": seed})

    def ablations(self, sets: Sequence[QuestionSet]) -> dict[str, tuple[tuple[str, ...], Measured]]:
        """Ask with each source of knowledge dropped, and with each alone; see `ablation.ablations`.

        Returns:
            By label, what was kept and what was said.
        """
        return {
            label: (kept, self._ask(label, self._opener(kept), sets, {"kept": list(kept)}))
            for label, kept in ablations(self.sources).items()
        }

    def by_length(self, split: str, sizes: Sequence[int], max_questions: int) -> list[dict[str, Any]]:
        """Measure accuracy by number of candidates, uniform and hard; see `accuracy_by_num_candidates`.

        Args:
            split: Whose bundles are asked about.
            sizes: Numbers of candidates.
            max_questions: Most questions of one size; fewer where they would cost more than `LENGTH_PROMPTS`.

        Returns:
            Its rows, with `negatives` and `chance` in front.
        """
        group_size = min(GROUP_SIZE, self.max_options)
        rows = []
        for negatives in ("uniform", "hard"):
            for size in sorted(set(sizes)):
                if negatives == "hard" and size > LONGEST_HARD:
                    continue
                number = max(1, min(max_questions, LENGTH_PROMPTS // num_prompts(size, group_size)))
                asked = {
                    "split": split,
                    "sizes": [size],
                    "negatives": negatives,
                    "max_questions": number,
                    "group_size": group_size,
                    "seed": self.settings.seed,
                }
                step = f"by_length.{negatives}.{size}"
                measured = self._step(step, asked, lambda asked=asked: {"rows": self._by_length(**asked)})
                rows += [{"negatives": negatives, "chance": 1 / size, **row} for row in measured["rows"]]
        return rows

    def history(self) -> dict[str, list[dict[str, Any]]]:
        """Return the logged losses and validations of each stage that the folder has a record of."""
        found = {}
        for stage in ("stage_one", "stage_two"):
            path = self.path / "training" / stage / "history.json"
            if path.is_file():
                try:
                    found[stage] = [dict(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
                except (ValueError, TypeError) as error:
                    raise BundleMLLMError(
                        f"{path} is no training history ({error}), so there is no loss to draw: delete it, or copy it "
                        "again."
                    ) from error
        return found

    def _load(self, path: Path) -> tuple[BundleMLLMForCausalLM, BundleMLLMProcessor]:
        model, processor = load_completer(path)
        return model.to(self.settings.device), processor

    def _info(self) -> dict[str, Any]:
        model, _ = self.loaded
        count = sum(parameter.numel() for parameter in model.parameters())
        backbone = sum(parameter.numel() for parameter in model.model.language_model.parameters())
        return {
            "base_model": self._base_model(),
            "modalities": dict(model.config.modalities),
            "parameters": count,
            "backbone_parameters": backbone,
        }

    def _base_model(self) -> str | None:
        """Return the base model of the run's record; of a folder of this machine its name alone."""
        path = self.path / "run.json"
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        base = record.get("settings", {}).get("base_model")
        is_folder = record.get("base_model_is_folder", base is not None and Path(base).exists())
        return Path(base).name if base is not None and is_folder else base

    def _by_length(self, **asked: Any) -> list[dict[str, Any]]:
        settings = self.settings
        return accuracy_by_num_candidates(
            *self.loaded, settings.folder, batch_size=settings.batch_size, progress=settings.progress, **asked
        )

    def _opener(self, kept: tuple[str, ...]) -> Opener:
        return lambda: masked(*self.loaded, kept)

    def _ask(
        self, variant: str, opener: Opener, sets: Sequence[QuestionSet], changed: Mapping[str, Any] | None = None
    ) -> Measured:
        """Ask every question set, but for those that this variant was asked before."""
        keys = {asked.name: self._key(variant, asked.sha256, changed) for asked in sets}
        measured = {asked.name: self._read(asked, variant, keys[asked.name]) for asked in sets}
        if missing := [asked for asked in sets if measured[asked.name] is None]:
            with opener() as (model, processor):
                for asked in missing:
                    scored = self._score(model, processor, asked, variant, keys[asked.name], not changed)
                    measured[asked.name] = scored
        return {name: scored for name, scored in measured.items() if scored is not None}

    def _score(
        self,
        model: BundleMLLMForCausalLM,
        processor: BundleMLLMProcessor,
        asked: QuestionSet,
        variant: str,
        key: Mapping[str, Any],
        is_whole: bool,
    ) -> list[ScoredQuestion]:
        settings = self.settings
        logger.info(f"{self.name}, {variant}: {len(asked.questions)} questions of {asked.name}")
        start, max_options = time.monotonic(), processor.max_options
        scored = score_questions(
            model, processor, asked.questions, batch_size=settings.batch_size, seed=0, progress=settings.progress
        )
        seconds = round(time.monotonic() - start, 1)
        known = settings.train_items
        metrics = describe(asked.manifest, asked.questions, scored, known, max_options=max_options) | {
            "asked": {
                "permutations": 1,
                "max_options": max_options,
                "group_size": min(GROUP_SIZE, max_options),
                "seed": 0,
            },
            # what was changed on the way is another model: a card must not take its figures for those of this one
            "fingerprint": self.fingerprint if is_whole else None,
            "model": str(self.path),
            "data": str(settings.folder.path),
            "report": {**key, "seconds": seconds},
        }
        save_results(self._path(variant, asked), metrics, scored)
        self.seconds[f"{variant}, {asked.name}"] = seconds
        return scored

    def _read(self, asked: QuestionSet, variant: str, key: Mapping[str, Any]) -> list[ScoredQuestion] | None:
        """Read back what was said, if that is the same variant, model, data and question file."""
        try:
            metrics, scored = load_results(self._path(variant, asked))
            known = dict(metrics["report"])
            took = known.pop("seconds")
        except (BundleMLLMError, KeyError, TypeError, ValueError):  # missing, or cut short: it is measured again
            return None
        if known != key:
            return None
        self.seconds[f"{variant}, {asked.name}"] = took
        return scored

    def _step(self, step: str, asked: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what a step measured before, or measure it and write that down."""
        path = self._folder / f"{_slug(step)}.json"
        key = self._key(step, None, asked)
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

    def metrics_file(self, asked: QuestionSet) -> Path:
        """Return the metrics file of the model as it is, in the report's folder."""
        return self._path(FULL, asked).relative_to(self.settings.output_dir)

    def _path(self, variant: str, asked: QuestionSet) -> Path:
        return self._folder / f"{_slug(variant)}.{asked.name}.json"


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step; what is not defined (NaN) as null."""
    with atomic_path(path) as temporary:
        text = json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
