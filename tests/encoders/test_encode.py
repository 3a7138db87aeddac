"""Encoding a folder writes each modality that the folder has data of, row by row, and the issues by reason."""

import hashlib
import json
import os

import numpy as np
import pytest
import soundfile
import torch
from IPython.lib.pretty import pretty
from PIL import Image

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.data.features import write_modality
from bundle_mllm.encoders import Encoded, ImageDescriptor, TruncatedSVD, UserItemEncoder, encode_folder
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


def test_modalities_with_data_are_written_in_item_order_and_read_back(folder):
    summaries = encode_folder(folder)
    assert list(summaries) == ["visual", "textual", "user_item"]
    store = DatasetFolder.open(folder).features()
    assert store.modalities == {"textual": summaries["textual"].dim, "user_item": 65, "visual": 256}
    features, present = store.load()
    for row, color in enumerate(COLORS):
        alone = ImageDescriptor().describe(folder / "images" / f"{color}.png")
        np.testing.assert_array_equal(features["visual"][row].numpy(), alone)
    assert present["user_item"].tolist() == [True, True, False, False]
    assert (summaries["user_item"].num_present, summaries["user_item"].num_items) == (2, 4)


def test_sounds_are_encoded_where_items_name_them(folder):
    soundfile.write(folder / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    write_records(folder / "items.jsonl", [{"item_id": "0", "audio": "a.wav"}, {"item_id": "1"}])
    summary = encode_folder(folder, acoustic="descriptor")["acoustic"]
    assert (summary.dim, summary.num_present, summary.issues) == (128, 1, ())


def test_a_changed_bundle_is_noticed_where_each_split_has_its_table(folder):
    def encode(items):
        write_records(folder / "bundles" / "train.jsonl", [{"bundle_id": "b", "items": items, "split": "train"}])
        return encode_folder(folder, relational="bundle_item:svd")["bundle_item"]

    (folder / "bundles.jsonl").unlink()
    assert encode(["0", "1"]).num_present == 2
    assert encode(["0", "1"]).up_to_date
    assert encode(["0", "1", "2"]).num_present == 3


def test_encoding_twice_gives_the_same_bytes(folder):
    def digests():
        files = [path for path in (folder / "features").rglob("*") if path.is_file()]
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if "." not in path.parts[-2]
        }

    encode_folder(folder)
    first = digests()
    encode_folder(folder)
    assert digests() == first
    made = {f"{name}{suffix}" for name in ("visual", "textual", "user_item") for suffix in (".safetensors", ".json")}
    assert set(first) == made | {"manifest.json"}


def test_bad_files_are_absent_and_issues_and_shift_no_row(folder, tmp_path):
    Image.new("RGB", (20, 20), "black").save(tmp_path / "outside.png")
    (folder / "images" / "empty.png").write_bytes(b"")
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    os.symlink(tmp_path / "outside.png", folder / "images" / "link.png")
    reasons = {
        "the path leaves the dataset folder": ["../outside.png", str(tmp_path / "outside.png"), "images/link.png"],
        "no such file": ["images/gone.png", "images"],
        "not a path that can be followed": ["a" * 5000, "images/\0.png"],
        "a damaged picture": ["images/broken.png"],
        "the file is empty": ["images/empty.png"],
    }
    bad = [path for paths in reasons.values() for path in paths]
    write_items(folder, ["images/red.png", *bad, None, "images/blue.png"])
    summary = encode_folder(folder, visual="descriptor")["visual"]
    features, present = DatasetFolder.open(folder).features(["visual"]).load()
    last = len(bad) + 2
    assert present["visual"].nonzero().ravel().tolist() == [0, last]
    blue = ImageDescriptor().describe(folder / "images" / "blue.png")
    np.testing.assert_array_equal(features["visual"][last].numpy(), blue)
    assert torch.count_nonzero(features["visual"][1:last]) == 0
    # The item without a picture is absent, and that is no issue.
    assert {group.reason: list(group.first) for group in summary.issues} == reasons
    assert [group.count for group in summary.issues] == [3, 2, 2, 1, 1]
    assert not any(group.used for group in summary.issues)


def test_the_summary_reads_as_a_count_with_reasons_and_first_paths(folder):
    write_items(folder, ["images/red.png", *(f"gone{number}.png" for number in range(5))])
    summary = encode_folder(folder, visual="descriptor")
    assert str(summary) == pretty(summary)  # as a notebook shows it
    assert str(summary).splitlines() == [
        "visual: 1 of 6 items, 256 wide (image-descriptor-1)",
        "  5 left out, no such file: gone0.png, gone1.png, gone2.png, …",
    ]


def test_several_relations_are_named_with_commas(folder):
    summaries = encode_folder(folder, relational="bundle_item:svd, user_item:svd")
    assert {name: summary.num_present for name, summary in summaries.items()} == {"bundle_item": 2, "user_item": 2}


def test_an_encoder_of_ones_own_is_given_in_place_of_a_name_and_may_make_a_new_modality(folder):
    class Letters:
        name, modality, dim = "letters-1", "letters", 2

        def encode(self, folder, progress=None):
            return Encoded(np.ones((len(folder.catalog), 2), np.float32), np.ones(len(folder.catalog), bool))

    summaries = encode_folder(folder, visual="descriptor", relational=[UserItemEncoder(TruncatedSVD(7)), Letters()])
    assert {name: summary.dim for name, summary in summaries.items()} == {"visual": 256, "user_item": 8, "letters": 2}
    assert DatasetFolder.open(folder).features().modalities == {"letters": 2, "user_item": 8, "visual": 256}


def test_features_that_no_default_encoder_makes_are_kept_and_named(folder):
    write_modality(
        folder / "features", "mine", np.ones((4, 2), np.float32), None, {"encoder": "mine-1"}, items_hash="other"
    )
    write_modality(folder / "features", "acoustic", np.ones((4, 2), np.float32), None, {})
    lines = str(encode_folder(folder)).splitlines()
    others = ", and no default encoder makes it of this folder"
    assert f"acoustic: kept acoustic.safetensors, made by another program{others}" in lines
    [mine] = [line for line in lines if line.startswith("mine: ")]
    assert mine.startswith(f"mine: kept mine.safetensors, made by mine-1{others}; it was written for other items")
    assert "mine" not in encode_folder(folder, visual="descriptor")


def test_progress_counts_the_items_of_each_modality(folder):
    write_items(folder, [f"images/{color}.png" for color in COLORS] + [None])
    calls = []
    encode_folder(
        folder,
        visual="descriptor",
        relational="user_item:svd",
        batch_size=3,
        progress=lambda *call: calls.append(call),
    )
    assert calls == [("visual", 4, 5), ("visual", 5, 5), ("user_item", 5, 5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"relational": "smell:svd"}, r"No encoder makes the modality 'smell': choose from visual, acoustic, textual"),
        ({"visual": "clip"}, r"no visual encoder 'clip': choose from descriptor, open_clip:MODEL \(such as ViT-B-32/"),
        ({"acoustic": "clap"}, r"no acoustic encoder 'clap': choose from descriptor, clap:MODEL \(such as laion/"),
        ({"textual": "tfidf:big"}, "no textual encoder 'tfidf:big': choose from tfidf, transformers:MODEL"),
        ({"relational": "user_item"}, "no user_item encoder '': choose from svd, lightgcn"),
        ({"relational": "bundle_item:foo"}, "no bundle_item encoder 'foo': choose from svd, lightgcn"),
        ({"relational": "user_item:svd,user_item:svd"}, "Two encoders make the modality 'user_item'"),
        ({"batch_size": 0}, "batch_size is 0: give at least 1"),
        ({"workers": -1}, "workers is -1: give at least 0"),
        ({"engine": "spark"}, "engine must be one of 'local', 'ray', not 'spark'"),
        ({"device": "warp"}, "There is no device 'warp'"),
    ],
)
def test_a_wrong_argument_is_named_with_the_right_ones_and_nothing_is_written(folder, arguments, message):
    with pytest.raises(BundleMLLMError, match=message):
        encode_folder(folder, **{"visual": "descriptor", **arguments})
    assert not (folder / "features").exists()


def test_a_modality_that_no_item_has_is_written_and_reported_as_empty(folder):
    assert str(encode_folder(folder, acoustic="descriptor")["acoustic"]).endswith("so this modality is empty")


def test_features_cannot_be_a_file(folder):
    (folder / "features").write_text("oops")
    with pytest.raises(BundleMLLMError, match="features is not a folder"):
        encode_folder(folder, textual="tfidf")


def test_a_folder_with_nothing_to_encode_is_refused(folder):
    (folder / "interactions.csv").unlink()
    write_records(folder / "items.jsonl", [{"item_id": "0"}, {"item_id": "1"}])
    with pytest.raises(BundleMLLMError, match="has nothing to encode"):
        encode_folder(folder)


def test_strict_refuses_features_with_issues_and_keeps_finished_work(folder):
    write_items(folder, ["images/red.png", "gone.png"])
    with pytest.raises(BundleMLLMError, match=r"visual: 1 left out, no such file: gone\.png\. `strict` allows none"):
        encode_folder(folder, visual="descriptor", strict=True)
    assert not (folder / "features" / "visual.safetensors").exists()
    encode_folder(folder, visual="descriptor")
    with pytest.raises(BundleMLLMError, match="1 left out, no such file"):
        encode_folder(folder, visual="descriptor", strict=True)  # though the features exist
    Image.new("RGB", (20, 20), "black").save(folder / "gone.png")
    assert encode_folder(folder, visual="descriptor", strict=True)["visual"].num_present == 2


def test_a_user_log_with_unknown_items_is_an_issue_and_strict_refuses_it(folder):
    write_records(
        folder / "interactions.csv", [{"user_id": "u", "item_id": item} for item in ("0", "x", "y", "x", "z", "w")]
    )
    (group,) = encode_folder(folder, relational="user_item:svd")["user_item"].issues
    assert str(group) == "5 left out, records of the user log that name 4 items which the catalog lacks: x, y, z, …"
    with pytest.raises(BundleMLLMError, match="5 left out, records of the user log"):
        encode_folder(folder, relational="user_item:svd", strict=True)


def test_features_stay_until_a_file_the_items_or_the_encoder_change(folder, monkeypatch):
    write_items(folder, [f"images/{color}.png" for color in COLORS] + ["gone.png"])

    def encode(**arguments):
        before = (folder / "features" / "visual.safetensors").stat().st_mtime_ns
        summary = encode_folder(folder, **{"visual": "descriptor", **arguments})["visual"]
        assert summary.up_to_date == ((folder / "features" / "visual.safetensors").stat().st_mtime_ns == before)
        return summary

    first = encode_folder(folder, visual="descriptor")["visual"]
    again = encode()
    assert again.up_to_date
    assert str(again).splitlines()[0].endswith("(image-descriptor-1), up to date")
    assert (again.issues, again.num_present) == (first.issues, first.num_present)
    picture = folder / "images" / "red.png"
    stat = picture.stat()
    Image.new("RGB", (20, 20), "pink").save(picture)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not encode().up_to_date  # a replaced picture, whatever its time stamp
    assert encode().up_to_date
    os.utime(picture)
    assert encode().up_to_date  # the same picture, copied
    Image.new("RGB", (20, 20), "gray").save(folder / "gone.png")
    assert encode().num_present == 5
    write_items(folder, [None] + [f"images/{color}.png" for color in COLORS])
    assert not encode().up_to_date  # the same pictures, of other items
    monkeypatch.setattr(ImageDescriptor, "name", "image-descriptor-2")
    assert not encode().up_to_date
    with open(folder / "features" / "visual.safetensors", "ab") as stream:
        stream.write(b"damage")
    assert not encode().up_to_date
    monkeypatch.undo()


def test_features_of_items_that_have_changed_are_refused_with_the_fix(folder):
    encode_folder(folder, visual="descriptor")
    write_records(folder / "items.jsonl", [{"item_id": str(row), "title": "new"} for row in range(4)])
    with pytest.raises(BundleMLLMError, match=r"encode 'visual' again \(bundle-mllm encode\)"):
        DatasetFolder.open(folder).features()
    encode_folder(folder, visual="descriptor")
    assert not DatasetFolder.open(folder).features().load()[1]["visual"].any()  # the new items have no pictures


def test_new_titles_make_pictures_stale_until_encode_has_compared_them(folder):
    encode_folder(folder, visual="descriptor")
    images = [f"images/{color}.png" for color in COLORS]
    records = [{"item_id": str(row), "title": "new", "image": image} for row, image in enumerate(images)]
    write_records(folder / "items.jsonl", records)
    with pytest.raises(BundleMLLMError, match="was written for other items"):
        DatasetFolder.open(folder).features()
    assert encode_folder(folder, visual="descriptor")["visual"].up_to_date
    assert DatasetFolder.open(folder).features().load()[1]["visual"].all()


def test_features_under_another_name_stop_the_run_before_it_starts(folder):
    write_modality(folder / "features", "visual_clip", np.ones((4, 2), np.float32), None, {})
    with pytest.raises(BundleMLLMError, match=r"visual_clip\.safetensors already holds modality 'visual'"):
        encode_folder(folder, visual="descriptor", progress=lambda *_: pytest.fail("it started"))


def test_the_manifest_records_encoder_counts_and_hashes(folder):
    write_items(folder, ["images/red.png", "gone.png"])
    encode_folder(folder, visual="descriptor")
    entry = json.loads((folder / "features" / "manifest.json").read_text())["visual"]
    assert (entry["num_items"], entry["num_present"]) == (2, 1)
    provenance = entry["provenance"]
    assert provenance["encoder"] == "image-descriptor-1"
    assert provenance["issues"] == [{"reason": "no such file", "used": False, "count": 1, "first": ["gone.png"]}]
    assert len(provenance["sources_sha256"]) == 64


def test_worker_processes_and_batches_change_no_byte_of_the_descriptors(folder):
    made = {}
    for arguments in ({"workers": 0}, {"workers": 2, "batch_size": 1}):
        encode_folder(folder, visual="descriptor", **arguments)
        made[str(arguments)] = (folder / "features" / "visual.safetensors").read_bytes()
        (folder / "features" / "visual.safetensors").unlink()
    assert len(set(made.values())) == 1
    assert not (folder / "features" / ".partial").exists()


def test_an_unexpected_error_in_one_file_does_not_stop_the_others(folder, monkeypatch):
    read = ImageDescriptor.read

    def fail_on_red(self, path):
        if path.name == "red.png":
            raise ZeroDivisionError
        return read(self, path)

    monkeypatch.setattr(ImageDescriptor, "read", fail_on_red)
    summary = encode_folder(folder, visual="descriptor")["visual"]
    assert summary.num_present == 3
    assert str(summary.issues[0]) == "1 left out, cannot be read (ZeroDivisionError): images/red.png"
