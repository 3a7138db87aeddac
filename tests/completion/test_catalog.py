"""Items come, change and go in a model folder: ranker, retriever and item table together, and no other score moves."""

import json
import multiprocessing
import random
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import pipeline

from bundle_mllm import load_completer
from bundle_mllm.cli import main
from bundle_mllm.completion import catalog as module
from bundle_mllm.completion.catalog import update_catalog
from bundle_mllm.completion.item_table import read_item_table
from bundle_mllm.data import write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.model_folder import fingerprint

QUESTIONS = [
    {"partial": ["red-shirt", "red-hat"], "candidates": ["blue-bag", "red-coat", "green-shoes", "black-bag"]},
    {"partial": ["blue-coat"], "candidates": ["blue-skirt", "red-bag", "green-hat", "blue-shirt"]},
]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def scores(folder):
    return [completion.scores for completion in load_completer(folder).score(QUESTIONS)]


def assert_same_scores(before, after):
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        for part, values in one.items():
            torch.testing.assert_close(other[part], values, rtol=0, atol=1e-6)


@pytest.fixture
def new_items(tmp_path):
    """A table of three new items beside their pictures."""
    folder = tmp_path / "new"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "purse.png")
    records = [
        {"item_id": "purse", "title": "red bag", "category": "bag", "image": "purse.png", "price": 5, "stock": 7},
        {"item_id": "tie", "title": "green tie", "category": "ties"},
        {"item_id": "thing", "title": "unheard thing"},
    ]
    write_records(folder / "items.jsonl", records)
    return folder / "items.jsonl"


@pytest.mark.parametrize("which", ["both", "alone"])
def test_new_items_are_found_and_the_scores_of_others_stay(which, request, new_items):
    folder = request.getfixturevalue(which)
    before, identity = scores(folder), fingerprint(folder)
    change = update_catalog("add", folder, new_items)
    assert (change.added, change.encoded, change.num_items) == (3, 3, 27)
    assert change.unknown == (() if which == "both" else ("thing",))
    assert_same_scores(before, scores(folder))
    assert fingerprint(folder) != identity
    completer = load_completer(folder)
    assert completer.processor.item_ids[-3:] == ("purse", "tie", "thing")
    for model in completer.models:
        assert (model.config.num_items, model.config.items_hash) == (27, completer.processor.items_hash)
    answers = pipeline("bundle-completion", model=str(folder))({"partial": ["red-shirt"]}, top_k=30)
    assert {"purse", "tie", "thing"} < {answer["item_id"] for answer in answers}
    assert read_item_table(folder)[24:] == [json.loads(line) for line in new_items.read_text().splitlines()]


def test_a_new_item_is_described_as_an_old_one_that_is_like_it(both, new_items):
    update_catalog("add", both, new_items)
    completer = load_completer(both)
    new, old = completer.processor.row("purse"), completer.processor.row("red-bag")
    for model in completer.models:
        rows = model.catalog_rows()
        for name in ("visual", "textual"):
            assert torch.equal(rows["features"][name][new], rows["features"][name][old])
        assert rows["present"]["visual"][new] and not rows["present"]["bundle_item"][new]
    groups = completer.retriever.memberships
    for name, number in (("textual", 2), ("bundle_category", None), ("bundle_item", 0)):
        of_new, of_old = (groups[name].gather(torch.tensor([row]), 27)[2].tolist() for row in (new, old))
        assert of_new == (of_old if name != "bundle_item" else [])
        assert number is None or len(of_new) == number
    assert groups["bundle_category"].degree(torch.tensor([completer.processor.row("tie")])).tolist() == [0]


def test_an_item_in_a_question_scores_as_the_same_item_in_the_catalog(both, new_items):
    [record, *_] = [json.loads(line) for line in new_items.read_text().splitlines()]
    entry = {name: record[name] for name in ("title", "category")} | {"image": str(new_items.parent / "purse.png")}
    others = ["blue-bag", "green-hat"]
    questions = [{"partial": ["red-hat"], "candidates": [None, *others]}, {"partial": [None], "candidates": others}]

    def ask(item):
        def with_item(entries):
            return [item if entry is None else entry for entry in entries]

        asked = [{name: with_item(entries) for name, entries in question.items()} for question in questions]
        return [completion.scores for completion in load_completer(both).score(asked)]

    as_dict = ask(entry)
    update_catalog("add", both, new_items)
    assert_same_scores(as_dict, ask("purse"))


def test_columns_that_are_encoded_are_read_of_new_items_too(alone, tmp_path):
    entry = {"title": "unheard thing", "brand": "acme"}
    others = ["blue-bag", "green-hat"]

    def ask(item):
        questions = [
            {"partial": ["red-hat"], "candidates": [item, *others]},
            {"partial": [item], "candidates": others},
        ]
        return [completion.scores for completion in load_completer(alone).score(questions)]

    as_dict = ask(entry)
    write_records(tmp_path / "new.jsonl", [{"item_id": "n", **entry}])
    assert update_catalog("add", alone, tmp_path / "new.jsonl").unknown == ()
    assert_same_scores(as_dict, ask("n"))
    groups = load_completer(alone).retriever.memberships["attributes"]
    new, old = (groups.gather(torch.tensor([row]), 25)[2].tolist() for row in (24, 0))
    assert new == old and len(old) == 1
    with pytest.raises(BundleMLLMError, match=r"has \['price'\], which no encoder of .* reads.*, brand, image"):
        ask({"title": "hat", "price": 3})


def test_prices_and_stock_change_without_encoding_or_touching_the_models(both, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_completer", lambda *_: pytest.fail("a model was loaded"))
    before = files(both)
    price = {"item_id": "red-bag", "price": 3.5, "in_stock": "FALSE", "stock": 2}
    write_records(tmp_path / "prices.csv", [price])
    change = update_catalog("update", both, tmp_path / "prices.csv")
    assert (change.updated, change.encoded, change.num_items) == (1, 0, 24)
    changed = {name for name, content in files(both).items() if before.get(name) != content}
    assert changed == {Path("catalog.parquet")}
    [item] = [item for item in read_item_table(both) if item["item_id"] == "red-bag"]
    assert (item["price"], item["in_stock"], item["stock"], item["title"]) == (3.5, False, "2", "red bag")
    assert update_catalog("update", both, tmp_path / "prices.csv").updated == 0
    write_records(tmp_path / "prices.csv", [{"item_id": "red-bag", "price": "1.299,50 €"}])
    update_catalog("update", both, tmp_path / "prices.csv")
    assert next(item for item in read_item_table(both) if item["item_id"] == "red-bag")["price"] == 1299.5
    for name, value in {"price": "on request", "in_stock": "maybe"}.items():
        write_records(tmp_path / "prices.csv", [{"item_id": "red-bag", name: value}])
        with pytest.raises(BundleMLLMError, match=f"'{name}' of 'red-bag' is '{value}', but the column holds"):
            update_catalog("update", both, tmp_path / "prices.csv")


def test_an_updated_title_is_encoded_and_the_picture_and_the_bundles_stay(both, tmp_path):
    write_records(tmp_path / "titles.jsonl", [{"item_id": "red-bag", "title": "blue hat", "category": "hat"}])
    before = load_completer(both)
    change = update_catalog("update", both, tmp_path / "titles.jsonl")
    assert (change.updated, change.encoded, change.added) == (1, 1, 0)
    after = load_completer(both)
    row, like = after.processor.row("red-bag"), after.processor.row("blue-hat")
    assert after.processor.titles[row] == "blue hat" and after.processor.item_ids == before.processor.item_ids
    for old, new in zip(before.models, after.models, strict=True):
        earlier, later = old.catalog_rows()["features"], new.catalog_rows()["features"]
        assert torch.equal(later["textual"][row], earlier["textual"][like])
        for name in ("visual", "bundle_item"):
            assert torch.equal(later[name], earlier[name])
    one, other = (model.retriever.memberships["bundle_item"].pairs() for model in (before, after))
    assert torch.equal(one.nodes, other.nodes) and torch.equal(one.groups, other.groups)


def test_removed_items_are_gone_and_the_scores_of_others_stay(both, tmp_path):
    before = scores(both)
    gone = ["green-bag", "red-skirt", *(f"{color}-coat" for color in ("green", "black"))]
    write_records(tmp_path / "gone.csv", [{"item_id": item_id} for item_id in gone])
    assert str(update_catalog("remove", both, tmp_path / "gone.csv")) == "4 removed: 20 items"
    assert_same_scores(before, scores(both))
    completer = load_completer(both)
    assert not set(gone) & set(completer.processor.item_ids)
    with pytest.raises(ValueError, match="'green-bag' is not among the 20 items"):
        completer.complete({"partial": ["green-bag"]})


def test_what_is_added_and_removed_again_leaves_the_models_as_they_were(both, new_items):
    before = load_completer(both)
    update_catalog("add", both, new_items)
    update_catalog("remove", both, new_items)
    after = load_completer(both)
    for one, other in zip(before.models, after.models, strict=True):
        states = one.state_dict(), other.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_category_without_items_leaves_no_node_behind(alone, tmp_path):
    gone = [
        f"{color}-{kind}" for color in ("red", "green", "blue", "black") for kind in ("bag", "coat", "hat", "shirt")
    ]
    write_records(tmp_path / "gone.jsonl", [{"item_id": item_id} for item_id in gone])
    update_catalog("remove", alone, tmp_path / "gone.jsonl")
    groups = load_completer(alone).retriever.memberships["bundle_category"]
    assert sorted(groups.node_of_item.unique().tolist()) == [0, 1]
    assert groups.degree(torch.arange(8)).min() > 0


def test_other_files_of_the_folder_stay(both, new_items):
    (both / "training").mkdir()
    (both / "training" / "notes.txt").write_text("mine")
    (both / "run.json").write_text("{}")
    update_catalog("add", both, new_items)
    assert (both / "training" / "notes.txt").read_text() == "mine" and (both / "run.json").read_text() == "{}"


ERRORS = {
    "exists": ("add", [{"item_id": "red-bag", "title": "x"}], r"1 items of .* are in .* already|are in .*'red-bag'"),
    "unknown": (
        "update",
        [{"item_id": "zzz", "price": 1}],
        r"1 items of .* are not in .* \('zzz'\): .* add them first",
    ),
    "gone": ("remove", [{"item_id": "zzz"}], r"are not in .* \('zzz'\)"),
    "nothing": ("add", [{"item_id": "new"}], r"1 items have nothing but an id \('new'\)"),
    "twice": ("add", [{"item_id": "n", "title": "a"}] * 2, r"row 2 has the item id 'n' a second time"),
    "picture": (
        "add",
        [{"item_id": "n", "image": "no.png"}],
        r"no\.png of the item 'n' cannot be used \(no such file\)",
    ),
    "no id": ("add", [{"title": "x"}], r"row 1 has no `item_id`"),
    "empty": ("update", [], r"holds no item"),
    "all": (
        "remove",
        [
            {"item_id": f"{c}-{k}"}
            for c in ("red", "green", "blue", "black")
            for k in ("shirt", "skirt", "shoes", "bag", "hat", "coat")
        ],
        r"lists all 24 items",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_one_line_and_changes_nothing(case, alone, tmp_path):
    action, records, message = ERRORS[case]
    write_records(tmp_path / "bad.jsonl", records)
    before = files(alone)
    with pytest.raises(BundleMLLMError, match=message) as error:
        update_catalog(action, alone, tmp_path / "bad.jsonl")
    assert "\n" not in str(error.value)
    assert files(alone) == before
    assert [path.name for path in alone.parent.iterdir() if path.name.startswith(".")] == []


def test_files_that_are_no_tables_are_one_line_on_the_command_line(alone, tmp_path, capsys):
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    (tmp_path / "bad.txt").write_text("no table")
    for name in ("bad.parquet", "bad.txt", "missing.csv"):
        assert main(["catalog", "add", "--model", str(alone), "--items", str(tmp_path / name)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_command_says_what_it_did(alone, new_items, capsys):
    assert main(["catalog", "add", "--model", str(alone), "--items", str(new_items)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "3 added, 3 encoded: 27 items",
        "nothing is known about 1 of them, whose scores are guesses: thing",
    ]


def test_a_folder_without_encoders_says_so(alone, new_items):
    for path in (alone / "encoders").iterdir():
        path.unlink()
    with pytest.raises(BundleMLLMError, match=r"keeps no encoder of what an item is \(it has none\)"):
        update_catalog("add", alone, new_items)


def test_a_failure_while_writing_leaves_the_old_folder(both, new_items, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    before = files(both)
    monkeypatch.setattr(module, "write_item_table", fail)
    with pytest.raises(OSError, match="disk full"):
        update_catalog("add", both, new_items)
    assert files(both) == before
    assert not list(both.parent.glob(".model.*"))


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_old_items_or_the_new_ones(alone, new_items):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bundle_mllm.completion.catalog"])
    rng, done, killed = random.Random(0), 0, 0
    for attempt in range(12):
        action = ("add", "remove")[done % 2]
        child = context.Process(target=update_catalog, args=(action, alone, new_items))
        child.start()
        child.join(rng.uniform(0, 0.5) if attempt < 11 else 60)
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        completer, table = load_completer(alone), read_item_table(alone)
        assert tuple(item["item_id"] for item in table) == completer.processor.item_ids
        assert completer.processor.num_items in (24, 27)
        done = int(completer.processor.num_items == 27)
    assert killed
