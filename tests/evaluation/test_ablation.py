"""Masking and shuffling what a model knows of its items: really done, only for a while, and only what was named."""

import pytest
import torch

from bundle_mllm.data import DatasetFolder, make_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.ablation import ablations, only, restored, shuffle_features, shuffled
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.training.backbone import build_model
from bundle_mllm.training.config import default_run


@pytest.fixture(scope="module")
def data(tiny_data):
    return DatasetFolder.open(tiny_data)


@pytest.fixture(scope="module")
def loaded(data, tmp_path_factory):
    run = default_run("scratch", data=data.path, output_dir=tmp_path_factory.mktemp("ablated"))
    model, processor = build_model(run, data)
    model.config.items_hash = processor.items_hash
    return model, processor


@pytest.fixture(scope="module")
def ask(data):
    asked = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=4, seed=0)[:6]
    return lambda model, processor: [q.scores for q in score_questions(model, processor, asked)]


def differ(a, b):
    return not torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-4)


def test_each_source_is_dropped_and_each_is_alone():
    assert ablations(("titles", "visual", "user_item")) == {
        "without titles": ("visual", "user_item"),
        "without visual": ("titles", "user_item"),
        "without user_item": ("titles", "visual"),
        "titles alone": ("titles",),
        "visual alone": ("visual",),
        "user_item alone": ("user_item",),
    }


def test_of_two_sources_the_one_that_is_left_is_there_once_and_one_source_cannot_be_dropped():
    assert ablations(("titles", "visual")) == {"visual alone": ("visual",), "titles alone": ("titles",)}
    assert ablations(("titles",)) == {}


def test_a_masked_modality_is_as_absent_as_one_that_no_item_ever_had(loaded, data, ask):
    model, processor = loaded
    whole = ask(model, processor)
    with only(model, processor, ("titles",)) as masked:
        assert not model.model.catalog.present.any()
        assert model.model.catalog.features["visual"].abs().sum() == 0
        told = ask(*masked)
    with restored(model):
        model.set_catalog({"visual": torch.randn(32, 4)}, {"visual": torch.zeros(32)})
        never_had = ask(model, processor)
    assert told == never_had
    assert differ(told, whole)
    assert ask(model, processor) == whole


def test_a_hidden_title_is_in_no_prompt_and_the_processor_keeps_its_own(loaded, data, ask):
    model, processor = loaded
    whole, question = ask(model, processor), {"partial": ["red-shirt"], "candidates": ["red-bag", "blue-hat"]}
    with only(model, processor, ("visual",)) as (same, untitled):
        assert same is model and model.model.catalog.present.sum() == 31
        assert "red" not in untitled.render(question) and "<|item_0|>" in untitled.render(question)
        assert untitled.render(question).startswith(
            processor.instruction.format(item_noun="item", bundle_noun="bundle")
        )
        assert differ(ask(same, untitled), whole)
    assert "red shirt" in processor.render(question)
    assert ask(model, processor) == whole


def test_the_catalog_is_put_back_even_after_an_error(loaded):
    model, processor = loaded
    catalog, items_hash = model.model.catalog, model.config.items_hash
    rows, present = catalog.features["visual"].clone(), catalog.present.clone()
    with pytest.raises(KeyError), shuffled(model, processor, seed=3):
        assert not torch.equal(catalog.features["visual"], rows)
        raise KeyError
    assert torch.equal(catalog.features["visual"], rows) and torch.equal(catalog.present, present)
    assert model.config.items_hash == items_hash is not None


def test_what_is_unknown_cannot_be_kept(loaded):
    with (
        pytest.raises(BundleMLLMError, match=r"\['smell'\] cannot be kept.*'titles', 'visual'"),
        only(*loaded, ["smell"]),
    ):
        pass


def test_shuffling_gives_items_the_features_of_others_with_their_masks(loaded):
    model, _ = loaded
    catalog = model.model.catalog
    rows, present = catalog.features["visual"].clone(), catalog.present.clone()
    mean = model.model.fusion.feature_mean["visual"].clone()
    with restored(model):
        shuffle_features(model, seed=1)
        moved = catalog.features["visual"]
        assert not torch.equal(moved, rows)
        assert torch.equal(moved.sort(dim=0).values, rows.sort(dim=0).values)
        assert catalog.present.sum() == present.sum() == 31
        assert moved[~catalog.present[:, 0]].abs().sum() == 0
        assert torch.equal(model.model.fusion.feature_mean["visual"], mean)
