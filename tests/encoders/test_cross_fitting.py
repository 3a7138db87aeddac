"""Versions fitted without a fold know nothing of it and stay in one space."""

import numpy as np
import pytest

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.data.features import write_modality
from bundle_mllm.data.folds import OutOfFoldFeatures, assign_folds, count_folds, remove_folds
from bundle_mllm.encoders.cross_fitting import align, cross_fit, edges
from bundle_mllm.encoders.lightgcn import LightGCN
from bundle_mllm.encoders.relational import BundleItemLightGCN, BundleItemSVD, item_svd
from bundle_mllm.errors import BundleMLLMError

NUM_ITEMS = 40


def fit(groups, items):
    return item_svd(groups, items, NUM_ITEMS, 8)


def random_bundles(number=60, seed=0):
    rng = np.random.default_rng(seed)
    return [np.sort(rng.choice(NUM_ITEMS, size=4, replace=False)) for _ in range(number)]


def folder_of(path, bundles):
    path.mkdir(exist_ok=True)
    write_records(path / "items.jsonl", [{"item_id": str(row)} for row in range(NUM_ITEMS)])
    records = [
        {"bundle_id": f"b{i}", "items": list(map(str, rows)), "split": "train"} for i, rows in enumerate(bundles)
    ]
    write_records(path / "bundles.jsonl", records)
    return DatasetFolder.open(path)


def write(folder, encoder):
    encoded = encoder.encode(folder)
    write_modality(
        folder.path / "features", "bundle_item", encoded.features, encoded.present, {},
        items_hash=folder.catalog.content_hash,
    )  # fmt: skip
    return encoded


def test_aligning_undoes_a_rotation_and_keeps_inner_products():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((50, 6))
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    np.testing.assert_allclose(align(reference @ rotation, reference), reference, atol=1e-10)
    other = rng.standard_normal((50, 6))
    aligned = align(other, reference)
    np.testing.assert_allclose(aligned @ aligned.T, other @ other.T, atol=1e-10)


def test_a_version_is_what_the_method_makes_of_the_other_folds():
    bundles = random_bundles()
    folds = [i % 3 for i in range(len(bundles))]
    versions = cross_fit(fit, bundles, folds, fit(*edges(bundles)))
    for fold in range(3):
        alone = fit(*edges([rows for rows, other in zip(bundles, folds, strict=True) if other != fold]))
        version = versions[fold].astype(np.float32)
        np.testing.assert_allclose(version @ version.T, alone @ alone.T, atol=0.05)


def test_versions_lie_in_the_space_of_the_features_fitted_to_all():
    bundles = random_bundles(300)
    reference = fit(*edges(bundles))
    versions = cross_fit(fit, bundles, [i % 5 for i in range(300)], reference).astype(np.float32)
    kept = [rows for i, rows in enumerate(bundles) if i % 5 != 0]

    def distance(features):
        return np.linalg.norm(features - reference)

    assert distance(versions[0]) < 0.6 * distance(fit(*edges(kept)))


def pure_noise(number, num_items, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.choice(num_items, size=6, replace=False) for _ in range(number)]


def answered(features, bundles, rng):
    """Cosine of candidate and mean of half of the bundle; nine random wrong options."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    hits = 0
    for rows in bundles:
        wrong = rng.choice(np.setdiff1d(np.arange(len(unit)), rows), size=9, replace=False)
        scores = unit[[rows[-1], *wrong]] @ unit[rows[:3]].mean(axis=0)
        hits += scores[0] >= scores.max()
    return hits / len(bundles)


def test_where_bundles_are_pure_noise_only_features_that_know_them_answer():
    bundles = pure_noise(400, NUM_ITEMS * 5)
    folds = np.arange(400) % 5

    def fit_large(groups, items):
        return item_svd(groups, items, NUM_ITEMS * 5, 32)

    reference = fit_large(*edges(bundles))
    versions = cross_fit(fit_large, bundles, folds.tolist(), reference).astype(np.float32)
    in_sample = answered(reference, bundles, np.random.default_rng(1))
    cross_fitted = np.mean(
        [
            answered(versions[fold], [bundles[i] for i in np.flatnonzero(folds == fold)], np.random.default_rng(fold))
            for fold in range(5)
        ]
    )
    assert in_sample > 0.3
    assert cross_fitted < 0.15  # chance is .1, its standard error .015


@pytest.mark.parametrize("encoder", [BundleItemSVD(9, num_folds=3), BundleItemLightGCN(LightGCN(8, steps=3), 3)])
def test_encoders_make_versions_that_are_saved_and_loaded(tmp_path, encoder):
    folder = folder_of(tmp_path, random_bundles())
    encoded = write(folder, encoder)
    assert OutOfFoldFeatures.load(folder) is None
    versions = encoder.cross_fit(folder, encoded.features)
    path = versions.save(folder)
    assert path == tmp_path / "features" / "cross_fitted" / "bundle_item.safetensors"
    loaded = OutOfFoldFeatures.load(folder)
    assert loaded.features.shape == (3, NUM_ITEMS, 9) == (loaded.num_folds, *encoded.features.shape)
    assert loaded.features.equal(versions.features)
    assert loaded.present.equal(versions.present)
    assert (
        loaded.fold_of_bundle
        == versions.fold_of_bundle
        == assign_folds({b.bundle_id: b.items for b in folder.bundles.train}, 3, seed=0)
    )
    assert folder.features().modalities == {"bundle_item": 9}  # the versions are no modality
    assert "features/cross_fitted/bundle_item.safetensors" in folder.input_hashes()


def test_making_versions_twice_gives_the_same_bytes(tmp_path):
    folder, encoder = folder_of(tmp_path, random_bundles()), BundleItemSVD(8, num_folds=3)
    encoded = write(folder, encoder)
    contents = [encoder.cross_fit(folder, encoded.features).save(folder).read_bytes() for _ in range(2)]
    assert contents[0] == contents[1]


def test_popularity_and_presence_of_a_version_are_counted_without_its_fold(tmp_path):
    bundles = [[0, 1], [0, 2], [0, 3], [4, 5]]
    folder, encoder = folder_of(tmp_path, bundles), BundleItemSVD(3, num_folds=4)
    encoded = write(folder, encoder)
    versions = encoder.cross_fit(folder, encoded.features)
    fold = versions.fold_of_bundle["b3"]
    assert encoded.present[:6].all()
    assert versions.present[fold, :6].tolist() == [True, True, True, True, False, False]
    assert (versions.features[fold, 4:] == 0).all()
    mean = 6 / NUM_ITEMS
    assert versions.features[fold, 0, -1].item() == pytest.approx(np.log1p(3 / mean) / 4, rel=1e-3)
    assert encoded.features[0, -1] == pytest.approx(np.log1p(3 / (8 / NUM_ITEMS)) / 4, rel=1e-5)


def test_versions_of_other_features_are_refused_and_can_be_removed(tmp_path):
    folder, encoder = folder_of(tmp_path, random_bundles()), BundleItemSVD(8, num_folds=3)
    versions = encoder.cross_fit(folder, write(folder, encoder).features)
    versions.save(folder)
    assert count_folds(tmp_path / "features", "bundle_item")
    write(folder, BundleItemSVD(4))
    assert not count_folds(tmp_path / "features", "bundle_item")
    with pytest.raises(BundleMLLMError, match=r"belongs to other features .* encode 'bundle_item' again"):
        OutOfFoldFeatures.load(folder)
    remove_folds(tmp_path / "features", "bundle_item")
    assert OutOfFoldFeatures.load(folder) is None


def test_a_handful_of_bundles_has_no_versions(tmp_path):
    folder, encoder = folder_of(tmp_path, [[0, 1], [1, 2]]), BundleItemSVD(2, num_folds=3)
    assert encoder.cross_fit(folder, encoder.encode(folder).features) is None


def test_bundles_that_are_all_near_duplicates_leave_nothing_to_fit(tmp_path):
    folder, encoder = folder_of(tmp_path, [[0, 1, 2]] * 4), BundleItemSVD(3, num_folds=2)
    versions = encoder.cross_fit(folder, encoder.encode(folder).features)
    assert versions.num_folds == 1
    assert not versions.present.any()


def test_versions_of_features_that_were_never_written_are_refused(tmp_path):
    folder, encoder = folder_of(tmp_path, random_bundles()), BundleItemSVD(8, num_folds=3)
    with pytest.raises(BundleMLLMError, match="write the features first"):
        encoder.cross_fit(folder, encoder.encode(folder).features).save(folder)
