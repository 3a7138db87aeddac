"""A dataset folder becomes a repository: what goes along only when wanted, and what cannot become one."""

import json

import pytest
import torch
from datasets import load_dataset
from safetensors import safe_open
from safetensors.torch import save_file

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.data.folds import OutOfFoldFeatures
from bundle_mllm.data.tables import read_records
from bundle_mllm.encoders import encode_folder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.dataset import WRITTEN, publish_dataset
from bundle_mllm.hub.repository import matches
from bundle_mllm.importers import import_tabular

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
    assert first.commit_url is None and first.left_out[:2] == ("images", "interactions.csv")
    assert set(first.files) == {
        "README.md",
        "items.parquet",
        "bundles/train.parquet",
        "questions/all_questions.parquet",
    }
    assert "license: mit" in (second.folder / "README.md").read_text()


def test_columns_that_a_dataset_folder_does_not_need_stay_at_home_unless_they_are_named(folder):
    report = dry_run(folder)
    [bundle] = read_records(report.folder / "bundles" / "train.parquet")
    assert bundle == {"bundle_id": "7", "items": ["i0", "i1"], "split": "train"}
    assert report.left_out[2:] == (
        "columns of the bundles (--columns publishes them): season",
        "columns of the questions (--columns publishes them): asked_by",
    )
    assert report.notes == ("bundle ids (such as '7'): are they order numbers?",)
    with pytest.raises(BundleMLLMError, match="No table has a column 'price' to publish"):
        dry_run(folder, columns=["season", "price"])


def test_order_numbers_are_published_only_when_asked_for(folder, tmp_path):
    shop = tmp_path / "shop"
    write_records(shop / "items.jsonl", [{**item, "price": 3, "stock": 7} for item in ITEMS])
    write_records(
        shop / "orders.csv", [{"order_id": f"10{n}", "sku": f"i{(n + step) % 6}"} for n in range(9) for step in (0, 1)]
    )
    import_tabular(shop, tmp_path / "kept")
    import_tabular(shop, tmp_path / "numbered", order_ids="number")
    with pytest.raises(
        BundleMLLMError, match=r"are orders, and their ids the numbers of these orders \(such as '10\d'\)"
    ):
        dry_run(tmp_path / "kept")
    report = dry_run(tmp_path / "kept", share_order_ids=True)
    assert report.left_out == ("import.json", "columns of the items (--columns publishes them): price, stock")
    ids = {
        row["bundle_id"] for row in read_records(dry_run(tmp_path / "numbered").folder / "bundles" / "train.parquet")
    }
    assert ids <= {str(number) for number in range(1, 10)}


def test_named_columns_and_ids_as_text_arrive(folder, tmp_path):
    repository = dry_run(folder, columns=["season", "asked_by"]).folder
    bundle = load_dataset(str(repository), "bundles", split="train", cache_dir=tmp_path / "cache")[0]
    assert bundle == {"bundle_id": "7", "items": ["i0", "i1"], "split": "train", "season": "summer"}
    question = load_dataset(str(repository), "questions", split="all_questions", cache_dir=tmp_path / "cache")[0]
    assert question == {**QUESTION, "asked_by": "us"}


def test_the_user_log_and_the_pictures_go_along_when_asked_for(folder):
    write_records(folder / "interactions.csv", [{"user_id": "u", "item_id": "i0", "log": "/home/u/log"}])
    report = dry_run(folder, include_interactions=True, include_media=True)
    assert {"interactions.parquet", "images/0.png"} <= set(report.files)
    assert not {"interactions.csv", "images"} & set(report.left_out) and len(report.notes) == 2
    assert read_records(report.folder / "interactions.parquet") == [{"user_id": "u", "item_id": "i0"}]


@pytest.mark.parametrize("image", ["../secret.txt", "images/none.png"])
def test_a_picture_that_is_not_in_the_folder_is_an_error(folder, tmp_path, image):
    (tmp_path / "secret.txt").write_text("a password")
    write_records(folder / "items.jsonl", [{**ITEMS[0], "image": image}, *ITEMS[1:]])
    with pytest.raises(BundleMLLMError, match=r"which is not in .*without --include-media"):
        dry_run(folder, include_media=True)
    assert not (tmp_path / "data-hub").exists()


def test_a_column_of_several_types_is_an_error(folder):
    write_records(folder / "items.jsonl", [{**ITEMS[0], "price": 7}, {**ITEMS[1], "price": "cheap"}, *ITEMS[2:]])
    with pytest.raises(
        BundleMLLMError,
        match=r"items\.jsonl cannot be written.*column 'price' has text in row 2 and a number in row 1",
    ):
        dry_run(folder, columns=["price"])


def test_question_files_that_would_be_the_same_split_are_an_error(folder):
    write_records(folder / "questions" / "all_questions.parquet", [QUESTION])
    with pytest.raises(BundleMLLMError, match="would be the split 'all_questions' of the questions"):
        dry_run(folder)


def test_a_question_on_another_catalog_is_an_error(folder):
    write_records(folder / "questions" / "all.jsonl", [{**QUESTION, "partial": ["i9"]}])
    with pytest.raises(BundleMLLMError, match="no item 'i9'"):
        dry_run(folder)


@pytest.mark.parametrize("image", ["{folder}/../secret.txt", "../secret.txt", "file:///home/x.png", "~/x.png"])
def test_a_picture_outside_of_the_folder_is_dropped_and_counted(folder, tmp_path, image):
    image = image.format(folder=folder)
    rows = [{**ITEMS[0], "image": image}, {**ITEMS[1], "image": str(folder / "images" / "0.png")}, *ITEMS[2:]]
    write_records(folder / "items.jsonl", [*rows[:2], {**ITEMS[2], "audio": "https://cdn.example/2.ogg"}, *rows[3:]])
    report = dry_run(folder)
    items = list(DatasetFolder.open(report.folder).catalog)
    assert [item.image for item in items[:2]] == [None, "images/0.png"]
    assert items[2].audio == "https://cdn.example/2.ogg"
    assert report.left_out[-1] == "1 paths of pictures and sounds that are not in the folder"


def test_notes_in_features_are_published_only_in_a_known_form(folder):
    features = {"features": torch.arange(12.0).view(6, 2)}
    (folder / "features").mkdir()
    path = folder / "features" / "visual.safetensors"
    for note, kept in (("clip:openai/clip-vit-base-patch32", True), ("/home/alice/clip", False)):
        save_file(features, path, metadata={"encoded_by": note})
        published = dry_run(folder).folder / "features" / "visual.safetensors"
        with safe_open(published, "pt") as file:
            assert (file.metadata() or {}) == ({"encoded_by": note} if kept else {})
            assert file.get_tensor("features").equal(features["features"])
    save_file(features, path, metadata={"encoded_by": "tfidf-2", "user": "alice"})
    (folder / "features" / "manifest.json").write_text(
        json.dumps({"visual": {"dim": 2, "provenance": {"encoder": "s3://bucket", "host": "alice", "seed": 1}}})
    )
    published = dry_run(folder).folder / "features"
    assert json.loads((published / "manifest.json").read_text()) == {"visual": {"dim": 2, "provenance": {"seed": 1}}}
    assert b"alice" not in (published / "visual.safetensors").read_bytes()


def test_features_that_are_no_numbers_are_refused_where_they_are_present(folder):
    (folder / "features").mkdir()
    features = torch.ones(6, 2)
    features[4, 1] = torch.nan
    present = torch.ones(6, dtype=torch.uint8)
    save_file({"features": features, "present": present}, folder / "features" / "visual.safetensors")
    with pytest.raises(BundleMLLMError, match=r"Modality 'visual' holds NaN or infinity in 1 present row.s. .4."):
        dry_run(folder)
    present[4] = 0
    save_file({"features": features, "present": present}, folder / "features" / "visual.safetensors")
    assert "features/visual.safetensors" in dry_run(folder).files


def test_a_bundles_file_without_a_row_is_an_error(folder):
    (folder / "bundles.csv").write_text("bundle_id,items,split\n")
    with pytest.raises(BundleMLLMError, match=r"data holds no bundle"):
        dry_run(folder)


def test_a_folder_without_bundles_is_an_error(folder):
    (folder / "bundles.csv").unlink()
    with pytest.raises(BundleMLLMError, match="holds no bundles file"):
        dry_run(folder)


def test_the_card_lists_the_configurations(folder):
    text = (dry_run(folder).folder / "README.md").read_text()
    assert "| `bundles` | train (1) | bundle\\_id, items, split |" in text
    assert 'load_dataset("acme/shop", "questions", split="all_questions")' in text
    assert "The pictures and sounds that the items name are not part" in text and "no item features" in text
    assert json.dumps("acme/shop") in text


def test_cross_fitted_versions_go_along_and_still_belong_to_their_features(folder):
    bundles = [
        {"bundle_id": n, "items": [f"i{n % 6}", f"i{(n + n // 6 + 1) % 6}"], "split": "train"} for n in range(15)
    ]
    write_records(folder / "bundles.csv", bundles)
    write_records(folder / "questions" / "all.jsonl", [QUESTION])
    encode_folder(folder, relational="bundle_item:svd")
    report = dry_run(folder)
    assert "features/cross_fitted/bundle_item.safetensors" in report.files
    assert matches("features/cross_fitted/bundle_item.safetensors", WRITTEN)
    there, here = (OutOfFoldFeatures.load(DatasetFolder.open(path)) for path in (report.folder, folder))
    assert there.fold_of_bundle == here.fold_of_bundle
    assert there.features.equal(here.features)
    assert "`features/cross_fitted/` holds versions" in (report.folder / "README.md").read_text()


def test_who_made_a_bundle_is_published_only_with_the_user_log(folder):
    write_records(folder / "bundles.csv", [{**BUNDLES[0], "user_id": "ann"}])
    for options, columns in (({}, set()), ({"include_interactions": True}, {"user_id"})):
        [row] = read_records(dry_run(folder, **options).folder / "bundles" / "train.parquet")
        assert set(row) == {"bundle_id", "items", "split"} | columns
