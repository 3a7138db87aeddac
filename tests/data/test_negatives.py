import random
from collections import Counter

import pytest

from bundle_mllm.data import Bundle, ItemCatalog
from bundle_mllm.data.negatives import NegativeSampler
from bundle_mllm.errors import BundleMLLMError


def draw(sampler, answer, bundle, number, hard, times=1):
    rng = random.Random(0)
    return [row for _ in range(times) for row in sampler.draw(answer, frozenset(bundle), number, hard, rng)]


def train(frequencies):
    """Training bundles in which item `i{n}` occurs `frequencies[n]` times."""
    return [
        Bundle(f"{n}-{k}", (f"i{n}",), "train") for n, frequency in enumerate(frequencies) for k in range(frequency)
    ]


def test_negatives_are_distinct_and_outside_the_bundle(catalog, splits):
    sampler = NegativeSampler(catalog, splits.train, seed=0)
    for hard in (False, True):
        for answer in (0, 57, 199, 200):
            bundle = {answer, 1, 2, 3, 100}
            negatives = draw(sampler, answer, bundle, 25, hard)
            assert len(set(negatives)) == 25
            assert not bundle & set(negatives)


def test_uniform_negatives_are_uniform_over_the_catalog(catalog):
    counts = Counter(draw(NegativeSampler(catalog, (), seed=0), 0, {0, 1}, 9, hard=False, times=5000))
    assert set(counts) == set(range(2, 201))
    expected = 5000 * 9 / 199
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_hard_negatives_share_the_category_of_the_answer(catalog, splits):
    negatives = draw(NegativeSampler(catalog, splits.train, seed=0), 6, {6, 7}, 9, hard=True, times=50)
    assert {catalog.categories[row] for row in negatives} == {"c0"}


def test_hard_negatives_are_near_the_answer_in_train_frequency():
    catalog = ItemCatalog.from_records([{"item_id": f"i{n}", "category": "c"} for n in range(300)])
    sampler = NegativeSampler(catalog, train([n // 10 for n in range(300)]), seed=0)
    for answer in (0, 150, 299):
        assert all(abs(row - answer) < 65 for row in draw(sampler, answer, {answer}, 9, hard=True, times=50))


@pytest.mark.parametrize("size", [1, 10, 50])
def test_a_category_that_cannot_fill_the_pool_falls_back_to_frequency_in_the_catalog(size):
    records = [
        {"item_id": f"i{n}", "category": "rare" if n % 6 == 0 and n < 6 * size else "common"} for n in range(300)
    ]
    sampler = NegativeSampler(ItemCatalog.from_records(records), train([n // 10 for n in range(300)]), seed=0)
    negatives = draw(sampler, 0, {0}, 9, hard=True, times=50)
    assert max(negatives) < 80
    assert any(row % 6 for row in negatives)


def test_a_category_that_fills_the_pool_is_used():
    records = [{"item_id": f"i{n}", "category": "c" if n < 51 else "common"} for n in range(300)]
    sampler = NegativeSampler(ItemCatalog.from_records(records), (), seed=0)
    assert max(draw(sampler, 0, {0}, 9, hard=True, times=50)) == 50


def test_neither_high_nor_low_nor_middling_frequency_gives_the_answer_away():
    catalog = ItemCatalog.from_records([{"item_id": f"i{n}", "category": "c"} for n in range(1000)])
    sampler = NegativeSampler(catalog, train([n // 10 for n in range(1000)]), seed=0)
    rng = random.Random(0)
    ranks = Counter()
    for _ in range(4000):
        answer = rng.randrange(100, 900)
        ranks[sum(row < answer for row in sampler.draw(answer, frozenset({answer}), 4, True, rng))] += 1
    assert all(abs(ranks[rank] - 800) < 130 for rank in range(5)), ranks


def test_items_without_a_category_are_matched_on_frequency_alone():
    catalog = ItemCatalog.from_records([{"item_id": f"i{n}"} for n in range(300)])
    sampler = NegativeSampler(catalog, train([n // 10 for n in range(300)]), seed=0)
    assert max(draw(sampler, 0, {0}, 9, hard=True, times=50)) < 80


def test_a_bundle_larger_than_the_pool_still_has_hard_negatives():
    catalog = ItemCatalog.from_records([{"item_id": f"i{n}", "category": "c"} for n in range(300)])
    sampler = NegativeSampler(catalog, train([n // 10 for n in range(300)]), seed=0)
    bundle = set(range(75, 225))
    assert not bundle & set(draw(sampler, 150, bundle, 25, hard=True, times=50))


def test_the_last_items_outside_the_bundle_are_found():
    catalog = ItemCatalog.from_records([{"item_id": f"i{n}", "category": "c"} for n in range(100)])
    sampler = NegativeSampler(catalog, (), seed=0)
    for hard in (False, True):
        assert sorted(draw(sampler, 0, set(range(91)), 9, hard)) == list(range(91, 100))


def test_a_catalog_that_is_too_small_is_refused_with_the_numbers(catalog):
    sampler = NegativeSampler(catalog, (), seed=0)
    bundle = Bundle("b", catalog.item_ids[:195], "train")
    sampler.check(bundle, 7)
    with pytest.raises(
        BundleMLLMError, match="195 of the catalog's 201 items, which leaves 6 for the 7 wrong options"
    ):
        sampler.check(bundle, 8)
