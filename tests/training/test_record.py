"""The record of a run: begun once, refused for another run, and forgotten if the run never began."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_training import tiny_run

from bundle_mllm.data import DatasetFolder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.training.record import RunRecord


@pytest.fixture
def run(copied_data, tmp_path):
    return tiny_run(copied_data, tmp_path / "out")


def begin(run):
    record = RunRecord.open(run, DatasetFolder.open(run.data))
    (run.output_dir / "training").mkdir()
    return record


def test_a_new_record_holds_settings_inputs_and_versions(run):
    RunRecord.open(run, DatasetFolder.open(run.data))
    values = json.loads((run.output_dir / "run.json").read_text())
    assert values["settings"]["retriever"]["steps"] == run.retriever.steps
    assert set(values["inputs"]) == {"items.jsonl", "bundles.jsonl", "features/visual.safetensors"}
    assert torch.__version__.startswith(values["versions"]["torch"])  # some builds name themselves after it
    assert values["finished"] is False


def test_the_record_of_the_same_run_is_read_again(run):
    record = begin(run)
    record["retriever"] = {"hit_rate@1": 0.1}
    record.write()
    assert RunRecord.open(run, DatasetFolder.open(run.data)).data == record.data


def test_a_run_is_recognized_by_the_content_of_its_folders_not_by_their_names(run, tmp_path, monkeypatch):
    record = begin(run)
    moved = shutil.move(run.data, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    elsewhere = dataclasses.replace(run, data=moved, output_dir=Path("out"))
    assert RunRecord.open(elsewhere, DatasetFolder.open(moved)).data == record.data


def test_other_settings_are_refused_and_named(run):
    begin(run)
    changed = dataclasses.replace(run, seed=1, retriever=dataclasses.replace(run.retriever, steps=7))
    with pytest.raises(BundleMLLMError, match=r"other settings \(different: retriever, seed\)"):
        RunRecord.open(changed, DatasetFolder.open(run.data))


@pytest.mark.parametrize("name", ["items.jsonl", "bundles.jsonl"])
def test_other_inputs_are_refused_and_named(run, name):
    begin(run)
    with (run.data / name).open("a") as file:
        file.write("\n")
    with pytest.raises(BundleMLLMError, match=rf"other inputs \(different: {name}\)"):
        RunRecord.open(run, DatasetFolder.open(run.data))


def test_a_run_that_trained_nothing_may_change_its_settings(run):
    RunRecord.open(run, DatasetFolder.open(run.data))
    changed = RunRecord.open(dataclasses.replace(run, seed=1), DatasetFolder.open(run.data))
    assert changed["settings"]["seed"] == 1


def test_a_finished_run_may_not_change_its_settings(run):
    record = RunRecord.open(run, DatasetFolder.open(run.data))
    record["finished"] = True
    record.write()
    with pytest.raises(BundleMLLMError, match="other settings"):
        RunRecord.open(dataclasses.replace(run, seed=1), DatasetFolder.open(run.data))


def test_a_folder_with_other_files_is_not_written_into(run):
    run.output_dir.mkdir()
    (run.output_dir / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleMLLMError, match="not empty"):
        RunRecord.open(run, DatasetFolder.open(run.data))
    assert [path.name for path in run.output_dir.iterdir()] == ["thesis.txt"]


def test_a_user_log_is_among_the_inputs(circles, tmp_path):
    record = RunRecord.open(tiny_run(circles.path, tmp_path / "out"), circles)
    assert {"interactions.csv", "features/cross_fitted/bundle_item.safetensors"} < set(record["inputs"])


def test_what_a_kill_leaves_of_the_first_record_does_not_stop_the_run(run):
    run.output_dir.mkdir()
    (run.output_dir / ".run.json.0123456789ab.tmp").write_text("{")
    assert RunRecord.open(run, DatasetFolder.open(run.data))["finished"] is False
    (run.output_dir / "run.json").unlink()
    (run.output_dir / "mine.txt").touch()
    with pytest.raises(BundleMLLMError, match="is not empty"):
        RunRecord.open(run, DatasetFolder.open(run.data))
