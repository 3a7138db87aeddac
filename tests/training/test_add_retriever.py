"""A retriever is added to the folder of any ranker: whole or not at all, and the ranker stays as it is."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import TINY_RETRIEVER, tiny_run
from transformers import AutoModel, pipeline

from bundle_mllm.data import DatasetFolder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import compute_metrics
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.model_folder import load_completer, save_model
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.retriever_bundle_mllm import BundleRetriever
from bundle_mllm.training.add_retriever import add_retriever
from bundle_mllm.training.ranker import build_ranker
from bundle_mllm.training.retriever import new_retriever
from bundle_mllm.training.run_data import RunData

pytestmark = pytest.mark.slow

SMALL = {"validation_questions": 8, "validation_candidates": 4, "combination_questions": 16, "num_threads": 1}


@pytest.fixture
def folder(copied_data, tmp_path):
    """A ranker's folder as `save_model` writes it, for `copied_data`."""
    run = tiny_run(copied_data, tmp_path / "out")
    save_model(*build_ranker(run, RunData(run, DatasetFolder.open(copied_data))), tmp_path / "ranker")
    return tmp_path / "ranker"


def add(folder, data, **changes):
    return add_retriever(model=folder, data=data, **{**SMALL, "retriever": TINY_RETRIEVER, **changes})


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def retriever_weights(folder):
    return load_file(folder / "retriever" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_retriever_stands_beside_a_ranker_that_stays_as_it_was(folder, copied_data):
    before = contents(folder)
    figures = add(folder, copied_data)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert {name.partition("/")[0] for name in set(after) - set(before)} == {
        "retriever",
        "combination.json",
        "catalog.parquet",
    }
    assert figures.keys() == {"ranker", "retriever", "both", "combination"}
    completer = load_completer(folder)
    assert completer.parts == ("ranker", "retriever", "both")
    assert AutoModel.from_pretrained(folder, subfolder="retriever").config.items_hash == completer.processor.items_hash
    assert completer.combination.ranker_weight == figures["combination"]["ranker_weight"]
    assert completer.combination.temperature == figures["combination"]["temperature"]
    [answer] = pipeline("bundle-completion", model=str(folder))({"partial": ["red-shirt"]}, top_k=1, explain=True)
    assert {"ranker", "retriever"} < set(answer["explanation"])


def test_the_figures_are_those_of_the_folder(folder, copied_data):
    figures = add(folder, copied_data)
    data = RunData(tiny_run(copied_data, folder, validation_questions=8), DatasetFolder.open(copied_data))
    for part, scored in score_questions(load_completer(folder), data.validation_questions).items():
        assert figures[part]["hit_rate@1"] == pytest.approx(compute_metrics(scored)["hit_rate@1"])


@pytest.mark.slow
def test_a_second_retriever_replaces_the_first(folder, copied_data):
    add(folder, copied_data)
    first, files = retriever_weights(folder), set(contents(folder))
    add(folder, copied_data, seed=1)
    assert set(contents(folder)) == files
    assert not same(retriever_weights(folder), first)
    add(folder, copied_data)
    assert same(retriever_weights(folder), first)  # the seed decides


def test_groups_and_out_of_fold_features_are_used(folds_data, tmp_path):
    run = tiny_run(folds_data.path, tmp_path / "out", modalities=("visual",))
    save_model(*build_ranker(run, RunData(run, folds_data)), tmp_path / "ranker")
    add(tmp_path / "ranker", folds_data.path)
    completer = load_completer(tmp_path / "ranker")
    assert completer.retriever.config.modalities.keys() == {"bundle_item", "visual"}
    assert completer.retriever.config.memberships["bundle_item"] > 0
    assert completer.ranker.config.modalities.keys() == {"visual"}


@pytest.mark.slow
@pytest.mark.parametrize("had_one", [False, True])
def test_a_failure_at_any_step_leaves_the_old_retriever_or_the_new_one(folder, copied_data, monkeypatch, had_one):
    """Fail at each replacement of a file or folder, and after the weights are written; then do it again."""
    before = None
    if had_one:
        add(folder, copied_data, seed=1)
        before = retriever_weights(folder)
    replace, save = os.replace, BundleRetriever.save_pretrained

    def fail_at(number):
        calls = []

        def count(function):
            def call(*args, **kwargs):
                calls.append(function)
                if len(calls) == number:
                    raise KeyboardInterrupt
                result = function(*args, **kwargs)
                return result

            return call

        monkeypatch.setattr(os, "replace", count(replace))
        monkeypatch.setattr(BundleRetriever, "save_pretrained", count(save))

    number, new = 0, None
    while new is None:
        number += 1
        fail_at(number)
        try:
            add(folder, copied_data)
            new = retriever_weights(folder)
        except KeyboardInterrupt:
            if (folder / "retriever").exists():
                weights = retriever_weights(folder)
                assert AutoModel.from_pretrained(folder, subfolder="retriever")
                assert before is None or same(weights, before)
            if (folder / "combination.json").exists() and not had_one:  # never without what it was fitted for
                with pytest.raises(BundleMLLMError, match=r"bundle-mllm retriever"):
                    load_completer(folder)
    assert number >= 3 and (before is None or not same(new, before))
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert load_completer(folder).parts == ("ranker", "retriever", "both")


def refusals():
    def other_items(folder, data):
        path = data / "items.jsonl"
        path.write_text(path.read_text().replace("red shirt", "crimson shirt"))

    def no_features(folder, data):
        for file in (data / "features").iterdir():
            file.unlink()

    def retriever_alone(folder, data):
        dataset = DatasetFolder.open(data)
        run_data = RunData(tiny_run(data, folder), dataset)
        retriever = new_retriever(dataset.features(), {}, run_data.settings.retriever, seed=0)
        for path in folder.iterdir():
            path.unlink()
        BundleCompleter(run_data.item_processor(), retriever=retriever).save_pretrained(folder)

    return [
        (other_items, "do not have the same items in the same order with the same titles"),
        (no_features, "nothing to retrieve by"),
        (retriever_alone, "'bundle_retriever' model, not of a ranker"),
    ]


@pytest.mark.parametrize(("spoil", "message"), refusals(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_folder_that_does_not_fit_is_refused_and_stays_as_it_was(folder, copied_data, spoil, message):
    spoil(folder, copied_data)
    before = contents(folder)
    with pytest.raises(BundleMLLMError, match=message):
        add(folder, copied_data)
    assert contents(folder) == before


def test_the_name_of_a_repository_is_refused_since_nothing_could_be_written_to_it(copied_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleMLLMError, match="has to be downloaded first"):
        add(Path("org/name"), copied_data)
    assert not Path("org").exists()
