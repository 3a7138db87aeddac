"""Whatever comes in, there is a result, or one error in one line that names the mistake; nothing half-written."""

import contextlib
import json
import math
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import ITEM_IDS, make_completer, make_processor

from bundle_mllm.cli import show
from bundle_mllm.data import DatasetFolder, read_records, write_records
from bundle_mllm.data.json_text import parse_json
from bundle_mllm.data.records import to_id, to_ids, to_text
from bundle_mllm.data.words import words
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers import import_orders, import_shopify, import_tabular, import_woocommerce
from bundle_mllm.importers.meeting import explain_unmet
from bundle_mllm.importers.text import clean_text, split_paths
from bundle_mllm.importers.times import to_seconds
from bundle_mllm.settings import with_overrides
from bundle_mllm.training.config import RunConfig

TEXT = st.text(max_size=12) | st.sampled_from(
    ["", " ", "NA", "0012", "1.0", "a|b", "&amp;", "<b>x</b>", "\x00", "\ud83d", "C12"]
)
ID = st.sampled_from(["0", "1", "2", "3", "4", " 1", "01", "1.0", "", "\u00e9", "e\u0301"]) | st.text(max_size=4)
KNOWN = st.sampled_from(["0", "1", "2", "3", "4"])


def oddly(usual, odd):
    """Draw the odd once in thirty times, so that inputs of many parts are accepted, too."""
    return st.integers(0, 29).flatmap(lambda number: odd if number == 0 else usual)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@contextlib.contextmanager
def folder():
    path = Path(tempfile.mkdtemp())
    try:
        yield path
    finally:
        shutil.rmtree(path)


def outcome(function, *args, errors=BundleMLLMError, **kwargs):
    """Return (True, result), or (False, message) for an error of one line."""
    try:
        return True, function(*args, **kwargs)
    except errors as error:
        assert str(error) and len(str(error)) < 20_000
        return False, str(error)


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


@given(
    content=st.binary(max_size=60) | TEXT.map(lambda text: text.encode("utf-8", "replace")),
    suffix=st.sampled_from([".csv", ".jsonl", ".csv.gz", ".parquet"]),
)
def test_a_table_of_any_bytes(content, suffix, count):
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
        accepted, _ = outcome(write_records, path / f"t{suffix}", rows, errors=(BundleMLLMError, UnicodeEncodeError))
        if accepted:
            assert (
                len(read_records(path / f"t{suffix}")) == len([row for row in rows if row or suffix != ".csv"])
                or suffix != ".jsonl"
            )
        else:
            assert not list(path.iterdir())
        count("accepted" if accepted else "refused")


@given(
    items=st.lists(st.tuples(KNOWN | ID, TEXT, TEXT, TEXT), max_size=8, unique_by=lambda row: row[0]),
    bundles=st.lists(st.tuples(TEXT, st.lists(KNOWN | ID, max_size=4).map("|".join)), max_size=6),
    header=st.sampled_from(
        [["item_id", "title", "category", "image"], ["Item ID", " Title ", "price", ""], ["sku", "title", "a", "b"]]
    ),
    log=st.none() | st.lists(st.tuples(ID, KNOWN | ID), max_size=5),
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
def test_texts_of_any_kind(text):
    cleaned = clean_text(text)
    assert cleaned == cleaned.strip() and "<b>" not in cleaned
    assert all(path for path in split_paths(text))
    assert all(word == word.casefold() or word for word in words(text))
    for encoding in ("utf-8", "cp1252", "ascii"):
        shown = show.printable(json.dumps({"t": text}, ensure_ascii=False), encoding)
        shown.encode(encoding)
        assert json.loads(shown) == {"t": text}


@given(value=VALUES)
def test_cells_of_any_kind(value, count):
    accepted, item_id = outcome(to_id, value, "t row 1")
    assert not accepted or (isinstance(item_id, str) and item_id.strip())
    accepted, text = outcome(to_text, value, "title", "t row 1")
    assert not accepted or text is None or (isinstance(text, str) and text)
    accepted, ids = outcome(to_ids, value, "items", "t row 1")
    assert not accepted or all(isinstance(each, str) for each in ids)
    count("accepted" if accepted else "refused")


@given(text=st.text(alphabet='{}[]",:0123456789eE+-.natrufls \\', max_size=30) | VALUES.map(lambda v: json.dumps(v)))
def test_json_of_any_kind(text, count):
    accepted, value = outcome(parse_json, text, "t")
    if accepted:
        assert json.loads(text) == value or value != value or "NaN" in text
    count("accepted" if accepted else "refused")


@given(
    texts=st.lists(
        st.sampled_from(["2024-01-01", "1/2/2010", "13/2/2010", "2/13/2010", "17", "2024-01-01 10:00 +0100"]) | TEXT,
        max_size=4,
    )
)
def test_times_of_any_kind(texts, count):
    accepted, seconds = outcome(to_seconds, texts)
    assert not accepted or (len(seconds) == len(texts) and all(map(math.isfinite, seconds)))
    count("accepted" if accepted else "refused")


@given(unknown=st.lists(ID, max_size=4), known=st.lists(ID, max_size=4))
def test_ids_of_any_kind_are_explained(unknown, known):
    assert bool(explain_unmet(unknown, known)) == bool(unknown and known)


@given(
    values=st.dictionaries(
        st.sampled_from(["seed", "base_model", "stage_one", "retriever", "x"]) | st.integers() | TEXT,
        VALUES
        | st.dictionaries(
            st.sampled_from(["learning_rate", "num_questions", "batch_size"]) | TEXT,
            st.integers(-2, 99) | VALUES,
            max_size=2,
        ),
        max_size=2,
    )
)
def test_settings_of_any_values(values, count):
    accepted, run = outcome(with_overrides, RunConfig(Path("d"), Path("o")), values)
    assert not accepted or isinstance(run, RunConfig)
    count("accepted" if accepted else "refused")


ENTRY = st.sampled_from(ITEM_IDS) | ID | st.fixed_dictionaries({"title": TEXT}) | VALUES
QUESTION = st.fixed_dictionaries(
    {
        "partial": st.lists(st.sampled_from(ITEM_IDS), min_size=1, max_size=3, unique=True)
        | st.lists(ENTRY, max_size=3)
    },
    optional={
        "candidates": st.none()
        | st.lists(st.sampled_from(ITEM_IDS), min_size=2, max_size=6, unique=True)
        | st.lists(ENTRY, max_size=4)
    },
)

ASKED = st.permutations(ITEM_IDS).flatmap(
    lambda ids: st.integers(3, len(ids)).map(lambda end: {"partial": ids[:2], "candidates": ids[2 : end + 1]})
)


@pytest.fixture(scope="module")
def completer():
    return make_completer()


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@given(question=ASKED | QUESTION | VALUES)
def test_questions_of_any_kind_are_answered_or_refused(completer, question, count):
    accepted, result = outcome(completer.complete, question, errors=ValueError)
    if accepted:
        assert math.isclose(sum(entry["score"] for entry in result), 1, abs_tol=1e-4)
        assert all(math.isfinite(entry["score"]) for entry in result)
    count("accepted" if accepted else "refused")


@given(question=oddly(ASKED, QUESTION | VALUES))
def test_prompts_of_any_question(processor, question, count):
    accepted, encoded = outcome(processor, question, errors=ValueError)
    assert not accepted or torch.tensor(encoded["input_ids"]).ndim in (1, 2)
    count("accepted" if accepted else "refused")
