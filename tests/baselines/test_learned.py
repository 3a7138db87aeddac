"""Trained baselines on synthetic bundles, each of one style, complete held-out bundles."""

from dataclasses import replace

import numpy as np
import pytest

from bundle_mllm.baselines.base import QuestionBatch, UnavailableError
from bundle_mllm.baselines.boosting import BoostedRanker, ListwiseRanker
from bundle_mllm.baselines.counting import CoOccurrence, Popularity
from bundle_mllm.baselines.learning import Schedule
from bundle_mllm.baselines.multivae import MultiVAE
from bundle_mllm.baselines.set_transformer import SetTransformer
from bundle_mllm.baselines.similarity import BundleLightGCN, FeatureCosine, UserLightGCN
from bundle_mllm.data import BundleSplits, DatasetFolder, make_questions
from bundle_mllm.data.features import write_modality
from bundle_mllm.data.tables import write_records

NUM_STYLES, NUM_ITEMS, NUM_COLD = 6, 90, 18
CHANCE = 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Items of six styles; a bundle is of one style. The last items are in validation bundles only."""
    path = tmp_path_factory.mktemp("styles")
    write_records(path / "items.jsonl", [{"item_id": f"i{n}"} for n in range(NUM_ITEMS)])
    rng, warm = np.random.default_rng(0), NUM_ITEMS - NUM_COLD
    bundles = []
    for number in range(300):
        style, split = number % NUM_STYLES, "train" if number < 240 else "validation"
        of_style = np.arange(style, warm if split == "train" else NUM_ITEMS, NUM_STYLES)
        items = rng.choice(of_style, size=4, replace=False)
        bundles.append({"bundle_id": f"b{number}", "items": [f"i{n}" for n in items], "split": split})
    write_records(path / "bundles.jsonl", bundles)
    likes = {f"u{n}": rng.choice(np.arange(n % NUM_STYLES, NUM_ITEMS, NUM_STYLES), 6) for n in range(60)}
    log = [{"user_id": user, "item_id": f"i{item}"} for user, items in likes.items() for item in items]
    write_records(path / "interactions.csv", log)
    features = np.eye(NUM_STYLES)[np.arange(NUM_ITEMS) % NUM_STYLES]
    features = features + 0.3 * rng.standard_normal(features.shape)
    write_modality(path / "features", "visual", features.astype(np.float32), None, {"encoder": "the test"})
    return DatasetFolder.open(path)


@pytest.fixture(scope="module")
def questions(folder):
    return make_questions(folder.bundles.validation, folder.catalog, folder.bundles, num_candidates=5, seed=0)


def hit_rate(baseline, folder, questions, *, cold):
    """Return the share of questions with a cold or a warm answer that scores above all candidates of other styles."""
    number = {f"i{n}": n for n in range(NUM_ITEMS)}
    selected = [q for q in questions if (number[q.answer] >= NUM_ITEMS - NUM_COLD) == cold]
    batch = QuestionBatch.of(selected, folder.catalog)
    hit = []
    for question, row in zip(selected, batch.split(baseline.score(batch)), strict=True):
        other = [number[c] % NUM_STYLES != number[question.answer] % NUM_STYLES for c in question.candidates]
        hit.append(row[question.answer_index] > row[other].max(initial=-np.inf))
    return np.mean(hit)


def quick(baseline, epochs):
    baseline.schedule = Schedule(epochs=epochs, batch_size=32)
    return baseline


def make_ranker(seed=0, kind=BoostedRanker):
    simple = {"popularity": Popularity, "co_occurrence": CoOccurrence, "visual": lambda: FeatureCosine("visual")}
    return kind(simple, seed=seed, num_questions=600)


MAKE = {
    "lightgcn": lambda: BundleLightGCN(steps=40),
    "lightgcn_users": lambda: UserLightGCN(steps=40),
    "multivae": lambda: quick(MultiVAE(), 10),
    "set_transformer": lambda: quick(SetTransformer(), 10),
    "boosted_ranker": make_ranker,
    "listwise_ranker": lambda: make_ranker(kind=ListwiseRanker),
}
READS_MORE_THAN_BUNDLES = ("lightgcn_users", "set_transformer", "boosted_ranker", "listwise_ranker")


@pytest.fixture(scope="module", params=MAKE)
def fitted(request, folder):
    baseline = MAKE[request.param]()
    baseline.fit(folder, folder.bundles.train)
    return request.param, baseline


def test_items_of_the_bundles_style_score_highest(fitted, folder, questions):
    assert hit_rate(fitted[1], folder, questions, cold=False) > 3 * CHANCE


def test_items_in_no_bundle_score_high_only_by_features_or_users(fitted, folder, questions):
    name, baseline = fitted
    if name in READS_MORE_THAN_BUNDLES:
        assert hit_rate(baseline, folder, questions, cold=True) > 3 * CHANCE
    else:
        cold = list(range(NUM_ITEMS - NUM_COLD, NUM_ITEMS))
        assert len(set(baseline.score(QuestionBatch([[0, 6]], [cold], NUM_ITEMS)))) == 1


def test_scores_depend_on_the_question_alone(fitted, folder, questions):
    batch = QuestionBatch.of(questions, folder.catalog)
    together = batch.split(fitted[1].score(batch))
    for index in (0, 17):
        alone = fitted[1].score(QuestionBatch.of(questions[index : index + 1], folder.catalog))
        np.testing.assert_allclose(alone, together[index], rtol=1e-4, atol=1e-4)


def test_scores_depend_on_no_held_out_bundle_and_are_fixed_by_the_seed(fitted, folder, questions):
    name, baseline = fitted
    again = MAKE[name]()
    bundles = [replace(bundle, items=bundle.items[::-1][:2]) for bundle in folder.bundles.validation]
    other = replace(folder, bundles=BundleSplits(folder.bundles.train, tuple(bundles)))
    again.fit(other, other.bundles.train)
    batch = QuestionBatch.of(questions, folder.catalog)
    np.testing.assert_array_equal(again.score(batch), baseline.score(batch))


def test_another_seed_gives_another_network(folder, questions):
    batch = QuestionBatch.of(questions[:4], folder.catalog)
    scores = []
    for seed in (0, 1):
        baseline = MultiVAE(seed=seed)
        baseline.schedule = Schedule(epochs=1)
        baseline.fit(folder, folder.bundles.train)
        scores.append(baseline.score(batch))
    assert not np.allclose(*scores)


def test_items_of_no_training_bundle_come_last_in_a_multivae_question(folder):
    baseline = MultiVAE()
    baseline.schedule = Schedule(epochs=1)
    baseline.fit(folder, folder.bundles.train)
    cold, warm = NUM_ITEMS - 1, 3
    scores = baseline.score(QuestionBatch([[0], [cold]], [[cold, warm, 1], [cold, cold - 1]], NUM_ITEMS))
    assert scores[0] < min(scores[1:3])
    assert scores[3] == scores[4]


def test_the_ranker_gives_no_weight_to_scores_that_contain_the_training_answers(tmp_path):
    """Where bundles are random, co-occurrence answers training questions and no others: only folds show it."""
    write_records(tmp_path / "items.jsonl", [{"item_id": f"i{n}", "title": f"t{n % 6}"} for n in range(60)])
    rng = np.random.default_rng(0)
    bundles = [
        {"bundle_id": f"b{n}", "items": [f"i{i}" for i in rng.choice(60, 3, replace=False)], "split": "train"}
        for n in range(120)
    ]
    write_records(tmp_path / "bundles.jsonl", bundles)
    folder = DatasetFolder.open(tmp_path)
    ranker = BoostedRanker({"popularity": Popularity, "co_occurrence": CoOccurrence}, num_questions=600)
    ranker.fit(folder, folder.bundles.train)
    batch = QuestionBatch([[0]], [list(range(1, 60))], 60)
    counts = CoOccurrence()
    counts.fit(folder, folder.bundles.train)
    scores, shares = ranker.score(batch), counts.score(batch) > 0
    assert scores[shares].mean() - scores[~shares].mean() < 1  # in log odds; about 5 without folds


@pytest.mark.parametrize("make", [MultiVAE, SetTransformer, make_ranker], ids=["multivae", "set", "ranker"])
def test_bundles_of_one_item_are_too_little(make, folder):
    single = [replace(bundle, items=bundle.items[:1]) for bundle in folder.bundles.train]
    with pytest.raises(UnavailableError, match="of two items"):
        make().fit(folder, single)
