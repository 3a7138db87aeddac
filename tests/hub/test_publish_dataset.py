"""A dataset folder becomes a repository: what goes along only when asked for, and what cannot become one."""

import json

import pytest
from datasets import load_dataset

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.dataset import publish_dataset

ITEMS = [{"item_id": f"i{n}", "title": f"item {n}"} for n in range(6)]
BUNDLES = [{"bundle_id": 7, "items": ["i0", "i1", "i1"], "split": "train", "season": "summer"}]
QUESTION = {"question_id": "q", "bundle_id": "7", "partial": ["i0"], "candidates": ["i1", "i2"], "answer_index": 0}


@pytest.fixture
def folder(tmp_path):
    """A dataset folder with numbers as ids of bundles, a field of its own, a user log, a picture and no features."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "0.png").write_bytes(b"a picture")
    write_records(tmp_path / "data" / "items.jsonl", [{**ITEMS[0], "image": "images/0.png"}, *ITEMS[1:]])
    write_records(tmp_path / "data" / "bundles.csv", BUNDLES)
    write_records(tmp_path / "data" / "interactions.csv", [{"user_id": "u", "item_id": "i0"}])
    write_records(tmp_path / "data" / "questions" / "all.jsonl", [{**QUESTION, "asked_by": "us"}])
    return tmp_path / "data"


def dry_run(folder, **options):
    return publish_dataset(folder, "acme/shop", dry_run=True, **options)


def test_the_repository_is_written_beside_the_folder_and_may_be_written_again(folder, tmp_path):
    first, second = dry_run(folder), dry_run(folder, license="mit")
    assert first.folder == second.folder == tmp_path / "data-hub"
    assert first.commit_url is None and first.left_out == ("images", "interactions.csv")
    assert set(first.files) == {
        "README.md",
        "items.parquet",
        "bundles/train.parquet",
        "questions/all_questions.parquet",
    }
    assert "license: mit" in (second.folder / "README.md").read_text()


def test_fields_that_are_not_ours_and_ids_as_text_arrive(folder, tmp_path):
    repository = dry_run(folder).folder
    bundle = load_dataset(str(repository), "bundles", split="train", cache_dir=tmp_path / "cache")[0]
    assert bundle == {"bundle_id": "7", "items": ["i0", "i1"], "split": "train", "season": "summer"}
    question = load_dataset(str(repository), "questions", split="all_questions", cache_dir=tmp_path / "cache")[0]
    assert question == {**QUESTION, "asked_by": "us"}


def test_the_user_log_and_the_pictures_go_along_when_asked_for(folder):
    report = dry_run(folder, include_interactions=True, include_media=True)
    assert {"interactions.csv", "images/0.png"} <= set(report.files)
    assert report.left_out == ()
    assert len(DatasetFolder.open(report.folder).interactions) == 1


@pytest.mark.parametrize("image", ["../secret.txt", "images/none.png"])
def test_a_picture_that_is_not_in_the_folder_is_an_error(folder, tmp_path, image):
    (tmp_path / "secret.txt").write_text("a password")
    write_records(folder / "items.jsonl", [{**ITEMS[0], "image": image}, *ITEMS[1:]])
    with pytest.raises(BundleMLLMError, match=r"which is not in .*without --include-media"):
        dry_run(folder, include_media=True)
    assert not (tmp_path / "data-hub").exists()


def test_a_column_of_several_types_is_an_error(folder):
    write_records(folder / "items.jsonl", [{**ITEMS[0], "price": 7}, {**ITEMS[1], "price": "cheap"}, *ITEMS[2:]])
    with pytest.raises(BundleMLLMError, match=r"items\.parquet cannot be written, a column mixes types"):
        dry_run(folder)


def test_question_files_that_would_be_the_same_split_are_an_error(folder):
    write_records(folder / "questions" / "all_questions.parquet", [QUESTION])
    with pytest.raises(BundleMLLMError, match="would be the split 'all_questions' of the questions"):
        dry_run(folder)


def test_a_question_on_another_catalog_is_an_error(folder):
    write_records(folder / "questions" / "all.jsonl", [{**QUESTION, "partial": ["i9"]}])
    with pytest.raises(BundleMLLMError, match="no item 'i9'"):
        dry_run(folder)


def test_a_folder_without_bundles_is_an_error(folder):
    (folder / "bundles.csv").unlink()
    with pytest.raises(BundleMLLMError, match="holds no bundles file"):
        dry_run(folder)


def test_the_card_lists_the_configurations(folder):
    text = (dry_run(folder).folder / "README.md").read_text()
    assert "| `bundles` | train (1) | bundle\\_id, items, split, season |" in text
    assert 'load_dataset("acme/shop", "questions", split="all_questions")' in text
    assert "The pictures and sounds that the items name are not part" in text and "no item features" in text
    assert json.dumps("acme/shop") in text
