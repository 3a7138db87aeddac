"""Interactions are the distinct pairs of a table, whatever its format, and what was left out is counted."""

import gzip

import pyarrow
import pyarrow.parquet
import pytest

from bundle_mllm.data import Interactions, write_records
from bundle_mllm.errors import BundleMLLMError

PAIRS = [("u2", "i5"), ("u1", "i5"), ("u2", "i5"), ("u2", "gone"), ("u2", "i0")]
RECORDS = [{"user_id": user_id, "item_id": item_id, "timestamp": "12"} for user_id, item_id in PAIRS]


def pairs(log):
    return [(log.users[user], row) for user, row in zip(log.user_index.tolist(), log.rows.tolist(), strict=True)]


def test_repeated_pairs_count_once_and_unknown_items_are_dropped(catalog):
    interactions = Interactions.from_records(RECORDS, catalog)
    assert pairs(interactions) == [("u2", 5), ("u1", 5), ("u2", 0)]
    assert interactions.num_unknown == 1
    assert interactions.unknown == ((4, "gone"),)
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
    interactions = Interactions.load(tmp_path, catalog)
    assert pairs(interactions) == [("u2", 5), ("u1", 5), ("u2", 0)]
    assert (interactions.unknown, interactions.num_repeated) == (((4, "gone"),), 1)
    assert Interactions.load(tmp_path / f"interactions{suffix}", catalog).num_unknown == 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"user": "u", "item_id": "i1"}, r"log row 1 has no `user_id` \(its fields: user, item_id\)"),
        ({"user_id": "u"}, "log row 1 has no `item_id`"),
        ({"user_id": None, "item_id": "i1"}, "log row 1 lacks a user or an item"),
        ({"user_id": None, "item_id": "gone"}, "log row 1 lacks a user or an item"),
    ],
)
def test_bad_records_are_refused_by_row(catalog, record, message):
    with pytest.raises(BundleMLLMError, match=message):
        Interactions.from_records([record], catalog, source="log")


def test_a_row_without_a_user_is_refused_by_file_and_row(catalog, tmp_path):
    write_records(tmp_path / "interactions.csv", [*RECORDS, {"user_id": None, "item_id": "i1", "timestamp": "3"}])
    with pytest.raises(BundleMLLMError, match=r"interactions\.csv row 6 lacks a user or an item"):
        Interactions.load(tmp_path, catalog)


def test_a_folder_without_interactions_is_refused(catalog, tmp_path):
    with pytest.raises(BundleMLLMError, match="holds no interactions file"):
        Interactions.load(tmp_path, catalog)


TEXT = 'user_id,item_id,timestamp\nu2,i5,12\nu1,i5,13\nu2,i5,9\n"u\n3",gone,8\n,i1,7\nu2," ",7\nu2,i0,\n007,i3,1\n'
LOG_PAIRS = [("u2", 5), ("u1", 5), ("u2", 0), ("007", 3)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("rows_together", [2, 100])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".parquet"])
def test_distinct_pairs_of_known_items_remain_and_the_rest_is_counted(
    catalog, path, tmp_path, monkeypatch, suffix, rows_together
):
    for module in ("interactions", "tables"):
        monkeypatch.setattr(f"bundle_mllm.data.{module}.BATCH_ROWS", rows_together)
    cells = [line.split(",") for line in TEXT.replace('"u\n3"', "u4").replace('" "', " ").splitlines()[1:]]
    records = [dict(zip(("user_id", "item_id", "timestamp"), (v or None for v in row), strict=True)) for row in cells]
    if suffix != ".csv":
        write_records(path := tmp_path / f"log{suffix}", records)
    log = Interactions.read(path, catalog)
    assert pairs(log) == LOG_PAIRS
    assert log.timestamps.to_pylist() == [12, 13, None, 1]
    assert (log.num_repeated, log.num_unknown, log.num_missing) == (1, 1, 2)
    assert log.unknown == ((4, "gone"),)
    assert log.missing == (5, 6)


def test_only_the_first_few_offenders_are_named(catalog):
    batch = pyarrow.record_batch([["u", "u", None] * 5, ["gone", "lost", "i1"] * 5], names=["user_id", "item_id"])
    log = Interactions.from_batches([batch, batch], catalog)
    assert log.unknown == ((1, "gone"), (2, "lost"))
    assert log.missing == (3, 6, 9)
    assert (log.num_unknown, log.num_unknown_items, log.num_missing, len(log)) == (20, 2, 10, 0)


def test_columns_and_delimiter_can_have_other_names(catalog, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("when;who;sku\n3;u;i1\n")
    columns = {"user_id": "who", "item_id": "sku", "timestamp": "when"}
    log = Interactions.read(path, catalog, columns=columns, delimiter=";")
    assert pairs(log) == [("u", 1)]
    assert log.timestamps.to_pylist() == [3]


def test_integers_in_a_table_are_ids(catalog, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"user_id": [7, 8], "item_id": ["i1", "i2"]}), tmp_path / "log.parquet")
    assert pairs(Interactions.read(tmp_path / "log.parquet", catalog)) == [("7", 1), ("8", 2)]


def test_timestamps_that_are_no_integers_stay_text(catalog, tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,i1,2024-01-01\n")
    assert Interactions.read(tmp_path / "log.csv", catalog).timestamps.to_pylist() == ["2024-01-01"]


def test_a_log_is_written_and_read_back_and_its_bytes_repeat(catalog, path, tmp_path):
    log = Interactions.read(path, catalog)
    for name in ("a.parquet", "b.parquet"):
        log.save(tmp_path / name, catalog)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    again = Interactions.read(tmp_path / "a.parquet", catalog)
    assert pairs(again) == pairs(log)
    assert again.timestamps.equals(log.timestamps)


@pytest.mark.parametrize("text", ["user_id,item_id\n", "user_id,item_id\nu,gone\n"])
def test_a_log_without_known_items_is_empty(catalog, tmp_path, text):
    (tmp_path / "log.csv").write_text(text)
    log = Interactions.read(tmp_path / "log.csv", catalog)
    assert (len(log), log.users) == (0, ())
    log.save(tmp_path / "log.parquet", catalog)
    assert len(Interactions.read(tmp_path / "log.parquet", catalog)) == 0


BAD = {
    "a cell too many": ("log.csv", b"user_id,item_id\nu,i1\nu,i2,i3\n", "log.csv row 2 has 3 cells for 2 columns"),
    "a cell too few": ("log.csv", b"user_id,item_id\nu\n", "log.csv row 1 has 1 cells for 2 columns"),
    "an open quote": ("log.csv", b'user_id,item_id\nu,i1\n"u,i2\nu,i3\n', "log.csv row 2 has 1 cells"),
    "no text": ("log.csv", b"user_id,item_id\nu,i1\nu,\xff\n", "log.csv is not UTF-8 text"),
    "a lacking column": ("log.csv", b"user,item_id\nu,i1\n", r"log.csv has no `user_id` \(its fields: user, item_id"),
    "a column twice": ("log.csv", b"user_id,item_id,user_id\nu,i1,u\n", "names a column twice"),
    "an empty file": ("log.csv", b"", r"log.csv has no `user_id` \(its fields: none"),
    "a file cut off": ("log.csv.gz", gzip.compress(TEXT.encode())[:-20], "log.csv.gz"),
    "no JSON": ("log.jsonl", b'{"user_id": "u", "item_id": "i1"}\n{', "log.jsonl line 2 is not JSON"),
    "a lacking field": ("log.jsonl", b'{"user_id": "u"}\n', "log.jsonl row 1 has no `item_id`"),
    "a list as id": ("log.jsonl", b'{"user_id": ["u"], "item_id": "i1"}\n', "log.jsonl row 1 has the id"),
    "no Parquet": ("log.parquet", b"PAR1", "log.parquet is not a Parquet file"),
    "a foreign suffix": ("log.txt", b"", "its name must end in"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_log_is_refused_by_file_and_row(catalog, tmp_path, name):
    file, content, message = BAD[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(BundleMLLMError, match=message):
        Interactions.read(tmp_path / file, catalog)


def test_fractions_as_ids_are_refused(catalog):
    with pytest.raises(BundleMLLMError, match="holds double values as `item_id`"):
        Interactions.from_batches([pyarrow.record_batch([["u"], [1.5]], names=["user_id", "item_id"])], catalog)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_missing_file_is_refused(catalog, tmp_path, suffix):
    with pytest.raises(BundleMLLMError, match="There is no file"):
        Interactions.read(tmp_path / f"log{suffix}", catalog)
