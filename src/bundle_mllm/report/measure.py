"""Measure what a report shows, one step at a time; a step that was measured before is read back.

Knows nothing about how the figures look.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from transformers.utils import logging

from bundle_mllm.completion.complete import RuledCompleter
from bundle_mllm.data.files import check_unchanged, file_states, read_json, sha256, without_nan, write_json
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.device import choose_device
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.ablation import TITLES, ablations, masked, permuted, sources
from bundle_mllm.evaluation.by_length import accuracy_by_num_candidates
from bundle_mllm.evaluation.evaluate import answer_part, check_items, describe_parts, resolved, save_parts, warm_items
from bundle_mllm.evaluation.metrics import ScoredQuestion
from bundle_mllm.evaluation.results import load_results, part_path
from bundle_mllm.evaluation.scoring import score_questions, score_sets
from bundle_mllm.evaluation.settings import ScoringOptions
from bundle_mllm.model_folder import HISTORIES, RUN_RECORD, STAGE_ONE_MODEL, fingerprint, load_completer, model_files
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.ranking_bundle_mllm import GROUP_SIZE, num_prompts
from bundle_mllm.report.questions import QuestionSet, file_name
from bundle_mllm.report.settings import ReportSettings

logger = logging.get_logger(__name__)

WHOLE, STAGE_ONE, PERMUTED = "whole", "stage one", "features permuted"
"""Names of the variants of a model."""
LONGEST_HARD = 100
"""Longest list that hard negatives are drawn for: among more, few would resemble the answer."""
STAGES = ("stage_one", "stage_two")
NUM_EXAMPLES, NUM_ANSWERS = 3, 3
"""Examples of right answers, and as many of wrong ones; the best answers that each shows."""
LENGTH_PROMPTS = 4000
"""Most prompts that one point of the figure by number of candidates may cost; beyond, it has fewer questions."""

Measured = dict[str, dict[str, list[ScoredQuestion]]]
"""The scored questions of each part of a model (ranker, retriever, both; the answer is last), by question set."""
Key = dict[str, Any]
"""What a step depends on: it is not measured again while this is the same."""


class MeasuredModel:
    """A model folder and what has been measured of it.

    Every step writes a file of its own with what it depends on: weights, questions, settings. A step whose file
    depends on the same is not measured again, so a report that was killed continues. The files are in `measured/` of
    the report's folder `target`; all steps depend on `key` besides model and questions: versions, the data's tables.

    Raises:
        BundleMLLMError: If `path` is no model folder; from each step, if a file of it is changed meanwhile.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        target: Path,
        folder: DatasetFolder,
        options: ReportSettings,
        key: Mapping[str, Any],
    ):
        stages = [path / HISTORIES.format(stage=stage) for stage in STAGES]
        files = [*model_files(path), *model_files(path / STAGE_ONE_MODEL), path / RUN_RECORD, *stages]
        self._before = file_states([*files, *folder.tables()])
        if not path.is_dir() or (digest := fingerprint(path)) is None:
            raise BundleMLLMError(
                f"{path} is no model folder, so nothing can be measured: give the output folder of `bundle-mllm "
                "train`, or what `hf download` made of a published model."
            )
        self.path, self.name, self.fingerprint, self.folder, self.options = path, name, digest, folder, options
        self.results, self.key = target / "measured" / file_name(name), {"model": digest, **key}
        self.scoring = ScoringOptions(batch_size=options.batch_size, device=str(choose_device(options.device)))
        self.seconds: dict[str, float] = {}

    @cached_property
    def completer(self) -> BundleCompleter:
        """The models, loaded when the first step needs them."""
        return load_completer(self.path, self.scoring.device)

    @cached_property
    def info(self) -> dict[str, Any]:
        """Base model, modalities, numbers of parameters, `sources` of information, `max_options` of a prompt."""
        record = self.path / RUN_RECORD
        return self._step("model", {"record": sha256(record) if record.is_file() else None}, self._info)

    @property
    def about(self) -> dict[str, Any]:
        """What a report tells of the model."""
        return {"name": self.name, "fingerprint": self.fingerprint, **self.info}

    def check_unchanged(self) -> None:
        """Refuse what was measured if a file of the model, its record or the data is not as it was at first."""
        check_unchanged(self._before)

    def check_items(self, sets: Sequence[QuestionSet]) -> None:
        """Refuse questions about an item that is not in the model's catalog."""
        for each in sets:
            check_items(self.completer, each.questions, each.manifest["path"], self.path)

    def stages(self, sets: Sequence[QuestionSet]) -> dict[str, Measured]:
        """Score with the ranker after stage one (if that was trained), as it is, and with permuted features."""
        before, seed = self.path / STAGE_ONE_MODEL, self.options.seed
        stages = {}
        if STAGE_ONE.replace(" ", "_") in self.history() and (digest := fingerprint(before)):
            load = partial(load_completer, before, self.scoring.device)
            stages[STAGE_ONE] = self._measure(STAGE_ONE, lambda: nullcontext(load()), sets, {"stage_one": digest})
        stages[WHOLE] = self.whole(sets)
        if set(self.info["sources"]) - {TITLES}:
            changed = {"permute_seed": seed}
            stages[PERMUTED] = self._measure(PERMUTED, lambda: permuted(self.completer, seed=seed), sets, changed)
        return stages

    def whole(self, sets: Sequence[QuestionSet]) -> Measured:
        """Score with the model as it is."""
        return self._measure(WHOLE, lambda: nullcontext(self.completer), sets, {})

    def ablations(self, sets: Sequence[QuestionSet]) -> dict[str, tuple[tuple[str, ...], Measured]]:
        """Score with each source dropped, and with each alone: by label, what was kept and the scored questions."""
        measured = {}
        for label, kept in ablations(names := self.info["sources"]).items():
            mask = [name for name in names if name not in kept]
            scored = self._measure(label, lambda mask=mask: masked(self.completer, mask), sets, {"kept": list(kept)})
            measured[label] = kept, scored
        return measured

    def by_length(self) -> list[dict[str, Any]]:
        """Return the rows of `accuracy_by_num_candidates`, uniform and hard, each with `negatives` and `chance`."""
        group_size = min(GROUP_SIZE, self.info["max_options"])
        shared = {"split": self.options.split, "group_size": group_size, "seed": self.options.seed}
        unseen: Any = {"batch_size": self.options.batch_size, "progress": self.options.progress}
        rows = []
        for negatives, most in (("uniform", None), ("hard", LONGEST_HARD)):
            for size in sorted(size for size in set(self.options.sizes) if most is None or size <= most):
                number = max(1, min(self.options.length_questions, LENGTH_PROMPTS // num_prompts(size, group_size)))
                options: Any = {**shared, "sizes": [size], "negatives": negatives, "max_questions": number}
                measured = self._step(
                    f"by_length.{negatives}.{size}",
                    options,
                    lambda given=options | unseen: accuracy_by_num_candidates(self.completer, self.folder, **given),
                )
                rows += [{"negatives": negatives, "chance": 1 / size, **row} for row in measured]
        return rows

    def history(self) -> dict[str, list[dict[str, Any]]]:
        """Return the logged losses and validations of each stage that the folder has a record of."""
        histories = {}
        for stage in STAGES:
            path = self.path / HISTORIES.format(stage=stage)
            if path.is_file():
                try:
                    histories[stage] = [dict(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
                except (ValueError, TypeError) as error:
                    raise BundleMLLMError(
                        f"{path} is no training history ({error}), so there is no loss to draw: delete it."
                    ) from error
        return histories

    def examples(self, questions: QuestionSet) -> list[dict[str, Any]]:
        """Answer some questions, drawn at random from those that are answered right and from those that are not.

        Returns:
            Of each `questions` (the file), `question_id`, `right`, `rank` of the answer, `num_candidates`, `partial`,
            `answer`, and `answers`: the best few and the right one, explained; see `Answers`.
        """
        scored = list(self.whole([questions])[questions.name].values())[-1]
        drawn = random.Random(self.options.seed)
        chosen: list[int] = []
        for right in (True, False):
            places = [place for place, each in enumerate(scored) if each.hit == right]
            chosen += sorted(drawn.sample(places, min(NUM_EXAMPLES, len(places))))
        key = {"questions": questions.sha256, "chosen": chosen}
        return self._step("examples", key, lambda: self._examples(questions, [(i, scored[i]) for i in chosen]))

    def _examples(self, questions: QuestionSet, chosen: Sequence[tuple[int, ScoredQuestion]]) -> list[dict[str, Any]]:
        completer, examples = RuledCompleter(self.completer), []
        for place, scored in chosen:
            question = questions.questions[place]
            options: Any = {"top_k": len(question.candidates), "explain": True}
            [answers] = completer.complete([question], **options, batch_size=self.options.batch_size)
            shown = [a for i, a in enumerate(answers.items) if i < NUM_ANSWERS or a["item_id"] == question.answer]
            about = {"questions": questions.name, "question_id": question.question_id, "right": scored.hit}
            about |= {"rank": scored.num_better + scored.num_tied, "num_candidates": len(question.candidates)}
            examples.append({**about, "partial": answers.partial, "answer": question.answer, "answers": shown})
        return examples

    def prediction_sets(self, questions: QuestionSet) -> list[dict[str, Any]]:
        """Return the figures of sets with a guarantee, see `score_sets`; none of questions that calibrated them."""
        calibration = self.completer.combination.calibration
        if calibration is None or all(calibration.calibrated_on(each.bundle_id) for each in questions.questions):
            return []
        asked = [coverage for coverage in self.options.coverage if coverage <= calibration.highest_coverage]
        return self._step(
            f"prediction_sets.{questions.name}",
            {"questions": questions.sha256, "asked": asked},
            lambda: score_sets(
                self.completer, questions.questions, asked, self.scoring, progress=self.options.progress
            ),
        )

    def metrics_file(self, questions: QuestionSet) -> Path:
        """Return the metrics file of the model as it is."""
        return self.results / f"{WHOLE}.{questions.name}.json"

    def _info(self) -> dict[str, Any]:
        completer = self.completer
        models = {"ranker": completer.ranker, "retriever": completer.retriever}
        sizes = {part: model.num_parameters() for part, model in models.items() if model is not None}
        has_titles = any(completer.processor.titles)
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
        record = read_json(path) if path.is_file() else {}
        base = record.get("settings", {}).get("base_model")
        if base is not None and record.get("base_model_is_folder", Path(base).exists()):
            return Path(base).name
        return base

    def _measure(
        self,
        variant: str,
        open_variant: Callable[[], AbstractContextManager[BundleCompleter]],
        sets: Sequence[QuestionSet],
        changed: Key,
    ) -> Measured:
        """Score every question set, but for those that this variant has scored before."""
        with ExitStack() as stack:
            opened = cache(lambda: stack.enter_context(open_variant()))
            return {each.name: self._scored(variant, opened, each, changed) for each in sets}

    def _scored(
        self, variant: str, opened: Callable[[], BundleCompleter], questions: QuestionSet, changed: Key
    ) -> dict[str, list[ScoredQuestion]]:
        """Read the scored questions of a variant back, or score them and write their metrics."""
        step, path = f"{variant}, {questions.name}", self.results / f"{file_name(variant)}.{questions.name}.json"
        key = self._key(variant, {"questions": questions.sha256, **changed})
        with suppress(BundleMLLMError, KeyError, TypeError, ValueError):  # missing, or cut short: it is measured again
            parts = list(load_results(path)[0]["parts"])
            files = {part: part_path(path, part) for part in parts} | {answer_part(parts): path}
            loaded = {part: load_results(file) for part, file in files.items()}
            if all(metrics["report"] == key for metrics, _ in loaded.values()):
                self.seconds[step] = loaded[answer_part(parts)][0]["seconds"]
                return {part: scored for part, (_, scored) in loaded.items()}
        completer = opened()
        logger.info(f"{self.name}, {variant}: {len(questions.questions)} questions of {questions.name}")
        start, options = time.monotonic(), resolved(self.scoring, completer)
        scored = score_questions(completer, questions.questions, self.scoring, progress=self.options.progress)
        self.seconds[step] = round(time.monotonic() - start, 1)
        shared = {
            "options": options,
            # an altered model is another model: a card must not take its figures for those of this one
            "fingerprint": None if changed else self.fingerprint,
            "model": str(self.path),
            "data": str(self.folder.path),
            "report": key,
            "seconds": self.seconds[step],
        }
        self.check_unchanged()
        train_items, most = warm_items(self.folder.bundles), options["max_options"]
        about = questions.manifest, questions.questions
        reads = {"max_options": most, "reads_letters": completer.reads_letters}
        save_parts(path, describe_parts(*about, scored, train_items, shared, **reads), scored)
        return scored

    def _step(self, step: str, options: Key, compute: Callable[[], Any]) -> Any:
        """Return what a step measured before, or measure it and write that down."""
        path, key = self.results / f"{file_name(step)}.json", self._key(step, options)
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["report"] == key:
                self.seconds[step] = known["seconds"]
                return known["result"]
        start = time.monotonic()
        result = without_nan(compute())
        self.seconds[step] = round(time.monotonic() - start, 1)
        self.check_unchanged()
        write_json(path, {"report": key, "seconds": self.seconds[step], "result": result})
        return result

    def _key(self, step: str, changed: Key) -> Key:
        return json.loads(json.dumps({"step": step, **self.key, **changed}))
