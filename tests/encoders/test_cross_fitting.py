"""Features fitted without a fold do not depend on it and stay in one space."""

import numpy as np
import pytest

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.data.features import write_modality
from bundle_mllm.data.folds import OutOfFoldFeatures, assign_folds, count_folds, remove_folds
from bundle_mllm.data.memberships import BUNDLE_ITEM, ItemGroups
from bundle_mllm.encoders.lightgcn import LightGCN
from bundle_mllm.encoders.relational import BundleItemEncoder, TruncatedSVD, cross_fit, rotate_onto
from bundle_mllm.errors import BundleMLLMError

NUM_ITEMS = 40


def fit(groups):
    return TruncatedSVD(8).fit(groups)


def graph(bundles, num_items=NUM_ITEMS):
    items = np.concatenate(bundles)
    return ItemGroups(
        BUNDLE_ITEM, items, np.repeat(np.arange(len(bundles)), [len(rows) for rows in bundles]), num_items
    )


def fit_folds(method, bundles, folds, reference, num_items=NUM_ITEMS):
    fitted = cross_fit(method, graph(bundles, num_items), np.array(folds), reference)
    return np.stack([features for _, features in fitted]).astype(np.float32)


def random_bundles(number=60, seed=0):
    rng = np.random.default_rng(seed)
    return [np.sort(rng.choice(NUM_ITEMS, size=4, replace=False)) for _ in range(number)]


def folder_of(path, bundles, validation=()):
    path.mkdir(exist_ok=True)
    write_records(path / "items.jsonl", [{"item_id": str(row)} for row in range(NUM_ITEMS)])
    split_of = [(rows, split) for split, of in (("train", bundles), ("validation", validation)) for rows in of]
    records = [
        {"bundle_id": f"b{i}", "items": list(map(str, rows)), "split": split}
        for i, (rows, split) in enumerate(split_of)
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


def test_rotating_undoes_a_rotation_and_keeps_inner_products():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((50, 6))
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    np.testing.assert_allclose(rotate_onto(reference @ rotation, reference), reference, atol=1e-10)
    other = rng.standard_normal((50, 6))
    rotated = rotate_onto(other, reference)
    np.testing.assert_allclose(rotated @ rotated.T, other @ other.T, atol=1e-10)


def test_out_of_fold_features_are_those_of_the_other_folds_alone():
    bundles = random_bundles()
    folds = [i % 3 for i in range(len(bundles))]
    out_of_fold = fit_folds(fit, bundles, folds, fit(graph(bundles)))
    for fold in range(3):
        alone = fit(graph([rows for rows, other in zip(bundles, folds, strict=True) if other != fold]))
        np.testing.assert_allclose(out_of_fold[fold] @ out_of_fold[fold].T, alone @ alone.T, atol=0.05)


def test_out_of_fold_features_lie_in_the_space_of_the_features_fitted_to_all():
    bundles = random_bundles(300)
    reference = fit(graph(bundles))
    out_of_fold = fit_folds(fit, bundles, [i % 5 for i in range(300)], reference)
    kept = [rows for i, rows in enumerate(bundles) if i % 5 != 0]

    def distance(features):
        return np.linalg.norm(features - reference)

    assert distance(out_of_fold[0]) < 0.6 * distance(fit(graph(kept)))


def pure_noise(number, num_items, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.choice(num_items, size=6, replace=False) for _ in range(number)]


def hit_rate(features, bundles, rng):
    """Rank by the cosine of candidate and mean of half of the bundle, among nine random wrong options."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    hits = 0
    for rows in bundles:
        wrong = rng.choice(np.setdiff1d(np.arange(len(unit)), rows), size=9, replace=False)
        scores = unit[[rows[-1], *wrong]] @ unit[rows[:3]].mean(axis=0)
        hits += scores[0] >= scores.max()
    return hits / len(bundles)


def test_bundles_of_pure_noise_are_completed_by_features_fitted_to_them_only():
    num_items = NUM_ITEMS * 5
    bundles = pure_noise(400, num_items)
    folds = np.arange(400) % 5

    def fit_large(groups):
        return TruncatedSVD(32).fit(groups)

    reference = fit_large(graph(bundles, num_items))
    out_of_fold = fit_folds(fit_large, bundles, folds, reference, num_items)
    in_sample = hit_rate(reference, bundles, np.random.default_rng(1))
    cross_fitted = np.mean(
        [
            hit_rate(features, [bundles[i] for i in np.flatnonzero(folds == fold)], np.random.default_rng(fold))
            for fold, features in enumerate(out_of_fold)
        ]
    )
    assert in_sample > 0.3
    assert cross_fitted < 0.15  # chance is .1, its standard error .015


@pytest.mark.parametrize("method", [TruncatedSVD(8), LightGCN(8, steps=3)])
def test_encoders_make_out_of_fold_features_that_are_saved_and_loaded(tmp_path, method):
    encoder = BundleItemEncoder(method, num_folds=3)
    folder = folder_of(tmp_path, random_bundles())
    encoded = write(folder, encoder)
    assert OutOfFoldFeatures.load(folder) is None
    out_of_fold = encoder.cross_fit(folder, encoded.features)
    path = out_of_fold.save(folder)
    assert path == tmp_path / "features" / "cross_fitted" / "bundle_item.safetensors"
    loaded = OutOfFoldFeatures.load(folder)
    assert loaded.features.shape == (3, NUM_ITEMS, 9) == (loaded.num_folds, *encoded.features.shape)
    assert loaded.features.equal(out_of_fold.features)
    assert loaded.present.equal(out_of_fold.present)
    assert (
        loaded.fold_of_bundle
        == out_of_fold.fold_of_bundle
        == assign_folds({b.bundle_id: b.items for b in folder.bundles.train}, 3, seed=0)
    )
    assert folder.features().modalities == {"bundle_item": 9}  # out-of-fold features are no modality
    assert "features/cross_fitted/bundle_item.safetensors" in folder.input_hashes()


@pytest.mark.parametrize(("validation", "together"), [([0, 21, 32], True), ([0, 10, 20], False)])
def test_folds_part_near_duplicates_where_the_splits_do(tmp_path, validation, together):
    twins = [[number, 10 + number, 20 + number] for number in range(10) for _ in range(2)]
    folder = folder_of(tmp_path, twins, [validation])
    encoder = BundleItemEncoder(TruncatedSVD(4), num_folds=4)
    fold_of = encoder.cross_fit(folder, write(folder, encoder).features).fold_of_bundle
    assert folder.near_duplicates_together == together
    assert all(fold_of[f"b{2 * i}"] == fold_of[f"b{2 * i + 1}"] for i in range(10)) == together


def test_cross_fitting_twice_gives_the_same_bytes(tmp_path):
    folder, encoder = folder_of(tmp_path, random_bundles()), BundleItemEncoder(TruncatedSVD(7), num_folds=3)
    encoded = write(folder, encoder)
    contents = [encoder.cross_fit(folder, encoded.features).save(folder).read_bytes() for _ in range(2)]
    assert contents[0] == contents[1]


def test_popularity_and_presence_are_counted_without_the_fold(tmp_path):
    bundles = [[0, 1], [0, 2], [0, 3], [4, 5]]
    folder, encoder = folder_of(tmp_path, bundles), BundleItemEncoder(TruncatedSVD(2), num_folds=4)
    encoded = write(folder, encoder)
    out_of_fold = encoder.cross_fit(folder, encoded.features)
    fold = out_of_fold.fold_of_bundle["b3"]
    assert encoded.present[:6].all()
    assert out_of_fold.present[fold, :6].tolist() == [True, True, True, True, False, False]
    assert (out_of_fold.features[fold, 4:] == 0).all()
    mean = 6 / NUM_ITEMS
    assert out_of_fold.features[fold, 0, -1].item() == pytest.approx(np.log1p(3 / mean) / 4, rel=1e-3)
    assert encoded.features[0, -1] == pytest.approx(np.log1p(3 / (8 / NUM_ITEMS)) / 4, rel=1e-5)


def test_out_of_fold_features_of_other_features_are_refused_and_can_be_removed(tmp_path):
    folder, encoder = folder_of(tmp_path, random_bundles()), BundleItemEncoder(TruncatedSVD(7), num_folds=3)
    out_of_fold = encoder.cross_fit(folder, write(folder, encoder).features)
    out_of_fold.save(folder)
    assert count_folds(tmp_path / "features", "bundle_item")
    write(folder, BundleItemEncoder(TruncatedSVD(3)))
    assert not count_folds(tmp_path / "features", "bundle_item")
    with pytest.raises(BundleMLLMError, match=r"belongs to other features .* encode 'bundle_item' again"):
        OutOfFoldFeatures.load(folder)
    remove_folds(tmp_path / "features", "bundle_item")
    assert OutOfFoldFeatures.load(folder) is None


def test_fewer_bundles_than_folds_are_not_cross_fitted(tmp_path):
    folder, encoder = folder_of(tmp_path, [[0, 1], [1, 2]]), BundleItemEncoder(TruncatedSVD(1), num_folds=3)
    assert encoder.cross_fit(folder, encoder.encode(folder).features) is None


def test_bundles_that_are_all_near_duplicates_leave_nothing_to_fit(tmp_path):
    folder, encoder = folder_of(tmp_path, [[0, 1, 2]] * 4), BundleItemEncoder(TruncatedSVD(2), num_folds=2)
    out_of_fold = encoder.cross_fit(folder, encoder.encode(folder).features)
    assert out_of_fold.num_folds == 1
    assert not out_of_fold.present.any()


def test_out_of_fold_features_of_features_that_were_never_written_are_refused(tmp_path):
    folder, encoder = folder_of(tmp_path, random_bundles()), BundleItemEncoder(TruncatedSVD(7), num_folds=3)
    with pytest.raises(BundleMLLMError, match="write the features first"):
        encoder.cross_fit(folder, encoder.encode(folder).features).save(folder)
