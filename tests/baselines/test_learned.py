"""Baselines that are trained, on planted structure: colors go together, in bundles that none of them has seen."""

from dataclasses import replace

import numpy as np
import pytest

from bundle_mllm.baselines.base import Asked, UnavailableError
from bundle_mllm.baselines.boosting import BoostedRanker
from bundle_mllm.baselines.counting import CoOccurrence, Popularity
from bundle_mllm.baselines.graph import BundleLightGCN, UserLightGCN
from bundle_mllm.baselines.learning import Schedule
from bundle_mllm.baselines.multivae import MultiVAE
from bundle_mllm.baselines.set_transformer import SetTransformer
from bundle_mllm.baselines.similarity import FeatureCosine
from bundle_mllm.data import BundleSplits, DatasetFolder, make_questions
from bundle_mllm.data.features import write_modality
from bundle_mllm.data.tables import write_records

NUM_STYLES, NUM_ITEMS, NUM_COLD = 6, 90, 18
CHANCE = 0.2


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """Items of six styles; a bundle is of one style. The last items are in validation bundles only; features tell."""
    path = tmp_path_factory.mktemp("studio")
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
def questions(studio):
    return make_questions(studio.bundles.validation, studio.catalog, studio.bundles, num_candidates=5, seed=0)


def hits(baseline, studio, questions, *, cold):
    """Return the share of questions with a cold or a warm answer that scores above all candidates of other styles."""
    number = {f"i{n}": n for n in range(NUM_ITEMS)}
    chosen = [q for q in questions if (number[q.answer] >= NUM_ITEMS - NUM_COLD) == cold]
    asked = Asked.of(chosen, studio.catalog)
    found = []
    for question, row in zip(chosen, asked.split(baseline.score(asked)), strict=True):
        other = [number[c] % NUM_STYLES != number[question.answer] % NUM_STYLES for c in question.candidates]
        found.append(row[question.answer_index] > row[other].max(initial=-np.inf))
    return np.mean(found)


def quick(baseline, epochs):
    baseline.schedule = Schedule(epochs=epochs, batch_size=32)
    return baseline


def make_ranker(seed=0):
    simple = {"popularity": Popularity, "co_occurrence": CoOccurrence, "visual": lambda: FeatureCosine("visual")}
    return BoostedRanker(simple, seed=seed, num_questions=600)


MAKE = {
    "lightgcn": lambda: BundleLightGCN(steps=40),
    "lightgcn_users": lambda: UserLightGCN(steps=40),
    "multivae": lambda: quick(MultiVAE(), 10),
    "set_transformer": lambda: quick(SetTransformer(), 10),
    "boosted_ranker": make_ranker,
}
SEES_CONTENTS = ("lightgcn_users", "set_transformer", "boosted_ranker")


@pytest.fixture(scope="module", params=MAKE)
def fitted(request, studio):
    baseline = MAKE[request.param]()
    baseline.fit(studio, studio.bundles.train)
    return request.param, baseline


def test_it_finds_what_goes_together(fitted, studio, questions):
    assert hits(fitted[1], studio, questions, cold=False) > 3 * CHANCE


def test_it_knows_items_in_no_bundle_only_if_it_sees_more_than_bundles(fitted, studio, questions):
    name, baseline = fitted
    found = hits(baseline, studio, questions, cold=True)
    assert found > 3 * CHANCE if name in SEES_CONTENTS else found < 2 * CHANCE


def test_scores_depend_on_the_question_alone(fitted, studio, questions):
    asked = Asked.of(questions, studio.catalog)
    together = asked.split(fitted[1].score(asked))
    for place in (0, 17):
        alone = fitted[1].score(Asked.of(questions[place : place + 1], studio.catalog))
        np.testing.assert_allclose(alone, together[place], rtol=1e-4, atol=1e-4)


def test_held_out_bundles_are_not_seen_and_a_seed_fixes_the_scores(fitted, studio, questions):
    name, baseline = fitted
    again = MAKE[name]()
    bundles = [replace(bundle, items=bundle.items[::-1][:2]) for bundle in studio.bundles.validation]
    other = replace(studio, bundles=BundleSplits(studio.bundles.train, tuple(bundles)))
    again.fit(other, other.bundles.train)
    asked = Asked.of(questions, studio.catalog)
    np.testing.assert_array_equal(again.score(asked), baseline.score(asked))


def test_another_seed_gives_another_network(studio, questions):
    asked = Asked.of(questions[:4], studio.catalog)
    scores = []
    for seed in (0, 1):
        baseline = MultiVAE(seed=seed)
        baseline.schedule = Schedule(epochs=1)
        baseline.fit(studio, studio.bundles.train)
        scores.append(baseline.score(asked))
    assert not np.allclose(*scores)


def test_items_of_no_training_bundle_come_last_in_a_multivae_question(studio):
    baseline = MultiVAE()
    baseline.schedule = Schedule(epochs=1)
    baseline.fit(studio, studio.bundles.train)
    cold, warm = NUM_ITEMS - 1, 3
    scores = baseline.score(Asked([[0], [cold]], [[cold, warm, 1], [cold, cold - 1]], NUM_ITEMS))
    assert scores[0] < min(scores[1:3])
    assert scores[3] == scores[4]


def test_the_ranker_is_not_fooled_by_scores_that_know_the_training_bundles(tmp_path):
    """Where bundles are random, co-occurrence answers training questions and nothing else: only folds show it."""
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
    asked = Asked([[0]], [list(range(1, 60))], 60)
    met = CoOccurrence()
    met.fit(folder, folder.bundles.train)
    told = ranker.score(asked)[met.score(asked) > 0].mean() - ranker.score(asked)[met.score(asked) == 0].mean()
    assert told < 1  # in log odds; about 5 if it is fitted to scores of its own training bundles


@pytest.mark.parametrize("make", [MultiVAE, SetTransformer, make_ranker], ids=["multivae", "set", "ranker"])
def test_bundles_of_one_item_are_too_little(make, studio):
    single = [replace(bundle, items=bundle.items[:1]) for bundle in studio.bundles.train]
    with pytest.raises(UnavailableError, match="of two items"):
        make().fit(studio, single)
