"""A folder that is encoded again after changes encodes what is new, and ends with the bytes of a fresh encoding."""

import shutil

import pytest
from PIL import Image

from bundle_mllm.data import write_records
from bundle_mllm.encoders import ImageDescriptor, encode_folder


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    for number in range(40):
        Image.new("RGB", (8, 8), (6 * number, 99, 255 - 6 * number)).save(path / f"{number}.png")
    (path / "7.png").write_bytes(b"broken")
    write_items(path, range(30))
    write_records(path / "bundles.jsonl", [{"bundle_id": "b", "items": ["0", "1"], "split": "train"}])
    return path


@pytest.fixture
def read(monkeypatch):
    """The names of the pictures that are decoded."""
    names, original = [], ImageDescriptor.read

    def note(self, path):
        names.append(path.name)
        return original(self, path)

    monkeypatch.setattr(ImageDescriptor, "read", note)
    return names


def write_items(path, numbers):
    write_records(path / "items.jsonl", [{"item_id": f"{n}", "image": f"{n}.png"} for n in numbers])


def files(path):
    paths = [each for each in (path / "features").rglob("*") if each.is_file()]
    return {str(each.relative_to(path)): each.read_bytes() for each in paths}


def test_ten_new_items_encode_ten_pictures(folder, read, tmp_path):
    encode_folder(folder, visual="descriptor")
    read.clear()
    write_items(folder, [*range(30, 40), *range(29, -1, -1)])  # in another order, too
    summary = encode_folder(folder, visual="descriptor")["visual"]
    assert sorted(read) == sorted([f"{n}.png" for n in range(30, 40)] + ["7.png"])  # what failed is tried again
    assert (summary.num_taken, summary.num_present) == (29, 39)
    assert "39 of 40 items" in str(summary) and "29 of them as before" in str(summary)
    shutil.copytree(folder, tmp_path / "fresh", ignore=shutil.ignore_patterns("features"))
    encode_folder(tmp_path / "fresh", visual="descriptor")
    assert files(folder) == files(tmp_path / "fresh")


def test_a_changed_picture_is_encoded_and_the_others_are_not(folder, read):
    encode_folder(folder, visual="descriptor")
    Image.new("RGB", (8, 8), "white").save(folder / "3.png")
    read.clear()
    assert encode_folder(folder, visual="descriptor")["visual"].num_taken == 28
    assert sorted(read) == ["3.png", "7.png"]


def test_without_the_digests_of_these_features_all_are_encoded(folder, read):
    encode_folder(folder, visual="descriptor")
    digests = folder / "features" / ".sources" / "visual.safetensors"
    for spoil in (digests.unlink, lambda: digests.write_bytes(b"damaged")):
        Image.effect_noise((8, 8), 90).save(folder / "3.png")
        read.clear()
        spoil()
        assert encode_folder(folder, visual="descriptor")["visual"].num_taken == 0
        assert len(read) == 30


def test_another_encoder_takes_nothing_over(folder, read, monkeypatch):
    encode_folder(folder, visual="descriptor")
    monkeypatch.setattr(ImageDescriptor, "name", "image-descriptor-2")
    read.clear()
    assert encode_folder(folder, visual="descriptor")["visual"].num_taken == 0
    assert len(read) == 30
