"""Users and orders leave a model folder without training: their pairs alone, in one step, found by the data set."""

import json
import shutil

import pytest
from tiny_shop import COLORS, KINDS, make_folder, make_shop

from bundle_mllm import BundleMLLMError, DatasetFolder, forget, load_completer
from bundle_mllm.cli import main
from bundle_mllm.data import write_records
from bundle_mllm.encoders import encode_folder

USERS = {f"u{n}": [f"{COLORS[(n + step) % 4]}-{KINDS[(n * step) % 6]}" for step in range(3)] for n in range(12)}


def write_log(folder, users):
    write_records(
        folder / "interactions.csv", [{"user_id": user, "item_id": item} for user in users for item in USERS[user]]
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forget") / "data"
    folder.mkdir()
    make_shop(folder)
    write_log(folder, USERS)
    encode_folder(folder, relational="user_item:svd", allow_leakage=True)
    return folder


@pytest.fixture
def model(shop, tmp_path):
    return make_folder(DatasetFolder.open(shop), tmp_path / "model", ranker=True)


def pairs(model, name):
    """The items of each group of a model, by its number."""
    completer = load_completer(model)
    found = completer.retriever.catalog_rows()["memberships"][name]
    groups = {}
    for node, group in zip(found.nodes.tolist(), found.groups.tolist(), strict=True):
        groups.setdefault(group, set()).add(completer.processor.item_ids[node] if name == "user_item" else node)
    return groups


def test_a_user_is_gone_and_all_others_stay(shop, model):
    before = pairs(model, "user_item")
    assert [before[number] for number in range(12)] == [set(items) for items in USERS.values()]
    done = forget(model, shop, users=["u3"])
    assert (done.num_users, done.num_bundles, done.num_pairs) == (1, 0, len(before[3]))
    assert pairs(model, "user_item") == {number: items for number, items in before.items() if number != 3}
    assert json.loads((model / "forgotten.json").read_text()) == {"user_item": [3]}
    assert load_completer(model).complete({"partial": ["red-shirt"]})  # both models agree on their items still


def test_users_that_left_the_data_set_before_shift_no_number(shop, model, tmp_path):
    data = shutil.copytree(shop, tmp_path / "data")
    before, remaining = pairs(model, "user_item"), list(USERS)
    for gone in ("u0", "u5", "u4"):
        forget(model, data, users=[gone])
        remaining.remove(gone)
        write_log(data, remaining)
    assert pairs(model, "user_item") == {number: before[number] for number in before if number not in (0, 4, 5)}


def test_an_order_is_gone_from_its_items_and_their_categories(shop, model):
    number = sorted(b.bundle_id for b in DatasetFolder.open(shop).bundles.train).index("b7")
    before = {name: pairs(model, name) for name in ("bundle_item", "bundle_category")}
    assert all(number in groups for groups in before.values())
    forget(model, shop, bundles=["b7"])
    for name, groups in before.items():
        assert pairs(model, name) == {other: items for other, items in groups.items() if other != number}


def test_the_same_command_again_and_the_next_find_their_users_in_the_unchanged_data_set(shop, model):
    before = pairs(model, "user_item")
    for user in ("u2", "u2", "u7"):
        forget(model, shop, users=[user])
    assert pairs(model, "user_item") == {number: before[number] for number in before if number not in (2, 7)}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {}, "Nothing is to be forgotten"),
        (None, {"users": ["nobody"]}, "has no user or training bundle 'nobody'"),
        (lambda data: write_log(data, list(USERS)[2:]), {"users": ["u3"]}, "lacks pairs of user_item"),
        (lambda data: write_log(data, reversed(USERS)), {"users": ["u3"]}, "lacks pairs of user_item"),
        (lambda data: (data / "interactions.csv").unlink(), {"users": ["u3"]}, "has no interactions"),
    ],
)
def test_what_cannot_be_found_changes_nothing(shop, model, tmp_path, change, options, message):
    data = shutil.copytree(shop, tmp_path / "data")
    if change is not None:
        change(data)
    before = {path: path.stat().st_mtime_ns for path in model.rglob("*")}
    with pytest.raises(BundleMLLMError, match=message):
        forget(model, data, **options)
    assert before == {path: path.stat().st_mtime_ns for path in model.rglob("*")}


def test_the_command_says_what_is_left_to_do(shop, model, capsys):
    command = ["forget", "--model", str(model), "--data", str(shop), "--users", "u1", "u2", "--bundles", "b0"]
    assert main(command) == 0
    assert "forgot 2 users and 1 bundles" in capsys.readouterr().out
    ranker = load_completer(model).ranker
    assert ranker is not None and ranker.config.items_hash == load_completer(model).retriever.config.items_hash
