"""Baselines that count, worked out by hand on four bundles."""

import math

import numpy as np
import pytest

from bundle_mllm.baselines.base import QuestionBatch, UnavailableError
from bundle_mllm.baselines.counting import CategoryPMI, Chance, CoOccurrence, ItemKNN, Popularity, UserKNN
from bundle_mllm.baselines.similarity import FeatureCosine, TfidfCosine
from bundle_mllm.data import DatasetFolder
from bundle_mllm.data.features import write_modality
from bundle_mllm.data.tables import write_records

ITEMS = [
    {"item_id": "a", "title": "red shirt", "category": "shirt"},
    {"item_id": "b", "title": "red skirt", "category": "skirt"},
    {"item_id": "c", "title": "blue skirt", "category": "skirt"},
    {"item_id": "d", "title": "blue shoes", "category": "shoes"},
    {"item_id": "e", "title": "", "category": ""},
]
BUNDLES = ["ab", "abc", "bc", "cd"]  # item a is in 2, b in 3, c in 3, d in 1, e in 0
USERS = {"u": "ad", "v": "ad", "w": "b"}


def write_folder(path, items=ITEMS, held_out=()):
    write_records(path / "items.jsonl", items)
    bundles = [(f"t{n}", items, "train") for n, items in enumerate(BUNDLES)]
    bundles += [(f"v{n}", items, ("validation", "test")[n % 2]) for n, items in enumerate(held_out)]
    records = [{"bundle_id": name, "items": list(rows), "split": split} for name, rows, split in bundles]
    write_records(path / "bundles.jsonl", records)
    return DatasetFolder.open(path)


@pytest.fixture
def folder(tmp_path):
    log = [{"user_id": user, "item_id": item} for user, items in USERS.items() for item in items]
    write_records(tmp_path / "interactions.csv", log)
    return write_folder(tmp_path)


def score(baseline, folder, *questions):
    """Fit, and score questions written as "ab>cde": shown, then candidates."""
    baseline.fit(folder, folder.bundles.train)
    sides = [question.split(">") for question in questions]
    partials, candidates = ([folder.catalog.rows(items) for items in side] for side in zip(*sides, strict=True))
    batch = QuestionBatch(partials, candidates, len(ITEMS))
    return [row.tolist() for row in batch.split(baseline.score(batch))]


def test_popularity_counts_training_bundles(folder):
    assert score(Popularity(), folder, "a>bcde", "b>ed") == [[3, 3, 1, 0], [0, 1]]


def test_co_occurrence_adds_up_the_bundles_shared_with_each_item_shown(folder):
    # c is with a once and with b twice; d with neither; e is in no bundle
    assert score(CoOccurrence(), folder, "ab>cde", "a>bc", "e>ab") == [[3, 0, 0], [2, 1], [0, 0]]


def test_item_knn_is_the_cosine_of_the_bundles_of_two_items(folder):
    ((b, c, d),) = score(ItemKNN(shrinkage=0.5), folder, "a>bcd")
    assert b == pytest.approx(2 / math.sqrt(2.5 * 3.5))
    assert c == pytest.approx(1 / math.sqrt(2.5 * 3.5))
    assert d == 0
    ((both,),) = score(ItemKNN(shrinkage=0.5), folder, "ab>c")
    assert both == pytest.approx((1 / math.sqrt(2.5) + 2 / math.sqrt(3.5)) / math.sqrt(3.5))


def test_user_knn_reads_the_log_and_no_bundle(folder):
    ((b, d, e),) = score(UserKNN(shrinkage=1), folder, "a>bde")
    assert (b, e) == (0, 0)
    assert d == pytest.approx(2 / 3)  # two users have both; each item has two users


def test_category_pmi_compares_pairs_of_categories_with_chance(folder):
    # ordered pairs of items in a bundle of k, each 1 / (k - 1): shirt-skirt 2, skirt-shirt 2, skirt-skirt 3,
    # skirt-shoes 1, shoes-skirt 1; so shirts have 2, skirts 6, shoes 1 and all 9
    def pmi(pairs, one, other):
        return math.log((pairs + 1) / (one * other / 9 + 1))

    ((b, d, e),) = score(CategoryPMI(), folder, "a>bde")
    assert b == pytest.approx(pmi(2, 2, 6))
    assert d == pytest.approx(pmi(0, 2, 1))
    assert e == 0
    ((of_both,),) = score(CategoryPMI(), folder, "ab>c")
    assert of_both == pytest.approx((pmi(2, 2, 6) + pmi(3, 6, 6)) / 2)
    ((with_unknown,),) = score(CategoryPMI(), folder, "ae>b")
    assert with_unknown == pytest.approx(pmi(2, 2, 6) / 2)


def test_chance_depends_on_the_question_and_the_seed_alone(folder):
    one, two = score(Chance(), folder, "a>bcde", "b>acde")
    assert score(Chance(), folder, "b>acde") == [two]
    assert score(Chance(seed=1), folder, "a>bcde") != [one]
    assert len({*one, *two}) == 8 and all(0 <= value < 1 for value in (*one, *two))


def test_tfidf_compares_words(folder):
    # words of one item alone ("shirt", "shoes") do not count
    ((b, c, d, e),) = score(TfidfCosine(), folder, "a>bcde")
    assert b == pytest.approx(math.sqrt(0.5), abs=0.2)
    assert b > 0 and c == d == e == 0
    ((red, blue),) = score(TfidfCosine(), folder, "b>ad")
    assert red > blue == 0


def test_feature_cosine_subtracts_the_mean_and_is_zero_for_absent_items(tmp_path):
    features = np.array([[3, 1], [3, 3], [1, 1], [1, 3], [9, 9]], dtype=np.float32)  # mean (2, 2) where present
    write_modality(tmp_path / "features", "visual", features, np.array([1, 1, 1, 1, 0]), {"encoder": "the test"})
    folder = write_folder(tmp_path)
    assert score(FeatureCosine("visual"), folder, "a>bcde", "ab>c", "ae>b") == [
        pytest.approx([0, 0, -1, 0]),
        pytest.approx([-0.5]),
        pytest.approx([0]),
    ]
    ((same,),) = score(FeatureCosine("visual"), folder, "ad>e")
    assert same == 0


@pytest.mark.parametrize("baseline", [Popularity, CoOccurrence, ItemKNN, CategoryPMI, TfidfCosine])
def test_bundles_of_other_splits_change_nothing(baseline, tmp_path):
    (tmp_path / "one").mkdir(), (tmp_path / "other").mkdir()
    one, other = write_folder(tmp_path / "one"), write_folder(tmp_path / "other", held_out=["ad", "ade", "ce"])
    assert score(baseline(), one, "ab>cde", "d>abc") == score(baseline(), other, "ab>cde", "d>abc")


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (UserKNN(), "no interactions of users"),
        (CategoryPMI(), "give `category`"),
        (TfidfCosine(), "no titles"),
        (FeatureCosine("visual"), "no 'visual' features"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_error_names_the_missing_data(baseline, message, tmp_path):
    folder = write_folder(tmp_path, [{"item_id": item["item_id"]} for item in ITEMS])
    with pytest.raises(UnavailableError, match=message):
        baseline.fit(folder, folder.bundles.train)
