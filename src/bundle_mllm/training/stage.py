"""Run one stage by TRL's or transformers' trainer: resume after a kill, validate at each checkpoint, keep the best.

Knows nothing about prompt wording or about what came before the stage.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.files import atomic_path
from bundle_mllm.data.folds import OutOfFoldFeatures
from bundle_mllm.data.questions import Question
from bundle_mllm.device import gains_by_bfloat16, mixed_precision, peak_memory
from bundle_mllm.evaluation.metrics import validation_figures
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.evaluation.settings import ScoringOptions
from bundle_mllm.modeling.base_bundle_mllm import evaluating
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.progress import Progress
from bundle_mllm.progress import steps as shown_steps
from bundle_mllm.training.config import StageConfig
from bundle_mllm.training.dataset import IGNORED, batch_by_length, check_lengths, training_dataset
from bundle_mllm.training.option_batches import OptionCollator, batch_by_fold, question_dataset
from bundle_mllm.training.out_of_fold import QuestionRows, fold_rows
from bundle_mllm.training.trainable import load_trainable, make_trainable, merge_lora, save_trainable
from bundle_mllm.training.warm_start import warm_start_items, warm_start_words

if TYPE_CHECKING:
    from bundle_mllm.model_folder import Ranker
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

BEST, COMPLETE, HISTORY = "best.safetensors", "validation.json", "history.json"
COPY_LEARNING_RATE = 1e-3
"""Of questions that ask which option is one of the items shown (measured with Gemma 3 270M and SmolLM2-135M)."""
TITLES_AT_ONCE = 64
"""Titles per forward pass, where each is read once before the stage."""
_SAME = ("gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm")
"""Settings that have the same name in `SFTConfig`."""


@dataclass(frozen=True)
class StageQuestions:
    """What a stage trains and validates on.

    Attributes:
        train: Questions in sampling order.
        validation: Questions that choose the checkpoint; none keeps the last one.
        warm_start: Questions of the warm start of item tokens.
        bundles: The training bundles that the ranker may see.
        out_of_fold: Features that training questions use where items are shown.
        copies: Questions that come before `train`, whose answer is one of the items shown; see `as_copies`.
    """

    train: Sequence[Question]
    validation: Sequence[Question] = ()
    warm_start: Sequence[Question] = ()
    bundles: Sequence[Bundle] = ()
    out_of_fold: OutOfFoldFeatures | None = None
    copies: Sequence[Question] = ()


def run_stage(
    model: Any,
    processor: BundleMLLMProcessor,
    stage: StageConfig,
    catalog: ItemCatalog,
    questions: StageQuestions,
    *,
    folder: Path,
    seed: int,
) -> tuple[Ranker, list[dict[str, Any]]]:
    """Train one stage and return the model with the best parameters by validation questions.

    A call that was killed at any moment continues when it is made again with the same arguments, and ends with the
    same weights: checkpoints count only once they are complete, and data order and random states are restored.

    Args:
        model: The ranker as it is before the stage (also when the stage resumes).
        processor: Its processor; `show_items` is set as the stage shows items.
        stage: The stage's settings.
        catalog: The items.
        questions: What the stage trains and validates on.
        folder: Where checkpoints are kept until the stage is over.
        seed: Seed of data order, dropout and adapter.

    Returns:
        The trained model with adapters merged, and one dictionary of validation metrics per checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processor.show_items = stage.shows_items
    if model.has_head:
        check_lengths([*questions.copies, *questions.train, *questions.validation], processor, catalog)
    with fold_rows(model.model.catalog, questions.out_of_fold):
        if steps := stage.warm_start_steps:
            model.cpu()  # after stage one it may be on a GPU
            if stage.shows_items:
                rows = QuestionRows(questions.warm_start, catalog, questions.out_of_fold)
                warm_start_items(model, rows, steps=steps, seed=seed)
            else:
                warm_start_words(model, processor, catalog, questions.bundles, steps=steps, seed=seed)
        trainer = _trainer(model, processor, stage, catalog, questions, folder=folder, seed=seed)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(StageProgress(folder.name.replace("_", " ")))
        resume_from = _last_complete_checkpoint(folder)
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    trained: Any = trainer.model
    load_trainable(trained, folder / BEST)
    history = _history(trainer.state)
    with atomic_path(folder / HISTORY) as temporary:
        temporary.write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    return merge_lora(trained), [entry for entry in history if "validation_hit_rate@1" in entry]


def _history(state: TrainerState) -> list[dict[str, Any]]:
    """Return losses and validations, the same whether the stage was resumed or not.

    A resumed trainer has its earlier entries by the order of their keys, and TRL counts tokens anew.
    """
    kept = [entry for entry in state.log_history if "loss" in entry or "validation_hit_rate@1" in entry]
    return [{name: entry[name] for name in sorted(entry) if name != "num_tokens"} for entry in kept]


def _trainer(
    model: Any,
    processor: BundleMLLMProcessor,
    stage: StageConfig,
    catalog: ItemCatalog,
    questions: StageQuestions,
    *,
    folder: Path,
    seed: int,
) -> Trainer:
    """Make the trainer of a stage: TRL's for letters, transformers' for a ranker without."""
    copy_steps = len(questions.copies) // stage.step_size
    arguments: Any = _arguments(stage, folder, seed, copy_steps)
    common: dict[str, Any] = {
        "args": arguments,
        "callbacks": [KeepBest(processor, questions.validation, folder)],
    }
    folds, size = questions.out_of_fold, stage.batch_size
    if not model.has_head:
        titles = None
        if not {"lora", "backbone"} & set(stage.trains):
            titles = states_of_titles(model.to(arguments.device), processor, questions.train, bf16=arguments.bf16)
        return Trainer(
            model=make_trainable(model, (*stage.trains, "matching"), stage.lora, seed=seed),
            train_dataset=question_dataset(batch_by_fold(questions.train, folds, batch_size=size, seed=seed)),
            data_collator=OptionCollator(
                processor, questions.bundles, shows_items=stage.shows_items, features=folds, titles=titles
            ),
            **common,
        )
    parts = questions.copies, questions.train
    ordered = [q for part in parts for q in batch_by_length(part, catalog, batch_size=size, seed=seed)]
    tokenizer = processor.tokenizer
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id  # as TRL chooses
    return LetterTrainer(
        copy_steps=copy_steps,
        model=make_trainable(model, stage.trains, stage.lora, seed=seed),
        train_dataset=training_dataset(ordered, processor, shows_items=stage.shows_items, out_of_fold=folds),
        processing_class=tokenizer,
        data_collator=AnswerCollator(pad_token_id=padding),
        **common,
    )


@torch.inference_mode()
def states_of_titles(
    ranker: Any, processor: BundleMLLMProcessor, questions: Sequence[Question], *, bf16: bool
) -> dict[str, torch.Tensor]:
    """Return what a ranker without letters whose backbone does not train reads of the titles of questions."""
    items = sorted({item_id for question in questions for item_id in (*question.partial, *question.candidates)})
    words = [processor.title_tokens(tokens) for tokens in processor.item_tokens(items)[0]]
    with mixed_precision(bf16), evaluating([ranker]):
        states = ranker.kept_titles.read(ranker, words, TITLES_AT_ONCE, lambda starts: shown_steps(starts, "titles"))
    return dict(zip(items, states.cpu(), strict=True))


def _arguments(stage: StageConfig, folder: Path, seed: int, copy_steps: int) -> SFTConfig:
    steps = stage.max_steps
    return SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=stage.batch_size,
        **{name: getattr(stage, name) for name in _SAME},
        bf16=uses_bfloat16(stage),
        use_cpu=uses_bfloat16(stage) and not torch.cuda.is_available(),  # or transformers refuses bfloat16
        warmup_steps=math.ceil(stage.warmup_ratio * (steps - copy_steps)),  # as the Trainer itself reads a fraction
        activation_checkpointing=stage.gradient_checkpointing,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        train_sampling_strategy="sequential",  # the questions come sampled and ordered
        save_strategy="steps",
        save_steps=max(1, steps // max(1, stage.num_validations)),
        save_total_limit=2,
        logging_steps=max(1, steps // 100),
        report_to="none",
        disable_tqdm=True,  # see StageProgress
        remove_unused_columns=False,
        completion_only_loss=True,
        max_length=None,  # a prompt is never cut; the processor refuses one that is too long
        dataset_kwargs={"skip_prepare_dataset": True},  # tokenized on the fly
    )


def uses_bfloat16(stage: StageConfig) -> bool:
    """Return whether a stage computes in mixed precision."""
    return gains_by_bfloat16() if stage.bf16 is None else stage.bf16


class LetterTrainer(SFTTrainer):
    """TRL's trainer, whose learning rate is `COPY_LEARNING_RATE` for the steps of copies, and then the stage's."""

    def __init__(self, *, copy_steps: int, **kwargs: Any):
        self.copy_steps = copy_steps
        super().__init__(**kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        scheduler: Any = super().create_scheduler(num_training_steps - self.copy_steps, optimizer)
        if self.copy_steps:
            factor = COPY_LEARNING_RATE / self.args.learning_rate
            after = scheduler.lr_lambdas[0]  # all groups of parameters have one
            self.lr_scheduler = LambdaLR(
                scheduler.optimizer,
                lambda step: factor if step < self.copy_steps else after(step - self.copy_steps),
            )
        return self.lr_scheduler


class AnswerCollator(DataCollatorForLanguageModeling):
    """TRL's collator, which adds the positions that the loss falls on: without a GPU TRL's head reads all of them."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad a batch, and add `positions_to_keep` and their `shift_labels`, `[batch, kept]`."""
        batch = super().torch_call(examples)
        labels = batch["labels"][:, 1:]
        is_scored = labels != IGNORED
        kept = int(is_scored.sum(dim=1).max())
        batch["positions_to_keep"] = (~is_scored).long().argsort(dim=1, stable=True)[:, :kept]
        batch["shift_labels"] = labels.gather(1, batch["positions_to_keep"])
        return batch


class KeepBest(TrainerCallback):
    """Validate at each checkpoint and keep the best trainable parameters; then mark the checkpoint complete.

    Better means a higher `hit_rate@1`; among equals a higher log-likelihood of the answers. The mark is written last:
    a checkpoint without it was interrupted, is deleted on resume, and is made again from the one before.
    """

    def __init__(self, processor: BundleMLLMProcessor, questions: Sequence[Question], folder: Path):
        self.processor = processor
        self.questions = questions
        self.folder = folder

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Take a ranker without letters as the first candidate: it compares well before any step."""
        if not state.global_step and self.questions and not BundleCompleter(self.processor, model).reads_letters:
            self._keep_if_best(args, state, model)

    def on_save(self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any) -> None:
        entry = self._keep_if_best(args, state, model)
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        state.save_to_json(str(checkpoint / "trainer_state.json"))  # with the entry, for a resumed run
        with atomic_path(checkpoint / COMPLETE) as temporary:
            temporary.write_text(json.dumps(entry) + "\n", encoding="utf-8")

    def _keep_if_best(self, args: Any, state: TrainerState, model: Any) -> dict[str, Any]:
        """Validate, write the parameters down if none were better so far, and return the entry of the history."""
        entry: dict[str, Any] = {"step": state.global_step}
        if self.questions:
            completer = BundleCompleter(self.processor, ranker=model)
            with mixed_precision(args.bf16):
                scored = score_questions(completer, self.questions, ScoringOptions(batch_size=args.train_batch_size))
            entry |= {f"validation_{name}": value for name, value in validation_figures(scored["ranker"]).items()}
        names = ("validation_hit_rate@1", "validation_log_likelihood")
        ranks = [tuple(each[name] for name in names) for each in [*state.log_history, entry] if names[0] in each]
        if names[0] not in entry or all(ranks[-1] > earlier for earlier in ranks[:-1]):
            save_trainable(model, self.folder / BEST)
        state.log_history.append(entry)
        return entry


class StageProgress(TrainerCallback):
    """Shows the steps of a stage with last loss, last validation and most memory used."""

    def __init__(self, name: str):
        self.name = name
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.progress = Progress(self.name, state.max_steps, state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            names = {"loss": "loss", "validation_hit_rate@1": "validation"}
            last = {names[name]: entry[name] for entry in state.log_history for name in names if name in entry}
            figures = [f"{name} {value:.3g}" for name, value in last.items()]
            self.progress.update(state.global_step, ", ".join([*figures, f"{peak_memory():.1f} GiB"]))

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress.close()


def _last_complete_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint and delete what a kill left half written."""
    checkpoints = set(folder.glob("checkpoint-*"))
    complete = {checkpoint for checkpoint in checkpoints if (checkpoint / COMPLETE).exists()}
    for interrupted in checkpoints - complete:
        shutil.rmtree(interrupted)
    return max(complete, key=lambda path: int(path.name.rsplit("-", 1)[-1]), default=None)
