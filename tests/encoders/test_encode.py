"""Encoding a folder writes what the folder offers, row by row, and reports what it left out."""

import hashlib
import os

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.encoders import Encoded, ImageDescriptor, UserItemSVD, encode_folder
from bundle_mllm.errors import BundleMLLMError

COLORS = ("red", "green", "blue", "white")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    (path / "images").mkdir(parents=True)
    for color in COLORS:
        Image.new("RGB", (20, 20), color).save(path / "images" / f"{color}.png")
    write_items(path, [f"images/{color}.png" for color in COLORS])
    write_records(path / "bundles.jsonl", [{"bundle_id": "b", "items": ["0", "1"], "split": "train"}])
    write_records(path / "interactions.csv", [{"user_id": "u", "item_id": "0"}, {"user_id": "u", "item_id": "1"}])
    return path


def write_items(path, images):
    records = [{"item_id": str(row), "title": f"item {row}", "image": image} for row, image in enumerate(images)]
    write_records(path / "items.jsonl", records)


def test_what_the_folder_offers_is_written_in_item_order_and_read_back(folder):
    summaries = encode_folder(folder)
    assert list(summaries) == ["visual", "user_item"]
    store = DatasetFolder.open(folder).features()
    assert store.modalities == {"user_item": 64, "visual": 256}
    features, present = store.load()
    for row, color in enumerate(COLORS):
        alone = ImageDescriptor().describe(folder / "images" / f"{color}.png")
        np.testing.assert_array_equal(features["visual"][row].numpy(), alone)
    assert present["user_item"].tolist() == [True, True, False, False]
    assert (summaries["user_item"].num_present, summaries["user_item"].num_items) == (2, 4)


def test_sounds_are_encoded_where_items_name_them(folder):
    soundfile.write(folder / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    write_records(folder / "items.jsonl", [{"item_id": "0", "audio": "a.wav"}, {"item_id": "1"}])
    summary = encode_folder(folder, modalities=["acoustic"])["acoustic"]
    assert (summary.dim, summary.num_present, summary.problems) == (128, 1, ())


def test_encoding_twice_gives_the_same_bytes(folder):
    def digests():
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "features").iterdir()}

    encode_folder(folder)
    first = digests()
    encode_folder(folder)
    assert digests() == first
    assert set(first) == {"visual.safetensors", "user_item.safetensors", "manifest.json"}


def test_bad_files_are_masked_and_reported_and_shift_no_row(folder, tmp_path):
    Image.new("RGB", (20, 20), "black").save(tmp_path / "outside.png")
    (folder / "images" / "empty.png").write_bytes(b"")
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    os.symlink(tmp_path / "outside.png", folder / "images" / "link.png")
    reasons = {
        "images/gone.png": "no such file",
        "images": "no such file",
        "images/empty.png": "the file is empty",
        "images/broken.png": "picture",
        "../outside.png": "the path leaves the dataset folder",
        str(tmp_path / "outside.png"): "the path leaves the dataset folder",
        "images/link.png": "the path leaves the dataset folder",
        "a" * 5000: "not a path that can be followed",
        "images/\0.png": "not a path that can be followed",
    }
    write_items(folder, ["images/red.png", *reasons, None, "images/blue.png"])
    summary = encode_folder(folder, modalities=["visual"])["visual"]
    features, present = DatasetFolder.open(folder).features(["visual"]).load()
    last = len(reasons) + 2
    assert present["visual"].nonzero().ravel().tolist() == [0, last]
    blue = ImageDescriptor().describe(folder / "images" / "blue.png")
    np.testing.assert_array_equal(features["visual"][last].numpy(), blue)
    assert torch.count_nonzero(features["visual"][1:last]) == 0
    # The item without a picture is absent, and that is no problem.
    assert [problem.path for problem in summary.problems] == list(reasons)
    assert [problem.item_id for problem in summary.problems] == [str(row) for row in range(1, len(reasons) + 1)]
    for problem in summary.problems:
        assert reasons[problem.path] in problem.reason


def test_the_summary_reads_as_a_count_with_reasons_and_first_paths(folder):
    write_items(folder, ["images/red.png", *(f"gone{number}.png" for number in range(5))])
    text = str(encode_folder(folder, modalities=["visual"])["visual"])
    assert text.splitlines() == [
        "visual: 1 of 6 items, 256 wide (image-descriptor-1)",
        "  5 left out, no such file: gone0.png, gone1.png, gone2.png, …",
    ]


def test_bundle_membership_is_encoded_only_when_it_is_named(folder):
    assert "bundle_item" not in encode_folder(folder)
    assert encode_folder(folder, modalities=["bundle_item"])["bundle_item"].num_present == 2


def test_an_encoder_of_ones_own_takes_the_place_of_the_standard_one_or_joins_it(folder):
    class Letters:
        name, modality, dim = "letters-1", "letters", 2

        def encode(self, folder, progress=None):
            return Encoded(np.ones((len(folder.catalog), 2), np.float32), np.ones(len(folder.catalog), bool))

    summaries = encode_folder(folder, encoders={"user_item": UserItemSVD(dim=8), "letters": Letters()})
    assert {name: summary.dim for name, summary in summaries.items()} == {"visual": 256, "user_item": 8, "letters": 2}
    assert DatasetFolder.open(folder).features().modalities == {"letters": 2, "user_item": 8, "visual": 256}


def test_progress_counts_the_items_of_each_modality(folder):
    calls = []
    encode_folder(folder, progress=lambda *call: calls.append(call))
    assert calls == [*(("visual", done, 4) for done in range(1, 5)), ("user_item", 4, 4)]


def test_an_unknown_modality_is_named_with_the_known_ones_and_nothing_is_written(folder):
    with pytest.raises(BundleMLLMError, match=r"'smell'.*visual, acoustic, user_item, bundle_item"):
        encode_folder(folder, modalities=["visual", "smell"])
    assert not (folder / "features").exists()


def test_a_folder_that_offers_nothing_says_what_to_add(folder):
    (folder / "interactions.csv").unlink()
    write_items(folder, [None, None])
    with pytest.raises(BundleMLLMError, match="offers nothing to encode"):
        encode_folder(folder)
