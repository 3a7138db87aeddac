"""What encoders fitted is kept in plain files, describes new items, and is fitted anew when it no longer does."""

import json
import shutil
from errno import ENOSPC
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle_mllm.data import BundleSplits, DatasetFolder, ItemCatalog, write_records
from bundle_mllm.encoders import SoundDescriptor, TfidfEncoder, encode_folder
from bundle_mllm.encoders.fitted import copy_encoders, read_encoder, read_encoders, save_encoder
from bundle_mllm.errors import BundleMLLMError

CPU = torch.device("cpu")
TITLES = [f"{color} {kind}" for color in ("red", "green", "blue") for kind in ("shirt", "shoe", "bag", "hat")]


@pytest.fixture
def folder(tmp_path):
    write_items(tmp_path, TITLES)
    write_records(tmp_path / "bundles.jsonl", [{"bundle_id": "b", "items": ["0", "1"], "split": "train"}])
    return tmp_path


def write_items(folder, titles):
    write_records(folder / "items.jsonl", [{"item_id": str(n), "title": title} for n, title in enumerate(titles)])


def features(folder):
    values, present = DatasetFolder.open(folder).features(["textual"]).load()
    return values["textual"].numpy(), present["textual"].numpy()


def items(folder, titles):
    records = [{"item_id": str(n), "title": title} for n, title in enumerate(titles)]
    return DatasetFolder(folder, ItemCatalog.from_records(records), BundleSplits())


def test_a_kept_encoder_describes_texts_as_the_fitted_one_did(folder):
    encode_folder(folder, textual="tfidf")
    encoder = read_encoder(folder / "features" / "encoders", "textual").make(CPU)
    again = encoder.encode(items(folder, ["blue hat", "unheard words", "red unheard hat", "red shirt"]))
    expected, _ = features(folder)
    assert again.present.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(again.features[[0, 3]], expected[[11, 0]])
    assert not again.features[1].any()


def test_new_items_change_no_row_of_the_others(folder):
    encode_folder(folder, textual="tfidf")
    before, _ = features(folder)
    write_items(folder, ["blue shirt hat", *TITLES])
    encode_folder(folder, textual="tfidf")
    after, present = features(folder)
    np.testing.assert_array_equal(after[1:], before)
    assert present[0]


def test_the_vocabulary_is_fitted_anew_when_asked_for_or_when_it_knows_too_few_words(folder):
    def vocabulary():
        return json.loads((folder / "features/encoders/textual.json").read_text())["fitted"]["vocabulary"]

    encode_folder(folder, textual="tfidf")
    old = vocabulary()
    write_items(folder, [*TITLES, "violet hat", "violet bag"])  # 2 of 28 words are unknown
    encode_folder(folder, textual="tfidf", refit=True)
    assert set(vocabulary()) - set(old) == {"violet"}
    write_items(folder, [*TITLES, "violet hat", "violet bag", "green hat with a red band", "blue bag with a band"])
    encode_folder(folder, textual="tfidf")
    assert "band" in vocabulary()


def test_features_without_a_record_of_what_was_fitted_are_made_again(folder):
    encode_folder(folder, textual="tfidf")
    assert encode_folder(folder, textual="tfidf")["textual"].up_to_date
    (folder / "features/encoders/textual.json").unlink()
    assert not encode_folder(folder, textual="tfidf")["textual"].up_to_date
    assert encode_folder(folder, textual="tfidf")["textual"].up_to_date


def test_records_are_copied_by_modality_and_hold_no_pickle(folder, tmp_path):
    encode_folder(folder, textual="tfidf", relational="bundle_item:svd")
    assert set(read_encoders(folder / "features" / "encoders")) == {"textual", "bundle_item"}
    copy_encoders(folder / "features" / "encoders", tmp_path / "copy", {"textual": 128, "visual": 256})
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["textual.json", "textual.safetensors"]
    assert read_encoders(tmp_path / "nowhere") == {}


def test_a_record_that_cannot_be_copied_whole_leaves_the_one_that_was_there(folder, tmp_path, monkeypatch):
    def stop_halfway(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:10])
        raise OSError(ENOSPC, "No space left on device")

    encode_folder(folder, textual="tfidf")
    copy_encoders(folder / "features" / "encoders", tmp_path / "copy", ["textual"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    monkeypatch.setattr(shutil, "copyfile", stop_halfway)
    with pytest.raises(OSError, match="No space"):
        copy_encoders(folder / "features" / "encoders", tmp_path / "copy", ["textual"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == before


def test_an_encoder_that_is_passed_as_an_object_is_not_kept(folder):
    encode_folder(folder, textual="tfidf")
    encode_folder(folder, textual=TfidfEncoder(dim=4))
    assert read_encoders(folder / "features" / "encoders") == {}


def test_a_damaged_or_foreign_record_is_an_error_in_one_line(tmp_path):
    save_encoder(tmp_path, SoundDescriptor(), "descriptor")
    path = tmp_path / "acoustic.json"
    path.write_text(path.read_text().replace("sound-descriptor-1", "sound-descriptor-0"))
    with pytest.raises(BundleMLLMError, match="in another version than the 'sound-descriptor-0' that made the feat"):
        read_encoder(tmp_path, "acoustic").make(CPU)
    path.write_text("{}")
    with pytest.raises(BundleMLLMError, match=r"acoustic\.json does not describe an encoder \(encoder is None\)"):
        read_encoder(tmp_path, "acoustic")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": -1}, "spec is -1"),
        ({"encoder": ["tfidf-2"]}, "encoder is .'tfidf-2'."),
        ({"arrays_sha256": 7}, "arrays_sha256 is 7"),
        ({"fitted": [1]}, "fitted is .1."),
        ({"fitted": None}, "what it fitted was changed"),
        ({"fitted": {"vocabulary": [["red"]], "known_words": 1, "words": 1}}, "what it fitted was changed"),
    ],
)
def test_a_record_with_values_of_other_types_is_refused(folder, changes, message):
    encode_folder(folder, textual="tfidf")
    path = folder / "features/encoders/textual.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(BundleMLLMError, match=rf"textual.json does not describe an encoder \({message}"):
        read_encoder(path.parent, "textual")


def test_a_record_of_an_earlier_version_without_a_digest_of_its_values_is_read(folder):
    encode_folder(folder, textual="tfidf")
    path = folder / "features/encoders/textual.json"
    values = json.loads(path.read_text())
    del values["values_sha256"]
    path.write_text(json.dumps(values))
    kept = read_encoder(path.parent, "textual")
    assert kept is not None and kept.fitted is not None and kept.fitted.values == values["fitted"]


def test_arrays_of_another_encoding_are_refused(folder):
    encode_folder(folder, textual="tfidf")
    with open(folder / "features/encoders/textual.safetensors", "ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleMLLMError, match=r"textual\.safetensors is of another encoding"):
        encode_folder(folder, textual="tfidf")
