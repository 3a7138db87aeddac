"""Encoding training bundles ends with features and the out-of-fold features that belong to them, even if killed."""

import numpy as np
import pytest

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.data.features import write_modality
from bundle_mllm.data.folds import OutOfFoldFeatures
from bundle_mllm.encoders import BundleItemEncoder, Encoded, TruncatedSVD, encode_folder
from bundle_mllm.errors import BundleMLLMError

NUM_ITEMS = 30


class KilledError(Exception):
    pass


def kill(*_):
    raise KilledError


def write_bundles(path, number, seed=0):
    rng = np.random.default_rng(seed)
    bundles = [sorted(map(str, rng.choice(NUM_ITEMS, size=4, replace=False))) for _ in range(number)]
    records = [{"bundle_id": f"b{n}", "items": items, "split": "train"} for n, items in enumerate(bundles)]
    write_records(path / "bundles.jsonl", records)


@pytest.fixture
def folder(tmp_path):
    write_records(tmp_path / "items.jsonl", [{"item_id": str(row)} for row in range(NUM_ITEMS)])
    write_bundles(tmp_path, 40)
    return tmp_path


def encode(folder, num_folds=4, **arguments):
    encoder = BundleItemEncoder(TruncatedSVD(7), num_folds=num_folds)
    return encode_folder(folder, relational=encoder, **arguments)["bundle_item"]


def files(folder):
    features = folder / "features"
    paths = [path for path in features.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    return {str(path.relative_to(features)): path.read_bytes() for path in paths}


def load(folder):
    return OutOfFoldFeatures.load(DatasetFolder.open(folder))


def test_out_of_fold_features_are_written_with_the_features_and_counted_in_the_summary(folder):
    calls = []
    summary = encode(folder, progress=lambda *call: calls.append(call))
    assert summary.num_folds == load(folder).num_folds == 4
    assert ", cross-fitted in 4 folds" in str(summary)
    assert calls[-4:] == [("bundle_item, cross-fitting", done, 4) for done in (1, 2, 3, 4)]
    encoder, opened = BundleItemEncoder(TruncatedSVD(7), num_folds=4), DatasetFolder.open(folder)
    alone = encoder.cross_fit(opened, encoder.encode(opened).features)
    assert alone.features.equal(load(folder).features)


def test_features_up_to_date_are_left_alone_and_lost_out_of_fold_features_are_made_again(folder, monkeypatch):
    encode(folder)
    first = files(folder)
    path = folder / "features" / "cross_fitted" / "bundle_item.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(BundleItemEncoder, "cross_fit", kill)
        again = encode(folder)
    assert again.up_to_date and again.num_folds == 4
    with monkeypatch.context() as patched:
        patched.setattr(BundleItemEncoder, "encode", kill)  # the features are as they were
        path.unlink()
        encode(folder)
        assert files(folder) == first
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(BundleMLLMError, match="is damaged"):
            load(folder)
        encode(folder)
    assert files(folder) == first


@pytest.mark.parametrize("moment", ["before the features", "before the folds", "while the folds are written"])
def test_a_run_killed_anywhere_ends_with_the_same_bytes_and_never_mixes_features(
    folder, tmp_path, monkeypatch, moment
):
    encode(folder)
    write_bundles(folder, 45, seed=1)
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        if moment == "before the features":
            patched.setattr("bundle_mllm.encoders.encode.write_modality", lambda *_, **__: kill())
        elif moment == "before the folds":
            patched.setattr(BundleItemEncoder, "cross_fit", kill)
        else:
            patched.setattr("bundle_mllm.data.folds.save_file", kill)
        encode(folder)
    assert load(folder) is None
    if moment == "while the folds are written":
        (folder / "features" / "cross_fitted" / ".bundle_item.safetensors.1.tmp").write_bytes(b"half")
    encode(folder)
    interrupted = files(folder)
    for path in sorted((folder / "features").rglob("*.*")):
        path.unlink()
    encode(folder)
    assert files(folder) == interrupted
    assert set(interrupted) == {"bundle_item.safetensors", "cross_fitted/bundle_item.safetensors", "manifest.json"}


def test_fewer_bundles_than_folds_are_reported_and_encoded_once(folder, monkeypatch):
    encode(folder)
    write_bundles(folder, 3)
    summary = encode(folder)
    assert (summary.num_folds, load(folder)) == (0, None)
    assert ", too few bundles to cross-fit" in str(summary)
    before = files(folder)
    monkeypatch.setattr(BundleItemEncoder, "encode", kill)
    assert encode(folder).up_to_date
    assert files(folder) == before


def test_out_of_fold_features_of_replaced_features_are_refused_and_removed(folder):
    encode(folder)
    write_modality(folder / "features", "bundle_item", np.ones((NUM_ITEMS, 2), np.float32), None, {})
    with pytest.raises(BundleMLLMError, match="belongs to other features"):
        load(folder)
    (folder / "features" / "bundle_item.safetensors").unlink()
    encode(folder)

    class Own:
        name, modality, dim = "own-1", "bundle_item", 2

        def encode(self, folder, progress=None):
            return Encoded(np.ones((NUM_ITEMS, 2), np.float32), np.ones(NUM_ITEMS, bool))

    assert encode_folder(folder, relational=Own())["bundle_item"].num_folds is None
    assert load(folder) is None


def test_features_of_other_training_bundles_are_refused_until_they_are_made_again(folder):
    encode(folder)
    bundles = DatasetFolder.open(folder).bundles
    write_records(folder / "bundles.jsonl", [vars(bundle) for bundle in reversed(bundles.train)])
    DatasetFolder.open(folder).features()  # the same ones in another order
    write_bundles(folder, 40, seed=1)  # the same ids
    with pytest.raises(BundleMLLMError, match=r"fitted to other training bundles.*encode 'bundle_item' again"):
        DatasetFolder.open(folder).features()
    encode(folder)
    assert "bundle_item" in DatasetFolder.open(folder).features().modalities
