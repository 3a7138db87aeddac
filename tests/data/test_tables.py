import gzip

import pyarrow
import pyarrow.parquet
import pytest

from bundle_mllm.bounds import bounds
from bundle_mllm.data.tables import SUFFIXES, find_table, iter_places, read_header, read_records, write_records
from bundle_mllm.errors import BundleMLLMError

ROWS = [{"item_id": "1", "title": 'red "hat", large\nwith ribbon'}, {"item_id": "2", "title": None}]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_reads_back_what_was_written(tmp_path, suffix):
    write_records(tmp_path / f"t{suffix}", iter(ROWS))
    assert read_records(tmp_path / f"t{suffix}") == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_typed_formats_keep_lists_and_numbers(tmp_path, suffix):
    rows = [{"items": ["1", "2"], "n": 3}, {"items": [], "n": 4}]
    write_records(tmp_path / f"t{suffix}", rows)
    assert read_records(tmp_path / f"t{suffix}") == rows


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_only_a_later_row_has_is_kept(tmp_path, suffix):
    write_records(tmp_path / f"t{suffix}", [{"a": "1"}, {"a": "2", "b": "3"}])
    assert read_records(tmp_path / f"t{suffix}") == [{"a": "1", "b": None}, {"a": "2", "b": "3"}]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_without_rows_reads_back_empty(tmp_path, suffix):
    write_records(tmp_path / f"t{suffix}", [])
    assert read_records(tmp_path / f"t{suffix}") == []


def test_csv_writes_a_list_as_json(tmp_path):
    write_records(tmp_path / "t.csv", [{"items": ["1", "2"]}])
    assert read_records(tmp_path / "t.csv") == [{"items": '["1", "2"]'}]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".csv.gz"])
def test_gzip_output_depends_on_the_rows_alone(tmp_path, suffix, monkeypatch):
    write_records(tmp_path / f"first{suffix}", ROWS)
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_records(tmp_path / f"second{suffix}", ROWS)
    assert (tmp_path / f"first{suffix}").read_bytes() == (tmp_path / f"second{suffix}").read_bytes()


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "t.jsonl"
    write_records(path, ROWS)
    with pytest.raises(BundleMLLMError, match="row 2 cannot be written as JSON"):
        write_records(path, [{"a": 1}, {"a": float("nan")}])
    assert read_records(path) == ROWS
    assert list(tmp_path.iterdir()) == [path]


def test_a_byte_order_mark_and_blank_lines_are_skipped(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}\n')
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfa\r\n1\r\n\r\n2\r\n")
    assert read_records(tmp_path / "t.jsonl") == [{"a": 1}, {"a": 2}]
    assert read_records(tmp_path / "t.csv") == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"a": 1}\n{"a": \n', r"t\.jsonl line 2 is not JSON"),
        ("t.jsonl", b'{"a": 1}\n[1, 2]\n', "line 2 is a list, not an object"),
        ("t.jsonl", b'{"a": "\xff"}\n', "is not UTF-8"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", "line 3 has 3 cells for 2 columns"),
        ("t.csv", b"a,b\n1\n", "line 2 has 1 cells for 2 columns"),
        ("t.csv", b'a,b\n1,"2\n', "is not CSV"),
        ("t.csv", b"a,b,a\n1,2,3\n", "names a column twice"),
        ("t.jsonl.gz", b'{"a": 1}\n', "is not a complete gzip file"),
        ("t.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], "is not a complete gzip file"),
        ("t.parquet", b"not parquet", "is not a Parquet file"),
        ("t.txt", b"", r"must end in one of \.jsonl"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BundleMLLMError, match=message):
        read_records(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BundleMLLMError, match="no file"):
        read_records(tmp_path / "t.jsonl")


def test_parquet_refuses_a_column_of_mixed_types(tmp_path):
    with pytest.raises(BundleMLLMError, match="the column 'b' has text in row 3 and a number in row 2"):
        write_records(tmp_path / "t.parquet", [{"a": 1, "b": None}, {"a": 2, "b": 1}, {"a": 1, "b": "x"}])


def test_find_table_finds_the_only_format_and_refuses_two(tmp_path):
    assert find_table(tmp_path, "items") is None
    (tmp_path / "items.csv.gz").touch()
    (tmp_path / "items.md").touch()
    assert find_table(tmp_path, "items") == tmp_path / "items.csv.gz"
    (tmp_path / "items.parquet").touch()
    with pytest.raises(BundleMLLMError, match=r"items\.csv\.gz and items\.parquet.*keep one"):
        find_table(tmp_path, "items")
    with pytest.raises(BundleMLLMError, match="no folder"):
        find_table(tmp_path / "missing", "items")


@pytest.mark.parametrize("title", ["one\rtwo", "one\r\ntwo", "long " * 40_000])
def test_csv_keeps_line_ends_and_long_texts(tmp_path, title):
    rows = [{"item_id": "1", "title": title}, {"item_id": "2", "title": None}]
    write_records(tmp_path / "t.csv", rows)
    assert read_records(tmp_path / "t.csv") == rows


@pytest.mark.parametrize("value", [{}, 2**70])
def test_what_parquet_cannot_hold_is_refused_with_the_way_out(tmp_path, value):
    with pytest.raises(BundleMLLMError, match=r"t\.parquet cannot be written.*or write \.jsonl"):
        write_records(tmp_path / "t.parquet", [{"a": value}])
    assert not list(tmp_path.iterdir())


DEEP = "[" * 50_000 + "]" * 50_000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": ' + DEEP + "}", r"t\.jsonl line 2 is JSON nested too deeply"),
        ('{"a": ' + "9" * 5_000 + "}", r"t\.jsonl line 2 is JSON that cannot be read \(Exceeds the limit"),
        ('{"a": 1, "b": 2, "a": 3}', r"t\.jsonl line 2 is unclear JSON \(it has the key 'a' twice\)"),
        ('{"a": {"b": 2, "b": 3}}', r"t\.jsonl line 2 is unclear JSON \(it has the key 'b' twice\)"),
    ],
)
def test_json_that_cannot_be_read_or_is_unclear_is_refused_by_line(tmp_path, line, message):
    (tmp_path / "t.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(BundleMLLMError, match=message):
        read_records(tmp_path / "t.jsonl")


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_values_that_python_lacks_are_refused_by_rows(tmp_path):
    days = pyarrow.array([0, 2**31 - 1], pyarrow.int32()).cast(pyarrow.date32())
    text = pyarrow.array([b"good", b"\xff\xfe"]).view(pyarrow.string())
    for name, column in (("days", days), ("text", text)):
        path = parquet(tmp_path / f"{name}.parquet", item_id=["a", "b"], title=column)
        with pytest.raises(BundleMLLMError, match=rf"{name}.parquet rows 1 to 2 hold a value that cannot be read"):
            read_records(path)


def test_a_small_file_that_claims_millions_of_rows_is_refused_before_they_are_read(tmp_path, monkeypatch):
    path = parquet(tmp_path / "t.parquet", item_id=pyarrow.array(["a"]).take(pyarrow.array([0] * 3_000_000)))
    assert path.stat().st_size < 20_000
    monkeypatch.delattr(pyarrow.parquet.ParquetFile, "iter_batches")
    with pytest.raises(
        BundleMLLMError, match=r"rows per byte, above the bound of 32: its rows are nearly all the same"
    ):
        read_records(path)


def test_tables_beyond_the_bounds_are_refused_and_the_bounds_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setenv("BUNDLE_MLLM_BOUNDS", "table_rows=3 cell_characters=20")
    bounds.cache_clear()
    try:
        for name, lines in (("t.csv", ["a", *"1234"]), ("t.jsonl", ['{"a": 1}'] * 4)):
            (tmp_path / name).write_text("\n".join(lines))
            with pytest.raises(
                BundleMLLMError, match=r"has 4 table rows, above the bound of 3: split the file, or raise"
            ):
                read_records(tmp_path / name)
        path = parquet(tmp_path / "t.parquet", a=[1, 2, 3, 4])
        with pytest.raises(BundleMLLMError, match="has 4 table rows"):
            read_records(path)
        (tmp_path / "t.jsonl").write_text('{"a": "' + "x" * 20 + '"}')
        with pytest.raises(BundleMLLMError, match=r"t.jsonl line 1 has 21 cell characters"):
            read_records(tmp_path / "t.jsonl")
        (tmp_path / "t.csv").write_text("a\n" + "x" * 21)
        with pytest.raises(BundleMLLMError, match=r"t.csv line 2 is not CSV \(field larger than field limit"):
            read_records(tmp_path / "t.csv")
        monkeypatch.setenv("BUNDLE_MLLM_BOUNDS", "rows=3")
        bounds.cache_clear()
        with pytest.raises(
            BundleMLLMError, match=r"BUNDLE_MLLM_BOUNDS has 'rows=3': write NAME=NUMBER, NAME being one"
        ):
            read_records(path)
    finally:
        bounds.cache_clear()


def test_malformed_rows_can_be_reported_and_skipped(tmp_path):
    (tmp_path / "t.csv").write_text('a, b \n1,2\n\n"x\ny",3\n4\n5,"6"7\n8,9\n')
    problems = []
    rows = dict(iter_places(tmp_path / "t.csv", report=problems.append))
    assert rows == {
        f"{tmp_path}/t.csv line 2": {"a": "1", "b": "2"},
        f"{tmp_path}/t.csv line 4": {"a": "x\ny", "b": "3"},
        f"{tmp_path}/t.csv line 8": {"a": "8", "b": "9"},
    }
    assert ["line 6 has 1 cells" in problems[0], "line 7 is not CSV" in problems[1]] == [True, True]
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n[]\n{\n{"a": 2}\n')
    problems.clear()
    assert [row for _, row in iter_places(tmp_path / "t.jsonl", report=problems.append)] == [{"a": 1}, {"a": 2}]
    assert len(problems) == 2


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_header_is_read_alone(tmp_path, suffix):
    write_records(tmp_path / f"t{suffix}", [{"item_id": "1", "title": "a"}])
    assert read_header(tmp_path / f"t{suffix}") == ["item_id", "title"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_half_a_character_is_refused_and_leaves_no_file(tmp_path, suffix):
    with pytest.raises(BundleMLLMError, match="half a character"):
        write_records(tmp_path / f"t{suffix}", [{"a": "whole"}, {"a": "\ud83d"}])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("before", "after"), [(b"PAR1\x15", b"PAR1\xff"), (b"element", b"e\xffement")], ids=["page", "name"]
)
def test_damaged_parquet_is_refused(tmp_path, before, after):
    write_records(tmp_path / "t.parquet", [{"a": "1", "b": ["2"]}])
    content = (tmp_path / "t.parquet").read_bytes()
    assert before in content
    (tmp_path / "t.parquet").write_bytes(content.replace(before, after, 1))
    with pytest.raises(BundleMLLMError, match="not a Parquet file that can be read"):
        read_records(tmp_path / "t.parquet")
