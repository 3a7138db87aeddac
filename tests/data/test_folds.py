"""Folds keep near-duplicates together, and out-of-fold features stay with what they were fitted to."""

import numpy as np
import pytest
import torch

from bundle_mllm.data import Bundle, DatasetFolder, write_records
from bundle_mllm.data.features import write_modality
from bundle_mllm.data.folds import OutOfFoldFeatures, assign_folds, count_folds, part_bundles, remove_folds
from bundle_mllm.errors import BundleMLLMError

NUM_ITEMS, DIM = 40, 3


def random_bundles(number=60, seed=0):
    rng = np.random.default_rng(seed)
    return [np.sort(rng.choice(NUM_ITEMS, size=4, replace=False)) for _ in range(number)]


def folder_of(path, number=60):
    write_records(path / "items.jsonl", [{"item_id": str(row)} for row in range(NUM_ITEMS)])
    records = [
        {"bundle_id": f"b{i}", "items": list(map(str, rows)), "split": "train"}
        for i, rows in enumerate(random_bundles(number))
    ]
    write_records(path / "bundles.jsonl", records)
    return DatasetFolder.open(path)


def write(folder, seed=0):
    features = np.random.default_rng(seed).standard_normal((NUM_ITEMS, DIM)).astype(np.float32)
    items_hash = folder.catalog.content_hash
    write_modality(folder.path / "features", "bundle_item", features, None, {}, items_hash=items_hash)


def out_of_fold(folder, num_folds=3):
    folds = assign_folds({bundle.bundle_id: bundle.items for bundle in folder.bundles.train}, num_folds, seed=0)
    features = torch.randn(num_folds, NUM_ITEMS, DIM, generator=torch.Generator().manual_seed(0)).half()
    return OutOfFoldFeatures("bundle_item", folds, features, features[..., 0] > 0)


def test_near_duplicates_share_a_fold_and_folds_are_of_equal_size():
    bundles = {f"b{i}": set(map(int, rows)) for i, rows in enumerate(random_bundles(200))}
    bundles |= {f"twin{i}": bundles[f"b{i}"] ^ {99} for i in range(20)}
    folds = assign_folds(bundles, 5, seed=0)
    assert all(folds[f"b{i}"] == folds[f"twin{i}"] for i in range(20))
    sizes = np.bincount(list(folds.values()))
    assert sizes.max() - sizes.min() <= 1
    assert list(folds) == list(bundles)


def test_the_seed_and_not_the_order_of_bundles_chooses_folds():
    bundles = {f"b{i}": {i} for i in range(30)}
    folds = assign_folds(bundles, 3, seed=0)
    assert assign_folds(dict(reversed(bundles.items())), 3, seed=0) == folds
    assert assign_folds(bundles, 3, seed=1) != folds


def test_one_fold_is_refused():
    with pytest.raises(BundleMLLMError, match="1 folds leave nothing"):
        assign_folds({"b": {1}}, 1, seed=0)


def test_parts_of_bundles_are_disjoint_and_leave_no_near_duplicate_behind(tmp_path):
    bundles = list(folder_of(tmp_path).bundles.train)
    sets = {bundle.bundle_id: frozenset(bundle.items) for bundle in bundles}
    parts = part_bundles(bundles, (0.1, 0.2))
    assert abs(len(parts[0]) - 6) <= 2 and abs(len(parts[1]) - 12) <= 2
    assert not parts[0] & parts[1]
    for part in parts:
        assert not {sets[b] for b in part} & {sets[b] for b in sets if b not in part}
    assert part_bundles(bundles[::-1], (0.1, 0.2)) == parts


def test_parts_of_bundles_may_leave_near_duplicates_behind():
    bundles = [
        Bundle(f"b{number}", (f"i{number // 2}", f"j{number // 2}"), "train") for number in range(60)
    ]  # 30 pairs
    parts = part_bundles(bundles, (0.1, 0.2), near_duplicates_together=False)
    assert (len(parts[0]), len(parts[1])) == (6, 12) and not parts[0] & parts[1]
    twins = {bundle_id: f"b{int(bundle_id[1:]) ^ 1}" for bundle_id in parts[0]}
    assert any(twin not in parts[0] for twin in twins.values())
    together = part_bundles(bundles, (0.1,))[0]
    assert all(f"b{int(bundle_id[1:]) ^ 1}" in together for bundle_id in together)


def test_parts_of_bundles_are_whole_folds_of_out_of_fold_features_from_the_last_on(tmp_path):
    folder = folder_of(tmp_path)
    features = out_of_fold(folder, num_folds=10)
    fold_of = features.fold_of_bundle
    parts = part_bundles(folder.bundles.train, (0.1, 0.2), out_of_fold=features)
    assert parts == [{b for b in fold_of if fold_of[b] == 9}, {b for b in fold_of if fold_of[b] in (7, 8)}]


def test_out_of_fold_features_are_read_as_written(tmp_path):
    folder = folder_of(tmp_path)
    write(folder)
    assert OutOfFoldFeatures.load(folder) is None
    assert count_folds(tmp_path / "features", "bundle_item") == 0
    written = out_of_fold(folder)
    path = written.save(folder)
    assert path == tmp_path / "features" / "cross_fitted" / "bundle_item.safetensors"
    loaded = OutOfFoldFeatures.load(folder)
    assert loaded.features.equal(written.features)
    assert loaded.present.equal(written.present)
    assert loaded.fold_of_bundle == written.fold_of_bundle
    assert loaded.num_folds == count_folds(tmp_path / "features", "bundle_item") == 3
    assert folder.features().modalities == {"bundle_item": DIM}  # they are no modality
    assert "features/cross_fitted/bundle_item.safetensors" in folder.input_hashes()


def test_the_bundles_of_a_fold_are_all_others(tmp_path):
    folder = folder_of(tmp_path)
    features = out_of_fold(folder)
    kept = {bundle.bundle_id for bundle in features.without_fold(folder.bundles.train, 1)}
    assert kept == {bundle_id for bundle_id, fold in features.fold_of_bundle.items() if fold != 1}


def test_out_of_fold_features_of_other_features_are_refused_and_can_be_removed(tmp_path):
    folder = folder_of(tmp_path)
    write(folder)
    out_of_fold(folder).save(folder)
    write(folder, seed=1)
    assert count_folds(tmp_path / "features", "bundle_item") == 0
    with pytest.raises(BundleMLLMError, match=r"belongs to other features .* encode 'bundle_item' again"):
        OutOfFoldFeatures.load(folder)
    remove_folds(tmp_path / "features", "bundle_item")
    remove_folds(tmp_path / "features", "bundle_item")
    assert OutOfFoldFeatures.load(folder) is None


def test_damaged_out_of_fold_features_are_refused(tmp_path):
    folder = folder_of(tmp_path)
    write(folder)
    out_of_fold(folder).save(folder).write_bytes(b"no tensors")
    with pytest.raises(BundleMLLMError, match="is damaged"):
        OutOfFoldFeatures.load(folder)


def test_out_of_fold_features_of_other_bundles_are_refused(tmp_path):
    folder = folder_of(tmp_path)
    write(folder)
    out_of_fold(folder).save(folder)
    with pytest.raises(BundleMLLMError, match="fitted to other items or training bundles"):
        OutOfFoldFeatures.load(folder_of(tmp_path, 61))


def test_out_of_fold_features_of_none_are_refused(tmp_path):
    folder = folder_of(tmp_path)
    with pytest.raises(BundleMLLMError, match="write the features first"):
        out_of_fold(folder).save(folder)
