"""A question about a training bundle sees its items as they are without the bundle's fold."""

import json

import pytest
import torch
from tiny_training import training_questions

from bundle_mllm.cli import main
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.model_folder import save_model
from bundle_mllm.modeling.catalog_bundle_mllm import BundleMLLMItemCatalog
from bundle_mllm.training.config import default_run
from bundle_mllm.training.out_of_fold import QuestionRows, fold_offset, fold_rows, load_out_of_fold
from bundle_mllm.training.ranker import build_ranker
from bundle_mllm.training.run_data import RunData

NUM_FOLDS = 3


@pytest.fixture
def catalog(folds_data):
    store = folds_data.features()
    catalog = BundleMLLMItemCatalog(store.modalities, len(folds_data.catalog))
    catalog.replace(*store.load(), torch.float32)
    return catalog


def test_rows_of_a_fold_hold_its_features_and_everything_else_of_the_item(folds_data, catalog):
    features = load_out_of_fold(folds_data, ["bundle_item", "visual"])
    items, rows = len(folds_data.catalog), torch.tensor([5, 5 + 32, 7 + 3 * 32, 7])
    with fold_rows(catalog, features):
        gathered, present = catalog.gather(rows)
        assert (catalog.num_items, catalog.num_rows) == (items, (1 + NUM_FOLDS) * items)
    assert gathered["bundle_item"][1:3].tolist() == [[1.0, 1.0], [3.0, 3.0]]
    assert torch.equal(gathered["bundle_item"][[0, 3]], catalog.features["bundle_item"][[5, 7]])
    assert torch.equal(gathered["visual"], catalog.features["visual"][[5, 5, 7, 7]])
    assert present[:, 0].tolist() == [True, False, True, True]
    assert torch.equal(present[:, 1], catalog.present[[5, 5, 7, 7], 1])


def test_the_rows_of_folds_are_gone_afterwards_even_after_a_failure_and_are_never_saved(folds_data, catalog):
    features, names = load_out_of_fold(folds_data, ["bundle_item"]), set(catalog.state_dict())
    with pytest.raises(KeyboardInterrupt), fold_rows(catalog, features):
        assert set(catalog.state_dict()) == names
        raise KeyboardInterrupt
    assert catalog.num_rows == catalog.num_items


def test_the_rows_of_folds_follow_the_catalog_to_another_device(folds_data, catalog):
    with fold_rows(catalog, load_out_of_fold(folds_data, ["bundle_item"])):
        catalog.to("meta")  # as a trainer moves a model to a GPU
        assert {buffer.device.type for buffer in catalog.buffers()} == {"meta"}


def test_without_out_of_fold_features_there_are_no_further_rows(catalog):
    with fold_rows(catalog, None):
        assert catalog.num_rows == catalog.num_items
    assert fold_offset("b0", None, 32) == 0


def test_questions_are_rows_of_the_fold_of_their_bundle(folds_data):
    questions = training_questions(folds_data, num_questions=16)
    features, items = load_out_of_fold(folds_data, ["bundle_item"]), len(folds_data.catalog)
    plain = QuestionRows(questions, folds_data.catalog)
    rows = QuestionRows(questions, folds_data.catalog, features)
    assert len(rows) == 16 and torch.equal(rows.answers, plain.answers)
    for number, question in enumerate(questions):
        offset = (features.fold_of_bundle[question.bundle_id] + 1) * items
        assert fold_offset(question.bundle_id, features, items) == offset
        for name, listed in (("partial", question.partial), ("options", question.candidates)):
            expected = torch.tensor(folds_data.catalog.rows(listed))
            row = getattr(rows, name)[number]
            assert torch.equal(row[: len(listed)], expected + offset)
            assert torch.equal(getattr(plain, name)[number, : len(listed)], expected)
            assert (row[len(listed) :] == -1).all()


def test_a_batch_has_no_column_of_padding_alone(folds_data):
    questions = training_questions(folds_data, num_questions=64, num_candidates=(2, 9))
    rows = QuestionRows(questions, folds_data.catalog)
    chosen = torch.tensor([i for i, question in enumerate(questions) if len(question.candidates) < 6][:3])
    partial, options, answers = rows.batch(chosen)
    assert (partial[:, -1] >= 0).any() and (options[:, -1] >= 0).any()
    assert options.shape == (3, max(len(questions[i].candidates) for i in chosen.tolist()))
    assert answers.tolist() == [questions[i].answer_index for i in chosen.tolist()]


def test_features_of_other_bundles_are_refused(folds_data):
    path = folds_data.path / "bundles.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records.append({"bundle_id": "new", "items": records[0]["items"], "split": "train"})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(BundleMLLMError, match="encode 'bundle_item' again"):
        load_out_of_fold(type(folds_data).open(folds_data.path), ["bundle_item"])


def test_features_without_out_of_fold_versions_are_used_with_a_warning(folds_data, caplog):
    next((folds_data.path / "features").glob("*/bundle_item.safetensors")).unlink()
    assert load_out_of_fold(folds_data, ["visual"]) is None and not caplog.text
    assert load_out_of_fold(folds_data, ["bundle_item", "visual"]) is None
    assert "bundle-mllm encode" in caplog.text


@pytest.mark.parametrize(("options", "warns"), [([], True), (["--titles-only"], False)])
def test_questions_for_stock_trl_warn_of_features_that_contain_the_answers(
    folds_data, tmp_path, capsys, options, warns
):
    run = default_run("scratch", data=folds_data.path, output_dir=tmp_path / "out")
    save_model(*build_ranker(run, RunData(run, folds_data)), tmp_path / "m")
    command = ["questions", "--data", str(folds_data.path), "--split", "train", "--num-questions", "20"]
    command += ["--num-candidates", "4", "--format", "prompt-completion", "--model", str(tmp_path / "m")]
    assert main([*command, "--output", str(tmp_path / "q.jsonl"), *options]) == 0
    assert ("were fitted to the training bundles" in capsys.readouterr().err) == warns
