"""The head reads only positions that the loss falls on, and the loss and its gradients are those of TRL's collator."""

import pytest
import torch
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from bundle_mllm.data import DatasetFolder, sample_training_questions
from bundle_mllm.training.backbone import build_model
from bundle_mllm.training.config import LoraSettings, default_run
from bundle_mllm.training.dataset import IGNORED, training_dataset
from bundle_mllm.training.stage import AnswerCollator
from bundle_mllm.training.trainable import make_trainable


def test_each_kept_position_has_the_token_that_follows_it():
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]},
        {"input_ids": [5, 6], "labels": [IGNORED, 6]},
    ]
    batch = AnswerCollator(pad_token_id=0)(rows)
    assert batch["positions_to_keep"].shape == batch["shift_labels"].shape == (2, 2)
    assert batch["shift_labels"][0].tolist() == [7, 8] and batch["positions_to_keep"][0].tolist() == [1, 2]
    assert batch["shift_labels"][1].tolist() == [6, IGNORED] and batch["positions_to_keep"][1, 0] == 0
    plain = DataCollatorForLanguageModeling(pad_token_id=0)(rows)
    assert all(torch.equal(batch[name], plain[name]) for name in plain)


@pytest.mark.parametrize("trains", [("backbone", "fusion"), ("lora", "projector")])
def test_loss_and_gradients_are_those_of_trls_collator_and_the_head_reads_two_positions(tiny_data, tmp_path, trains):
    data = DatasetFolder.open(tiny_data)
    questions = sample_training_questions(
        data.bundles.train, data.catalog, num_questions=4, num_candidates=(3, 6), hard_fraction=0.5, seed=0
    )
    found = {}
    for collator in (DataCollatorForLanguageModeling, AnswerCollator):
        model, processor = build_model(default_run("scratch", data=tiny_data, output_dir=tmp_path), data)
        arguments = SFTConfig(
            output_dir=str(tmp_path),
            report_to="none",
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            per_device_train_batch_size=4,
            use_cpu=True,
        )
        trainer = SFTTrainer(
            model=make_trainable(model, trains, LoraSettings(dropout=0.0), seed=0),
            args=arguments,
            train_dataset=training_dataset(questions, processor, shows_items=True),
            processing_class=processor.tokenizer,
            data_collator=collator(pad_token_id=processor.tokenizer.pad_token_id),
        )
        widths = []
        trainer.model.train()
        inputs = next(iter(trainer.get_train_dataloader()))
        hook = model.model.register_forward_hook(
            lambda _module, _inputs, outputs, widths=widths: widths.append(outputs.last_hidden_state.shape[1])
        )
        loss = trainer.compute_loss(trainer.model, inputs)
        hook.remove()
        loss.backward()
        gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        found[collator.__name__] = (loss, gradients, widths, inputs["input_ids"].shape[1])
    (loss, gradients, widths, length), (new_loss, new_gradients, new_widths, _) = found.values()
    assert torch.allclose(loss, new_loss, atol=1e-6)
    assert gradients.keys() == new_gradients.keys() and len(gradients) > 4
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, new_gradients[name], atol=1e-5), name
    assert widths == [length] and new_widths == [2]
