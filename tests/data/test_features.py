import hashlib
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bundle_mllm.data.features import FeatureStore, write_modality
from bundle_mllm.errors import BundleMLLMError

FEATURES = torch.arange(12, dtype=torch.float16).reshape(4, 3) + 1
PRESENT = torch.tensor([True, True, False, True])


def save(folder, name="visual", **tensors):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / f"{name}.safetensors")
    return folder


def test_written_rows_are_gathered_in_the_given_order(tmp_path):
    write_modality(tmp_path, "visual", FEATURES, PRESENT, {})
    features, present = FeatureStore.open(tmp_path, 4).gather([3, 0, 3])
    assert features["visual"].dtype == torch.float32
    assert features["visual"].tolist() == FEATURES[[3, 0, 3]].tolist()
    assert present["visual"].tolist() == [True, True, True]


@pytest.mark.parametrize("rows", [[1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2])])
def test_rows_may_be_any_sequence_of_integers(tmp_path, rows):
    write_modality(tmp_path, "visual", FEATURES, PRESENT, {})
    assert FeatureStore.open(tmp_path, 4).gather(rows)[1]["visual"].tolist() == [True, False]


def test_gathering_no_rows_gives_empty_tensors(tmp_path):
    write_modality(tmp_path, "visual", FEATURES, PRESENT, {})
    features, present = FeatureStore.open(tmp_path, 4).gather([])
    assert features["visual"].shape == (0, 3)
    assert present["visual"].shape == (0,)


def test_absent_rows_are_zero_whatever_the_file_holds(tmp_path):
    stored = FEATURES.clone()
    stored[2] = math.nan
    save(tmp_path, features=stored, present=PRESENT.to(torch.uint8))
    store = FeatureStore.open(tmp_path, 4)
    for features, present in (store.load(), store.gather(range(4))):
        assert features["visual"][2].tolist() == [0, 0, 0]
        assert features["visual"][3].tolist() == FEATURES[3].tolist()
        assert present["visual"].tolist() == PRESENT.tolist()


def test_without_a_mask_all_items_are_present(tmp_path):
    save(tmp_path, features=FEATURES)
    assert FeatureStore.open(tmp_path, 4).load()[1]["visual"].all()


def test_changing_what_was_gathered_changes_neither_store_nor_file(tmp_path):
    write_modality(tmp_path, "visual", FEATURES.float(), PRESENT, {})
    before = (tmp_path / "visual.safetensors").read_bytes()
    store = FeatureStore.open(tmp_path, 4)
    features, present = store.load()
    features["visual"].zero_()
    present["visual"].zero_()
    again, present_again = store.load()
    assert again["visual"][0].tolist() == [1, 2, 3]
    assert present_again["visual"].tolist() == PRESENT.tolist()
    assert (tmp_path / "visual.safetensors").read_bytes() == before


def test_nan_elsewhere_does_not_disturb_the_rows_read(tmp_path):
    """Only the given rows are read: a bad row is refused when it is gathered."""
    stored = FEATURES.clone()
    stored[1, 2] = math.inf
    save(tmp_path, features=stored)
    store = FeatureStore.open(tmp_path, 4)
    assert store.gather([0])[0]["visual"].tolist() == [[1, 2, 3]]
    for read in (lambda: store.gather([3, 1]), store.load):
        with pytest.raises(BundleMLLMError, match=r"'visual' holds NaN or infinity in 1 present row\(s\) \(1\)"):
            read()


def test_gathering_again_and_again_leaves_the_file_out_of_memory(tmp_path):
    """A memory map would have all of the file resident after a few hundred random rows."""
    num_items, width = 40_000, 512
    write_modality(tmp_path, "visual", torch.ones(num_items, width, dtype=torch.float16), None, {})
    store = FeatureStore.open(tmp_path, num_items)
    rows = torch.randint(num_items, (400, 13), generator=torch.Generator().manual_seed(0))
    store.gather(rows[0])
    before = resident_bytes()
    for some in rows:
        store.gather(some)
    assert resident_bytes() - before < num_items * width * 2 / 10


def resident_bytes():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def test_rows_in_runs_and_alone_are_gathered_in_the_given_order(tmp_path):
    values = torch.arange(60, dtype=torch.bfloat16).reshape(20, 3)
    write_modality(tmp_path, "visual", values, None, {})
    rows = [4, 5, 6, 2, 2, 3, 19, 0, 1, 0]
    gathered = FeatureStore.open(tmp_path, 20).gather(rows)[0]["visual"]
    assert gathered.tolist() == values[rows].float().tolist()


def test_a_file_cut_while_open_is_refused(tmp_path):
    path = write_modality(tmp_path, "visual", FEATURES, PRESENT, {})
    store = FeatureStore.open(tmp_path, 4)
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(BundleMLLMError, match=r"visual\.safetensors ends before its last row"):
        store.load()


def test_a_store_travels_to_another_process(tmp_path):
    write_modality(tmp_path, "visual", FEATURES, PRESENT, {})
    store = FeatureStore.open(tmp_path, 4)
    assert pickle.loads(pickle.dumps(store)).gather([3])[0]["visual"].tolist() == FEATURES[[3]].tolist()


def test_opening_reads_no_features(tmp_path, monkeypatch):
    write_modality(tmp_path, "visual", FEATURES, PRESENT, {})
    monkeypatch.setattr("bundle_mllm.data.features._check_finite", lambda *_: pytest.fail("features were read"))
    assert FeatureStore.open(tmp_path, 4).modalities == {"visual": 3}


@pytest.mark.parametrize("row", [-1, 4])
def test_a_row_outside_the_catalog_is_refused(tmp_path, row):
    write_modality(tmp_path, "visual", FEATURES, PRESENT, {})
    with pytest.raises(BundleMLLMError, match=f"Row {row} is outside the catalog of 4 items"):
        FeatureStore.open(tmp_path, 4).gather([0, row])


def test_modalities_are_sorted_and_can_be_chosen(tmp_path):
    for name, dim in (("visual", 3), ("acoustic", 5), ("price", 1)):
        write_modality(tmp_path, name, torch.ones(4, dim), None, {})
    assert list(FeatureStore.open(tmp_path, 4).modalities.items()) == [("acoustic", 5), ("price", 1), ("visual", 3)]
    chosen = FeatureStore.open(tmp_path, 4, ["visual", "price"])
    assert chosen.modalities == {"price": 1, "visual": 3}
    assert list(chosen.load()[0]) == ["price", "visual"]
    with pytest.raises(BundleMLLMError, match="no features of modality 'textual': it has acoustic, price, visual"):
        FeatureStore.open(tmp_path, 4, ["textual"])


@pytest.mark.parametrize(
    ("stem", "modality"),
    [
        ("visual_handcrafted", "visual"),
        ("bundle_item", "bundle_item"),
        ("bundle_item_svd", "bundle_item"),
        ("user_item_lightgcn_64", "user_item"),
        ("visuals", "visuals"),
        ("price_log", "price_log"),
    ],
)
def test_the_modality_is_the_start_of_the_file_name(tmp_path, stem, modality):
    save(tmp_path, stem, features=FEATURES)
    assert list(FeatureStore.open(tmp_path, 4).modalities) == [modality]


def test_two_files_of_one_modality_are_refused(tmp_path):
    write_modality(tmp_path, "visual_clip", FEATURES, None, {})
    with pytest.raises(BundleMLLMError, match=r"visual_clip\.safetensors already holds modality 'visual'.*delete or"):
        write_modality(tmp_path, "visual", FEATURES, None, {})
    save(tmp_path, "visual", features=FEATURES)
    with pytest.raises(BundleMLLMError, match=r"two files of modality 'visual', visual\..* and visual_clip\..*: keep"):
        FeatureStore.open(tmp_path, 4)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"vectors": FEATURES}, r"no tensor `features` \(it has vectors\): rename"),
        ({"features": FEATURES[:3].clone()}, "has 3 rows for a catalog of 4 items"),
        ({"features": FEATURES.flatten()}, r"shape \[12\]: they need two"),
        ({"features": torch.tensor(1.0)}, r"shape \[\]: they need two"),
        ({"features": torch.ones(4, 0)}, r"shape \[4, 0\]: they need two"),
        ({"features": torch.ones(4, 2, dtype=torch.int64)}, "are I64: convert them to float16 or float32"),
        ({"features": FEATURES, "present": torch.ones(3, dtype=torch.uint8)}, r"shape \[3\] for 4 rows"),
        ({"features": FEATURES, "present": torch.full((4,), 255, dtype=torch.uint8)}, "other values than 0 and 1"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, tensors, message):
    save(tmp_path, **tensors)
    with pytest.raises(BundleMLLMError, match=message):
        FeatureStore.open(tmp_path, 4)


def test_what_is_no_feature_folder_is_refused(tmp_path):
    with pytest.raises(BundleMLLMError, match="no folder"):
        FeatureStore.open(tmp_path / "missing", 4)
    with pytest.raises(BundleMLLMError, match=r"holds no \*\.safetensors file"):
        FeatureStore.open(tmp_path, 4)
    (tmp_path / "visual.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(BundleMLLMError, match="is not a safetensors file"):
        FeatureStore.open(tmp_path, 4)


def test_the_manifest_describes_every_modality(tmp_path):
    write_modality(tmp_path, "visual_clip", FEATURES, PRESENT, {"encoder": "clip"}, items_hash="a" * 64)
    write_modality(tmp_path, "acoustic", FEATURES.double(), None, {"encoder": "clap"})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["visual"] == {
        "file": "visual_clip.safetensors",
        "dim": 3,
        "num_items": 4,
        "num_present": 3,
        "dtype": "float16",
        "sha256": hashlib.sha256((tmp_path / "visual_clip.safetensors").read_bytes()).hexdigest(),
        "items_hash": "a" * 64,
        "provenance": {"encoder": "clip"},
    }
    assert manifest["acoustic"]["dtype"] == "float32"
    assert manifest["acoustic"]["num_present"] == 4


def test_features_of_items_that_have_changed_are_refused(tmp_path, catalog):
    ones = torch.ones(len(catalog), 2)
    write_modality(tmp_path, "visual", ones, None, {}, items_hash=catalog.content_hash)
    write_modality(tmp_path, "acoustic", ones, None, {})
    FeatureStore.open(tmp_path, len(catalog), items_hash=catalog.content_hash)
    FeatureStore.open(tmp_path, len(catalog))
    with pytest.raises(
        BundleMLLMError, match=r"visual\.safetensors was written for other items.*encode 'visual' again"
    ):
        FeatureStore.open(tmp_path, len(catalog), items_hash="0" * 64)
    assert FeatureStore.open(tmp_path, len(catalog), ["acoustic"], items_hash="0" * 64).modalities == {"acoustic": 2}


def test_a_broken_manifest_is_refused(tmp_path):
    write_modality(tmp_path, "visual", FEATURES, None, {})
    hashes = [f'{{"visual": {{"items_hash": {value}}}}}' for value in ("7", "0", "[]")]
    hashes += ['{"visual": {"provenance": {"train_bundles_sha256": [1]}}}']
    for broken in ("{", "[]", '{"visual": 3}', '{"visual": {"provenance": [1]}}', "[" * 50_000, *hashes):
        (tmp_path / "manifest.json").write_text(broken)
        with pytest.raises(
            BundleMLLMError, match=r"manifest\.json (is not JSON|is JSON nested|holds a list|does not map)"
        ):
            FeatureStore.open(tmp_path, 4)


def test_writing_twice_gives_the_same_bytes_and_ignores_absent_values(tmp_path):
    noisy = FEATURES.clone()
    noisy[2] = math.nan
    write_modality(tmp_path / "a", "visual", FEATURES, PRESENT, {"seed": 1})
    write_modality(tmp_path / "b", "visual", noisy.numpy(), PRESENT.numpy(), {"seed": 1})
    for name in ("visual.safetensors", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert noisy[2].isnan().all(), "the caller's features were changed"


def test_others_may_read_what_was_written(tmp_path):
    path = write_modality(tmp_path, "visual", FEATURES, None, {})
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Visual.v2"}, "'Visual.v2' cannot name features"),
        ({"features": FEATURES[0]}, "they need two"),
        ({"features": FEATURES.int()}, "convert them to float16 or float32"),
        ({"features": FEATURES / 0}, r"NaN or infinity in 3 present row\(s\) \(0, 1, 3\)"),
        ({"present": PRESENT[:3]}, r"shape \[3\] for 4 rows"),
        ({"provenance": {"when": object()}}, "provenance cannot be stored"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(tmp_path, changes, message):
    arguments = {"name": "visual", "features": FEATURES, "present": PRESENT, "provenance": {}, **changes}
    with pytest.raises(BundleMLLMError, match=message):
        write_modality(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []
