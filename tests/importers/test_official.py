"""The published data layout: what is read from it, what an import writes, and what it refuses."""

import json
import os

import pytest
import torch
from official_folders import NUM_ITEMS, SHARED, write_data

from bundle_mllm.data import DatasetFolder, load_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers import import_official, official, read_official


@pytest.fixture
def source(tmp_path):
    return write_data(tmp_path / "source")


def pairs_of(interactions):
    users = [interactions.users[index] for index in interactions.user_index]
    return list(zip(users, interactions.rows.tolist(), strict=True))


def replace_line(path, number, line):
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")


def test_items_are_named_by_their_index_and_keep_their_other_fields(source):
    data = read_official(source)
    assert data.items.name == "pog"
    assert data.items.catalog.item_ids == tuple(str(row) for row in range(NUM_ITEMS))
    assert data.items.catalog[7].title == "item number 7"
    assert data.items.catalog[7].extra == {"cate": 1}


def test_a_bundle_outside_training_has_its_input_and_its_ground_truth(source):
    bundles = read_official(source).bundles
    assert [(b.bundle_id, b.items) for b in bundles.train] == [("0", ("1", "2", "3")), ("1", ("4", "5"))]
    assert [(b.bundle_id, b.items) for b in bundles.validation] == [("2", ("0", "1", "8"))]
    assert [b.items for b in bundles.test] == [("2", "3", "4", "5", "7", "8"), ("6", "0")]


def test_fixed_questions_keep_candidates_and_order_and_lose_their_padding(source):
    questions = read_official(source).questions
    assert list(questions) == ["test_cans3"]
    assert [q.question_id for q in questions["test_cans3"]] == ["3-0", "4-0", "3-1"]
    first = questions["test_cans3"][0]
    assert (first.bundle_id, first.partial, first.candidates, first.answer) == ("3", ("2", "4"), ("0", "8", "6"), "8")


def test_a_repeated_interaction_counts_once_and_is_reported(source):
    data = read_official(source)
    assert pairs_of(data.interactions) == [("0", 1), ("0", 2), ("0", 3), ("1", 8)]
    assert data.dropped["repeated interactions"] == 1


def test_a_wrong_option_that_was_drawn_twice_is_offered_once(source):
    replace_line(source / "bi_test_cans3.txt", 1, "[3, [2, 9, 9], [2], [6, 6, 8]]")
    data = read_official(source)
    question = data.questions["test_cans3"][0]
    assert (question.candidates, question.answer) == (("6", "8"), "8")
    assert data.dropped["wrong options repeated in their question"] == 1


def test_an_import_writes_a_dataset_folder_with_the_same_content(source, tmp_path):
    summary = import_official(source, tmp_path / "made" / "data")
    data, folder = read_official(source), DatasetFolder.open(tmp_path / "made" / "data")
    assert folder.catalog == data.items.catalog
    assert list(folder.bundles) == list(data.bundles)
    assert (
        load_questions(folder.path / "questions" / "test_cans3.jsonl", folder.catalog) == data.questions["test_cans3"]
    )
    assert pairs_of(folder.interactions) == pairs_of(data.interactions)
    features, present = folder.features().load()
    assert set(features) == {"visual", "textual", "user_item", "bundle_item"}
    assert all(torch.equal(features[name], data.items.features[name]) and present[name].all() for name in features)
    assert torch.equal(features["visual"], torch.load(source / "content_feature.pt", weights_only=True))
    assert torch.equal(features["bundle_item"], torch.load(source / "pog_LightGCN_bi_feature.pt", weights_only=True))
    assert summary.num_bundles == {"train": 2, "validation": 1, "test": 2}
    assert (summary.num_items, summary.num_interactions) == (NUM_ITEMS, 4)
    assert summary.num_questions == {"questions/test_cans3.jsonl": 3}
    assert summary.modalities == {"visual": 12, "textual": 10, "user_item": 64, "bundle_item": 64}
    assert os.listdir(tmp_path / "made") == ["data"]


def test_a_validation_file_becomes_validation_questions(source):
    (source / "bi_valid_cans2.txt").write_text("[2, [1, 9], [0], [8, 5]]\r\n")
    assert [q.candidates for q in read_official(source).questions["validation_cans2"]] == [("8", "5")]


BAD_LINES = {
    "a line that is no list": ("bi_train.txt", 2, "1; 4; 5", r"bi_train.txt line 2 cannot be read \('1; 4; 5'\)"),
    "an item past the catalog": ("bi_train.txt", 2, "1, 4, 9", r"bi_train.txt line 2 has the item 9.*0 to 8"),
    "a negative item": ("bi_train.txt", 2, "1, -4", r"bi_train.txt line 2 has the item -4"),
    "a fraction": ("bi_train.txt", 2, "1, 4.0", r"bi_train.txt line 2 is not a list of indices"),
    "a bundle past the count": ("bi_train.txt", 2, "5, 4", r"bi_train.txt line 2 has the bundle 5"),
    "a bundle without items": ("bi_train.txt", 2, "1", r"bi_train.txt line 2 has the bundle 1 without items"),
    "a user past the count": ("ui_full.txt", 1, "3, 4", r"ui_full.txt line 1 has the user 3"),
    "a bundle in two splits": ("bi_train.txt", 2, "4, 5", r"the bundle '4' twice, in train and in test"),
    "a ground truth without input": ("bi_test_input.txt", 1, "4, 6", r"bi_test_gt.txt has the bundle 3"),
    "a file cut off": ("bi_valid_gt.txt", 1, "", r"bi_valid_gt.txt is empty"),
    "code instead of a question": (
        "bi_test_cans3.txt",
        2,
        "__import__('os').mkdir('ran')",
        r"bi_test_cans3.txt line 2 cannot be read",
    ),
    "a question without answer": ("bi_test_cans3.txt", 2, "[4, [6], [], [0, 5, 8]]", r"line 2 is not \[bundle, "),
    "true as a number": ("bi_test_cans3.txt", 2, "[4, [6], [false], [0, 5, 8]]", r"line 2 is not \[bundle, "),
    "nested too deep": ("bi_test_cans3.txt", 2, "[" * 100_000, r"line 2 cannot be read"),
    "a bundle of another split": (
        "bi_test_cans3.txt",
        2,
        "[2, [1], [0], [8, 5, 6]]",
        r"line 2 is about the bundle 2",
    ),
    "nothing shown": ("bi_test_cans3.txt", 2, "[4, [9, 9], [0], [0, 5, 8]]", r"line 2 has the partial bundle \[\]"),
    "padding in the middle": ("bi_test_cans3.txt", 1, "[3, [2, 9, 4], [1], [0, 8, 6]]", r"line 1.* has the item 9"),
    "a partial that is not the input's": ("bi_test_cans3.txt", 2, "[4, [1], [0], [0, 5, 8]]", r"line 2 shows \[1\]"),
    "an answer that is not the truth": (
        "bi_test_cans3.txt",
        2,
        "[4, [6], [1], [0, 5, 8]]",
        r"line 2 has the answer 5",
    ),
    "an answer offered twice": ("bi_test_cans3.txt", 2, "[4, [6], [1], [0, 0, 8]]", r"line 2 has the answer 0"),
    "a second right option": ("bi_test_cans3.txt", 1, "[3, [2], [1], [7, 8, 6]]", r"line 1 offers \[7\] as wrong"),
    "an answer index past the end": ("bi_test_cans3.txt", 2, "[4, [6], [3], [0, 5, 8]]", r"line 2 .*answer index 3"),
    "fewer candidates than named": ("bi_test_cans3.txt", 2, "[4, [6], [0], [0, 5]]", r"line 2 has 2 candidates"),
    "padding as a candidate": ("bi_test_cans3.txt", 2, "[4, [6], [0], [0, 5, 9]]", r"line 2, .*has the item 9"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named(source, tmp_path, monkeypatch, name):
    file, number, line, message = BAD_LINES[name]
    replace_line(source / file, number, line)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleMLLMError, match=message):
        import_official(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"], "something was left behind, or the line was run"


def write_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def corrupt_matrix(path, change):
    matrix = torch.load(path, weights_only=True)
    torch.save(change(matrix), path)


def with_nan(matrix):
    matrix[4, 1] = float("nan")
    return matrix


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_FILES = {
    "no count": (lambda s: (s / "count.json").unlink(), "There is no file .*count.json"),
    "a count that is none": (lambda s: write_json(s / "count.json", lambda c: c.update({"#I": "9"})), "'9' as '#I'"),
    "an item too many": (
        lambda s: write_json(s / "item_info.json", lambda i: i.update({"9": {"title_en": "x"}})),
        "describes the item '9', but count.json has 9",
    ),
    "no title": (lambda s: write_json(s / "item_info.json", lambda i: i["5"].pop("title_en")), "title_en .* '5'"),
    "a missing item": (lambda s: write_json(s / "item_info.json", lambda i: i.pop("5")), "title_en .* '5'"),
    "half of the items": (lambda s: truncate(s / "item_info.json"), "item_info.json is not JSON"),
    "no bundles": (lambda s: (s / "bi_test_gt.txt").unlink(), "There is no file .*bi_test_gt.txt"),
    "Latin-1": (lambda s: (s / "bi_train.txt").write_bytes(b"0, 1, \xe9"), "bi_train.txt is not UTF-8"),
    "nothing to choose": (
        lambda s: (s / "bi_test_cans3.txt").rename(s / "bi_test_cans1.txt"),
        "1 candidates .*nothing to choose",
    ),
    "no features": (lambda s: (s / "item_cf_feature.pt").unlink(), "one file item_cf_feature.pt, and has none"),
    "two LightGCN files": (
        lambda s: (s / "x_LightGCN_bi_feature.pt").write_bytes(b""),
        "has pog_LightGCN_bi_feature.pt and x_LightGCN",
    ),
    "half a matrix": (
        lambda s: truncate(s / "content_feature.pt"),
        "content_feature.pt is no file of tensors, or dam",
    ),
    "another number of rows": (
        lambda s: corrupt_matrix(s / "content_feature.pt", lambda m: m[:-1]),
        "content_feature.pt has 8 rows, but count.json has 9",
    ),
    "NaN": (lambda s: corrupt_matrix(s / "item_cf_feature.pt", with_nan), "item_cf_feature.pt holds NaN .*row 4"),
    "a vector": (lambda s: corrupt_matrix(s / "content_feature.pt", lambda m: m[0]), "1 dimensions, not one matrix"),
    "integers": (lambda s: corrupt_matrix(s / "content_feature.pt", lambda m: m.long()), "int64: convert"),
    "an object": (
        lambda s: torch.save(torch.nn.Linear(2, 2), s / "content_feature.pt"),
        "object torch.nn.*foreign code",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named(source, tmp_path, name):
    spoil, message = BAD_FILES[name]
    spoil(source)
    with pytest.raises(BundleMLLMError, match=message):
        import_official(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]


def test_other_peoples_files_are_not_overwritten(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other.txt").write_text("kept")
    with pytest.raises(BundleMLLMError, match="not empty"):
        import_official(source, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["other.txt"]


def test_an_import_that_is_interrupted_leaves_nothing_and_can_be_repeated(source, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(official, "save_questions", interrupt)  # the last step
        import_official(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]
    assert import_official(source, tmp_path / "out").num_items == NUM_ITEMS


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/official is not here")
@pytest.mark.parametrize("name", ["default", "components"])
def test_the_made_up_official_folders_can_be_imported(name, tmp_path):
    summary = import_official(SHARED / name / "pog", tmp_path / "out")
    assert (summary.num_items, summary.num_bundles) == (40, {"train": 16, "validation": 4, "test": 4})
    assert len(DatasetFolder.open(tmp_path / "out").features().modalities) == 4
    assert not any(summary.dropped.values())
