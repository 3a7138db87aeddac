"""Without a request all modalities with data are encoded, and features of other origin are never replaced."""

import dataclasses

import numpy as np
import pytest
from safetensors.torch import save_file
from torch import ones

from bundle_mllm.data import DatasetFolder, features, write_records
from bundle_mllm.data.features import write_modality
from bundle_mllm.encoders import ImageDescriptor, encode_folder
from bundle_mllm.encoders.encode import MARK
from bundle_mllm.encoders.registry import DEFAULTS, ENCODERS, available, requested
from bundle_mllm.encoders.settings import EncoderOptions
from bundle_mllm.errors import BundleMLLMError


def folder_of(path, item, num_bundles=0, users=()):
    write_records(path / "items.jsonl", [{"item_id": str(row), **item} for row in range(4)])
    bundles = [{"bundle_id": f"b{n}", "items": ["0", str(1 + n % 3)], "split": "train"} for n in range(num_bundles)]
    write_records(path / "bundles.jsonl", bundles or [{"bundle_id": "b", "items": ["0", "1"], "split": "test"}])
    if users:
        write_records(path / "interactions.csv", [{"user_id": user, "item_id": "0"} for user in users])
    return DatasetFolder.open(path)


def test_each_default_is_an_encoder_that_needs_no_model_and_has_an_option():
    for modality, (name, _) in DEFAULTS.items():
        assert ENCODERS[modality][name].example is None
    options = {field.name for field in dataclasses.fields(EncoderOptions)}
    assert ENCODERS.keys() - {"user_item", "bundle_item"} == options - {"relational"}
    for modality in options - {"relational"}:
        assert requested(EncoderOptions(**{modality: "x"})) == [(modality, "x")]


@pytest.mark.parametrize(
    ("item", "num_bundles", "users", "expected"),
    [
        ({"title": "thing"}, 0, (), [("textual", "tfidf")]),
        ({"description": "blue"}, 9, (), [("textual", "tfidf")]),
        ({"image": "a.png", "audio": "a.wav"}, 0, (), [("visual", "descriptor"), ("acoustic", "descriptor")]),
        ({}, 10, ("u",), [("user_item", "lightgcn"), ("bundle_item", "svd")]),
    ],
)
def test_each_modality_that_a_folder_has_data_of_is_encoded(tmp_path, item, num_bundles, users, expected):
    assert available(folder_of(tmp_path, item, num_bundles, users)) == expected


BOTH = (
    ["user_item:svd", "bundle_item:lightgcn"],
    "user_item:svd, bundle_item:lightgcn",
    ["user_item:svd,bundle_item:lightgcn"],
)


@pytest.mark.parametrize("relational", BOTH)
def test_only_requested_modalities_are_encoded(relational):
    expected = [("visual", "descriptor"), ("user_item", "svd"), ("bundle_item", "lightgcn")]
    assert requested(EncoderOptions(visual="descriptor", relational=relational)) == expected
    assert requested(EncoderOptions(relational=())) == []


def test_features_from_elsewhere_are_kept_without_a_choice_and_never_replaced(tmp_path):
    folder = folder_of(tmp_path, {"title": "thing", "image": "a.png"})
    path = tmp_path / "features" / "visual_clip.safetensors"
    path.parent.mkdir()
    save_file({"features": ones(4, 2)}, path)
    before = path.read_bytes()
    summaries = encode_folder(folder.path)
    assert str(summaries["visual"]) == (
        "visual: kept visual_clip.safetensors, not made by the default encoder (name an encoder to make others)"
    )
    assert summaries["textual"].num_present == 4
    with pytest.raises(BundleMLLMError, match=r"visual_clip\.safetensors already holds modality 'visual'"):
        encode_folder(folder.path, visual="descriptor")
    assert path.read_bytes() == before


@pytest.mark.parametrize("write", [lambda path: save_file({"features": ones(4, 2)}, path), None])
def test_a_file_of_the_very_name_is_no_less_safe(tmp_path, write):
    folder = folder_of(tmp_path, {"image": "a.png"})
    path = tmp_path / "features" / "visual.safetensors"
    encode_folder(folder.path)  # the manifest has an entry
    if write is None:
        write_modality(path.parent, "visual", np.ones((4, 2), np.float32), None, {"encoder": "my own"})
    else:
        write(path)
    before = path.read_bytes()
    assert encode_folder(folder.path)["visual"].kept == "visual.safetensors"
    with pytest.raises(BundleMLLMError, match=r"was not made by `encode`, which would replace it: delete it or move"):
        encode_folder(folder.path, visual="descriptor")
    assert path.read_bytes() == before


def test_features_of_a_named_encoder_are_kept_when_none_is_named(tmp_path):
    folder = folder_of(tmp_path, {"image": "a.png"})
    encoder = ImageDescriptor()
    encoder.name = "better"
    encode_folder(folder.path, visual=encoder)
    assert encode_folder(folder.path)["visual"].kept == "visual.safetensors"
    assert encode_folder(folder.path, visual="descriptor")["visual"].encoder == "image-descriptor-1"  # requested
    assert encode_folder(folder.path)["visual"].up_to_date


def test_features_of_a_run_killed_before_the_manifest_was_written_may_be_replaced(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, {"image": "a.png"})

    class KilledError(Exception):
        pass

    def kill(*_):
        raise KilledError

    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(features, "_write_manifest", kill)
        encode_folder(folder.path)
    assert (tmp_path / "features" / "visual.safetensors").exists()
    assert not (tmp_path / "features" / "manifest.json").exists()
    for arguments in ({}, {"visual": "descriptor"}):
        assert encode_folder(folder.path, **arguments)["visual"].kept is None


def test_features_that_encode_made_before_it_marked_them_are_its_own(tmp_path):
    folder = folder_of(tmp_path, {"image": "a.png"})
    encode_folder(folder.path)
    path = tmp_path / "features" / "visual.safetensors"
    assert MARK.encode() in path.read_bytes()
    entry = features.read_feature_manifest(path.parent)["visual"]
    write_modality(path.parent, "visual", np.ones((4, 256), np.float32), None, entry["provenance"])
    assert MARK.encode() not in path.read_bytes()
    assert encode_folder(folder.path, visual="descriptor")["visual"].kept is None


def test_the_error_for_a_folder_with_nothing_to_encode_names_the_choices(tmp_path):
    with pytest.raises(BundleMLLMError, match="fewer than 10 training bundles; add one of them"):
        available(folder_of(tmp_path, {}))
