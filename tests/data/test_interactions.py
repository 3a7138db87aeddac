import pytest

from bundle_mllm.data import Interactions, write_records
from bundle_mllm.errors import BundleMLLMError

PAIRS = [("u2", "i5"), ("u1", "i5"), ("u2", "i5"), ("u2", "gone"), ("u2", "i0")]
RECORDS = [{"user_id": user_id, "item_id": item_id, "timestamp": "12"} for user_id, item_id in PAIRS]


def test_repeated_pairs_count_once_and_first_unknown_are_dropped(catalog):
    interactions = Interactions.from_records(RECORDS, catalog)
    assert interactions.user_ids == ("u2", "u1", "u2")
    assert interactions.rows.tolist() == [5, 5, 0]
    assert interactions.num_unknown == 1
    assert interactions.first_unknown == ("gone",)
    assert interactions.num_repeated == 1
    assert len(interactions) == 3


def test_users_are_numbered_by_first_appearance(catalog):
    interactions = Interactions.from_records(RECORDS, catalog)
    assert interactions.user_index.tolist() == [0, 1, 0]
    assert interactions.num_users == 2
    assert Interactions.from_records([], catalog).num_users == 0


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_every_format_is_read(catalog, tmp_path, suffix):
    write_records(tmp_path / f"interactions{suffix}", RECORDS)
    assert Interactions.load(tmp_path, catalog).user_ids == ("u2", "u1", "u2")
    assert Interactions.load(tmp_path, catalog).rows.tolist() == [5, 5, 0]
    assert Interactions.load(tmp_path, catalog).first_unknown == ("gone",)
    assert Interactions.load(tmp_path, catalog).num_repeated == 1
    assert Interactions.load(tmp_path / f"interactions{suffix}", catalog).num_unknown == 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"user": "u", "item_id": "i1"}, r"log row 1 has no `user_id` \(its fields: user, item_id\)"),
        ({"user_id": "u"}, "log row 1 has no `item_id`"),
        ({"user_id": None, "item_id": "i1"}, "log row 1 has the id None"),
        ({"user_id": None, "item_id": "gone"}, "log row 1 has the id None"),
    ],
)
def test_bad_records_are_refused_by_row(catalog, record, message):
    with pytest.raises(BundleMLLMError, match=message):
        Interactions.from_records([record], catalog, source="log")


def test_a_row_without_a_user_is_refused_by_file_and_row(catalog, tmp_path):
    write_records(tmp_path / "interactions.csv", [*RECORDS, {"user_id": None, "item_id": "i1", "timestamp": "3"}])
    with pytest.raises(BundleMLLMError, match=r"interactions\.csv row 6 names no user or no item"):
        Interactions.load(tmp_path, catalog)


def test_a_folder_without_interactions_is_refused(catalog, tmp_path):
    with pytest.raises(BundleMLLMError, match="holds no interactions file"):
        Interactions.load(tmp_path, catalog)
