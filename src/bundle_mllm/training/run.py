"""The run: dataset folder in, model folder out; stage one, merge, stage two, save, resumable at any point.

Knows nothing about prompt wording or how features were made.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from bundle_mllm.data.files import atomic_path, new_folder
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import OutOfFoldFeatures as CrossFitted
from bundle_mllm.data.questions import MAX_OPTIONS, Question, make_questions, sample_training_questions, spread
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.model_folder import load_model, save_model
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor
from bundle_mllm.training.backbone import build_model
from bundle_mllm.training.config import RunConfig, StageConfig, as_dict
from bundle_mllm.training.cross_fitting import load_versions
from bundle_mllm.training.stage import choose_backbone_weight, run_stage

logger = logging.get_logger(__name__)

RECORD = "run.json"
PACKAGES = (
    "bundle-mllm",
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "safetensors",
    "tokenizers",
)


def train(config: RunConfig) -> Path:
    """Train a model on a dataset folder.

    Runs stage one (bundle patterns from text), merges its adapter, runs stage two (multimodal semantics) and writes
    one self-contained folder. Called again after a kill, with the same settings, it continues and ends with the same
    weights. Checkpoints are chosen on validation questions only; test bundles are never read.

    Args:
        config: The run; see `default_run` for recipes.

    Returns:
        The model folder, `config.output_dir`. It loads with the Auto classes; `run.json` in it records settings,
        seed, versions, input hashes and what validation said; `training/` holds stage one's model and the histories.

    Raises:
        BundleMLLMError: The data cannot be used, or `output_dir` belongs to another run.
    """
    data = DatasetFolder.open(config.data)
    record = _open_record(config, data)
    out = config.output_dir
    if record["finished"]:
        logger.warning(f"{out} holds this run already, finished: nothing to do.")
        return out
    with _threads(config.num_threads):
        _run_stages(config, data, record)
    return out


def _run_stages(config: RunConfig, data: DatasetFolder, record: dict[str, Any]) -> None:
    out = config.output_dir
    validation = _validation_questions(config, data)
    shows_items = any(stage.shows_items and stage.max_steps for stage in (config.stage_one, config.stage_two))
    store = data.features(config.modalities) if shows_items else None
    cross_fitted = (
        load_versions(data, list(store.modalities)) if store else None
    )  # before stage one: they may be stale
    if config.stage_one.max_steps and not config.stage_one.shows_items and not any(data.catalog.titles):
        logger.warning(
            f"No item of {data.path} has a title, so stage one can learn little but how a question is answered: "
            "stage_one.num_questions=0 saves its time."
        )
    model, processor = None, None
    previous: Path | None = None
    for number, (name, stage) in enumerate((("stage_one", config.stage_one), ("stage_two", config.stage_two))):
        folder = out / "training" / name
        if not (folder / "model").exists():
            if previous is None:
                model, processor = build_model(config, data)
                processor.max_options = _longest_list(config)
            else:
                model, processor = load_model(previous)
            versions = cross_fitted if stage.shows_items else None
            seed = config.seed + number
            stage = _within_budget(config, stage, data, processor)
            if stage.max_steps:
                processor.show_items = stage.shows_items
                model, record[name] = run_stage(
                    model,
                    processor,
                    stage,
                    folder=folder,
                    data=data,
                    train_questions=_training_questions(config, stage, data, seed, versions),
                    validation_questions=validation,
                    alignment_questions=_alignment_questions(config, stage, data, seed, versions),
                    seed=seed,
                    versions=versions,
                )
                _write_record(out, record)
            if stage.max_steps and stage.shows_items and model.model.matching is not None and validation:
                record["backbone_weights"] = choose_backbone_weight(
                    model, processor, validation, config.backbone_weights
                )
                _write_record(out, record)
            with new_folder(folder / "model") as temporary:
                save_model(model, processor, temporary)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        previous = folder / "model"
    for file in sorted(previous.iterdir()):
        os.replace(file, out / file.name)
    record["finished"] = True
    _write_record(out, record)
    previous.rmdir()


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Limit the threads of PyTorch's operations for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _training_questions(
    config: RunConfig, stage: StageConfig, data: DatasetFolder, seed: int, versions: CrossFitted | None
) -> list[Question]:
    return sample_training_questions(
        data.bundles.train,
        data.catalog,
        num_questions=stage.max_steps * stage.batch_size * stage.gradient_accumulation_steps,
        num_candidates=stage.num_candidates,
        hard_fraction=stage.hard_fraction,
        max_partial=config.max_partial,
        fold_of_bundle=None if versions is None else versions.fold_of_bundle,
        seed=seed,
    )


def _alignment_questions(
    config: RunConfig, stage: StageConfig, data: DatasetFolder, seed: int, versions: CrossFitted | None
) -> list[Question]:
    if not (stage.shows_items and stage.alignment_steps):
        return []
    asked = dataclasses.replace(stage, num_questions=stage.alignment_questions)
    return _training_questions(config, asked, data, seed, versions)


def _within_budget(
    config: RunConfig, stage: StageConfig, data: DatasetFolder, processor: BundleMLLMProcessor
) -> StageConfig:
    """Lower the number of questions to what `max_tokens` allows, by the mean length of some of them."""
    if stage.max_tokens is None or not stage.max_steps:
        return stage
    sample = dataclasses.replace(stage, num_questions=8 * stage.batch_size * stage.gradient_accumulation_steps)
    prompts = processor(_training_questions(config, sample, data, config.seed, None), show_items=stage.shows_items)
    mean = sum(map(len, prompts["input_ids"])) / len(prompts["input_ids"])
    least = stage.batch_size * stage.gradient_accumulation_steps
    allowed = max(least, int(stage.max_tokens / mean))
    if allowed < stage.num_questions:
        logger.warning(
            f"Questions have {mean:.0f} tokens on average, so {allowed} are asked rather than {stage.num_questions}, "
            f"to see {stage.max_tokens} tokens: raise max_tokens for more."
        )
    return dataclasses.replace(stage, num_questions=min(stage.num_questions, allowed))


def _longest_list(config: RunConfig) -> int:
    """Return the most options that the model has seen: what is asked in one prompt; longer lists go in groups."""
    seen = [stage.num_candidates[1] for stage in (config.stage_one, config.stage_two) if stage.max_steps]
    return max(3, *seen) if seen else MAX_OPTIONS


def _validation_questions(config: RunConfig, data: DatasetFolder) -> list[Question]:
    """Half uniform, half hard, about bundles at equal distances; without any, the last checkpoint is kept."""
    bundles = spread(data.bundles.validation, config.validation_questions // 2)
    if not bundles:
        logger.warning(
            f"There are no validation questions ({len(data.bundles.validation)} validation bundles, "
            f"validation_questions {config.validation_questions}), so each stage keeps its last checkpoint."
        )
    chosen: list[Question] = []
    for negatives in ("uniform", "hard"):
        made = make_questions(
            bundles,
            data.catalog,
            data.bundles,
            num_candidates=config.validation_candidates,
            negatives=negatives,
            max_partial=config.max_partial,
            questions_per_bundle=1,
            seed=config.seed,
        )
        chosen += [dataclasses.replace(q, question_id=f"{q.question_id}-{negatives}") for q in made]
    return chosen


def _open_record(config: RunConfig, data: DatasetFolder) -> dict[str, Any]:
    """Read the run's record, or begin it; refuse a folder in which another run was begun."""
    settings = as_dict(config)
    path = config.output_dir / RECORD
    inputs = data.input_hashes()
    if path.exists() and not _has_begun(config.output_dir):
        path.unlink()  # of a run that ended before its first step, for example for a mistake in its settings
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        for what, now in (("settings", settings), ("inputs", inputs)):
            if record[what] != now:
                changed = sorted(key for key in {**record[what], **now} if record[what].get(key) != now.get(key))
                raise BundleMLLMError(
                    f"{config.output_dir} holds a run with other {what} (different: {', '.join(changed)}); continuing "
                    "would mix the two. Use another --output-dir, or delete that folder to start over."
                )
        return record
    if config.output_dir.exists() and any(config.output_dir.iterdir()):
        raise BundleMLLMError(
            f"{config.output_dir} is not empty and holds no {RECORD}: files in it could be overwritten. "
            "Use another --output-dir."
        )
    record = {
        "settings": settings,
        "inputs": inputs,
        "base_model_is_folder": Path(config.base_model).exists(),  # a folder may have the name of a Hub repository
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "finished": False,
    }
    _write_record(config.output_dir, record)
    return record


def _has_begun(out: Path) -> bool:
    return (out / "training").exists() or json.loads((out / RECORD).read_text(encoding="utf-8"))["finished"]


def _write_record(out: Path, record: dict[str, Any]) -> None:
    with atomic_path(out / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
