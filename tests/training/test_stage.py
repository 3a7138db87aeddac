"""A stage: the head reads only what the loss falls on, the best checkpoint is kept, folds are what training reads."""

import json

import pytest
import torch
from tiny_models import make_backbone, make_tokenizer
from tiny_training import tiny_run, training_questions
from torch.testing import assert_close
from transformers import TrainerState
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from bundle_mllm.data import DatasetFolder, make_questions
from bundle_mllm.evaluation.metrics import ScoredQuestion
from bundle_mllm.settings import with_overrides
from bundle_mllm.training.config import LoraSettings
from bundle_mllm.training.dataset import IGNORED, as_copies, training_dataset
from bundle_mllm.training.out_of_fold import load_out_of_fold
from bundle_mllm.training.ranker import build_ranker
from bundle_mllm.training.run_data import RunData
from bundle_mllm.training.stage import AnswerCollator, StageQuestions, _history, run_stage
from bundle_mllm.training.trainable import make_trainable

pytestmark = pytest.mark.slow

SHORT = {"warm_start_steps": 0, "learning_rate": 1e-2}


def build(data):
    run = tiny_run(data.path, data.path / "out")
    return build_ranker(run, RunData(run, data))


def run_one(data, tmp_path, questions, poison=None, stage="stage_two", **changes):
    """Run a stage on a fresh ranker; returns its parameters and what was written down."""
    model, processor = build(data)
    if poison is not None:
        model.model.catalog.features["bundle_item"].fill_(poison)
    settings = with_overrides(getattr(tiny_run(data.path, tmp_path), stage), SHORT | changes)
    folder = tmp_path / f"stage_{len(list(tmp_path.iterdir()))}"
    model, validations = run_stage(model, processor, settings, data.catalog, questions, folder=folder, seed=0)
    return {name: value.detach() for name, value in model.named_parameters()}, validations


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def data(tiny_data):
    return DatasetFolder.open(tiny_data)


@pytest.fixture
def validation(data):
    return make_questions(data.bundles.validation, data.catalog, data.bundles, num_candidates=4, seed=0)


def questions_about(data, **changes):
    return training_questions(data, num_questions=32, num_candidates=(2, 5), **changes)


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
def test_loss_and_gradients_are_those_of_trls_collator_and_the_head_reads_two_positions(data, tmp_path, trains):
    questions = training_questions(data, num_questions=4, num_candidates=(3, 6), hard_fraction=0.5)
    losses, gradients, widths, lengths = [], [], [], []
    for collator in (DataCollatorForLanguageModeling, AnswerCollator):
        model, processor = build(data)
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
        trainer.model.train()
        inputs = next(iter(trainer.get_train_dataloader()))
        hook = model.model.register_forward_hook(
            lambda _module, _inputs, outputs: widths.append(outputs.last_hidden_state.shape[1])
        )
        loss = trainer.compute_loss(trainer.model, inputs)
        hook.remove()
        loss.backward()
        losses.append(loss)
        lengths.append(inputs["input_ids"].shape[1])
        gradients.append({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
    assert torch.allclose(losses[0], losses[1], atol=1e-6)
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 4
    for name, gradient in gradients[0].items():
        assert_close(gradient, gradients[1][name], atol=1e-4 * float(gradient.abs().max()), rtol=0)
    assert widths == [lengths[0], 2]


@pytest.mark.slow
@pytest.mark.parametrize("best", [1, 2, 3])
def test_the_checkpoint_with_the_best_validation_is_kept(data, validation, tmp_path, monkeypatch, best):
    """Pretend that one checkpoint is right about everything and the others about nothing."""
    states = []

    def pretend(completer, questions, options):
        states.append({n: p.detach().clone() for n, p in completer.ranker.named_parameters()})
        return {"ranker": [scored(question, len(states) == best) for question in questions]}

    def scored(question, is_right):
        scores = [0.0] * len(question.candidates)
        scores[question.answer_index] = 1.0 if is_right else -1.0
        return ScoredQuestion(question.question_id, question.bundle_id, question.answer_index, tuple(scores), None)

    monkeypatch.setattr("bundle_mllm.training.stage.score_questions", pretend)
    questions = StageQuestions(train=questions_about(data), validation=validation)
    kept, validations = run_one(data, tmp_path, questions, num_validations=3, num_questions=24)
    assert [entry["validation_hit_rate@1"] for entry in validations] == [float(n == best) for n in (1, 2, 3)]
    assert [equal(kept, state) for state in states] == [n == best for n in (1, 2, 3)]


@pytest.mark.slow
def test_validation_questions_do_nothing_but_choose_the_checkpoint(data, validation, tmp_path):
    train = questions_about(data)
    states = [
        run_one(data, tmp_path, StageQuestions(train, chosen), num_validations=1)[0]
        for chosen in ((), validation, validation[:3])
    ]
    assert equal(states[0], states[1]) and equal(states[0], states[2])


@pytest.mark.slow
def test_without_validation_questions_the_last_checkpoint_is_kept(data, tmp_path):
    questions = StageQuestions(questions_about(data))
    state, validations = run_one(data, tmp_path, questions, num_validations=3)
    assert validations == []
    assert equal(state, run_one(data, tmp_path, questions, num_validations=1)[0])


@pytest.mark.slow
def test_copies_come_first_at_a_rate_of_their_own_and_the_rest_as_without_them(data, tmp_path):
    questions = questions_about(data)
    copies = as_copies(questions[:24], seed=0)

    def rates(folder, number, copies):
        folder.mkdir()
        changes = {"num_questions": number, "learning_rate": 1e-2, "warmup_ratio": 0.5, "trains": ("backbone",)}
        run_one(data, folder, StageQuestions(questions[16:], copies=copies), stage="stage_one", **changes)
        [history] = folder.rglob("history.json")
        return [entry["learning_rate"] for entry in json.loads(history.read_text()) if "learning_rate" in entry]

    assert rates(tmp_path / "with", 40, copies) == [1e-3, 1e-3, 1e-3, *rates(tmp_path / "without", 16, ())]


@pytest.mark.slow
def test_item_tokens_of_training_questions_have_the_features_of_their_fold(folds_data, tmp_path):
    """Whatever the features with all training bundles are, they do not reach the weights."""
    features, train = load_out_of_fold(folds_data, ["bundle_item"]), questions_about(folds_data)
    states = {
        (uses_folds, poison): run_one(
            folds_data,
            tmp_path,
            StageQuestions(train, warm_start=train, out_of_fold=features if uses_folds else None),
            poison,
            warm_start_steps=2,
        )[0]
        for uses_folds in (True, False)
        for poison in (100.0, -1e3)
    }
    assert equal(states[True, 100.0], states[True, -1e3])
    assert not equal(states[False, 100.0], states[False, -1e3])


@pytest.mark.slow
def test_a_stage_of_titles_only_reads_no_features(folds_data, tmp_path):
    questions = StageQuestions(questions_about(folds_data), bundles=folds_data.bundles.train)
    states = [
        run_one(folds_data, tmp_path, questions, poison, "stage_one", warm_start_steps=2)[0]
        for poison in (100.0, -1e3)
    ]
    assert equal(*states)


def test_losses_and_validations_are_written_down(data, validation, tmp_path):
    questions = StageQuestions(questions_about(data), validation)
    _, validations = run_one(data, tmp_path, questions)
    [folder] = tmp_path.iterdir()
    history = json.loads((folder / "history.json").read_text())
    assert [entry for entry in history if "validation_hit_rate@1" in entry] == validations
    assert [entry["step"] for entry in validations] == [2, 4]
    assert all(entry["validation_num_questions"] == len(validation) for entry in validations)
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]


def test_a_ranker_without_letters_is_kept_as_it_was_if_no_step_makes_it_better(data, tmp_path, validation):
    make_backbone().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    run = tiny_run(data.path, tmp_path / "out", str(tmp_path / "base"), scoring="options")
    model, processor = build_ranker(run, RunData(run, data))
    before = {name: value.clone() for name, value in model.named_parameters()}
    stage = with_overrides(run.stage_one, SHORT | {"learning_rate": 100.0})  # far too high
    questions = StageQuestions(questions_about(data), validation, bundles=data.bundles.train)
    trained, validations = run_stage(
        model, processor, stage, data.catalog, questions, folder=tmp_path / "stage", seed=0
    )
    assert [entry["step"] for entry in validations] == [0, 2, 4]
    assert max(entry["validation_hit_rate@1"] for entry in validations[1:]) < validations[0]["validation_hit_rate@1"]
    assert equal(before, dict(trained.named_parameters()))


def test_the_history_of_a_resumed_stage_is_that_of_one_left_alone():
    whole = [
        {"loss": 1.0, "epoch": 0.5, "num_tokens": 9.0, "step": 1},
        {"step": 1, "validation_hit_rate@1": 0.5},
        {"train_runtime": 3.0, "step": 2},
    ]
    resumed = [dict(reversed(entry.items())) | ({"num_tokens": 4.0} if "loss" in entry else {}) for entry in whole]
    histories = [json.dumps(_history(TrainerState(log_history=entries))) for entries in (whole, resumed)]
    assert histories[0] == histories[1]
    assert [entry["step"] for entry in json.loads(histories[0])] == [1, 1]
