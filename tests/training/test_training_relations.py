"""Relations in training: read from bundles and users, never from a question's own fold, and learned from."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from bundle_mllm.data import DatasetFolder, make_questions, sample_training_questions
from bundle_mllm.encoders import encode_folder
from bundle_mllm.evaluation.metrics import log_likelihood
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.training import relations
from bundle_mllm.training.alignment import align_items
from bundle_mllm.training.backbone import build_model
from bundle_mllm.training.config import default_run
from bundle_mllm.training.cross_fitting import load_versions, versions_of_items
from bundle_mllm.training.relations import load_relations
from bundle_mllm.training.stage import choose_backbone_weight

NAMES = ("bundle_item", "user_item")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """32 items without titles; four circles of users and bundles, which nothing but the relations knows."""
    folder = tmp_path_factory.mktemp("circles")
    rng = np.random.default_rng(0)
    items = [f"i{row}" for row in rng.permutation(32)]
    circles = [items[start : start + 8] for start in range(0, 32, 8)]
    (folder / "items.jsonl").write_text("".join(json.dumps({"item_id": f"i{row}"}) + "\n" for row in range(32)))
    splits = ("train", "train", "train", "validation", "test")
    bundles = [
        {
            "bundle_id": f"b{number}",
            "items": [str(item) for item in rng.choice(circles[number % 4], 4, replace=False)],
            "split": splits[number % 5],
        }
        for number in range(120)
    ]
    (folder / "bundles.jsonl").write_text("".join(json.dumps(bundle) + "\n" for bundle in bundles))
    pairs = [(user, item) for user in range(40) for item in rng.choice(circles[user % 4], 3, replace=False)]
    (folder / "interactions.csv").write_text("user_id,item_id\n" + "".join(f"u{u},{i}\n" for u, i in pairs))
    return folder


@pytest.fixture(scope="module")
def data(path):
    without = load_relations(DatasetFolder.open(path), NAMES)
    assert list(without) == ["user_item"]  # no cross-fitted versions, no bundles
    encode_folder(path, relational=["user_item:svd", "bundle_item:svd"])
    return DatasetFolder.open(path)


def build(data, tmp_path, **fields):
    run = default_run("scratch", data=data.path, output_dir=tmp_path)
    return build_model(dataclasses.replace(run, fusion=dataclasses.replace(run.fusion, **fields)), data)


def test_pairs_are_those_of_training_bundles_and_users(data):
    found = load_relations(data, NAMES)
    rows, groups = found["bundle_item"]
    train = sorted(data.bundles.train, key=lambda bundle: bundle.bundle_id)
    members = [{data.catalog[int(row)].item_id for row in rows[groups == number]} for number in range(len(train))]
    assert members == [set(bundle.items) for bundle in train]
    rows, groups = found["user_item"]
    log = data.interactions
    expected = {(int(row), int(user)) for row, user in zip(log.rows, log.user_index, strict=True)}
    assert set(zip(rows.tolist(), groups.tolist(), strict=True)) == expected


def test_a_popular_item_keeps_its_smallest_groups(data, monkeypatch):
    everything = load_relations(data, NAMES)["user_item"]
    monkeypatch.setattr(relations, "MAX_GROUPS", 2)
    rows, groups = load_relations(data, NAMES)["user_item"]
    sizes = everything[1].bincount()
    for row in range(32):
        all_groups, kept = everything[1][everything[0] == row], groups[rows == row]
        assert len(kept) == min(2, len(all_groups))
        assert sorted(sizes[kept].tolist()) == sorted(sizes[all_groups].tolist())[: len(kept)]


def test_only_what_is_wanted_is_read(data, tmp_path):
    assert list(build(data, tmp_path)[0].config.relations) == ["bundle_item", "user_item"]
    assert list(build(data, tmp_path, relations=("user_item",))[0].config.relations) == ["user_item"]
    assert build(data, tmp_path, matching_hidden_size=None)[0].config.relations == {}
    run = dataclasses.replace(default_run("scratch", data=data.path, output_dir=tmp_path), modalities=("user_item",))
    assert list(build_model(run, data)[0].config.relations) == ["user_item"]


def test_a_question_does_not_see_bundles_of_its_own_fold(data, tmp_path):
    model, _ = build(data, tmp_path)
    versions, catalog = load_versions(data, model.config.modalities), model.model.catalog
    train = sorted(data.bundles.train, key=lambda bundle: bundle.bundle_id)
    number = len(data.catalog)
    rows = torch.arange(number)
    present = torch.ones(number, 2, dtype=torch.bool)
    everything = catalog.gather_edges(rows, present)
    for fold in (None, 0, 3):
        shift = 0 if fold is None else (fold + 1) * number
        with versions_of_items(model, versions):
            found = model.model.catalog.gather_edges(rows + shift, present)
        owner, group, _ = found["bundle_item"]
        expected = {
            (data.catalog.rows([item])[0], index)
            for index, bundle in enumerate(train)
            for item in bundle.items
            if versions.fold_of_bundle[bundle.bundle_id] != fold
        }
        assert set(zip(owner.tolist(), group.tolist(), strict=True)) == expected
        assert all(torch.equal(*pair) for pair in zip(found["user_item"], everything["user_item"], strict=True))


def asked(data, **settings):
    settings = {"num_questions": 512, "num_candidates": (4, 8), "hard_fraction": 0.0, "seed": 0} | settings
    return sample_training_questions(data.bundles.train, data.catalog, **settings)


def hit_rate(model, data):
    hits = []
    for question in make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=6, seed=0):
        rows = torch.tensor(data.catalog.rows([*question.partial, *question.candidates]))
        places, shown = torch.arange(len(rows)), len(question.partial)
        zeros = torch.zeros_like(places)
        scores = model.model.match(rows, places[:shown], places[shown:], zeros[:shown], zeros[shown:])
        hits.append(int(scores.argmax()) == question.answer_index)
    return float(np.mean(hits))


@torch.no_grad()
def blank(model):
    """Take the features away, but not the groups."""
    for name in model.config.modalities:
        model.model.catalog.features[name].zero_()
        model.model.fusion.feature_mean[name].zero_()


def test_the_matching_learns_to_answer_from_groups_alone(data, tmp_path):
    rates = {}
    for which in (NAMES, ()):
        model, _ = build(data, tmp_path, relations=which)
        blank(model)
        align_items(model, data.catalog, asked(data), steps=80, seed=0)
        rates[which] = hit_rate(model, data)
    assert rates[NAMES] > rates[()] + 0.25


def test_the_weight_of_the_backbone_is_the_likeliest_on_the_questions_given(data, tmp_path):
    model, processor = build(data, tmp_path)
    align_items(model, data.catalog, asked(data), steps=80, seed=0)
    model.match_letters()
    questions = make_questions(data.bundles.validation, data.catalog, data.bundles, num_candidates=6, seed=0)
    found = choose_backbone_weight(model, processor, questions, (4.0, 0.1, 1.0))
    assert str(model.config.backbone_weight) == max(found, key=found.get)
    for weight, value in found.items():
        model.config.backbone_weight = float(weight)
        assert log_likelihood(score_questions(model, processor, questions)) == pytest.approx(value, abs=1e-4)
    assert len(set(found.values())) == 3
    model.config.backbone_weight = 0.3
    assert choose_backbone_weight(model, processor, questions, ()) == {}
    assert model.config.backbone_weight == 0.3
