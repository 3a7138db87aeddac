"""A made-up Polyvore Outfits folder becomes a dataset folder with its published questions."""

import json

import pytest

from bundle_mllm.data import DatasetFolder, load_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers import import_polyvore
from bundle_mllm.importers.polyvore import ITEMS

OUTFITS = {
    "train": {"1": ["a", "b", "c"], "2": ["d", "e"]},
    "valid": {"3": ["f", "g", "h"]},
    "test": {"4": ["i", "j", "k"], "5": ["a", "l", "m"]},
}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def source(tmp_path):
    """The folder nondisjoint, with metadata, titles and one picture above it."""
    top = tmp_path / "polyvore_outfits"
    for name, outfits in OUTFITS.items():
        entries = [
            {"set_id": outfit, "items": [{"item_id": item, "index": n} for n, item in enumerate(items, start=1)]}
            for outfit, items in outfits.items()
        ]
        write(top / "nondisjoint" / f"{name}.json", entries)
    items = [item for outfits in OUTFITS.values() for each in outfits.values() for item in each]
    metadata = {
        item: {"title": "", "url_name": f"red {item}", "description": "soft", "semantic_category": "tops"}
        for item in items
    }
    metadata["a"] = {"title": "A &amp; B", "url_name": "a b", "semantic_category": "bags", "category_id": "37"}
    metadata["z"] = {"title": "in no outfit"}
    del metadata["m"]
    write(top / ITEMS, metadata)
    write(
        top / "polyvore_outfit_titles.json", {"1": {"title": "Summer", "url_name": "summer"}, "2": {"url_name": "x"}}
    )
    questions = [
        {"question": ["4_1", "4_2"], "answers": ["5_2", "4_3", "5_3"], "blank_position": 3},
        {"question": ["5_2"], "answers": ["5_3", "9_1"], "blank_position": 1},
    ]
    write(top / "nondisjoint" / "fill_in_blank_test.json", questions)
    (top / "images").mkdir()
    for item in items:
        (top / "images" / f"{item}.jpg").write_bytes(b"\xff\xd8\xff" + item.encode())
    return top / "nondisjoint"


def test_outfits_become_bundles_in_their_published_splits(source, tmp_path):
    summary = import_polyvore(source, tmp_path / "data")
    folder = DatasetFolder.open(tmp_path / "data")
    assert {split: [b.items for b in folder.bundles[split]] for split in ("train", "validation", "test")} == {
        "train": [tuple("abc"), tuple("de")],
        "validation": [tuple("fgh")],
        "test": [tuple("ijk"), tuple("alm")],
    }
    item = folder.catalog[folder.catalog.rows(["a"])[0]]
    assert (item.title, item.category, item.extra["category_id"]) == ("A & B", "bags", "37")
    assert folder.catalog[1].title == "red b"
    assert (tmp_path / "data" / "images" / "a.jpg").read_bytes() == b"\xff\xd8\xffa"
    assert "z" not in folder.catalog and "m" in folder.catalog
    assert [bundle.name for bundle in folder.bundles.train] == ["Summer", "x"]
    assert any("without an entry" in what for what in summary.dropped)


def test_published_questions_are_kept_with_the_answer_of_the_same_outfit(source, tmp_path):
    summary = import_polyvore(source, tmp_path / "data")
    folder = DatasetFolder.open(tmp_path / "data")
    [question] = load_questions(tmp_path / "data" / "questions" / "test_fill_in_blank.jsonl", folder.catalog)
    assert (question.bundle_id, question.partial, question.candidates) == ("4", ("i", "j"), ("l", "k", "m"))
    assert question.answer == "k"
    assert summary.num_questions == {"questions/test_fill_in_blank.jsonl": 1}
    assert any("questions with unknown" in what for what in summary.dropped)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda s: (s / "train.json").unlink(), "holds no train.json"),
        (lambda s: (s.parent / ITEMS).unlink(), f"Neither .* nor the folder above it holds {ITEMS}"),
        (lambda s: (s / "valid.json").write_text("{"), "valid.json"),
        (lambda s: write(s / "valid.json", {}), "holds a dict, not a list"),
        (lambda s: write(s / "valid.json", [{"set_id": "1", "items": []}]), "repeats the outfit '1' of .*train.json"),
        (lambda s: write(s / "valid.json", [{"set_id": "7"}]), "entry 1 has no `set_id` or no list `items`"),
        (lambda s: write(s / "valid.json", [{"set_id": "7", "items": [{}]}]), "without `item_id` or `index`"),
    ],
)
def test_what_is_wrong_is_named(source, tmp_path, break_it, message):
    break_it(source)
    with pytest.raises(BundleMLLMError, match=message):
        import_polyvore(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_folder_above_and_the_older_version_are_told_apart(source, tmp_path):
    with pytest.raises(BundleMLLMError, match="give one of its folders nondisjoint"):
        import_polyvore(source.parent, tmp_path / "data")
    (source.parent / "train_no_dup.json").write_text("[]")
    with pytest.raises(BundleMLLMError, match="take Polyvore Outfits of 2018"):
        import_polyvore(source.parent, tmp_path / "data")
