"""New items are encoded by what the model folder keeps, or it is said in one line why not."""

import pytest
from PIL import Image

from bundle_mllm.completion import new_items
from bundle_mllm.completion.new_items import NewItemEncoder, find_item_encoder
from bundle_mllm.errors import BundleMLLMError


@pytest.fixture
def encoder(retriever_once):
    return find_item_encoder(str(retriever_once))


def test_an_item_has_features_of_what_it_has_and_no_others(encoder, tmp_path, monkeypatch):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "hat.png")
    monkeypatch.chdir(tmp_path)
    named, pictured, unknown = encoder.encode_items(
        [{"title": "red hat", "item_id": "n"}, {"image": "hat.png"}, {"title": "unheard"}]
    )
    assert set(named["features"]) == {"textual"} and (named["item_id"], named["title"]) == ("n", "red hat")
    assert set(pictured["features"]) == {"visual"} and len(pictured["features"]["visual"]) == 256
    assert unknown == {"title": "unheard", "features": {}} and not unknown.groups["textual"]
    assert len(named.groups["textual"]) == 2 and named.of_category is None


def test_an_item_of_a_category_knows_an_item_of_it(encoder):
    [entry] = encoder.encode_items([{"title": "x", "category": "hat"}])
    assert entry.of_category == "red-hat"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image": "gone.png"}, r"gone\.png of the item 'new item 1' cannot be used \(no such file\)"),
        (
            {"image": "https://example.org/x.png"},
            r"x\.png of .* cannot be used \(a web address, which is not fetched\)",
        ),
        ({"title": "x", "colour": "red"}, r"Item 'x' has \['colour'\], which no encoder of .* reads"),
        ({"item_id": "x"}, r"has nothing but an id, so nothing would be known about it"),
        ({"title": ["x"]}, r"row 1 has a list as `title`"),
    ],
)
def test_what_cannot_be_read_is_one_line(encoder, entry, message):
    with pytest.raises(BundleMLLMError, match=message):
        encoder.encode_items([entry])


def test_a_repository_is_read_with_all_that_names_its_files(retriever_once, monkeypatch):
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(retriever_once.parent)

    monkeypatch.setattr(new_items, "snapshot_download", download)
    files = {"token": "t", "cache_dir": "c", "local_files_only": True, "revision": "main"}
    found = find_item_encoder("acme/bundles", subfolder=retriever_once.name, proxies={"https": "p"}, **files)
    patterns = ["model/encoders/*", "model/group_names.json"]
    assert asked == [("acme/bundles", {"allow_patterns": patterns, **files})]
    assert found.folder == retriever_once and found.kept


def test_encoders_that_cannot_be_downloaded_are_one_line(monkeypatch):
    def download(name, **options):
        raise OSError("no such\nrevision.")

    monkeypatch.setattr(new_items, "snapshot_download", download)
    with pytest.raises(BundleMLLMError, match=r"encoders of acme/bundles cannot be loaded \(no such revision\)"):
        find_item_encoder("acme/bundles")


def test_a_folder_without_encoders_has_no_encoder(tmp_path):
    assert find_item_encoder(str(tmp_path)) is None
    assert NewItemEncoder(tmp_path).read_columns == ("title", "description", "category")
