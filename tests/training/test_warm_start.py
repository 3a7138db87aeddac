"""Alignment: after it, items of one bundle are closer than items of different bundles, and only what it may moves."""

from dataclasses import replace

import pytest
import torch

from bundle_mllm.data import DatasetFolder, ItemCatalog, make_questions, sample_training_questions
from bundle_mllm.training.alignment import align_items, align_words
from bundle_mllm.training.backbone import build_model
from bundle_mllm.training.config import default_run


@pytest.fixture
def parts(tiny_data, tmp_path):
    data = DatasetFolder.open(tiny_data)
    return (*build_model(default_run("scratch", data=tiny_data, output_dir=tmp_path), data), data)


def gap(vectors, data):
    """Mean cosine of items of one color, which bundles agree in, less that of items of different colors."""
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    colors = [item.item_id.split("-")[0] for item in data.catalog]
    same = torch.tensor([[a == b for b in colors] for a in colors])
    cosines = (vectors @ vectors.T).detach()
    return float(cosines[same & ~torch.eye(len(colors), dtype=torch.bool)].mean() - cosines[~same].mean())


def test_words_of_one_bundle_become_alike_and_all_keep_their_norm(tiny_data, tmp_path):
    """Each color has two names; only bundles tell that they belong together."""
    data = DatasetFolder.open(tiny_data)
    names = {"red": "crimson", "green": "olive", "blue": "navy", "black": "coal"}
    records = []
    for row, item in enumerate(data.catalog):
        color = item.title.split()[0]
        records.append({"item_id": item.item_id, "title": color if row % 2 else names[color]})
    data = replace(data, catalog=ItemCatalog.from_records(records))
    model, processor = build_model(default_run("scratch", data=tiny_data, output_dir=tmp_path), data)
    before = model.get_input_embeddings().weight.detach().clone()
    align_words(model, processor, data.catalog, data.bundles.train, steps=60, seed=0)
    after = model.get_input_embeddings().weight.detach()
    assert torch.allclose(before.norm(dim=-1), after.norm(dim=-1), rtol=1e-4)
    tokens = processor.tokenizer([f" {record['title']}" for record in records])["input_ids"]
    means = [torch.stack([table[ids].mean(0) for ids in tokens]) for table in (before, after)]
    assert gap(means[1], data) > gap(means[0], data) + 0.2
    untouched = [token for token in range(len(before)) if token not in {t for ids in tokens for t in ids}]
    assert torch.equal(before[untouched], after[untouched])


def ask(data, **settings):
    settings = {"num_questions": 256, "num_candidates": (2, 9), "hard_fraction": 0.5, "seed": 0} | settings
    return sample_training_questions(data.bundles.train, data.catalog, **settings)


def test_items_of_one_bundle_become_alike_through_fusion_and_projector_and_the_backbone_stays(parts):
    model, _, data = parts
    rows = torch.arange(len(data.catalog))
    moves = ("fusion", "projector", "matching")
    other = {n: p.detach().clone() for n, p in model.named_parameters() if not any(name in n for name in moves)}
    before = gap(model.get_item_embeddings(rows).detach(), data)
    align_items(model, data.catalog, ask(data), steps=60, seed=0)
    assert gap(model.get_item_embeddings(rows).detach(), data) > before + 0.2
    now = dict(model.named_parameters())
    assert all(torch.equal(value, now[name]) for name, value in other.items())
    assert not model.training


def test_after_it_the_matching_alone_answers_questions_about_other_bundles(parts):
    model, _, data = parts
    align_items(model, data.catalog, ask(data), steps=100, seed=0)
    asked = make_questions(data.bundles.validation, data.catalog, data.bundles, num_candidates=6, seed=0)
    hits = 0
    for question in asked:
        rows = torch.tensor(data.catalog.rows([*question.partial, *question.candidates]))
        places, shown = torch.arange(len(rows)), len(question.partial)
        zeros = torch.zeros_like(places)
        scores = model.model.match(rows, places[:shown], places[shown:], zeros[:shown], zeros[shown:])
        chosen = question.candidates[int(scores.argmax())]
        hits += chosen.split("-")[0] == question.answer.split("-")[0]
    assert hits / len(asked) > 0.8  # the color decides


def test_the_same_seed_gives_the_same_embeddings(tiny_data, tmp_path):
    data, run = DatasetFolder.open(tiny_data), default_run("scratch", data=tiny_data, output_dir=tmp_path)
    tables = []
    for seed in (0, 0, 1):
        model, processor = build_model(run, data)
        align_words(model, processor, data.catalog, data.bundles.train, steps=5, seed=seed)
        tables.append(model.get_input_embeddings().weight.detach())
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_items_without_any_title_leave_the_words_alone(parts):
    model, processor, data = parts
    before = model.get_input_embeddings().weight.detach().clone()
    untitled = type(data.catalog).from_records([{"item_id": item.item_id} for item in data.catalog])
    align_words(model, processor, untitled, data.bundles.train, steps=5, seed=0)
    assert torch.equal(before, model.get_input_embeddings().weight)
