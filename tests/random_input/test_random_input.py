"""Whatever comes in, there is a result, or one error in one line that names the mistake; nothing half-written."""

import gzip
import json
import math
from itertools import chain
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from random_values import ID, KNOWN, TEXT, VALUES, changes_of, folder, oddly, outcome

from bundle_mllm.cli import show
from bundle_mllm.data import DatasetFolder, read_records, write_records
from bundle_mllm.data.json_text import parse_json
from bundle_mllm.data.records import to_id, to_ids, to_text
from bundle_mllm.data.words import words
from bundle_mllm.importers import import_orders, import_shopify, import_tabular, import_woocommerce
from bundle_mllm.importers.meeting import explain_unmet
from bundle_mllm.importers.text import clean_text, split_paths
from bundle_mllm.importers.times import to_seconds
from bundle_mllm.settings import with_overrides
from bundle_mllm.training.config import RunConfig

PLAIN = st.sampled_from(["hat", "red hat", "7.5", "a|b", "x,y", 'say "hi"', "\u00e9"])


def _parquet():
    with folder() as path:
        write_records(path / "t.parquet", [{"a": "1", "b": ["2"]}, {"a": None, "b": []}])
        return (path / "t.parquet").read_bytes()


PARQUET = _parquet()


def write_csv(path, header, rows, delimiter=","):
    lines = [delimiter.join(f'"{str(cell).replace(chr(34), chr(34) * 2)}"' for cell in row) for row in [header, *rows]]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))


def imports(run, source, target, **options):
    """Import, and check that the folder is whole and can be opened, or absent."""
    accepted, result = outcome(run, source, target, **options)
    if accepted:
        data = DatasetFolder.open(target)
        assert result.num_items == len(data.catalog)
        assert sum(result.num_bundles.values()) == len(data.bundles)
        assert all(len(bundle.items) >= 2 for bundle in data.bundles)
        assert data.interactions is None or len(data.interactions) == result.num_interactions
        json.loads((target / "import.json").read_text())
    assert sorted(path.name for path in target.parent.iterdir()) == sorted(["source", *(["data"] if accepted else [])])
    return "accepted" if accepted else "refused"


@st.composite
def table_bytes(draw):
    """The bytes of a table and its suffix: of a sound one, of one with some bytes changed, or any bytes."""
    suffix = draw(st.sampled_from([".csv", ".jsonl", ".csv.gz", ".jsonl.gz", ".parquet"]))
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=60) | TEXT.map(lambda text: text.encode("utf-8", "replace"))), suffix
    if suffix == ".parquet":
        content = PARQUET
    else:
        rows = draw(st.lists(st.tuples(TEXT, TEXT), max_size=3))
        lines = ["a,b", *(f'"{a}","{b}"' for a, b in rows)]
        if suffix.startswith(".jsonl"):
            lines = [json.dumps(dict(zip("ab", row, strict=True))) for row in rows]
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
        content = gzip.compress(content, 1) if suffix.endswith(".gz") else content
    if content and draw(st.booleans()):
        start = draw(st.integers(0, len(content) - 1))
        content = content[:start] + draw(st.binary(max_size=4)) + content[start + draw(st.integers(0, 4)) :]
    return content, suffix


@given(table=table_bytes())
def test_a_table_of_any_bytes(table, count):
    content, suffix = table
    with folder() as path:
        (path / f"t{suffix}").write_bytes(content)
        accepted, rows = outcome(read_records, path / f"t{suffix}")
        assert not accepted or all(isinstance(row, dict) for row in rows)
        count("accepted" if accepted else "refused")


@given(
    rows=st.lists(st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES, max_size=3), max_size=4),
    suffix=st.sampled_from([".csv", ".jsonl", ".parquet"]),
)
def test_a_table_of_any_values(rows, suffix, count):
    with folder() as path:
        accepted, _ = outcome(write_records, path / f"t{suffix}", rows)
        if accepted:
            assert (
                len(read_records(path / f"t{suffix}")) == len([row for row in rows if row or suffix != ".csv"])
                or suffix != ".jsonl"
            )
        else:
            assert not list(path.iterdir())
        count("accepted" if accepted else "refused")


@given(
    items=st.lists(
        st.tuples(oddly(KNOWN, ID, 9), oddly(PLAIN, TEXT, 9), oddly(PLAIN, TEXT, 9), oddly(st.just(""), TEXT, 9)),
        max_size=8,
        unique_by=lambda row: row[0],
    ),
    bundles=st.lists(
        st.tuples(
            oddly(st.uuids().map(str), TEXT, 9), st.lists(oddly(KNOWN, ID), min_size=2, max_size=4).map("|".join)
        ),
        max_size=6,
    ),
    header=st.sampled_from(
        [["item_id", "title", "category", "image"]] * 4
        + [["Item ID", " Title ", "price", ""], ["sku", "title", "a", "b"]]
    ),
    log=st.none() | st.lists(st.tuples(oddly(KNOWN, ID, 9), oddly(KNOWN, ID)), max_size=5),
    first=st.booleans(),
)
def test_a_shop_of_any_tables(items, bundles, header, log, first, count):
    with folder() as path:
        (path / "source").mkdir()
        plain = [("0", "a", "", ""), ("1", "b", "", ""), ("2", "c", "", "")]
        write_csv(
            path / "source" / "items.csv",
            header,
            [*(row for row in plain if row[0] not in dict.fromkeys(i[0] for i in items)), *items],
        )
        write_csv(path / "source" / "bundles.csv", ["bundle_id", "items"], [("sure", "0|1"), *bundles])
        if log is not None:
            write_csv(path / "source" / "interactions.csv", ["user_id", "item_id"], log)
        options = {"on_duplicate": "first"} if first else {}
        count(imports(import_tabular, path / "source", path / "data", **options))


@given(
    lines=st.lists(
        st.tuples(
            st.sampled_from(["1", "2", "3", "C1", "C9"]) | ID,
            KNOWN | ID,
            oddly(st.sampled_from(["1", "2", "-1", "", "0"]), TEXT),
            oddly(st.sampled_from(["2024-01-01", "2024-02-01 10:00"]), TEXT),
            ID,
            TEXT,
        ),
        max_size=12,
    ),
    split=st.sampled_from(["bundle", "time"]),
    size=oddly(st.sampled_from([(2, 3), (2, 50)]), st.tuples(st.integers(0, 4), st.integers(0, 6))),
)
def test_order_lines_of_any_kind(lines, split, size, count):
    with folder() as path:
        (path / "source").mkdir()
        sure = [("7", item, "1", "2024-03-01", "u", "thing") for item in ("0", "1", "2")]
        header = ["Invoice", "StockCode", "Quantity", "InvoiceDate", "Customer ID", "Description"]
        write_csv(path / "source" / "orders.csv", header, [*sure, *lines])
        count(imports(import_orders, path / "source", path / "data", split_by=split, order_size=size))


@given(
    rows=st.lists(st.tuples(st.sampled_from(["hat", "cap", ""]) | TEXT, *[TEXT] * 5), max_size=6),
    system=st.sampled_from(["shopify", "woocommerce"]),
)
def test_a_product_export_of_any_cells(rows, system, count):
    with folder() as path:
        (path / "source").mkdir()
        if system == "shopify":
            run, header = import_shopify, ["Handle", "Title", "Body (HTML)", "Variant SKU", "Tags", "Image Src"]
        else:
            run, header = import_woocommerce, ["ID", "Type", "Name", "SKU", "Parent", "Categories"]
        write_csv(path / "source" / "products.csv", header, [("sure", "simple", "a", "", "", ""), *rows])
        count(imports(run, path / "source", path / "data", on_duplicate="first"))


@given(text=TEXT | st.text(alphabet="<>/&;bpM !-=\"'x1", max_size=40))
def test_texts_of_any_kind(text, count):
    cleaned = clean_text(text)
    assert cleaned == cleaned.strip() and "<b>" not in cleaned
    assert all(path for path in split_paths(text))
    assert all(word == word.casefold() or word for word in words(text))
    for encoding in ("utf-8", "cp1252", "ascii"):
        shown = show.printable(json.dumps({"t": text}, ensure_ascii=False), encoding)
        shown.encode(encoding)
        assert json.loads(shown) == {"t": text}
    count("accepted")


IDS = st.lists(ID | st.integers(), max_size=3)


@given(value=ID | st.integers() | oddly(IDS | IDS.map(json.dumps) | st.lists(KNOWN).map("|".join), VALUES, 3))
def test_cells_of_any_kind(value, count):
    is_id, item_id = outcome(to_id, value, "t row 1")
    assert not is_id or (isinstance(item_id, str) and item_id.strip())
    is_text, text = outcome(to_text, value, "title", "t row 1")
    assert not is_text or text is None or (isinstance(text, str) and text)
    are_ids, ids = outcome(to_ids, value, "items", "t row 1")
    assert not are_ids or all(isinstance(each, str) for each in ids)
    count("accepted" if is_id or are_ids else "refused")


@given(text=st.text(alphabet='{}[]",:0123456789eE+-.natrufls \\', max_size=30) | VALUES.map(lambda v: json.dumps(v)))
def test_json_of_any_kind(text, count):
    accepted, value = outcome(parse_json, text, "t")
    if accepted:
        assert json.loads(text) == value or value != value or "NaN" in text
    count("accepted" if accepted else "refused")


TIMES = [
    [
        "2024-01-01",
        "2024-02-29",
        "2024-01-01 10:00",
        "2024-01-01T10:00:00",
        "2024-01-01 10:00 +0100",
        "17",
        "20240101",
    ],
    ["1/2/2010", "13/2/2010", "31/12/2010 8:26", "1.2.2010"],
    ["1/2/2010", "2/13/2010", "12/31/2010 8:26 PM"],
]
"""Times that can be of one table."""


@given(
    texts=st.sampled_from(TIMES).flatmap(
        lambda times: st.lists(
            oddly(st.sampled_from(times), TEXT | st.sampled_from([*chain(*TIMES)])),
            max_size=4,
        )
    )
)
def test_times_of_any_kind(texts, count):
    accepted, seconds = outcome(to_seconds, texts)
    assert not accepted or (len(seconds) == len(texts) and all(map(math.isfinite, seconds)))
    count("accepted" if accepted else "refused")


@given(unknown=st.lists(ID, max_size=4), known=st.lists(ID, max_size=4))
def test_ids_of_any_kind_are_explained(unknown, known, count):
    assert bool(explain_unmet(unknown, known)) == bool(unknown and known)
    count("accepted")


@given(
    values=oddly(changes_of(RunConfig), st.dictionaries(st.sampled_from(["seed", "x"]) | TEXT, VALUES, max_size=2), 9)
)
def test_settings_of_any_values(values, count):
    accepted, run = outcome(with_overrides, RunConfig(Path("d"), Path("o")), values)
    assert not accepted or isinstance(run, RunConfig)
    count("accepted" if accepted else "refused")
