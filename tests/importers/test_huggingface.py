import os

import datasets
import pytest
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Image, Value

from bundle_mllm.data import DatasetFolder, make_questions, write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers import import_huggingface, import_tabular

PICTURE = b"\xff\xd8\xff not decodable, so that decoding would fail"
SOUND = b"RIFF\0\0\0\0WAVE likewise"
PLAIN = {"item_id": Value("string"), "title": Value("string"), "category": Value("string")}
STORED = {"bytes": Value("binary"), "path": Value("string")}


def with_media(rows, **kinds):
    """A data set whose media are stored as given: nothing encodes or embeds them."""
    data = Dataset.from_list(rows, features=Features({**PLAIN, **dict.fromkeys(kinds, STORED)}))
    for name, kind in kinds.items():
        data = data.cast_column(name, kind)
    return data


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


@pytest.fixture
def saved(tmp_path, items, bundles):
    """A folder of `save_to_disk` with pictures and sounds as bytes."""
    folder = tmp_path / "saved"
    rows = [{**item, "image": None, "audio": None} for item in items]
    rows[0]["image"] = {"bytes": PICTURE, "path": "photo.jpeg"}
    rows[1]["image"] = {"bytes": b"unknown kind", "path": "a/photo.HEIC"}
    rows[2]["image"] = {"bytes": b"unknown kind", "path": None}
    rows[3]["audio"] = {"bytes": SOUND, "path": None}
    with_media(rows, image=Image(), audio=Audio()).save_to_disk(folder / "items")
    Dataset.from_list(bundles).save_to_disk(folder / "bundles")
    pairs = [{"user_id": n % 5, "item_id": f"{n % 70:03d}", "timestamp": n} for n in range(200)]
    Dataset.from_list(pairs).save_to_disk(folder / "interactions")
    return folder


@pytest.fixture
def repository(tmp_path, items, bundles):
    """A folder like a clone of a Hub repository: data files, and configurations in the head of the README."""
    folder = tmp_path / "repository"
    write_records(folder / "items.parquet", items)
    for split, part in (("train", bundles[:30]), ("validation", bundles[30:36]), ("test", bundles[36:])):
        write_records(folder / "bundles" / f"{split}.parquet", part)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: items\n  data_files: items.parquet\n- config_name: bundles\n  data_files:\n"
        + "".join(f"  - {{split: {s}, path: bundles/{s}.parquet}}\n" for s in ("train", "validation", "test"))
        + "---\n"
    )
    return folder


def test_a_saved_folder_becomes_a_dataset_folder_with_questions(saved, tmp_path, bundles):
    summary = import_huggingface(saved, tmp_path / "data")
    folder = DatasetFolder.open(tmp_path / "data")
    assert {b.bundle_id: [*b.items] for b in folder.bundles} == {b["bundle_id"]: b["items"] for b in bundles}
    assert summary.num_bundles == {"train": 32, "validation": 4, "test": 4}
    assert make_questions(folder.bundles.test, folder.catalog, folder.bundles, seed=0)
    assert folder.catalog[5].title == "thing 5"
    assert set(folder.interactions.users) == {"0", "1", "2", "3", "4"}
    assert summary.dropped["interactions with an item that the catalog lacks, left out"] == 20
    assert summary.num_interactions == len(folder.interactions)


def test_media_are_written_with_the_bytes_they_have(saved, tmp_path):
    import_huggingface(saved, tmp_path / "data")
    catalog = DatasetFolder.open(tmp_path / "data").catalog
    paths = [item.image for item in catalog[:4]]
    assert paths == ["images/0000000.jpg", "images/0000001.heic", "images/0000002.bin", None]
    assert (tmp_path / "data" / "images" / "0000000.jpg").read_bytes() == PICTURE
    assert catalog[3].audio == "audio/0000003.wav"
    assert (tmp_path / "data" / "audio" / "0000003.wav").read_bytes() == SOUND
    assert sorted(os.listdir(tmp_path / "data" / "images")) == ["0000000.jpg", "0000001.heic", "0000002.bin"]


def test_media_files_are_taken_from_the_source_and_from_nowhere_else(tmp_path, items, bundles):
    folder = tmp_path / "saved"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "a.png").write_bytes(b"picture")
    (tmp_path / "secret.png").write_bytes(b"secret")
    paths = [folder / "photos" / "a.png", tmp_path / "secret.png", folder / "photos" / "none.png"]
    images = [{"bytes": None, "path": str(path)} for path in paths] + [{"bytes": b"", "path": None}] + [None] * 56
    rows = [{**item, "image": image} for item, image in zip(items, images, strict=True)]
    with_media(rows, image=STORED).save_to_disk(folder / "items")  # as `Image()`, saving would embed the files
    Dataset.from_list(bundles).save_to_disk(folder / "bundles")
    summary = import_huggingface(folder, tmp_path / "data")
    catalog = DatasetFolder.open(tmp_path / "data").catalog
    assert [item.image for item in catalog[:5]] == ["images/photos/a.png", None, None, None, None]
    assert summary.dropped == {
        "pictures whose file lies outside of the source folder, left out": 1,
        "pictures whose file does not exist, left out": 1,
        "pictures whose file has no bytes, left out": 1,
    }
    with pytest.raises(BundleMLLMError, match="outside of the source folder"):
        import_huggingface(folder, tmp_path / "strict", strict=True)
    assert sorted(os.listdir(tmp_path)) == ["data", "saved", "secret.png"]


def test_a_repository_keeps_its_splits(repository, tmp_path):
    summary = import_huggingface(repository, tmp_path / "data")
    assert summary.num_bundles == {"train": 30, "validation": 6, "test": 4}
    folder = DatasetFolder.open(tmp_path / "data")
    assert [b.bundle_id for b in folder.bundles.test] == ["b36", "b37", "b38", "b39"]
    assert folder.interactions is None


def test_tables_of_a_shop_and_of_datasets_give_the_same_folder(shop, tmp_path, items, bundles, same_tree):
    (shop / "interactions.csv").unlink()
    import_tabular(shop, tmp_path / "expected", seed=7)
    kinds = ClassLabel(names=["c2", "c1", "c0"])
    rows = [{"sku": i["item_id"], "label": kinds.str2int(i["category"]), "name": i["title"]} for i in items]
    features = Features({"sku": Value("string"), "label": kinds, "name": Value("string")})
    long = [{"look": b["bundle_id"], "sku": item} for b in bundles for item in b["items"]]
    folder = tmp_path / "saved"
    parts = {
        "train": Dataset.from_list(rows[:20], features=features),
        "more": Dataset.from_list(rows[20:], features=features),
    }
    DatasetDict(parts).save_to_disk(folder / "products")
    DatasetDict(train=Dataset.from_list(long)).save_to_disk(folder / "looks")
    import_huggingface(
        folder,
        tmp_path / "data",
        tables={"items": "products", "bundles": "looks"},
        columns={"item_id": "sku", "category": "label", "title": "name", "bundle_id": "look"},
        seed=7,
    )
    read = [DatasetFolder.open(tmp_path / name) for name in ("expected", "data")]
    assert read[0].catalog == read[1].catalog
    assert list(read[0].bundles) == list(read[1].bundles)


def test_ids_in_csv_files_are_text(tmp_path):
    ids = ["0108775000", "000", "NA", "0e5", "1.0", "true", "null", "7"]
    folder = tmp_path / "repository"
    records = [
        {"item_id": item_id, "title": f"item {item_id}", "price": f"{row}.50"} for row, item_id in enumerate(ids)
    ]
    write_records(folder / "items.csv", [*records, {"item_id": "empty", "title": None, "price": None}])
    pairs = [{"bundle_id": f"0{b}", "item_id": ids[(b + n) % 8]} for b in range(8) for n in range(2)]
    write_records(folder / "bundles.csv", pairs)
    write_records(folder / "interactions.csv", [{"user_id": "007", "item_id": item_id} for item_id in ids])
    configs = "".join(f"- config_name: {n}\n  data_files: {n}.csv\n" for n in ("items", "bundles", "interactions"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    import_huggingface(folder, tmp_path / "data")
    data = DatasetFolder.open(tmp_path / "data")
    assert data.catalog.item_ids == (*ids, "empty")
    assert (data.catalog[0].extra, data.catalog[8].title) == ({"price": "0.50"}, "")
    assert sorted(bundle.bundle_id for bundle in data.bundles) == [f"0{b}" for b in range(8)]
    assert data.interactions.users == ("007",)
    assert data.interactions.rows.tolist() == list(range(8))


def test_labels_that_a_csv_subset_declares_are_kept_as_names(tmp_path):
    folder = tmp_path / "repository"
    write_records(folder / "items.csv", [{"item_id": f"0{row}", "category": str(row % 2)} for row in range(4)])
    write_records(folder / "bundles.csv", [{"bundle_id": "1", "item_id": f"0{row}"} for row in range(4)])
    (folder / "README.md").write_text(
        "---\nconfigs:\n- {config_name: items, data_files: items.csv}\n"
        "- {config_name: bundles, data_files: bundles.csv}\n"
        "dataset_info:\n- config_name: items\n  features:\n  - {name: item_id, dtype: int64}\n"
        "  - {name: category, dtype: {class_label: {names: {'0': hats, '1': bags}}}}\n---\n"
    )
    import_huggingface(folder, tmp_path / "data")
    catalog = DatasetFolder.open(tmp_path / "data").catalog
    assert catalog.item_ids == ("00", "01", "02", "03")
    assert catalog.categories == ("hats", "bags", "hats", "bags")


def test_the_seed_decides_the_bytes(saved, tmp_path, same_tree):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        import_huggingface(saved, tmp_path / name, seed=seed)
    assert same_tree(tmp_path / "a", tmp_path / "b")
    assert not same_tree(tmp_path / "a", tmp_path / "c")


def test_columns_that_cannot_be_kept_are_mentioned(tmp_path, items, bundles):
    folder = tmp_path / "saved"
    rows = [{**item, "image": None, "thumbnail": {"bytes": b"small", "path": None}} for item in items]
    with_media(rows, image=Image(), thumbnail=Image()).save_to_disk(folder / "items")
    Dataset.from_list(bundles).save_to_disk(folder / "bundles")
    summary = import_huggingface(folder, tmp_path / "data", columns={"title": "category"})
    assert any("hold bytes were left out: thumbnail" in warning for warning in summary.warnings)
    assert any("another column took were left out: title" in warning for warning in summary.warnings)
    assert DatasetFolder.open(tmp_path / "data").catalog[4].title == "c1"


def test_a_missing_subset_is_refused_by_name(repository, saved, tmp_path):
    with pytest.raises(BundleMLLMError, match=r"no subset 'looks' for the bundles \(its subsets: items, bundles\)"):
        import_huggingface(repository, tmp_path / "data", tables={"bundles": "looks"})
    with pytest.raises(BundleMLLMError, match=r"no subset 'looks' .*\(its subsets: bundles, interactions, items\)"):
        import_huggingface(saved, tmp_path / "data", tables={"bundles": "looks"})
    with pytest.raises(BundleMLLMError, match="no table 'users'"):
        import_huggingface(saved, tmp_path / "data", tables={"users": "u"})
    with pytest.raises(BundleMLLMError, match=r"items has no column 'name'"):
        import_huggingface(saved, tmp_path / "data", columns={"title": "name"})
    with pytest.raises(BundleMLLMError, match=r"interactions has no `who`"):
        import_huggingface(saved, tmp_path / "data", columns={"user_id": "who"})
    assert sorted(os.listdir(tmp_path)) == ["repository", "saved"]


def test_code_in_a_data_set_is_not_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(BundleMLLMError, match="`datasets` cannot load"):
        import_huggingface(folder, tmp_path / "data")
    assert os.listdir(tmp_path) == ["scripted"]


@pytest.mark.parametrize("source", ["nobody/nothing", "nowhere/at/all"])
def test_a_data_set_that_cannot_be_reached_is_refused(tmp_path, source):
    with pytest.raises(BundleMLLMError, match=f"`datasets` cannot load {source}"):
        import_huggingface(source, tmp_path / "data")
    assert os.listdir(tmp_path) == []
