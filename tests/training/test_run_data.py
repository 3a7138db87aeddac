"""Which bundles which model may see: held-out, stacking, validation and test bundles, and the questions about them."""

import dataclasses
import json
import re

import pytest
from tiny_training import tiny_run

from bundle_mllm.data import DatasetFolder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.settings import with_overrides
from bundle_mllm.training.run_data import RunData


def open_data(data, tmp_path, holds_out=True, **changes):
    return RunData(
        tiny_run(data.path, tmp_path / "out", **changes), DatasetFolder.open(data.path), holds_out=holds_out
    )


def about(questions):
    return {question.bundle_id for question in questions}


@pytest.fixture(params=["circles", "shop"])
def data(request):
    """Data with out-of-fold features, in ten folds."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("modalities", [None, "content"], ids=["out-of-fold", "no out-of-fold"])
def test_a_tenth_is_held_out_and_another_fifth_is_for_the_stacker(data, tmp_path, modalities):
    if modalities is not None:
        modalities = tuple(sorted(set(data.features().modalities) - {"bundle_item"}))
    run_data = open_data(data, tmp_path, modalities=modalities)
    assert (run_data.out_of_fold is None) == (modalities is not None)
    number, train = len(data.bundles.train), {bundle.bundle_id for bundle in data.bundles.train}
    assert run_data.held_out < train and run_data.stacking_bundles < train
    assert not run_data.held_out & run_data.stacking_bundles
    assert 0.05 * number <= len(run_data.held_out) <= 0.15 * number
    assert 0.15 * number <= len(run_data.stacking_bundles) <= 0.25 * number


def test_copies_of_a_held_out_bundle_are_held_out(data, tmp_path):
    run_data = open_data(data, tmp_path)
    for chosen in (run_data.held_out, run_data.stacking_bundles):
        inside = [set(bundle.items) for bundle in data.bundles.train if bundle.bundle_id in chosen]
        outside = [set(bundle.items) for bundle in data.bundles.train if bundle.bundle_id not in chosen]
        assert not any(items in outside for items in inside)


def test_each_kind_of_question_is_about_its_own_bundles(data, tmp_path):
    run_data = open_data(data, tmp_path, stage_two={"num_questions": 256}, retriever={"num_questions": 256})
    train = {bundle.bundle_id for bundle in data.bundles.train}
    stage = run_data.settings.stage_two
    assert about(run_data.ranker_questions(stage, seed=0)) == train - run_data.held_out
    assert {bundle.bundle_id for bundle in run_data.ranker_bundles} == train - run_data.held_out
    assert about(run_data.held_out_questions) == run_data.held_out
    assert about(run_data.retriever_questions()) == train


def test_a_run_of_one_model_holds_nothing_out(data, tmp_path):
    run_data = open_data(data, tmp_path, holds_out=False)
    assert run_data.held_out == set() and run_data.held_out_questions == []
    assert len(run_data.ranker_bundles) == len(data.bundles.train)


def rewrite_bundles(folder, change):
    path = folder / "bundles.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records = [record for record in map(change, records) if record is not None]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_without_features_there_is_no_retriever_to_join_so_nothing_is_held_out(copied_data, tmp_path):
    for file in (copied_data / "features").iterdir():
        file.unlink()
    run_data = open_data(DatasetFolder.open(copied_data), tmp_path)
    assert run_data.features is None and run_data.held_out == set()


def test_the_features_that_are_read_are_said_with_their_widths(copied_data, tmp_path, capsys):
    settings = with_overrides(tiny_run(copied_data, tmp_path), {"modalities": ["visual"]})
    RunData(settings, DatasetFolder.open(copied_data)).note_features()
    assert re.fullmatch(rf"features of {copied_data}: visual \(\d+ wide\)\n", capsys.readouterr().err)
    for file in (copied_data / "features").iterdir():
        file.unlink()
    open_data(DatasetFolder.open(copied_data), tmp_path).note_features()
    assert capsys.readouterr().err == ""  # that there are none is a warning, or an error, of what needs them


def test_bundles_too_few_to_hold_any_out_are_all_trained_on(copied_data, tmp_path, caplog):
    rewrite_bundles(copied_data, lambda record: record if record["bundle_id"] in ("b0", "b3", "b4") else None)
    run_data = open_data(DatasetFolder.open(copied_data), tmp_path)
    assert run_data.held_out == set() and run_data.held_out_questions == []
    assert [bundle.bundle_id for bundle in run_data.ranker_bundles] == ["b0"]
    assert "too few different training bundles (1)" in caplog.text


def test_validation_questions_are_half_uniform_and_half_hard_about_validation_bundles(tiny_data, tmp_path):
    data = DatasetFolder.open(tiny_data)
    questions = open_data(data, tmp_path).validation_questions
    assert len(questions) == len({question.question_id for question in questions}) == 8
    assert about(questions) <= {bundle.bundle_id for bundle in data.bundles.validation}
    assert sum(question.question_id.endswith("-hard") for question in questions) == 4
    assert all(len(question.candidates) == 4 for question in questions)


def test_without_validation_bundles_there_are_no_questions_and_a_warning(copied_data, tmp_path, caplog):
    rewrite_bundles(copied_data, lambda record: None if record["split"] == "validation" else record)
    run_data = open_data(DatasetFolder.open(copied_data), tmp_path)
    assert run_data.validation_questions == [] and run_data.validate(None) == {}
    assert "each stage keeps its last checkpoint" in caplog.text


def every_question(run_data):
    stage = run_data.settings.stage_two
    return [
        run_data.ranker_questions(stage, seed=1),
        run_data.retriever_questions(),
        run_data.held_out_questions,
        run_data.validation_questions,
    ]


def test_test_bundles_change_no_question_of_a_run(copied_data, tmp_path):
    data = DatasetFolder.open(copied_data)
    before = every_question(open_data(data, tmp_path))
    other = list(data.catalog.item_ids[:4])
    rewrite_bundles(copied_data, lambda r: r | {"items": other} if r["split"] == "test" else r)
    changed = DatasetFolder.open(copied_data)
    assert {tuple(bundle.items) for bundle in changed.bundles.test} == {tuple(other)}
    assert every_question(open_data(changed, tmp_path)) == before


def test_validation_bundles_change_no_training_question(copied_data, tmp_path):
    data = DatasetFolder.open(copied_data)
    *before, validation = every_question(open_data(data, tmp_path))
    other = list(data.catalog.item_ids[:4])
    rewrite_bundles(copied_data, lambda r: r | {"items": other} if r["split"] == "validation" else r)
    *after, other_validation = every_question(open_data(DatasetFolder.open(copied_data), tmp_path))
    assert after == before and other_validation != validation


def test_the_same_settings_give_the_same_questions_and_another_seed_others(circles, tmp_path):
    run_data = open_data(circles, tmp_path)
    again = RunData(run_data.settings, DatasetFolder.open(circles.path))
    assert every_question(again) == every_question(run_data)
    other = RunData(dataclasses.replace(run_data.settings, seed=1), circles)
    assert other.retriever_questions() != run_data.retriever_questions()
    assert other.held_out == run_data.held_out  # so that runs of several seeds can be compared


def test_questions_show_at_most_max_partial_items(circles, tmp_path):
    run_data = open_data(circles, tmp_path, max_partial=1)
    assert {len(question.partial) for part in every_question(run_data) for question in part} == {1}


def test_modalities_that_the_folder_lacks_are_refused(tiny_data, tmp_path):
    settings = with_overrides(tiny_run(tiny_data, tmp_path), {"modalities": ["acoustic"]})
    with pytest.raises(BundleMLLMError, match="acoustic"):
        _ = RunData(settings, DatasetFolder.open(tiny_data)).features
