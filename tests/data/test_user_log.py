import gzip

import pyarrow
import pyarrow.parquet
import pytest

from bundle_mllm.data import Interactions, user_log, write_records
from bundle_mllm.data.user_log import collect_log, iter_log, read_log, write_log
from bundle_mllm.errors import BundleMLLMError

TEXT = 'user_id,item_id,timestamp\nu2,i5,12\nu1,i5,13\nu2,i5,9\n"u\n3",gone,8\n,i1,7\nu2," ",7\nu2,i0,\n007,i3,1\n'
PAIRS = [("u2", 5), ("u1", 5), ("u2", 0), ("007", 3)]


def pairs(log):
    return [(log.users[user], row) for user, row in zip(log.user_index.tolist(), log.rows.tolist(), strict=True)]


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
    monkeypatch.setattr(user_log, "_RECORDS", rows_together)
    cells = [line.split(",") for line in TEXT.replace('"u\n3"', "u4").replace('" "', " ").splitlines()[1:]]
    records = [dict(zip(("user_id", "item_id", "timestamp"), (v or None for v in row), strict=True)) for row in cells]
    if suffix != ".csv":
        write_records(path := tmp_path / f"log{suffix}", records)
    log = read_log(path, catalog)
    assert pairs(log) == PAIRS
    assert log.timestamps.to_pylist() == [12, 13, None, 1]
    assert (log.num_repeated, log.num_unknown, log.num_missing) == (1, 1, 2)
    assert log.unknown == ((4, "gone"),)
    assert log.missing == (5, 6)


def test_only_the_first_few_offenders_are_named(catalog):
    batch = pyarrow.record_batch([["u", "u", None] * 5, ["gone", "lost", "i1"] * 5], names=["user_id", "item_id"])
    log = collect_log([batch, batch], catalog)
    assert log.unknown == ((1, "gone"), (2, "lost"))
    assert log.missing == (3, 6, 9)
    assert (log.num_unknown, log.num_missing, len(log)) == (20, 10, 0)


def test_columns_and_delimiter_can_have_other_names(catalog, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("when;who;sku\n3;u;i1\n")
    log = read_log(path, catalog, columns={"user_id": "who", "item_id": "sku", "timestamp": "when"}, delimiter=";")
    assert pairs(log) == [("u", 1)]
    assert log.timestamps.to_pylist() == [3]


def test_integers_in_a_table_are_ids(catalog, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"user_id": [7, 8], "item_id": ["i1", "i2"]}), tmp_path / "log.parquet")
    assert pairs(read_log(tmp_path / "log.parquet", catalog)) == [("7", 1), ("8", 2)]


def test_timestamps_that_are_no_integers_stay_text(catalog, tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,i1,2024-01-01\n")
    assert read_log(tmp_path / "log.csv", catalog).timestamps.to_pylist() == ["2024-01-01"]


def test_a_log_is_written_and_read_back_and_its_bytes_repeat(catalog, path, tmp_path):
    log = read_log(path, catalog)
    for name in ("a.parquet", "b.parquet"):
        write_log(tmp_path / name, log, catalog)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    again = read_log(tmp_path / "a.parquet", catalog)
    assert pairs(again) == pairs(log)
    assert again.timestamps.equals(log.timestamps)
    assert [*Interactions.load(tmp_path / "a.parquet", catalog).user_ids] == [user for user, _ in PAIRS]


@pytest.mark.parametrize("text", ["user_id,item_id\n", "user_id,item_id\nu,gone\n"])
def test_a_log_without_known_items_is_empty(catalog, tmp_path, text):
    (tmp_path / "log.csv").write_text(text)
    log = read_log(tmp_path / "log.csv", catalog)
    assert (len(log), log.users) == (0, ())
    write_log(tmp_path / "log.parquet", log, catalog)
    assert len(read_log(tmp_path / "log.parquet", catalog)) == 0


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
        read_log(tmp_path / file, catalog)


def test_fractions_as_ids_are_refused(catalog):
    with pytest.raises(BundleMLLMError, match="holds double values as `item_id`"):
        collect_log([pyarrow.record_batch([["u"], [1.5]], names=["user_id", "item_id"])], catalog)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BundleMLLMError, match="There is no file"):
        iter_log(tmp_path / "log.csv")
