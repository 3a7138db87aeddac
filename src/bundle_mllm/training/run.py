"""The run: dataset folder in, model folder out: retriever, stage one, merge, stage two, combine. It resumes anywhere.

Knows nothing about prompt wording or how features were made.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers.utils import CONFIG_NAME, logging

from bundle_mllm.completion.item_table import save_items
from bundle_mllm.data.files import locked_folder, new_folder, read_json
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.model_folder import STAGE_ONE_MODEL, Ranker, load_completer, load_ranker, save_model
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.item_processing_bundle_mllm import BundleItemProcessor
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor
from bundle_mllm.modeling.retriever_bundle_mllm import BundleRetriever
from bundle_mllm.settings import SCRATCH, refuse_beside, with_overrides
from bundle_mllm.training.calibrate import calibrated
from bundle_mllm.training.config import RunConfig, StageConfig, StageOneConfig, continued_run, default_run
from bundle_mllm.training.continuation import choose, continued_retriever, folder_of_today, point_to, with_new_catalog
from bundle_mllm.training.dataset import as_copies
from bundle_mllm.training.ranker import build_ranker, join
from bundle_mllm.training.record import RunRecord
from bundle_mllm.training.retriever import make_retriever
from bundle_mllm.training.run_data import RunData
from bundle_mllm.training.stage import BEST, StageQuestions, run_stage
from bundle_mllm.training.trained import TrainedModel

logger = logging.get_logger(__name__)

RankerAndProcessor = tuple[Ranker, BundleMLLMProcessor]
"""A ranker and its processor."""


def train(
    data: str | os.PathLike | RunConfig, output_dir: str | os.PathLike | None = None, **settings: Any
) -> TrainedModel:
    """Train a model on a dataset folder.

    Trains the retriever; then the ranker in two stages (paper, section 3.3): bundle patterns from text, merged, and
    multimodal semantics; then fits how the two are joined, on training bundles that neither has seen. Checkpoints are
    chosen, and answers with a guarantee calibrated, on validation questions only; test bundles are never read. Called
    again after a kill, with the same settings, it continues and ends with the same weights.

    Args:
        data: The dataset folder, or a whole run, beside which nothing else is given.
        output_dir: The model folder.
        **settings: Fields of `RunConfig`, nested ones as mappings, over the default recipe of `base_model` (see
            `default_run`), for example `train("shop", "out", stage_two={"num_questions": 2000})`.

    Returns:
        The model folder, `output_dir`. It loads with the Auto classes; `run.json` in it records settings,
        seed, versions, input hashes and validation figures; `training/` holds stage one's ranker and the histories.
        A notebook shows the path with the validation figures.

    Raises:
        BundleMLLMError: If the data cannot be used, or `output_dir` belongs to another run, or to one that goes on.
    """
    run = _run_of(data, output_dir, settings)
    if run.continue_from is not None:
        return TrainedModel(continue_training(run))
    _check_base_model(run.base_model)
    run_data = RunData(run, DatasetFolder.open(run.data), holds_out=run.trains_ranker and run.trains_retriever)
    with locked_folder(run.output_dir):
        record = RunRecord.open(run, run_data.folder)
        if record["finished"]:
            logger.warning(f"{run.output_dir} holds this run already, finished: nothing to do.")
        else:
            with limited_threads(run.num_threads):
                first = first_ranker(run, run_data)
                run_data.note_features()
                if run.trains_retriever:
                    train_retriever(run, run_data, record)
                if run.trains_ranker:
                    train_stage("stage_one", run, run_data, record, first)
                    train_stage("stage_two", run, run_data, record)
                combine(run, run_data, record)
            finish(run.output_dir, record)
        remove_leftovers(run.output_dir)
    return TrainedModel(run.output_dir)


def continue_training(config: RunConfig) -> Path:
    """Continue the model folder `continue_from` on new bundles and items; see `continued_run` for the recipe.

    Encoders, statistics, stacker and the combination of ranker and retriever stay. The towers of the retriever, and
    what stage two trains of the ranker, train further. On the validation bundles, new and old weights are compared
    with the new catalog, paired; the new ones are kept unless they are worse by more than one standard error. The
    folder holds the new items in both cases.

    Returns:
        The folder of the run, `output_dir/YYYY-MM-DD`; the link `output_dir/current` points to it.

    Raises:
        BundleMLLMError: If the features of the data were made by other encoders than the model's.
    """
    run = dataclasses.replace(config, output_dir=folder_of_today(config.output_dir))
    data = RunData(run, DatasetFolder.open(run.data), holds_out=False)
    with locked_folder(run.output_dir):
        record = RunRecord.open(run, data.folder)
        training = run.output_dir / "training"
        of_retriever, final = training / "retriever" / "model", training / "final"
        with limited_threads(run.num_threads):
            before = with_new_catalog(run, data)
            data.note_features()
            models: dict[str, Any] = {}
            processor: BundleItemProcessor = before.processor
            if before.retriever is not None:
                if not of_retriever.exists():
                    retriever = continued_retriever(before.retriever, data)
                    with new_folder(of_retriever) as temporary:
                        BundleCompleter(data.item_processor(), retriever=retriever).save_pretrained(temporary)
                models["retriever"] = load_completer(of_retriever).retriever
            if before.ranker is not None:
                if not (run.output_dir / STAGE_ONE_MODEL).exists():
                    with new_folder(run.output_dir / STAGE_ONE_MODEL) as temporary:
                        save_model(before.ranker, before.processor, temporary)
                train_stage("stage_two", run, data, record)
                models["ranker"], processor = load_ranker(training / "stage_two" / "model")
            if not final.exists():
                after = BundleCompleter(processor, **models, combination=before.combination.unbound())
                kept, record["continued"] = choose(before, after, data)
                record.write()
                kept.combination = calibrated(kept, data.calibration_questions)
                with new_folder(final) as temporary:
                    _save_all(kept, data, temporary)
        finish(run.output_dir, record)
        remove_leftovers(run.output_dir)
        point_to(run.output_dir)
    return run.output_dir


def first_ranker(config: RunConfig, data: RunData) -> RankerAndProcessor | None:
    """Build the ranker of stage one, unless that is over, before any training: wrong settings end the run here."""
    if not config.trains_ranker or (config.output_dir / STAGE_ONE_MODEL).exists():
        return None
    ranker = build_ranker(config, data)
    if config.stage_two.max_steps:
        _ = data.out_of_fold  # refused here if it is not of these bundles
    return ranker


def train_retriever(config: RunConfig, data: RunData, record: RunRecord) -> None:
    """Train the retriever, print its validation figures, and keep it with its scores of the held-out questions."""
    folder = config.output_dir / "training" / "retriever"
    if (folder / "model").exists():
        return
    if data.features is None and config.trains_ranker:
        logger.warning(f"{config.data} has no item features, so no retriever is trained: encode them for one.")
        return
    retriever, record["held_out_scores_of_retriever"] = make_retriever(data)
    completer = BundleCompleter(data.item_processor(), retriever=retriever)
    if figures := data.validate(completer):
        record["retriever"] = figures["retriever"]
        record.print_figures("retriever", figures["retriever"])
    record.write()
    with new_folder(folder / "model") as temporary:
        completer.save_pretrained(temporary)


def train_stage(
    name: str, config: RunConfig, data: RunData, record: RunRecord, first: RankerAndProcessor | None = None
) -> None:
    """Train one stage, from the `first` ranker or stage one's, and keep the ranker; untrained without questions."""
    folder = config.output_dir / "training" / name
    if not (folder / "model").exists():
        stage: StageConfig = getattr(config, name)
        ranker, processor = first or load_ranker(config.output_dir / STAGE_ONE_MODEL)
        seed = config.seed + int(name == "stage_two")
        stage = within_budget(stage, data, processor, seed, config.scoring)
        if stage.max_steps:
            number = stage.warm_start_questions if stage.shows_items and stage.warm_start_steps else 0
            train = data.ranker_questions(stage, seed)
            num_copies = stage.copy_questions if isinstance(stage, StageOneConfig) else 0
            questions = StageQuestions(
                train=train[num_copies:],
                copies=as_copies(train[:num_copies], seed),
                validation=data.validation_questions,
                warm_start=data.ranker_questions(dataclasses.replace(stage, num_questions=number), seed),
                bundles=data.ranker_bundles,
                out_of_fold=data.out_of_fold if stage.shows_items else None,
            )
            if not stage.shows_items and not any(data.catalog.titles):
                logger.warning(
                    f"No item of {config.data} has a title, so {name} can learn little but how a question is "
                    f"answered: {name}.num_questions=0 saves its time."
                )
            ranker, record[name] = run_stage(
                ranker, processor, stage, data.catalog, questions, folder=folder, seed=seed
            )
            record.write()
        elif first is not None:  # stage two trains the item tokens; where it is left out, `trl sft` may
            processor.show_items = not config.stage_two.max_steps
        with new_folder(folder / "model") as temporary:
            save_model(ranker, processor, temporary)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    for name in (BEST, "README.md"):  # TRL writes the latter
        (folder / name).unlink(missing_ok=True)


def within_budget(
    stage: StageConfig, data: RunData, processor: BundleMLLMProcessor, seed: int, scoring: str
) -> StageConfig:
    """Lower the number of questions of a stage to what `max_tokens` allows, by the mean length of some of them."""
    if stage.max_tokens is None or not stage.max_steps:
        return stage
    sample = data.ranker_questions(dataclasses.replace(stage, num_questions=8 * stage.step_size), seed)
    if scoring == "letters":
        tokens = processor(sample, show_items=stage.shows_items)["input_ids"]
    else:  # each item of a question is read alone
        items = [item_id for question in sample for item_id in (*question.partial, *question.candidates)]
        tokens, _ = processor.item_tokens(items, stage.shows_items)
    mean = sum(map(len, tokens)) / len(sample)
    allowed = max(stage.step_size, int(stage.max_tokens / mean))
    if allowed < stage.num_questions:
        logger.warning(
            f"Questions have {mean:.0f} tokens on average, so {allowed} are used rather than {stage.num_questions}, "
            f"to see {stage.max_tokens} tokens: raise max_tokens for more."
        )
    return dataclasses.replace(stage, num_questions=min(stage.num_questions, allowed))


def combine(config: RunConfig, data: RunData, record: RunRecord) -> None:
    """Fit the weight of the ranker, and put the model folder together in one step."""
    training, final = config.output_dir / "training", config.output_dir / "training" / "final"
    if final.exists():
        return
    ranker: Ranker | None = None
    retriever: BundleRetriever | None = None
    processor: BundleItemProcessor = data.item_processor()
    if config.trains_ranker:
        ranker, processor = load_ranker(training / "stage_two" / "model")
    if (training / "retriever" / "model").exists():
        retriever = load_completer(training / "retriever" / "model").retriever
    if ranker is not None and retriever is not None:
        completer, figures = join(ranker, processor, retriever, record["held_out_scores_of_retriever"], data)
        record.update({name: figures[name] for name in ("combination", "both") if name in figures})
        for part in [part for part in figures if part != "combination"]:
            record.print_figures(part, figures[part])
    else:
        completer = BundleCompleter(processor, ranker=ranker, retriever=retriever)
    completer.combination = calibrated(completer, data.calibration_questions)
    record.write()
    with new_folder(final) as temporary:
        _save_all(completer, data, temporary)


def _save_all(completer: BundleCompleter, data: RunData, folder: Path) -> None:
    """Write models, items and encoders."""
    completer.save_pretrained(folder)
    memberships = () if completer.retriever is None else completer.retriever.memberships
    save_items(folder, data.folder, completer.modalities, memberships)


def finish(out: Path, record: RunRecord) -> None:
    """Move the model to the top of the output folder."""
    for path in sorted((out / "training" / "final").iterdir()):
        if path.is_dir():
            shutil.rmtree(out / path.name, ignore_errors=True)
        os.replace(path, out / path.name)
    record.pop("held_out_scores_of_retriever", None)
    record["finished"] = True
    record.write()


def remove_leftovers(out: Path) -> None:
    """Delete what only a run that was killed needs."""
    training = out / "training"
    for name in ("final", "retriever", "stage_two/model"):
        shutil.rmtree(training / name, ignore_errors=True)
    for folder in (training / "stage_two", training):
        with suppress(OSError):  # it holds something
            folder.rmdir()


@contextmanager
def limited_threads(number: int | None) -> Iterator[None]:
    """Limit the threads of PyTorch's operations for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_base_model(name: str) -> None:
    """Refuse a model folder of this package as the backbone of another one."""
    path = Path(name) / CONFIG_NAME
    if path.is_file() and str(read_json(path).get("model_type")).startswith("bundle_"):
        raise BundleMLLMError(
            f"{name} is a model folder of bundle-mllm and no causal language model: train it further by "
            f"--continue-from {name}, or give the base model that it was trained from (see its run.json)."
        )


def _run_of(
    data: str | os.PathLike | RunConfig, output_dir: str | os.PathLike | None, settings: dict[str, Any]
) -> RunConfig:
    """Return the run that the arguments of `train` name."""
    if isinstance(data, RunConfig):
        refuse_beside(data, [*settings, *["output_dir"] * (output_dir is not None)])
        return data
    if output_dir is None:
        raise BundleMLLMError('There is no output_dir, so no place for the model: give train("DATA", "OUT").')
    paths: dict[str, Any] = {"data": data, "output_dir": output_dir}
    if (folder := settings.pop("continue_from", None)) is not None:
        return with_overrides(continued_run(Path(folder), **paths), settings)
    return with_overrides(default_run(settings.pop("base_model", SCRATCH), **paths), settings)
