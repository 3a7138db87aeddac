"""Cross-fitted features in training: a question sees its items as they look without its bundle's fold."""

import json

import numpy as np
import pytest
import torch

from bundle_mllm.cli import main
from bundle_mllm.data import DatasetFolder, sample_training_questions
from bundle_mllm.data.features import write_modality
from bundle_mllm.data.folds import OutOfFoldFeatures
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.model_folder import save_model
from bundle_mllm.training import cross_fitting
from bundle_mllm.training.alignment import align_items
from bundle_mllm.training.backbone import build_model
from bundle_mllm.training.config import RunConfig, StageOneConfig, StageTwoConfig, default_run
from bundle_mllm.training.cross_fitting import load_versions, row_shift, versions_of_items
from bundle_mllm.training.dataset import training_dataset
from bundle_mllm.training.run import train

NUM_FOLDS = 3


@pytest.fixture
def folder(tiny_data, tmp_path):
    """The tiny data with bundle_item features: version f holds f + 1 everywhere, the features themselves 100."""
    path = tmp_path / "data"
    path.mkdir()
    for file in ("items.jsonl", "bundles.jsonl", "features"):
        (path / file).symlink_to(tiny_data / file) if file != "features" else (path / file).mkdir()
    for file in (tiny_data / "features").iterdir():
        (path / "features" / file.name).write_bytes(file.read_bytes())
    data = DatasetFolder.open(path)
    items = len(data.catalog)
    rng = np.random.default_rng(0)
    features = 100 + rng.standard_normal((items, 2)).astype(np.float32)
    write_modality(path / "features", "bundle_item", features, np.ones(items, dtype=bool), {"encoder": "test"})
    versions = torch.arange(1.0, NUM_FOLDS + 1)[:, None, None] + torch.zeros(NUM_FOLDS, items, 2)
    present = torch.ones(NUM_FOLDS, items, dtype=torch.bool)
    present[0, 5] = False
    folds = {bundle.bundle_id: number % NUM_FOLDS for number, bundle in enumerate(data.bundles.train)}
    OutOfFoldFeatures("bundle_item", folds, versions.half(), present).save(data)
    return data


@pytest.fixture
def parts(folder, tmp_path):
    return build_model(default_run("scratch", data=folder.path, output_dir=tmp_path / "out"), folder)


def test_a_catalog_follows_what_stood_for_it_to_another_device(folder, parts):
    model, versions = parts[0], load_versions(folder, ["bundle_item", "visual"])
    with versions_of_items(model, versions):
        model.to("meta")  # as a trainer moves a model to a GPU
    assert {value.device.type for value in model.model.catalog.state_dict().values()} == {"meta"}


def test_stale_versions_are_refused_before_stage_one(folder, tmp_path):
    path = folder.path / "bundles.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()  # a link
    records.append({"bundle_id": "new", "items": records[0]["items"], "split": "train"})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(BundleMLLMError, match="encode"):
        train(default_run("scratch", data=folder.path, output_dir=tmp_path / "out"))
    assert not (tmp_path / "out" / "training").exists()


def test_rows_of_a_fold_hold_its_version_and_all_else_of_the_item(folder, parts):
    model, versions = parts[0], load_versions(folder, ["bundle_item", "visual"])
    items, catalog = len(folder.catalog), model.model.catalog
    rows = torch.tensor([5, 5 + items, 7 + 3 * items, 7])
    with versions_of_items(model, versions):
        features, present = model.model.catalog.gather(rows)
        assert model.model.catalog.num_items == 4 * items
        assert {name for name in model.state_dict() if "versions" in name} == set()
    assert model.model.catalog is catalog
    assert features["bundle_item"][1:3].tolist() == [[1.0, 1.0], [3.0, 3.0]]
    assert torch.equal(features["bundle_item"][[0, 3]], catalog.features["bundle_item"][[5, 7]])
    assert torch.equal(features["visual"], catalog.features["visual"][[5, 5, 7, 7]])
    assert present[:, 0].tolist() == [True, False, True, True]
    assert torch.equal(present[:, 1], catalog.present[[5, 5, 7, 7], 1])


def test_a_question_is_written_with_the_rows_of_its_bundles_fold(folder, parts):
    processor, versions = parts[1], load_versions(folder, ["bundle_item"])
    questions = sample_training_questions(
        folder.bundles.train, folder.catalog, num_questions=8, num_candidates=(3, 5), hard_fraction=0.5, seed=0
    )
    plain = training_dataset(questions, processor, shows_items=True)
    shifted = training_dataset(questions, processor, shows_items=True, versions=versions)
    offset, items, folds = processor.tokenizer.item_token_offset, len(folder.catalog), set()
    for question, before, after in zip(questions, plain, shifted, strict=True):
        fold = versions.fold_of_bundle[question.bundle_id]
        expected = [token + (fold + 1) * items if token >= offset else token for token in before["input_ids"]]
        assert after["input_ids"] == expected and after["labels"] == before["labels"]
        assert row_shift(question.bundle_id, versions, items) == (fold + 1) * items
        folds.add(fold)
    assert folds == set(range(NUM_FOLDS))


def test_alignment_reads_versions_alone(folder, parts):
    model, versions = parts[0], load_versions(folder, ["bundle_item"])
    questions = sample_training_questions(
        folder.bundles.train, folder.catalog, num_questions=64, num_candidates=(3, 5), hard_fraction=0.5, seed=0
    )
    model.model.catalog.features["bundle_item"].fill_(torch.nan)
    with versions_of_items(model, versions):
        align_items(model, folder.catalog, questions, steps=3, seed=0, versions=versions)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    align_items(model, folder.catalog, questions, steps=1, seed=0)
    assert not all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_run_trains_on_versions_and_saves_the_features_themselves(folder, tmp_path, monkeypatch):
    seen = {}
    gather = torch.nn.Module.__call__

    def spy(module, *args, **kwargs):
        if type(module).__name__ in ("BundleMLLMMatching", "BundleMLLMFusion") and torch.is_grad_enabled():
            seen.setdefault(type(module).__name__, []).append(args[0]["bundle_item"])
        return gather(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", spy)
    recipe = default_run("scratch", data=folder.path, output_dir=tmp_path / "out")
    config = RunConfig(
        data=folder.path,
        output_dir=tmp_path / "out",
        fusion=recipe.fusion,
        validation_questions=8,
        validation_candidates=4,
        stage_one=StageOneConfig(num_questions=0),
        stage_two=StageTwoConfig(
            num_questions=32,
            num_candidates=(3, 5),
            batch_size=8,
            checkpoints=1,
            alignment_steps=2,
            trains=("fusion", "projector", "separator"),
        ),
    )
    out = train(config)
    from bundle_mllm.model_folder import load_model

    model, processor = load_model(out)
    mean, std = (model.model.fusion.__getattr__(f"feature_{name}")["bundle_item"] for name in ("mean", "std"))
    assert len(seen["BundleMLLMMatching"]) == 2 + 1 + 2  # without what is held out, on that alone, on all
    assert len(seen["BundleMLLMFusion"]) == 2 + 4  # alignment, then training
    raw = torch.cat(seen["BundleMLLMMatching"]) * std + mean
    assert max(raw.max(), torch.cat(seen["BundleMLLMFusion"]).max()) < 4, "features that know the answer"
    assert model.config.num_items == len(folder.catalog)
    assert model.model.catalog.features["bundle_item"].min() > 90
    asked = sample_training_questions(
        folder.bundles.train, folder.catalog, num_questions=2, num_candidates=(3, 3), hard_fraction=0.0, seed=0
    )
    assert len(score_questions(model, processor, asked)) == 2


def test_features_without_versions_are_used_with_a_warning(folder, monkeypatch):
    said = []
    monkeypatch.setattr(cross_fitting.logger, "warning", said.append)
    (folder.path / "features" / "cross_fitted" / "bundle_item.safetensors").unlink()
    assert load_versions(folder, ["visual"]) is None and not said
    assert load_versions(folder, ["bundle_item", "visual"]) is None
    assert len(said) == 1 and "bundle-mllm encode" in said[0]


@pytest.mark.parametrize(("options", "warns"), [([], True), (["--titles-only"], False)])
def test_questions_for_stock_trl_say_when_features_know_the_answers(folder, parts, tmp_path, capsys, options, warns):
    save_model(*parts, tmp_path / "m")
    command = ["questions", "--data", str(folder.path), "--split", "train", "--num-questions", "20"]
    command += ["--num-candidates", "4", "--format", "prompt-completion", "--model", str(tmp_path / "m")]
    assert main([*command, "--output", str(tmp_path / "q.jsonl"), *options]) == 0
    assert ("know the training bundles" in capsys.readouterr().err) == warns
