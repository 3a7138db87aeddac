"""Many bundles at once: the answers of one by one, in every format, the same bytes after kills, and nothing mixed."""

import json
import os
import subprocess
import sys

import pytest
import torch
from tiny_models import ITEM_IDS, TITLES, make_completer

from bundle_mllm.completion import bulk
from bundle_mllm.completion.bulk import complete_bulk
from bundle_mllm.completion.columns import ItemColumns
from bundle_mllm.completion.complete import load_ruled_completer
from bundle_mllm.completion.product_table import product_rows
from bundle_mllm.completion.rules import Rules
from bundle_mllm.data import read_records, write_records
from bundle_mllm.data.files import locked_folder
from bundle_mllm.errors import BundleMLLMError

ITEMS = [
    {"item_id": item_id, "title": title, "price": 5.0 * (row + 1), "category": "ab"[row % 2]}
    for row, (item_id, title) in enumerate(zip(ITEM_IDS, TITLES, strict=True))
]
QUESTIONS = [
    {"question_id": "first", "partial": ["i0", "i1"]},
    {"question_id": "second", "partial": ["i3"], "candidates": ["i5", "i2", "i7"]},
    {"partial": ["i6"]},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bulk") / "model"
    make_completer().save_pretrained(folder)
    return folder


@pytest.fixture
def items(tmp_path):
    write_records(tmp_path / "items.jsonl", ITEMS)
    return tmp_path / "items.jsonl"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(bulk, "PART_SIZE", 2)


def expected_rows(model, questions, top_k, rules=None, items=None):
    found = load_ruled_completer(model, rules, items, "cpu").complete(questions, top_k=top_k)
    return [[item["item_id"] for item in answers.items] for answers in found]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_item_gets_its_answers_in_every_format(model, items, tmp_path, suffix):
    rules, output = Rules(where="price > 10", max_per_category=1), tmp_path / f"answers.{suffix}"
    seen = []
    complete_bulk(
        model=str(model), rules=rules, items=items, every_item=True, output=output, top_k=3, device="cpu",
        progress=lambda *state: seen.append(state),
    )  # fmt: skip
    rows = read_records(output)
    decode = json.loads if suffix == "csv" else list
    assert [row["item_id"] for row in rows] == ITEM_IDS
    expected = expected_rows(model, [{"partial": [item_id]} for item_id in ITEM_IDS], 3, rules, items)
    assert [decode(row["answers"]) for row in rows] == expected
    assert all(len(decode(row["scores"])) == 2 for row in rows)
    assert rows[0]["notes"].startswith("2 answers instead of 3: where price > 10 removes 2, max_per_category removes")
    assert seen == [("Completing", done, 8) for done in (0, 2, 4, 6, 8)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"answers.{suffix}", "items.jsonl"]


@pytest.mark.parametrize("layout", ["shopify", "woocommerce"])
def test_a_shop_system_gets_a_row_for_each_product_with_other_products_in_one_cell(model, tmp_path, layout):
    products = {item_id: str(row // 2) for row, item_id in enumerate(ITEM_IDS)}  # two variants each
    named = {"handle": "p{}", "product_title": "Product {}"} if layout == "shopify" else {"product_id": "{}"}
    records = [
        {"item_id": item_id, **{name: text.format(product) for name, text in named.items()}}
        for item_id, product in products.items()
    ]
    write_records(tmp_path / "items.jsonl", records)
    options = {"every_item": True, "items": tmp_path / "items.jsonl", "layout": layout, "top_k": 2, "device": "cpu"}
    rows = read_records(complete_bulk(model=str(model), output=tmp_path / "shop.csv", **options))
    rules = Rules(variant_column=next(iter(named)))
    found = expected_rows(model, [{"partial": [item_id]} for item_id in ITEM_IDS], 2, rules, tmp_path / "items.jsonl")
    expected = []
    for first in range(0, len(ITEM_IDS), 2):
        in_turn = [products[item_id] for pair in zip(*found[first : first + 2], strict=True) for item_id in pair]
        expected.append(list(dict.fromkeys(in_turn))[:2])
    if layout == "shopify":
        assert [list(row.values()) for row in rows] == [
            [f"p{n}", f"Product {n}", "; ".join(f"p{each}" for each in of)] for n, of in enumerate(expected)
        ]
        assert list(rows[0])[2].startswith("Complementary products (product.metafields.shopify--discovery")
    else:
        assert rows == [
            {"ID": str(n), "Cross-sells": ", ".join(f"id:{each}" for each in of)} for n, of in enumerate(expected)
        ]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_questions_are_read_from_every_format(model, tmp_path, suffix):
    write_records(tmp_path / f"questions.{suffix}", QUESTIONS)
    output = tmp_path / "answers.jsonl"
    complete_bulk(model=str(model), input=tmp_path / f"questions.{suffix}", output=output, top_k=2, device="cpu")
    rows = read_records(output)
    assert [row["question_id"] for row in rows] == ["first", "second", "3"]
    assert [row["answers"] for row in rows] == expected_rows(model, QUESTIONS, 2)
    assert [row["notes"] for row in rows] == [None] * 3


def test_a_run_that_is_killed_again_and_again_writes_the_same_bytes(model, tmp_path, monkeypatch):
    settings = {"model": str(model), "every_item": True, "top_k": 3, "device": "cpu"}
    whole, pieces = tmp_path / "whole.jsonl", tmp_path / "pieces.jsonl"
    complete_bulk(**settings, output=whole)
    answer, answered = bulk.answer, []

    def killed_in_the_second_part(shop, questions, options):
        if answered and answered[-1] is not None:
            answered.append(None)
            raise KeyboardInterrupt
        answered.append(len(questions))
        return answer(shop, questions, options)

    monkeypatch.setattr(bulk, "answer", killed_in_the_second_part)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            complete_bulk(**settings, output=pieces)
        assert not pieces.exists()
    complete_bulk(**settings, output=pieces)
    assert pieces.read_bytes() == whole.read_bytes()
    assert [number for number in answered if number] == [2] * 4  # no part is answered twice
    assert not (tmp_path / "pieces.jsonl.parts").exists()


def test_a_question_may_have_the_id_0_and_one_without_an_id_has_its_row_number(model, tmp_path):
    for suffix in ("jsonl", "csv"):
        questions, output = tmp_path / f"q.{suffix}", tmp_path / "answers.jsonl"
        write_records(questions, [{"question_id": 0, "partial": ["i0"]}, {"question_id": None, "partial": ["i1"]}])
        complete_bulk(model=str(model), input=questions, output=output, device="cpu", top_k=1)
        assert [row["question_id"] for row in read_records(output)] == ["0", "2"]


def test_progress_is_that_of_all_processes(model, tmp_path, monkeypatch):
    seen, wait = [], bulk.Process.wait

    class Second(bulk.Process):
        """The first of two processes; the other has answered its parts when this one has."""

        def wait(self):
            for number in range(1, 4, 2):
                (tmp_path / "answers.jsonl.parts" / f"{number:06}.jsonl").write_text(
                    '{"item_id": "i", "answers": []}\n'
                )
            wait(self)

    monkeypatch.setattr(bulk.Process, "join", classmethod(lambda cls, device: Second(torch.device("cpu"), 0, 2)))
    monkeypatch.setattr(bulk._BulkRun, "_join", lambda *_: None)
    complete_bulk(
        model=str(model), every_item=True, output=tmp_path / "answers.jsonl", device="cpu",
        progress=lambda name, done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(0, 8), (2, 8), (4, 8), (8, 8)]


def test_parts_of_another_run_are_not_mixed_in(model, items, tmp_path, monkeypatch):
    settings = {"model": str(model), "every_item": True, "items": items, "device": "cpu"}
    output = tmp_path / "answers.jsonl"
    monkeypatch.setattr(bulk._BulkRun, "_join", lambda *_: None)  # as if it was killed before
    complete_bulk(**settings, rules=Rules(where="price > 10"), output=output)
    with pytest.raises(BundleMLLMError, match=r"holds parts of another run \(rules changed\)"):
        complete_bulk(**settings, rules=Rules(where="price > 20"), output=output)
    write_records(items, [{**item, "price": 7.0} for item in ITEMS[:-1]] + ITEMS[-1:])
    with pytest.raises(BundleMLLMError, match=r"another run \(.*items.jsonl has changed\)"):
        complete_bulk(**settings, rules=Rules(where="price > 10"), output=output)


def test_an_output_that_another_process_writes_is_left_to_it(model, tmp_path):
    asked = {"model": str(model), "every_item": True, "output": tmp_path / "answers.jsonl", "device": "cpu"}
    with locked_folder(tmp_path / "answers.jsonl.parts"), pytest.raises(BundleMLLMError, match="is being written by"):
        complete_bulk(**asked)
    assert not asked["output"].exists()
    assert complete_bulk(**asked).exists()


def test_a_file_that_changes_under_a_run_is_noticed_and_nothing_is_written(model, items, tmp_path, monkeypatch):
    settings = {"model": str(model), "every_item": True, "items": items, "rules": Rules(where="price > 10")}
    output, answer, before = tmp_path / "answers.csv", bulk.answer, items.read_bytes()

    def change(shop, questions, options):
        write_records(items, ITEMS[::-1])
        return answer(shop, questions, options)

    monkeypatch.setattr(bulk, "answer", change)
    with pytest.raises(BundleMLLMError, match=r"items.jsonl has changed since this run began, so nothing is written"):
        complete_bulk(**settings, output=output, device="cpu")
    assert not output.exists()
    items.write_bytes(before)
    monkeypatch.setattr(bulk, "answer", None)  # all parts are there
    assert len(read_records(complete_bulk(**settings, output=output, device="cpu"))) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give --input FILE or --every-item, and --output FILE"),
        ({"every_item": True}, "and --output FILE"),
        ({"every_item": True, "input": "q.jsonl", "output": "a.jsonl"}, "or --every-item"),
        ({"every_item": True, "output": "a.txt"}, "a.txt cannot be a table"),
        ({"every_item": True, "output": "a.csv", "top_k": 0}, "top_k is 0"),
        ({"every_item": True, "output": "a.csv", "engine": "spark"}, "engine must be one of"),
        ({"every_item": True, "output": "a.parquet", "layout": "shopify"}, "a row for each product in a .csv file"),
        ({"input": "bad.jsonl", "output": "a.csv", "layout": "woocommerce"}, "a row for each product in a .csv file"),
        ({"input": "gone.csv", "output": "a.csv"}, "gone.csv"),
        ({"input": "none.jsonl", "output": "a.csv"}, "holds no question"),
        ({"input": "other.jsonl", "output": "a.csv"}, "no `partial`"),
        ({"input": "bad.jsonl", "output": "a.csv"}, "bad.jsonl row 2: Item 'gone' is not among the 8 items"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(model, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "other.jsonl").write_text('{"items": ["i0"]}\n')
    (tmp_path / "bad.jsonl").write_text('{"partial": ["i0"]}\n{"partial": ["gone"]}\n')
    with pytest.raises(BundleMLLMError, match=message):
        complete_bulk(model=str(model), device="cpu", **options)
    assert {path.name for path in tmp_path.iterdir()} == {"none.jsonl", "other.jsonl", "bad.jsonl"}


@pytest.mark.slow
def test_accelerate_launch_shares_the_parts_with_no_change(model, tmp_path):
    alone, shared = tmp_path / "alone.csv", tmp_path / "shared.csv"
    complete_bulk(model=str(model), every_item=True, top_k=3, device="cpu", output=alone)
    options = {"num_processes": 2, "num_machines": 1, "main_process_port": 0, "mixed_precision": "no"}
    launch = [f"--{name}={value}" for name, value in {**options, "dynamo_backend": "no"}.items()]
    code = "import sys\nfrom bundle_mllm.cli import main\nfrom bundle_mllm.completion import bulk\n"
    (tmp_path / "run.py").write_text(f"{code}bulk.PART_SIZE = {bulk.PART_SIZE}\nsys.exit(main(sys.argv[1:]))\n")
    command = ["complete", "--model", str(model), "--every-item", "--top-k", "3", "--device", "cpu", "--output"]
    script = [str(tmp_path / "run.py"), *command, str(shared)]
    run = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *launch, *script],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert shared.read_bytes() == alone.read_bytes()


@pytest.mark.slow
def test_ray_answers_the_same(model, tmp_path):
    pytest.importorskip("ray")
    settings = {"model": str(model), "every_item": True, "top_k": 3, "device": "cpu"}
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    complete_bulk(**settings, output=here)
    complete_bulk(**settings, output=there, engine="ray")
    assert there.read_bytes() == here.read_bytes()


def test_numbers_of_products_have_no_point_where_other_items_have_none():
    columns = ItemColumns.from_records(
        [{"item_id": "a", "product_id": 12.0}, {"item_id": "b", "product_id": None}], "ab"
    )
    rows = [{"item_id": "a", "answers": ["b"]}, {"item_id": "b", "answers": ["a"]}]
    assert list(product_rows(rows, columns, "ab", 3, "woocommerce")) == [
        {"ID": "12", "Cross-sells": "id:b"},
        {"ID": "b", "Cross-sells": "id:12"},
    ]
