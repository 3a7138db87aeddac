"""Run one stage with TRL's `SFTTrainer`: resume after a kill, validate at each checkpoint, keep the best.

Knows nothing about prompt wording or about what came before the stage.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from bundle_mllm.data.files import atomic_path
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import OutOfFoldFeatures as CrossFitted
from bundle_mllm.data.folds import held_out_bundles
from bundle_mllm.data.questions import Question
from bundle_mllm.evaluation.metrics import compute_metrics, log_likelihood
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.training.alignment import align_items, align_words
from bundle_mllm.training.config import StageConfig
from bundle_mllm.training.cross_fitting import versions_of_items
from bundle_mllm.training.dataset import IGNORED, batch_by_length, check_lengths, training_dataset
from bundle_mllm.training.trainable import load_trainable, make_trainable, merge_lora, save_trainable

if TYPE_CHECKING:
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

BEST, COMPLETE, HISTORY = "best.safetensors", "validation.json", "history.json"


def run_stage(
    model: BundleMLLMForCausalLM,
    processor: BundleMLLMProcessor,
    stage: StageConfig,
    *,
    folder: Path,
    data: DatasetFolder,
    train_questions: Sequence[Question],
    validation_questions: Sequence[Question],
    alignment_questions: Sequence[Question] = (),
    seed: int,
    versions: CrossFitted | None = None,
) -> tuple[BundleMLLMForCausalLM, list[dict[str, Any]]]:
    """Train one stage and return the model with the best parameters by validation questions.

    A call that was killed at any moment continues when it is made again with the same arguments, and ends with the
    same weights: checkpoints count only once they are complete, and data order and random states are restored.

    Args:
        model: The model to train, in the state in which the stage starts (also when it resumes).
        processor: Its processor; `show_items` is set as the stage shows items.
        stage: What trains, and how.
        folder: Where checkpoints are kept until the stage is over.
        data: The items, and the training bundles for alignment.
        train_questions: Questions in sampling order.
        validation_questions: Questions that choose the checkpoint; none keeps the last one.
        alignment_questions: Questions that the alignment of items sees.
        seed: Seed of data order, dropout and adapter.
        versions: Cross-fitted features, which training questions see where items are shown.

    Returns:
        The trained model with adapters merged, and one dictionary of validation metrics per checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processor.show_items = stage.shows_items
    check_lengths([*train_questions, *validation_questions], processor, data.catalog)
    ordered = batch_by_length(train_questions, data.catalog, batch_size=stage.batch_size, seed=seed)
    steps = stage.alignment_steps
    if steps:
        model.cpu()  # where alignment computes; after stage one it may be on a GPU
    with versions_of_items(model, versions):
        if steps and stage.shows_items:
            held_out = held_out_bundles(data.bundles.train, 5, out_of_fold=versions)
            align_items(
                model,
                data.catalog,
                alignment_questions,
                steps=steps,
                seed=seed,
                versions=versions,
                held_out=held_out,
            )
        elif steps:
            align_words(model, processor, data.catalog, data.bundles.train, steps=steps, seed=seed)
        trainer = _trainer(model, processor, stage, folder, ordered, validation_questions, seed, versions)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(StageProgress(folder.name.replace("_", " ")))
        resume_from = _last_complete_checkpoint(folder)
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    trained = trainer.model
    load_trainable(trained, folder / BEST)
    history = [entry for entry in trainer.state.log_history if "loss" in entry or "validation_hit_rate@1" in entry]
    with atomic_path(folder / HISTORY) as temporary:
        temporary.write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    merged = merge_lora(trained)
    merged.match_letters()
    return merged, [entry for entry in history if "validation_hit_rate@1" in entry]


def choose_backbone_weight(
    model: BundleMLLMForCausalLM,
    processor: BundleMLLMProcessor,
    questions: Sequence[Question],
    weights: Sequence[float],
) -> dict[str, float]:
    """Set the model's `backbone_weight` to that under which the answers of some questions are likeliest.

    Which of the two experts, backbone and matching, knows more differs from data to data.

    Args:
        model: A model with a matching.
        processor: Its processor.
        questions: Validation questions.
        weights: What to choose from; none keeps what the model has.

    Returns:
        The mean log-likelihood of the answers, by the weight written as text.
    """
    found = {}
    for weight in weights:
        model.config.backbone_weight = weight
        found[weight] = log_likelihood(score_questions(model, processor, questions))
    if found:
        model.config.backbone_weight = max(found, key=found.__getitem__)
    return {str(weight): round(value, 4) for weight, value in found.items()}


def _trainer(
    model: BundleMLLMForCausalLM,
    processor: BundleMLLMProcessor,
    stage: StageConfig,
    folder: Path,
    questions: Sequence[Question],
    validation_questions: Sequence[Question],
    seed: int,
    versions: CrossFitted | None,
) -> SFTTrainer:
    steps = stage.max_steps
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=stage.batch_size,
        gradient_accumulation_steps=stage.gradient_accumulation_steps,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.lr_scheduler_type,
        warmup_steps=math.ceil(stage.warmup_ratio * steps),  # as the Trainer itself reads a fraction
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        activation_checkpointing=stage.gradient_checkpointing,
        dataloader_pin_memory=torch.cuda.is_available(),
        bf16=stage.bf16,
        seed=seed,
        data_seed=seed,
        train_sampling_strategy="sequential",  # the questions come sampled and ordered
        save_strategy="steps",
        save_steps=max(1, steps // max(1, stage.checkpoints)),
        save_total_limit=2,
        logging_steps=max(1, steps // 100),
        report_to="none",
        remove_unused_columns=False,
        completion_only_loss=True,
        max_length=None,  # a prompt is never cut; the processor refuses one that is too long
        dataset_kwargs={"skip_prepare_dataset": True},  # tokenized on the fly
    )
    tokenizer = processor.tokenizer
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id  # as TRL chooses
    return SFTTrainer(
        model=make_trainable(model, stage.trains, stage.lora, seed=seed),
        args=arguments,
        train_dataset=training_dataset(questions, processor, shows_items=stage.shows_items, versions=versions),
        processing_class=tokenizer,
        data_collator=AnswerCollator(pad_token_id=padding),
        callbacks=[KeepBest(processor, validation_questions, folder)],
    )


class AnswerCollator(DataCollatorForLanguageModeling):
    """TRL's collator, which also says which positions the loss falls on: the head reads no other.

    Without a GPU TRL scores every position of a prompt over the whole vocabulary and throws most of it away.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad a batch, and add `positions_to_keep` and their `shift_labels`, [batch, kept]."""
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

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Validate, keep the parameters if they are the best so far, and mark the checkpoint."""
        entry: dict[str, Any] = {"step": state.global_step}
        model.match_letters()
        if self.questions:
            scored = score_questions(model, self.processor, self.questions, batch_size=args.train_batch_size)
            metrics = compute_metrics(scored)
            entry |= {f"validation_{name}": metrics[name] for name in _LOGGED}
            entry["validation_log_likelihood"] = log_likelihood(scored)
        if not self._beaten(state, entry):
            save_trainable(model, self.folder / BEST)
        state.log_history.append(entry)
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        state.save_to_json(str(checkpoint / "trainer_state.json"))  # with the entry, so that a resumed run knows it
        with atomic_path(checkpoint / COMPLETE) as temporary:
            temporary.write_text(json.dumps(entry) + "\n", encoding="utf-8")

    def _beaten(self, state: TrainerState, entry: dict[str, Any]) -> bool:
        names = ("validation_hit_rate@1", "validation_log_likelihood")
        if names[0] not in entry:
            return False
        rank = tuple(entry[name] for name in names)
        earlier = (tuple(e[name] for name in names) for e in state.log_history if names[0] in e)
        return any(best >= rank for best in earlier)


class StageProgress(ProgressCallback):
    """The Trainer's progress bar with the stage's name, last loss and last validation beside it."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.name)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Show the last loss and the last validation."""
        if self.training_bar is not None:
            shown = {}
            for entry in state.log_history:
                shown |= {short: entry[name] for short, name in _SHOWN.items() if name in entry}
            self.training_bar.set_postfix(shown)


_LOGGED = ("hit_rate@1", "hit_rate@1_se", "mrr", "valid_ratio", "num_questions", "num_bundles")
_SHOWN = {"loss": "loss", "validation": "validation_hit_rate@1"}


def _last_complete_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint and delete what a kill left half written."""
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / COMPLETE).exists():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=lambda path: int(path.name.rsplit("-", 1)[-1]), default=None)
