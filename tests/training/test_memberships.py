"""Relations in training: read from bundles and users, never from a question's own fold, and learned from."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from bundle_mllm.baselines import evaluate_baselines
from bundle_mllm.data import DatasetFolder, make_questions, sample_training_questions, save_questions
from bundle_mllm.data.folds import held_out_bundles
from bundle_mllm.encoders import encode_folder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import log_likelihood
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.training import alignment, relations
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
    if "relations" in fields:
        run = dataclasses.replace(run, relations=fields.pop("relations"))
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


def test_a_log_whose_users_are_held_out_bundles_is_refused(path, data, tmp_path, caplog):
    for name in ("items.jsonl", "bundles.jsonl"):
        (tmp_path / name).symlink_to(path / name)
    held_out = [*data.bundles.validation, *data.bundles.test]
    lines = [f"{bundle.bundle_id},{item_id}\n" for bundle in held_out for item_id in bundle.items]
    (tmp_path / "interactions.csv").write_text("user_id,item_id\n" + "".join(lines))
    leaking = DatasetFolder.open(tmp_path)
    with pytest.raises(BundleMLLMError, match=r"encode held-out bundles.*--allow-leakage"):
        load_relations(leaking, ["user_item"])
    assert load_relations(leaking, ["textual"]).keys() == {"textual"}
    assert load_relations(leaking, ["user_item"], allow_leakage=True).keys() == {"user_item"}
    made = make_questions(leaking.bundles.validation, leaking.catalog, leaking.bundles, num_candidates=4, seed=0)
    save_questions(tmp_path / "q.jsonl", made)
    evaluate_baselines(tmp_path, tmp_path / "q.jsonl", ["random"])
    assert "the log of" in caplog.text and "has the answers" in caplog.text


def test_a_run_remembers_the_user_log_it_read(data, tmp_path):
    before = data.input_hashes()
    assert {"items.jsonl", "bundles.jsonl", "interactions.csv"} < set(before)


def test_a_popular_item_keeps_its_smallest_groups(data, monkeypatch):
    everything = load_relations(data, NAMES)["user_item"]
    monkeypatch.setattr(relations, "MAX_GROUPS", 2)
    rows, groups = load_relations(data, NAMES)["user_item"]
    sizes = everything[1].bincount()
    for row in range(32):
        all_groups, kept = everything[1][everything[0] == row], groups[rows == row]
        assert len(kept) == min(2, len(all_groups))
        assert sorted(sizes[kept].tolist()) == sorted(sizes[all_groups].tolist())[: len(kept)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """24 titled items of three categories, one of them in none; shirts go with shoes."""
    folder = tmp_path_factory.mktemp("shop")
    kinds = ("Shirt", "Shoes", "Hat")
    items = [{"item_id": f"i{n}", "title": f"red thing {n}", "category": kinds[n % 3]} for n in range(24)]
    items[23] = {"item_id": "i23", "title": "RED, red socks"}
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    bundles = [
        {"bundle_id": f"b{n}", "items": [f"i{n % 21}", f"i{(n + 1) % 21}"], "split": "test" if n % 7 == 3 else "train"}
        for n in range(70)
    ]
    (folder / "bundles.jsonl").write_text("".join(json.dumps(bundle) + "\n" for bundle in bundles))
    encode_folder(folder, relational=["bundle_item:svd"], textual="tfidf")
    return DatasetFolder.open(folder)


def test_words_are_those_of_texts_and_bundles_of_a_category_are_those_of_its_items(shop):
    found = load_relations(shop, ("bundle_category", "bundle_item", "textual"))
    rows, groups = found["textual"]
    of_word = {number: set(rows[groups == number].tolist()) for number in set(groups.tolist())}
    everything = set(range(24))
    assert len(of_word) == 2 + 23 + 1 + 3  # red, thing; numbers; socks; categories
    assert everything in of_word.values()  # red
    assert everything - {23} in of_word.values()  # thing
    assert {n for n in range(24) if n % 3 == 1} in of_word.values()  # shoes
    rows, groups = found["bundle_item"]
    nodes, bundles, category = found["bundle_category"]
    assert category.tolist() == [{0: 1, 1: 2, 2: 0}[n % 3] for n in range(23)] + [-1]  # Hat, Shirt, Shoes
    expected = {(int(category[row]), int(group)) for row, group in zip(rows, groups, strict=True)}
    assert set(zip(nodes.tolist(), bundles.tolist(), strict=True)) == expected
    assert set(load_relations(shop, ("textual",))) == {"textual"}


def test_a_question_does_not_see_its_folds_bundles_by_way_of_the_category(shop, tmp_path):
    model, _ = build(shop, tmp_path)
    assert list(model.config.relations) == ["bundle_category", "bundle_item", "textual"]
    versions = load_versions(shop, model.config.modalities)
    train = sorted(shop.bundles.train, key=lambda bundle: bundle.bundle_id)
    rows, fold = torch.arange(24), 1
    with versions_of_items(model, versions):
        catalog = model.model.catalog
        found = catalog.gather_edges(rows + (fold + 1) * 24, catalog.gather(rows)[1])["bundle_category"]
    in_fold = {n for n, bundle in enumerate(train) if versions.fold_of_bundle[bundle.bundle_id] == fold}
    assert in_fold and set(found[1].tolist()) == set(range(len(train))) - in_fold
    assert 23 not in found[0].tolist()


def test_a_fifth_of_the_bundles_is_held_out_with_or_without_versions(shop):
    versions = load_versions(shop, ["bundle_item"])
    number = len(shop.bundles.train)
    for out_of_fold in (versions, None):
        held_out = held_out_bundles(shop.bundles.train, 5, out_of_fold=out_of_fold)
        assert held_out < {bundle.bundle_id for bundle in shop.bundles.train}
        assert 0.1 * number <= len(held_out) <= 0.35 * number
        assert held_out_bundles(shop.bundles.train, 5) == held_out_bundles(shop.bundles.train, 5)
        items = [{*bundle.items} for bundle in shop.bundles.train if bundle.bundle_id in held_out]
        rest = [{*bundle.items} for bundle in shop.bundles.train if bundle.bundle_id not in held_out]
        assert not any(bundle in rest for bundle in items)  # copies stay together


def test_trust_is_learned_from_held_out_bundles_and_all_else_from_all(data, tmp_path, monkeypatch):
    model, _ = build(data, tmp_path)
    questions, held_out = asked(data), held_out_bundles(data.bundles.train, 5)
    matching, seen = model.model.matching, {}
    batch, minimize = alignment._Asked.batch, alignment._minimize

    def note(self, chosen):
        seen.setdefault(note.name, set()).update(questions[index].bundle_id for index in chosen)
        return batch(self, chosen)

    def run(loss, groups, steps, name):
        note.name = name
        before = {key: value.clone() for key, value in matching.state_dict().items()}
        minimize(loss, groups, steps, name)
        changed = {key for key, value in matching.state_dict().items() if not torch.equal(value, before[key])}
        assert changed and all(key.startswith("weigh.") == (name == "weighing") for key in changed)

    note.name = "statistics"
    monkeypatch.setattr(alignment._Asked, "batch", note)
    monkeypatch.setattr(alignment, "_minimize", run)
    align_items(model, data.catalog, questions, steps=40, seed=0, held_out=held_out)
    train = {bundle.bundle_id for bundle in data.bundles.train}
    assert seen["statistics"] <= held_out and seen["weighing"] == held_out
    assert seen["matching"] == train - held_out and seen["aligning items"] == train
    assert hit_rate(model, data, compares=False) > 0.5  # of 6: the features were trained again after weighing


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


def hit_rate(model, data, **settings):
    hits = []
    for question in make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=6, seed=0):
        rows = torch.tensor(data.catalog.rows([*question.partial, *question.candidates]))
        places, shown = torch.arange(len(rows)), len(question.partial)
        zeros = torch.zeros_like(places)
        scores = model.model.match(rows, places[:shown], places[shown:], zeros[:shown], zeros[shown:], **settings)
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
