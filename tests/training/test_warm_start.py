"""After a warm start items of one bundle are closer than items of different bundles, and nothing else has moved."""

from dataclasses import replace

import pytest
import torch
from tiny_training import training_questions

from bundle_mllm.data import DatasetFolder, ItemCatalog
from bundle_mllm.training.config import default_run
from bundle_mllm.training.out_of_fold import QuestionRows, fold_rows, load_out_of_fold
from bundle_mllm.training.ranker import build_ranker
from bundle_mllm.training.run_data import RunData
from bundle_mllm.training.warm_start import warm_start_items, warm_start_words


def build(data):
    run = default_run("scratch", data=data.path, output_dir=data.path / "out")
    return build_ranker(run, RunData(run, data))


def with_titles(data, title_of):
    records = [{"item_id": item.item_id, "title": title_of(row, item)} for row, item in enumerate(data.catalog)]
    return replace(data, catalog=ItemCatalog.from_records(records))


@pytest.fixture
def data(tiny_data):
    return DatasetFolder.open(tiny_data)


def gap(vectors, data):
    """Mean cosine of items of one color, which bundles agree in, less that of items of different colors."""
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    colors = [item.item_id.split("-")[0] for item in data.catalog]
    same = torch.tensor([[a == b for b in colors] for a in colors])
    cosines = (vectors @ vectors.T).detach()
    return float(cosines[same & ~torch.eye(len(colors), dtype=torch.bool)].mean() - cosines[~same].mean())


def words_table(model):
    return model.get_input_embeddings().weight.detach().clone()


def test_words_of_one_bundle_become_alike_and_keep_their_norm(data):
    """Each color has two names; only bundles show that they belong together."""
    names = {"red": "crimson", "green": "olive", "blue": "navy", "black": "coal"}
    colors = [item.title.split()[0] for item in data.catalog]
    titles = [color if row % 2 else names[color] for row, color in enumerate(colors)]
    data = with_titles(data, lambda row, _: titles[row])
    model, processor = build(data)
    before = words_table(model)
    warm_start_words(model, processor, data.catalog, data.bundles.train, steps=60, seed=0)
    after = words_table(model)
    assert torch.allclose(before.norm(dim=-1), after.norm(dim=-1), rtol=1e-4)
    tokens = processor.tokenizer([f" {title}" for title in titles])["input_ids"]
    means = [torch.stack([table[ids].mean(0) for ids in tokens]) for table in (before, after)]
    assert gap(means[1], data) > gap(means[0], data) + 0.2
    untouched = [token for token in range(len(before)) if token not in {t for ids in tokens for t in ids}]
    assert torch.equal(before[untouched], after[untouched])


def test_the_seed_decides_the_words(data):
    tables = []
    for seed in (0, 0, 1):
        model, processor = build(data)
        warm_start_words(model, processor, data.catalog, data.bundles.train, steps=5, seed=seed)
        tables.append(words_table(model))
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


@pytest.mark.parametrize(
    "text", ["<|item_3|>", "<|item_99|>", "<|item_separator|>", "<|item|>", "</s>", "<s>", "<pad>", " ", "</s></s>"]
)
def test_titles_that_hold_special_tokens_are_plain_words(data, text):
    data = with_titles(data, lambda row, item: f"{item.title} {text}" if row % 3 else text)
    model, processor = build(data)
    special = list(range(3))
    assert {processor.tokenizer.convert_ids_to_tokens(i) for i in special} == {"<pad>", "<s>", "</s>"}
    before, separator = words_table(model), model.model.separator.weight.detach().clone()
    warm_start_words(model, processor, data.catalog, data.bundles.train, steps=3, seed=0)
    after = words_table(model)
    assert not torch.equal(before, after)
    assert torch.equal(before[special], after[special])
    assert torch.equal(separator, model.model.separator.weight)
    assert after.isfinite().all()


def test_without_titles_the_words_stay(data):
    untitled = with_titles(data, lambda *_: "")
    model, processor = build(untitled)
    before = words_table(model)
    warm_start_words(model, processor, untitled.catalog, data.bundles.train, steps=5, seed=0)
    assert torch.equal(before, words_table(model))


def test_without_bundles_of_two_items_the_words_stay(data):
    model, processor = build(data)
    before = words_table(model)
    single = [replace(bundle, items=bundle.items[:1]) for bundle in data.bundles.train]
    warm_start_words(model, processor, data.catalog, single, steps=5, seed=0)
    assert torch.equal(before, words_table(model))


def test_item_tokens_of_one_bundle_become_alike_and_the_backbone_stays(data):
    model, _ = build(data)
    rows = torch.arange(len(data.catalog))
    moves = ("model.fusion.", "model.projector.")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gap_before = gap(model.get_item_embeddings(rows).detach(), data)
    questions = QuestionRows(training_questions(data, num_candidates=(2, 9), hard_fraction=0.5), data.catalog)
    warm_start_items(model, questions, steps=60, seed=0)
    assert gap(model.get_item_embeddings(rows).detach(), data) > gap_before + 0.2
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith(moves) for name in moved)
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_item_tokens_are_made_of_out_of_fold_features_alone(folds_data):
    questions, features = (
        training_questions(folds_data, num_questions=64),
        load_out_of_fold(folds_data, ["bundle_item"]),
    )
    projectors = {}
    for uses_folds in (True, False):
        for poison in (100.0, -1e3):
            model, _ = build(folds_data)
            model.model.catalog.features["bundle_item"].fill_(poison)
            of_fold = features if uses_folds else None
            with fold_rows(model.model.catalog, of_fold):
                rows = QuestionRows(questions, folds_data.catalog, of_fold)
                warm_start_items(model, rows, steps=3, seed=0)
            projectors[uses_folds, poison] = torch.cat([p.flatten() for p in model.model.projector.parameters()])
    assert torch.equal(projectors[True, 100.0], projectors[True, -1e3])
    assert not torch.equal(projectors[False, 100.0], projectors[False, -1e3])
