import pytest
import torch

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.data.features import write_modality
from bundle_mllm.errors import BundleMLLMError


@pytest.fixture
def folder(catalog, splits, tmp_path):
    catalog.save(tmp_path / "items.jsonl.gz")
    splits.save(tmp_path / "bundles.parquet")
    return tmp_path


def test_a_folder_opens_with_its_items_and_bundles(folder, catalog, splits):
    data = DatasetFolder.open(str(folder))
    assert data.path == folder
    assert data.catalog.content_hash == catalog.content_hash
    assert list(data.bundles) == list(splits)


def test_interactions_and_features_are_optional(folder):
    data = DatasetFolder.open(folder)
    assert data.interactions is None
    assert data.features() is None
    (folder / "features").mkdir()
    assert data.features() is None


def test_interactions_and_features_are_read_on_first_use(folder, catalog):
    data = DatasetFolder.open(folder)
    write_records(folder / "interactions.csv", [{"user_id": "u", "item_id": "i3"}])
    for name in ("visual", "acoustic"):
        write_modality(folder / "features", name, torch.ones(len(catalog), 2), None, {})
    assert data.interactions.rows.tolist() == [3]
    assert data.features().modalities == {"acoustic": 2, "visual": 2}
    assert data.features(["visual"]).modalities == {"visual": 2}


def test_named_modalities_must_exist(folder, catalog):
    data = DatasetFolder.open(folder)
    with pytest.raises(BundleMLLMError, match="no folder"):
        data.features(["visual"])
    write_modality(folder / "features", "acoustic", torch.ones(len(catalog), 2), None, {})
    with pytest.raises(BundleMLLMError, match="no features of modality 'visual'"):
        data.features(["visual"])


def test_features_of_other_items_are_refused(folder, catalog):
    write_modality(folder / "features", "visual", torch.ones(len(catalog), 2), None, {}, items_hash="0" * 64)
    with pytest.raises(BundleMLLMError, match="written for other items"):
        DatasetFolder.open(folder).features()


def test_what_is_no_data_set_is_refused(folder):
    with pytest.raises(BundleMLLMError, match="missing does not exist: give the folder"):
        DatasetFolder.open(folder / "missing")
    with pytest.raises(BundleMLLMError, match="is a file: give the folder"):
        DatasetFolder.open(folder / "items.jsonl.gz")
    (folder / "bundles.parquet").unlink()
    with pytest.raises(BundleMLLMError, match="holds no bundles file"):
        DatasetFolder.open(folder)
    (folder / "items.jsonl.gz").unlink()
    with pytest.raises(BundleMLLMError, match="holds no items file"):
        DatasetFolder.open(folder)


def test_two_items_files_are_refused(folder):
    write_records(folder / "items.csv", [{"item_id": "1"}])
    with pytest.raises(BundleMLLMError, match=r"items\.jsonl\.gz and items\.csv"):
        DatasetFolder.open(folder)
