"""The check finds features that contain answers, and refuses interactions that do."""

import numpy as np
import pytest

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.data.attributes import choose_columns
from bundle_mllm.data.features import write_modality
from bundle_mllm.data.leakage import (
    Accuracy,
    LeakedBundles,
    check_interactions,
    columns_that_name_bundles,
    measure_leakage,
)
from bundle_mllm.encoders.relational import BundleItemEncoder, TruncatedSVD
from bundle_mllm.errors import BundleMLLMError

NUM_ITEMS, NUM_TRAIN, NUM_HELD_OUT = 200, 260, 60


def bundles(seed=0, size=5):
    """Bundles without any rule."""
    rng = np.random.default_rng(seed)
    return [rng.choice(NUM_ITEMS, size=size, replace=False).tolist() for _ in range(NUM_TRAIN + NUM_HELD_OUT)]


def folder_of(path, log=None, size=5, **columns):
    """Write a folder; `columns` have a cell for each item."""
    cells = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] or [{}] * NUM_ITEMS
    write_records(path / "items.jsonl", [{"item_id": str(row), **cells[row]} for row in range(NUM_ITEMS)])
    records = [
        {"bundle_id": f"b{i}", "items": list(map(str, rows)), "split": "train" if i < NUM_TRAIN else "validation"}
        for i, rows in enumerate(bundles(size=size))
    ]
    write_records(path / "bundles.jsonl", records)
    if log is not None:
        pairs = [{"user_id": f"u{user}", "item_id": str(row)} for user, rows in enumerate(log) for row in rows]
        write_records(path / "interactions.csv", pairs)
    return DatasetFolder.open(path)


def write(folder, modality, features, present=None):
    hash_of_items = folder.catalog.content_hash
    write_modality(folder.path / "features", modality, features, present, {}, items_hash=hash_of_items)


def users(number, size, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.choice(NUM_ITEMS, size=size, replace=False).tolist() for _ in range(number)]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Noise as pictures; bundle features in sample, and their cross-fitted versions."""
    folder = folder_of(tmp_path_factory.mktemp("leakage"))
    write(folder, "visual", np.random.default_rng(0).standard_normal((NUM_ITEMS, 8)))
    encoder = BundleItemEncoder(TruncatedSVD(31), num_folds=5)
    encoded = encoder.encode(folder)
    write(folder, "bundle_item", encoded.features, encoded.present)
    encoder.cross_fit(folder, encoded.features).save(folder)
    return measure_leakage(folder)


def test_features_fitted_to_training_bundles_show_a_large_gap_and_others_none(report):
    large = {(gap.name, gap.negatives) for gap in report.gaps if gap.is_large}
    assert large == {("bundle_item", "uniform"), ("bundle_item", "hard")}
    assert [gap.name for gap in report.gaps] == [
        name for name in ("bundle_item", "bundle_item (cross-fitted)", "visual") for _ in range(2)
    ]


def test_out_of_fold_features_answer_training_questions_no_better_than_held_out_ones(report):
    for gap in report.gaps:
        if gap.name == "bundle_item (cross-fitted)":
            assert abs(gap.gap) < 3 * gap.gap_se
            assert gap.train.num_questions == NUM_TRAIN


def test_the_summary_shows_each_number_and_warns_of_nothing_out_of_fold_features_mend(report):
    text = str(report)
    assert text.count("<- large gap") == 2
    assert "bundle_item (cross-fitted)" in text
    assert report.warnings == ()  # training questions use the out-of-fold features
    assert report.interactions is None


def test_features_with_a_gap_and_without_out_of_fold_features_give_a_warning(tmp_path):
    folder = folder_of(tmp_path)
    encoded = BundleItemEncoder(TruncatedSVD(31)).encode(folder)
    write(folder, "bundle_item", encoded.features, encoded.present)
    (warning,) = measure_leakage(folder).warnings
    assert warning.startswith("bundle_item alone answers")
    assert "train on out-of-fold features" in warning
    assert f"warning: {warning}" in str(measure_leakage(folder))


def test_the_same_seed_makes_the_same_questions(tmp_path):
    folder = folder_of(tmp_path)
    write(folder, "visual", np.random.default_rng(0).standard_normal((NUM_ITEMS, 8)))
    first = measure_leakage(folder, num_questions=40)
    assert str(measure_leakage(folder, num_questions=40)) == str(first)
    assert str(measure_leakage(folder, num_questions=40, seed=1)) != str(first)
    assert first.gaps[0].train.num_questions == 40


def test_ties_count_their_share(tmp_path):
    folder = folder_of(tmp_path)
    write(folder, "visual", np.ones((NUM_ITEMS, 2)))
    for gap in measure_leakage(folder).gaps:
        assert gap.train.value == pytest.approx(0.1)
        assert gap.train.se == pytest.approx(0)


def test_a_log_of_bundle_membership_is_refused_unless_it_is_allowed(tmp_path):
    folder = folder_of(tmp_path, log=bundles())
    with pytest.raises(BundleMLLMError, match=r"encode held-out bundles.* 100\.0% of 60 .*allow_leakage=True"):
        check_interactions(folder)
    leaked = check_interactions(folder, allow_leakage=True)
    assert leaked.is_refused
    assert (leaked.share, leaked.num_bundles) == (1.0, NUM_HELD_OUT)
    assert leaked.by_chance < 0.05
    assert leaked.answered.value > 0.9


def test_users_that_are_several_bundles_and_more_are_refused(tmp_path):
    rows, rng = bundles(), np.random.default_rng(0)
    order = rng.permutation(len(rows)).reshape(-1, 4)
    log = [sorted({item for index in four for item in rows[index]} | set(range(5))) for four in order.tolist()]
    with pytest.raises(BundleMLLMError, match="encode held-out bundles"):
        check_interactions(folder_of(tmp_path, log))


def test_a_log_that_has_nothing_to_do_with_bundles_passes_and_large_users_are_chance(tmp_path):
    leaked = check_interactions(folder_of(tmp_path, users(300, 10)))
    assert leaked.share == 0
    (tmp_path / "large").mkdir()
    large = check_interactions(folder_of(tmp_path / "large", users(50, 150)))
    assert large.share > 0.5
    assert large.beyond_chance < 0.2
    assert not large.is_refused


def test_training_bundles_in_the_log_are_no_held_out_ones(tmp_path):
    folder = folder_of(tmp_path, log=bundles()[:NUM_TRAIN])
    assert not check_interactions(folder).is_refused
    large = [gap.name for gap in measure_leakage(folder).gaps if gap.is_large]
    assert set(large) == {"shared users"}


def test_interactions_that_contain_a_part_of_the_held_out_bundles_give_a_warning(tmp_path):
    report = measure_leakage(folder_of(tmp_path, log=users(300, 8) + bundles()[-NUM_HELD_OUT // 5 :]))
    assert report.interactions.share == pytest.approx(0.2)
    assert not report.interactions.is_refused
    assert "The interactions contain held-out bundles: some user has (nearly) all items of 20.0%" in str(report)


def test_without_a_log_there_is_nothing_to_check(tmp_path):
    folder = folder_of(tmp_path)
    assert check_interactions(folder) is None
    report = measure_leakage(folder)
    assert report.gaps == ()
    assert report.warnings == ()


def test_nothing_to_measure_is_an_own_message_or_refused(tmp_path):
    folder = folder_of(tmp_path)
    assert "neither features nor interactions" in str(measure_leakage(folder))
    write(folder, "visual", np.ones((NUM_ITEMS, 2), np.float32))
    with pytest.raises(BundleMLLMError, match="num_questions is 0, so nothing would be measured"):
        measure_leakage(folder, num_questions=0)


def test_a_gap_without_questions_is_none(tmp_path):
    write_records(tmp_path / "items.jsonl", [{"item_id": str(row)} for row in range(20)])
    write_records(tmp_path / "bundles.jsonl", [{"bundle_id": "b", "items": ["0", "1"], "split": "train"}])
    folder = DatasetFolder.open(tmp_path)
    write_modality(tmp_path / "features", "visual", np.ones((20, 2), np.float32), None, {})
    lines = str(measure_leakage(folder)).splitlines()
    assert all(line.split()[-3:] == ["no", "question", "-"] for line in lines[1:])
    assert "nan" not in "".join(lines)


@pytest.mark.parametrize(("num_questions", "refused"), [(1, False), (19, False), (20, True)])
def test_a_few_questions_may_be_answered_by_chance(num_questions, refused):
    assert LeakedBundles(num_questions, 0.0, 0.0, Accuracy(1.0, 0.0, num_questions)).is_refused == refused


def names_of_bundles(numbers, name):
    """Return, for each item, the names of its bundles among those with these numbers."""
    of_items = [[] for _ in range(NUM_ITEMS)]
    for number, rows in enumerate(bundles()):
        for row in rows if number in numbers else ():
            of_items[row].append(name(number))
    return of_items


EVERY, HELD_OUT = range(NUM_TRAIN + NUM_HELD_OUT), range(NUM_TRAIN, NUM_TRAIN + NUM_HELD_OUT)


@pytest.mark.parametrize(
    ("cells", "share"),
    [
        (names_of_bundles(EVERY, lambda number: f"look {number}"), 1.0),
        (names_of_bundles(HELD_OUT, lambda number: f"look {number}"), 1.0),
        (names_of_bundles(range(NUM_TRAIN), lambda number: f"look {number}"), 1.0),
        (names_of_bundles(range(0, len(EVERY), 3), lambda number: f"look {number}"), 1 / 3),
        ([names[0] if names else None for names in names_of_bundles(HELD_OUT, int)], 0.5),
    ],
    ids=["all", "held-out", "training", "a third", "one number an item"],
)
def test_a_column_whose_values_name_bundles_is_found(tmp_path, cells, share):
    folder = folder_of(tmp_path, look=cells, color=["red", "green"] * (NUM_ITEMS // 2))
    columns = choose_columns(folder.catalog).columns
    found = columns_that_name_bundles(folder, columns)
    assert found == {"look": pytest.approx(share, abs=0.15)}
    report = measure_leakage(folder)
    assert "The column 'look' of the items names bundles" in str(report)
    assert len(report.warnings) == 1


@pytest.mark.parametrize("size", [2, 5])
def test_columns_of_what_items_are_name_no_bundle_however_often_bundles_are_of_one_value(tmp_path, size):
    rng = np.random.default_rng(0)
    columns = {
        "brand": [f"brand {number}" for number in rng.integers(20, size=NUM_ITEMS)],
        "pair": [f"pair {row // 2}" for row in range(NUM_ITEMS)],
        "price": rng.uniform(size=NUM_ITEMS).tolist(),
        "sex": ["women"] * (NUM_ITEMS - 1) + ["men"],
    }
    folder = folder_of(tmp_path, size=size, **columns)
    assert columns_that_name_bundles(folder, choose_columns(folder.catalog).columns) == {}
