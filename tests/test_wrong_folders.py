"""Folders and questions that do not belong together: each command says so in one line, or answers as it says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_completer, make_completer_for

from bundle_mllm.cli import main
from bundle_mllm.data import DatasetFolder, make_questions, save_questions
from bundle_mllm.data.features import write_modality

BUNDLE = "red-shirt,red-skirt"


@pytest.fixture(scope="module")
def data(tiny_data):
    return DatasetFolder.open(tiny_data)


@pytest.fixture(scope="module")
def saved(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong") / "model"
    make_completer_for(data).save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def questions(data, tmp_path):
    made = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=4, seed=0)
    save_questions(tmp_path / "q.jsonl", made)
    return tmp_path / "q.jsonl"


def said(capsys, *arguments, status=2):
    """What a command says on standard error, which is one line if it fails."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("Loading weights")]
    assert status == 0 or len(lines) == 1, lines
    return "\n".join(lines)


def refusals(capsys, model, data, questions):
    """What the commands that load a model say about it."""
    commands = (
        ("complete", "--model", model, "--bundle", BUNDLE),
        ("complete", "--model", model, "--every-item", "--output", questions.with_name("answers.jsonl")),
        (
            "evaluate",
            "--model",
            model,
            "--data",
            data,
            "--questions",
            questions,
            "--output",
            questions.with_name("m.json"),
        ),
        ("calibrate", "--model", model, "--data", data, "--questions", questions),
        ("report", "--model", model, "--data", data, "--output-dir", questions.with_name("report")),
    )
    return [said(capsys, *command) for command in commands]


def edit_combination(model, **changes):
    path = Path(model, "combination.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("completer", "message"),
    [
        (lambda data: make_completer(ranker=False), "The processor has 32 items and the bundle_retriever model 8"),
        (lambda data: other_run(data), "The retriever has other weights"),
    ],
)
def test_a_retriever_of_another_catalog_or_run_is_refused(capsys, model, data, questions, completer, message):
    completer(data).save_pretrained(model.with_name("other"))
    shutil.rmtree(model / "retriever")
    shutil.copytree(model.with_name("other"), model / "retriever")
    assert all(message in line for line in refusals(capsys, model, data.path, questions))


def other_run(data):
    completer = make_completer_for(data, ranker=False)
    completer.retriever.towers.logit_scale.data += 0.5
    return completer


@pytest.mark.parametrize("name", ["config.json", "items.jsonl", "model.safetensors", "retriever/model.safetensors"])
def test_a_half_pushed_folder_is_refused(capsys, model, data, questions, name):
    (model / name).unlink()
    assert all(
        f"{model} is no readable Bundle-MLLM model" in line
        for line in refusals(capsys, model, data.path, questions)[:4]
    )
    assert str(model) in said(capsys, "publish", "--model", model, "--repo", "a/b", "--dry-run")


@pytest.mark.parametrize("value", [float("nan"), "warm", None, True, -1, 0, float("inf")])
def test_a_temperature_that_is_no_number_is_refused(capsys, model, data, questions, value):
    edit_combination(model, temperature=value)
    assert all("temperature is" in line for line in refusals(capsys, model, data.path, questions)[:3])


def test_an_item_in_the_partial_bundle_and_among_the_candidates_is_refused(capsys, model, data, questions):
    asked = ("complete", "--model", model, "--bundle", BUNDLE, "--candidates", "blue-hat,red-skirt")
    assert "'red-skirt' is in the partial bundle already" in said(capsys, *asked)
    records = [json.loads(line) for line in questions.read_text().splitlines()]
    records[0]["candidates"][0] = records[0]["partial"][0]
    records[0].pop("answer", None)
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    for command in ("evaluate", "calibrate"):
        assert "in `partial` already" in said(
            capsys, command, "--model", model, "--data", data.path, "--questions", questions
        )


def test_items_without_any_feature_are_answered_as_guesses_and_a_new_one_is_refused(capsys, model, data):
    completer = make_completer_for(data, ranker=False)
    without = {name: np.zeros((len(data.catalog), width), np.float32) for name, width in completer.modalities.items()}
    nothing = {name: np.zeros(len(data.catalog), bool) for name in without}
    ids = data.catalog.item_ids
    completer.set_catalog(ids, [""] * len(ids), *(as_tensors(each) for each in (without, nothing)))
    completer.save_pretrained(model.with_name("bare"))
    capsys.readouterr()
    asked = ["complete", "--model", str(model.with_name("bare")), "--bundle"]
    assert main([*asked, BUNDLE, "--top-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("(a guess: nothing is known about it)" in line for line in lines)
    assert "neither title nor features" in said(capsys, *asked, '["red-shirt", {"item_id": "new"}]')


def as_tensors(arrays):
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def test_training_on_features_that_no_item_has_is_refused(capsys, model, tiny_data, tmp_path):
    folder = shutil.copytree(tiny_data, tmp_path / "data")
    present = np.zeros(32, np.uint8)
    write_modality(folder / "features", "visual", np.zeros((32, 4), np.float32), present, {"encoder": "test"})
    for command in (
        ("train", "--output-dir", tmp_path / "out", "--base-model", "none"),
        ("train", "--output-dir", tmp_path / "out"),
        ("retriever", "--model", model),
    ):
        assert f"No item of {folder} has 'visual' features" in said(capsys, *command, "--data", folder)


def test_data_that_are_newer_than_the_model_are_read_as_far_as_it_knows_them(capsys, model, data, questions, tmp_path):
    newer = shutil.copytree(data.path, tmp_path / "newer")
    with open(newer / "items.jsonl", "a") as file:
        file.write('{"item_id": "gold-hat", "title": "gold hat", "category": "hat"}\n')
    asked = ("--model", model, "--data", newer, "--questions", questions)
    told = said(capsys, "evaluate", *asked, "--output", tmp_path / "m.json", status=0)
    assert f"{newer} has other items than {model}, which answers by its own" in told
    assert "has other items than" in said(capsys, "evaluate", *asked, "--catalog", "--output", tmp_path / "m.json")
    for command in ("train", "retriever"):
        where = ("--output-dir", tmp_path / "out") if command == "train" else ("--model", model)
        told = said(capsys, command, "--data", newer, *where)
        assert "32 rows for a catalog of 33 items" in told or "do not have the same items" in told
    assert "'gold-hat' is not among the 32 items" in said(capsys, "complete", "--model", model, "--bundle", "gold-hat")
    records = [json.loads(line) for line in questions.read_text().splitlines()]
    records[0]["partial"] = ["gold-hat"]
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    for command in ("evaluate", "calibrate"):
        assert "(such as ['gold-hat'])" in said(capsys, command, *asked)
