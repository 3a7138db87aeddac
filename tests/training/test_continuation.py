"""A model goes on with new bundles and items, in a dated folder that `current` points to, unless it gets worse."""

import json
import os
import shutil
from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_training import tiny_run, weights

from bundle_mllm import load_completer
from bundle_mllm.cli import main
from bundle_mllm.completion.catalog import update_catalog
from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.encoders import encode_folder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.settings import with_overrides
from bundle_mllm.training import continuation as module
from bundle_mllm.training import run as run_module
from bundle_mllm.training.config import continued_run
from bundle_mllm.training.continuation import choose, folder_of_today, point_to, with_new_catalog
from bundle_mllm.training.run import train
from bundle_mllm.training.run_data import RunData

COLORS, KINDS = ("red", "green", "blue", "black"), ("shirt", "skirt", "shoes", "bag", "hat", "coat")


def write_shop(folder, num_bundles, colors=COLORS):
    items = [{"item_id": f"{c}-{k}", "title": f"{c} {k}", "category": k} for c in colors for k in KINDS]
    rng = np.random.default_rng(0)
    bundles = [
        {
            "bundle_id": f"b{number}",
            "items": [f"{colors[number % len(colors)]}-{kind}" for kind in rng.choice(KINDS, 3, replace=False)],
            "split": "validation" if number % 5 == 4 else "train",
        }
        for number in range(num_bundles)
    ]
    write_records(folder / "items.jsonl", items)
    write_records(folder / "bundles.jsonl", bundles)
    return folder


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A dataset folder and a retriever that was trained on it."""
    folder = tmp_path_factory.mktemp("old")
    data = folder / "data"
    data.mkdir()
    encode_folder(write_shop(data, 60), textual="tfidf", relational="bundle_item:svd")
    train(tiny_run(data, folder / "out", "none", retriever={"steps": 60}))
    return data, folder / "out"


@pytest.fixture
def new(old, tmp_path):
    """The same shop with more bundles and six new items, exported to a folder of its own."""
    data = tmp_path / "new"
    data.mkdir()
    encode_folder(write_shop(data, 90, (*COLORS, "white")), like=old[1])
    return data


def test_the_next_night_has_new_items_and_a_folder_of_its_own(old, new, tmp_path):
    before = weights(old[1])
    runs = tmp_path / "runs"
    folder = train(continue_from=old[1], data=new, output_dir=runs)
    assert folder == runs / date.today().isoformat()
    assert (runs / "current").is_symlink() and (runs / "current").resolve() == folder.resolve()
    assert sorted(path.name for path in runs.iterdir()) == [folder.name, "current"]
    completer = load_completer(runs / "current")
    assert completer.processor.num_items == 30 and "white-hat" in completer.processor
    record = json.loads((folder / "run.json").read_text())
    assert record["finished"] and record["continued"]["is_kept"]
    assert set(record["continued"]["hit_rate@1"]) == {"a", "b", "difference", "se"}
    after = weights(folder)
    assert not torch.equal(
        after["model.safetensors towers.maps.textual.linear.weight"],
        before["model.safetensors towers.maps.textual.linear.weight"],
    )
    name = "model.safetensors stacker.co_occurrence.0.weight"
    assert torch.equal(after[name], before[name])
    assert weights(old[1]).keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in weights(old[1]).items())
    update_catalog("remove", runs / "current", _table(tmp_path, [{"item_id": "red-bag"}]))  # through the link
    assert (runs / "current").is_symlink() and load_completer(folder).processor.num_items == 29
    again = train(continue_from=runs / "current", data=new, output_dir=runs)
    assert again.name == f"{folder.name}-2" and (runs / "current").resolve() == again.resolve()


def _table(folder, records):
    write_records(folder / "table.jsonl", records)
    return folder / "table.jsonl"


def test_worse_weights_are_not_kept_and_the_items_are_new_all_the_same(old, new, tmp_path, monkeypatch):
    def spoil(retriever, data):
        for parameter in retriever.towers.parameters():
            parameter.data = 9 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(module, "continue_towers", spoil)
    folder = train(continue_from=old[1], data=new, output_dir=tmp_path / "runs")
    continued = json.loads((folder / "run.json").read_text())["continued"]
    assert not continued["is_kept"] and continued["hit_rate@1"]["difference"] < 0
    name = "model.safetensors towers.maps.textual.linear.weight"
    assert torch.equal(weights(folder)[name], weights(old[1])[name])
    assert load_completer(folder).processor.num_items == 30


def test_features_of_bundles_are_rotated_into_the_space_of_the_model(old, tmp_path):
    """The same bundles again, in another rotation: the model must read the same."""
    data = shutil.copytree(old[0], tmp_path / "data")
    run = continued_run(old[1], data=data, output_dir=tmp_path / "runs")
    features, _ = load_completer(old[1]).retriever.catalog.rows()
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(1).standard_normal((63, 63)))[0]).float()
    folder = DatasetFolder.open(data)
    store = folder.features()
    turned = RunData(run, folder, holds_out=False)
    values, present = store.load()
    values["bundle_item"][:, :-1] = values["bundle_item"][:, :-1] @ rotation
    turned.features = type("Store", (), {"load": lambda self: (values, present), "modalities": store.modalities})()
    completer = with_new_catalog(run, turned)
    torch.testing.assert_close(
        completer.retriever.catalog.features["bundle_item"], features["bundle_item"], rtol=1e-3, atol=1e-3
    )


def test_a_run_that_was_killed_is_continued_in_its_folder(old, new, tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    def kill(*_):
        raise KilledError

    runs = tmp_path / "runs"
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "choose", kill)
        with pytest.raises(KilledError):
            train(continue_from=old[1], data=new, output_dir=runs)
    assert not (runs / "current").exists()
    calls = []
    monkeypatch.setattr(module, "continue_towers", lambda *_: calls.append(1))
    folder = train(continue_from=old[1], data=new, output_dir=runs)
    assert folder.name == date.today().isoformat() and not calls
    assert (runs / "current").resolve() == folder.resolve()


def test_features_of_other_encoders_are_refused_with_the_command_that_mends_it(old, new, tmp_path):
    encode_folder(new, textual="tfidf", refit=True)
    with pytest.raises(BundleMLLMError, match=r"of another encoder than those of .*encode --data .*new --like .*out"):
        train(continue_from=old[1], data=new, output_dir=tmp_path / "runs")
    (new / "features" / "textual.safetensors").unlink()
    with pytest.raises(BundleMLLMError, match=r"reads 'textual' features of 128 columns, and .* has none"):
        train(continue_from=old[1], data=new, output_dir=tmp_path / "runs")


def test_the_recipe_is_that_of_the_model_but_shorter_and_not_shorter_each_night(old, tmp_path):
    paths = {"data": tmp_path, "output_dir": tmp_path / "runs"}
    run = continued_run(old[1], **paths)
    assert (run.retriever.num_questions, run.stage_one.num_questions, run.base_model) == (64, 0, "none")
    (tmp_path / "next").mkdir()
    record = json.loads((old[1] / "run.json").read_text())
    recipe = {**record["settings"]["retriever"], "num_questions": 64}
    record["settings"] |= {"continue_from": str(old[1]), "retriever": recipe}
    (tmp_path / "next" / "run.json").write_text(json.dumps(record))
    assert continued_run(tmp_path / "next", **paths).retriever.num_questions == 64
    with pytest.raises(BundleMLLMError, match=r"has no run\.json"):
        continued_run(tmp_path, **paths)
    with pytest.raises(BundleMLLMError, match="There is no folder"):
        continued_run(tmp_path / "nowhere", **paths)


@pytest.mark.slow
def test_a_ranker_and_a_retriever_are_continued_together(old, new, tmp_path):
    train(tiny_run(old[0], tmp_path / "both", "scratch"))
    run = with_overrides(
        continued_run(tmp_path / "both", data=new, output_dir=tmp_path / "runs"),
        {"validation_questions": 8, "stage_two": {"num_questions": 32}},
    )
    folder = train(run)
    before, after = weights(tmp_path / "both"), weights(folder)
    assert load_completer(folder).parts == ("ranker", "retriever", "both")
    moved = {
        name
        for name in after
        if name in before and after[name].shape == before[name].shape and not torch.equal(after[name], before[name])
    }
    assert (
        any("projector" in name for name in moved)
        or not json.loads((folder / "run.json").read_text())["continued"]["is_kept"]
    )
    assert load_completer(folder).processor.num_items == 30


def test_the_pointer_never_replaces_a_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        point_to(tmp_path / name)
        assert (tmp_path / "current").resolve() == (tmp_path / name).resolve()
    (tmp_path / "current").unlink()
    (tmp_path / "current").mkdir()
    with pytest.raises(BundleMLLMError, match="is no link"):
        point_to(tmp_path / "a")


def test_a_finished_folder_is_not_written_again(tmp_path):
    first = folder_of_today(tmp_path)
    first.mkdir()
    assert folder_of_today(tmp_path) == first
    (first / "config.json").touch()
    (first / "run.json").write_text('{"finished": false}')  # killed while the model was moved there
    assert folder_of_today(tmp_path) == first
    (first / "run.json").write_text('{"finished": true}')
    assert folder_of_today(tmp_path).name == f"{first.name}-2"


def test_a_kill_while_the_model_is_moved_leaves_no_half_folder_behind(old, new, tmp_path, monkeypatch):
    runs, moved = tmp_path / "runs", []

    def replace(source, target):
        moved.append(target)
        if len(moved) == 3:
            raise KeyboardInterrupt
        os.replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "os", SimpleNamespace(replace=replace))
        with pytest.raises(KeyboardInterrupt):
            train(continue_from=old[1], data=new, output_dir=runs)
    folder = train(continue_from=old[1], data=new, output_dir=runs)
    assert sorted(path.name for path in runs.iterdir()) == [folder.name, "current"]
    assert load_completer(runs / "current").processor.num_items == 30


def test_without_validation_bundles_it_is_said_that_the_weights_were_not_compared(caplog):
    data = SimpleNamespace(validation_questions=[], folder=SimpleNamespace(path="DATA"))
    after, record = choose(None, "after", data)
    assert after == "after" and record == {"is_kept": True}
    assert "DATA has no validation bundles, so nobody knows" in caplog.text


def test_a_model_folder_as_base_model_is_told_how_to_continue(old, tmp_path, capsys):
    arguments = ["train", "--data", str(old[0]), "--output-dir", str(tmp_path / "x"), "--base-model", str(old[1])]
    assert main(arguments) == 2
    assert f"--continue-from {old[1]}" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
