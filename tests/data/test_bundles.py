import pytest

from bundle_mllm.data import Bundle, BundleSplits
from bundle_mllm.data.tables import SUFFIXES, write_records
from bundle_mllm.errors import BundleMLLMError

RECORDS = [
    {"bundle_id": 1, "items": ["i1", "i2"], "split": "train", "name": "Picnic", "intent": "ignored"},
    {"bundle_id": "2", "items": ["i3", "i1", "i3", "i3"], "split": "validation"},
    {"bundle_id": "3", "items": ["i5"], "split": "train"},
]


def test_bundles_are_sorted_into_splits_in_file_order(catalog):
    splits = BundleSplits.from_records(RECORDS, catalog)
    assert splits.train == (Bundle("1", ("i1", "i2"), "train", "Picnic"), Bundle("3", ("i5",), "train"))
    assert splits["validation"] == (Bundle("2", ("i3", "i1"), "validation"),)
    assert splits.test == ()
    assert len(splits) == 3
    assert [bundle.bundle_id for bundle in splits] == ["1", "3", "2"]


def test_repeated_items_are_dropped_and_counted(catalog):
    assert BundleSplits.from_records(RECORDS, catalog).num_repeated_items == 2


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_and_loading_keeps_the_bundles(catalog, tmp_path, suffix):
    splits = BundleSplits.from_records(RECORDS, catalog)
    splits.save(tmp_path / f"bundles{suffix}")
    loaded = BundleSplits.load(tmp_path, catalog)
    assert list(loaded) == list(splits)
    assert list(BundleSplits.load(tmp_path / f"bundles{suffix}", catalog)) == list(splits)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"bundle_id": "1", "split": "train"}], r"shop row 1 has no `items` \(its fields: bundle_id, split\)"),
        ([{"bundle_id": "1", "items": ["i1"]}], "shop row 1 has no `split`"),
        ([{"items": ["i1"], "split": "train"}], "shop row 1 has no `bundle_id`"),
        ([{"bundle_id": "1", "items": [], "split": "train"}], r"row 1 \(bundle '1'\) is empty"),
        ([{"bundle_id": "1", "items": None, "split": "train"}], "is empty"),
        ([{"bundle_id": "1", "items": "i1 i2", "split": "train"}], "has 'i1 i2' as `items`"),
        ([{"bundle_id": "1", "items": ["i1"], "split": "dev"}], "split 'dev': use one of train, validation, test"),
        ([{"bundle_id": "1", "items": ["i1"], "split": None}], "split None"),
        ([{"bundle_id": "1", "items": ["i1", "x"], "split": "train"}], r"\(bundle '1'\): The catalog has no item 'x'"),
        ([RECORDS[0], {**RECORDS[0], "split": "test"}], "bundle '1' twice, in train and in test"),
        ([RECORDS[0], RECORDS[0]], r"bundle '1' twice, in train \(again in row 2\)"),
    ],
)
def test_bad_records_are_refused_by_row(catalog, records, message):
    with pytest.raises(BundleMLLMError, match=message):
        BundleSplits.from_records(records, catalog, source="shop")


def test_an_unknown_split_is_refused(splits):
    with pytest.raises(BundleMLLMError, match="The split is 'val': choose one of 'train', 'validation', 'test'"):
        splits["val"]


def test_a_folder_without_bundles_is_refused(catalog, tmp_path):
    with pytest.raises(BundleMLLMError, match="holds no bundles file"):
        BundleSplits.load(tmp_path, catalog)


def write_parts(folder, splits, **kwargs):
    for split in ("train", "validation"):
        rows = [{"bundle_id": b.bundle_id, "items": list(b.items), **kwargs} for b in splits[split]]
        write_records(folder / "bundles" / f"{split}.parquet", rows)


def test_a_table_per_split_is_the_same_as_one_table(catalog, splits, tmp_path):
    write_parts(tmp_path, splits)
    loaded = BundleSplits.load(tmp_path, catalog)
    assert loaded.train == splits.train and loaded.validation == splits.validation and not loaded.test


def test_a_row_in_the_table_of_another_split_is_refused(catalog, splits, tmp_path):
    write_parts(tmp_path, splits, split="train")
    with pytest.raises(BundleMLLMError, match=r"validation\.parquet row 1 has the split 'train'"):
        BundleSplits.load(tmp_path, catalog)


def test_a_bundle_in_the_tables_of_two_splits_is_refused(catalog, splits, tmp_path):
    write_parts(tmp_path, splits)
    rows = [{"bundle_id": b.bundle_id, "items": list(b.items)} for b in splits.train[:1]]
    write_records(tmp_path / "bundles" / "test.jsonl", rows)
    with pytest.raises(BundleMLLMError, match=r"test\.jsonl has the bundle 'b0' twice, in train and in test"):
        BundleSplits.load(tmp_path, catalog)


def test_one_table_beside_a_table_per_split_is_refused(catalog, splits, tmp_path):
    write_parts(tmp_path, splits)
    splits.save(tmp_path / "bundles.jsonl")
    with pytest.raises(BundleMLLMError, match=r"bundles\.jsonl and bundles/train\.parquet"):
        BundleSplits.load(tmp_path, catalog)
