"""Relational vectors equal a dense factorization, of training bundles only; items without an edge are absent."""

import numpy as np
import pytest
import torch

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.data.memberships import BUNDLE_ITEM, ItemGroups
from bundle_mllm.encoders import BundleItemEncoder, TruncatedSVD, UserItemEncoder
from bundle_mllm.encoders.lightgcn import LightGCN
from bundle_mllm.encoders.registry import make_encoder
from bundle_mllm.errors import BundleMLLMError


def graph(groups, items, num_items: int) -> ItemGroups:
    return ItemGroups(BUNDLE_ITEM, np.array(items), np.array(groups), num_items)


def random_graph(num_groups: int, num_items: int, seed: int = 0) -> ItemGroups:
    return graph(*np.nonzero(np.random.default_rng(seed).random((num_groups, num_items)) < 0.1), num_items)


def folder_of(path, bundles, interactions=None, num_items=6):
    write_records(path / "items.jsonl", [{"item_id": str(row)} for row in range(num_items)])
    write_records(path / "bundles.jsonl", bundles)
    if interactions is not None:
        write_records(path / "interactions.csv", interactions)
    return DatasetFolder.open(path)


def bundle(name, items, split="train"):
    return {"bundle_id": name, "items": items, "split": split}


@pytest.mark.parametrize(("num_groups", "num_items", "dim"), [(90, 70, 8), (70, 90, 8), (12, 70, 64)])
def test_products_of_vectors_equal_those_of_a_dense_factorization(num_groups, num_items, dim):
    groups = random_graph(num_groups, num_items)
    dense = np.zeros((num_groups, num_items))
    dense[groups.groups, groups.nodes] = 1
    degree_of_group, degree_of_item = dense.sum(axis=1, keepdims=True), dense.sum(axis=0, keepdims=True)
    dense = dense / np.maximum(degree_of_group, 1) ** 0.5 / np.maximum(degree_of_item, 1) ** 0.25
    _, values, vectors = np.linalg.svd(dense)
    kept = min(dim, num_groups, num_items)
    expected = num_items * (vectors[:kept].T * (values[:kept] / values[0]) ** 2) @ vectors[:kept]
    features = TruncatedSVD(dim).fit(groups)
    assert features.dtype == np.float32
    assert features.shape == (num_items, dim)
    np.testing.assert_allclose(features @ features.T, expected, atol=1e-3)
    assert (features[:, kept:] == 0).all()


def test_two_groups_that_share_no_item_are_orthogonal_by_hand():
    # Users 0, 1 have items 0, 1: entries 2^(-3/4), singular value 2^(1/4), and both items point the same way. User 2
    # has item 2: singular value 1, or 2^(-1/4) of the largest, so the squared length of its vector is 3 / 2^(1/2).
    features = TruncatedSVD(3).fit(graph([0, 0, 1, 1, 2], [0, 1, 0, 1, 2], 3))
    np.testing.assert_allclose(features @ features.T, [[1.5, 1.5, 0], [1.5, 1.5, 0], [0, 0, 3 / 2**0.5]], atol=1e-5)


def test_repeated_pairs_count_once_and_the_order_of_edges_does_not_count():
    groups = random_graph(200, 150)
    order = np.random.default_rng(1).permutation(len(groups))
    repeated = [np.concatenate([column, column[order]]) for column in (groups.groups, groups.nodes)]
    np.testing.assert_array_equal(TruncatedSVD(8).fit(groups), TruncatedSVD(8).fit(graph(*repeated, 150)))


def test_the_largest_entry_of_each_column_is_positive():
    features = TruncatedSVD(8).fit(random_graph(200, 150))
    assert (features[np.abs(features).argmax(axis=0), np.arange(8)] > 0).all()


def test_bundles_outside_the_training_split_change_nothing(tmp_path):
    train = [bundle("a", ["0", "1", "2"]), bundle("b", ["1", "2"])]
    held_out = [bundle("c", ["3", "4"], "validation"), bundle("d", ["0", "5"], "test")]
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    without = BundleItemEncoder(TruncatedSVD(3)).encode(folder_of(tmp_path / "without", train))
    with_all = BundleItemEncoder(TruncatedSVD(3)).encode(folder_of(tmp_path / "with", [*train, *held_out]))
    np.testing.assert_array_equal(with_all.features, without.features)
    assert with_all.present.tolist() == [True, True, True, False, False, False]
    assert (with_all.features[3:] == 0).all()


def test_items_without_a_user_are_absent(tmp_path):
    log = [{"user_id": "u", "item_id": "0"}, {"user_id": "u", "item_id": "4"}, {"user_id": "v", "item_id": "gone"}]
    encoded = UserItemEncoder(TruncatedSVD(2)).encode(folder_of(tmp_path, [bundle("a", ["0", "1"])], log))
    assert encoded.present.tolist() == [True, False, False, False, True, False]
    assert np.abs(encoded.features[0]).sum() > 0


def test_no_training_bundle_makes_every_item_absent(tmp_path):
    encoded = BundleItemEncoder(TruncatedSVD(3)).encode(folder_of(tmp_path, [bundle("a", ["0", "1"], "test")]))
    assert not encoded.present.any()
    assert encoded.features.shape == (6, 4)


def test_the_error_without_a_user_log_names_the_file_to_add(tmp_path):
    with pytest.raises(BundleMLLMError, match=r"add interactions\.csv"):
        UserItemEncoder(TruncatedSVD()).encode(folder_of(tmp_path, [bundle("a", ["0", "1"])]))


def test_the_last_column_grows_with_the_number_of_bundles(tmp_path):
    folder = folder_of(tmp_path, [bundle("a", ["0", "1"]), bundle("b", ["1", "2"])])
    encoded = BundleItemEncoder(TruncatedSVD(2)).encode(folder)
    mean = 4 / 6
    np.testing.assert_allclose(encoded.features[:3, -1], np.log1p(np.array([1, 2, 1]) / mean) / 4, rtol=1e-6)


def test_lightgcn_encodes_users_and_bundles(tmp_path):
    log = [{"user_id": f"u{user}", "item_id": str(item)} for user in range(4) for item in range(user + 1)]
    folder = folder_of(tmp_path, [bundle("a", ["0", "1"])], log)
    method = LightGCN(dim=5, steps=2)
    for encoder, num_present in ((UserItemEncoder(method), 4), (BundleItemEncoder(method), 2)):
        calls = []
        encoded = encoder.encode(folder, lambda *call, calls=calls: calls.append(call))
        assert encoded.features.shape == (6, encoder.dim) == (6, 6)
        assert encoded.present.sum() == num_present
        assert calls == [(3, 6), (6, 6)]


def test_settings_are_part_of_an_encoders_name():
    methods = [TruncatedSVD(), TruncatedSVD(7), LightGCN(), LightGCN(seed=1)]
    names = [UserItemEncoder(method).name for method in methods]
    names += [BundleItemEncoder(methods[0], num_folds=number).name for number in (10, 3)]
    assert len(set(names)) == len(names)


def test_a_width_that_leaves_no_column_to_the_factors_is_refused():
    with pytest.raises(BundleMLLMError, match="0 columns"):
        BundleItemEncoder(TruncatedSVD(0))


@pytest.mark.parametrize("modality", ["user_item", "bundle_item"])
@pytest.mark.parametrize("method", ["svd", "lightgcn"])
def test_both_methods_are_found_by_name(modality, method):
    encoder = make_encoder(modality, method, torch.device("cpu"))
    assert (encoder.modality, method in encoder.name) == (modality, True)
