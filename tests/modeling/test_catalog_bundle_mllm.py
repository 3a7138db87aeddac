"""The item catalog: rows are read in any order, replaced as a whole or not at all, and may have folds beside them."""

import pytest
import torch
from tiny_models import MODALITIES, make_features, make_model, make_retriever

from bundle_mllm.modeling.catalog_bundle_mllm import BundleMLLMItemCatalog


def make_catalog(num_items=3, present=None):
    catalog = BundleMLLMItemCatalog(dict(sorted(MODALITIES.items())), 0)
    catalog.replace(make_features(num_items=num_items), present, torch.float32)
    return catalog


def test_catalog_and_extra_rows_are_read_in_any_order():
    catalog = make_catalog(present={"visual": torch.tensor([True, False, True])})
    extra = {"features": {"visual": torch.full((2, 12), 7.0)}}
    features, present = catalog.gather(torch.tensor([4, 0, 1, 3]), extra)
    assert features["visual"][0].eq(7).all() and features["visual"][3].eq(7).all()
    assert torch.equal(features["user_item"][1], make_features(num_items=3)["user_item"][0])
    assert present.tolist() == [[False, True], [True, True], [True, False], [False, True]]


def test_only_the_rows_that_are_asked_for_are_read():
    catalog = make_catalog()
    catalog.features["visual"][[0, 2]] = torch.nan
    features, _ = catalog.gather(torch.tensor([1, 1]))
    assert features["visual"].shape == (2, 12) and features["visual"].isfinite().all()


def test_rows_of_a_fold_differ_in_its_modality_alone_and_are_not_saved():
    catalog = make_catalog()
    other, known = torch.randn(2, 3, 6), torch.tensor([[True, True, False], [True, False, True]])
    catalog.set_folds("user_item", other, known)
    assert (catalog.num_items, catalog.num_rows) == (3, 9)
    features, present = catalog.gather(torch.tensor([1, 3, 7]))  # item 1; item 0 of fold 0; item 1 of fold 1
    plain, _ = catalog.gather(torch.tensor([1, 0, 1]))
    assert torch.equal(features["visual"], plain["visual"])
    assert torch.equal(features["user_item"], torch.stack([plain["user_item"][0], other[0, 0], other[1, 1]]))
    assert present.tolist() == [[True, True], [True, True], [False, True]]
    assert not any("fold" in name for name in catalog.state_dict())
    catalog.clear_folds()
    assert catalog.num_rows == 3


def test_new_items_have_no_rows_of_the_folds_of_those_before():
    catalog = make_catalog()
    catalog.set_folds("user_item", torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool))
    catalog.replace(make_features(num_items=5), None, torch.float32)
    assert (catalog.num_items, catalog.num_rows) == (5, 5)


def test_the_rows_of_a_catalog_make_the_same_catalog():
    catalog, again = make_catalog(present={"visual": torch.tensor([True, False, True])}), make_catalog(num_items=1)
    again.replace(*catalog.rows(), torch.float32)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in catalog.state_dict().items())


def test_an_absent_row_may_hold_nan():
    features = make_features()
    features["visual"][3] = torch.nan
    model = make_model(features=features, present={"visual": torch.arange(8) != 3})
    assert model.get_item_embeddings(torch.arange(8)).isfinite().all()


WRONG_FEATURES = [
    ({}, None, "no features"),
    ({"acoustic": torch.ones(2, 3)}, None, "'acoustic'.*user_item"),
    ({"user_item": torch.ones(2, 6), "visual": torch.ones(2, 3)}, None, r"'visual'.*\[2, 3\].*12 columns"),
    ({"visual": torch.ones(2, 12), "user_item": torch.ones(3, 6)}, None, r"\[3, 6\], expected 2 items"),
    (
        {"user_item": torch.ones(2, 6), "visual": torch.full((2, 12), torch.inf)},
        None,
        "'visual'.*2 present items.*rows \\[0, 1\\]",
    ),
    ({"visual": torch.ones(2, 12)}, {"visual": torch.ones(3)}, r"presence mask of 'visual' has shape \[3\]"),
    ({"visual": torch.ones(2, 12)}, {"user_item": torch.ones(2)}, "mask for \\['user_item'\\], but no features"),
]


@pytest.mark.parametrize(("features", "present", "message"), WRONG_FEATURES)
@pytest.mark.parametrize("make", [make_model, make_retriever])
def test_features_that_cannot_be_used_are_an_error_and_the_catalog_stays_as_it_was(make, features, present, message):
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.set_catalog(features, present)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.config.num_items == 8


def test_statistics_that_nothing_would_use_are_an_error():
    with pytest.raises(ValueError, match="standardize_features"):
        make_model().set_catalog(make_features(), fit_statistics=True)


def test_new_items_do_not_move_the_statistics():
    for model in (make_model(standardize_features=True), make_retriever()):
        statistics = (model.model.fusion if hasattr(model, "model") else model.towers).statistics
        model.set_catalog(make_features(), fit_statistics=True)
        before = statistics.mean["visual"].clone()
        model.set_catalog(make_features(seed=5, num_items=3))
        assert torch.equal(statistics.mean["visual"], before) and before.abs().sum() > 0


def test_statistics_are_those_of_the_present_rows_and_a_constant_feature_keeps_deviation_one():
    features = make_features()
    features["visual"][:, 0] = 4.0
    features["visual"][7] = 99.0
    model = make_retriever(features, {"visual": torch.arange(8) != 7})
    mean, std = model.towers.statistics.mean["visual"], model.towers.statistics.std["visual"]
    assert torch.allclose(mean, features["visual"][:7].mean(0), atol=1e-6)
    assert torch.allclose(std[1:], features["visual"][:7, 1:].std(0, correction=0), atol=1e-6)
    assert (mean[0], std[0]) == (4.0, 1.0)
