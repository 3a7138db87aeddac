import random
from collections import Counter

import pytest

from bundle_mllm.data import splitting
from bundle_mllm.data.splitting import held_out_near_duplicates, split_bundles
from bundle_mllm.errors import BundleMLLMError


def jaccard(left, right):
    left, right = set(left), set(right)
    return len(left & right) / len(left | right)


def invent(number, num_items, largest, seed):
    """Bundles that repeat and vary each other; item `i0` is the most frequent."""
    rng = random.Random(seed)
    bundles = {}
    for n in range(number):
        items = {int(num_items * rng.random() ** 2) for _ in range(rng.randint(2, largest))}
        if bundles and rng.random() < 0.3:
            items = set(rng.choice(list(bundles.values())))
            if rng.random() < 0.7:
                items.add(rng.randrange(num_items))
        bundles[f"b{n}"] = items
    return {bundle_id: [f"i{item}" for item in items] for bundle_id, items in bundles.items()}


@pytest.mark.parametrize(("largest", "min_jaccard"), [(5, 0.5), (9, 0.5), (9, 0.8), (4, 1.0), (6, 0.25)])
def test_near_duplicates_stay_on_one_side(largest, min_jaccard):
    bundles = invent(400, 300, largest, seed=1)
    splits = split_bundles(bundles, seed=0, min_jaccard=min_jaccard)
    assert list(splits) == list(bundles)
    assert {"train", "validation", "test"} == set(splits.values())
    for left, items in bundles.items():
        for right, others in bundles.items():
            if splits[left] != splits[right]:
                assert jaccard(items, others) < min_jaccard


@pytest.mark.parametrize("min_jaccard", [0.5, 0.9])
def test_held_out_near_duplicates_of_given_splits_are_found(min_jaccard):
    bundles = invent(300, 200, 6, seed=2)
    rng = random.Random(0)
    splits = {bundle_id: rng.choice(["train", "train", "validation", "test"]) for bundle_id in bundles}
    expected = [
        left
        for left, items in bundles.items()
        if splits[left] != "train"
        and any(splits[left] != splits[right] and jaccard(items, bundles[right]) >= min_jaccard for right in bundles)
    ]
    assert held_out_near_duplicates(bundles, splits, min_jaccard) == expected
    assert expected


def test_own_splits_have_no_near_duplicates_across(monkeypatch):
    monkeypatch.setattr(splitting, "_BLOCK", 1000)  # many blocks
    bundles = invent(400, 300, 7, seed=3)
    assert held_out_near_duplicates(bundles, split_bundles(bundles, seed=5)) == []


def test_fractions_are_exact_where_groups_are_small():
    bundles = {f"b{n}": [f"i{n}", f"j{n}"] for n in range(1000)}
    bundles |= {f"c{n}": [f"i{n // 20}", f"j{n // 20}"] for n in range(100)}
    for fractions in [(0.8, 0.1, 0.1), (0.6, 0.4, 0), (1, 0, 0), (0.37, 0.22, 0.41)]:
        counts = Counter(split_bundles(bundles, fractions=fractions, seed=0).values())
        shares = zip(("train", "validation", "test"), fractions, strict=True)
        assert all(abs(counts[split] - 1100 * fraction) < 1 for split, fraction in shares)


def test_a_group_that_fits_no_split_goes_to_train():
    bundles = {f"b{n}": ["x", "y", f"i{n}"] for n in range(95)} | {f"c{n}": [f"i{n}", "z"] for n in range(5)}
    splits = split_bundles(bundles, seed=0)
    assert {splits[f"b{n}"] for n in range(95)} == {"train"}
    assert {splits[f"c{n}"] for n in range(5)} <= {"validation", "test"}


def test_groups_of_near_duplicates_reach_every_split():
    bundles = {f"b{n}": [f"i{n // 2}", f"j{n // 2}"] for n in range(1000)}
    counts = Counter(split_bundles(bundles, seed=0).values())
    assert counts == {"train": 800, "validation": 100, "test": 100}


def test_the_seed_decides_and_the_order_does_not():
    bundles = invent(200, 300, 5, seed=4)
    splits = split_bundles(bundles, seed=0)
    shuffled = {key: bundles[key][::-1] for key in sorted(bundles, key=lambda key: key[::-1])}
    assert split_bundles(shuffled, seed=0) == splits
    assert split_bundles(bundles, seed=1) != splits


def test_no_bundles_and_empty_bundles_are_no_problem():
    assert split_bundles({}, seed=0) == {}
    splits = split_bundles({f"b{n}": [] for n in range(10)} | {"c": ["x"], "d": ["x"]}, seed=0)
    assert splits["c"] == splits["d"]
    assert len(splits) == 12


@pytest.mark.parametrize(
    "fractions", [(0.8, 0.2), (0.8, 0.3, 0.1), (1.1, -0.1, 0), (0, 0.5, 0.5), (float("nan"), 0, 1)]
)
def test_what_is_no_share_is_refused(fractions):
    with pytest.raises(BundleMLLMError, match="give three numbers"):
        split_bundles({"b": ["i"]}, fractions=fractions, seed=0)


@pytest.mark.parametrize("min_jaccard", [0, -1, 1.5])
def test_what_is_no_similarity_is_refused(min_jaccard):
    with pytest.raises(BundleMLLMError, match="min_jaccard"):
        split_bundles({"b": ["i"]}, seed=0, min_jaccard=min_jaccard)


def test_many_bundles_of_a_few_popular_items_are_split_without_near_duplicates_across():
    bundles = {}
    rng = random.Random(0)
    for n in range(8_000):
        popular = [f"i{int(200 * rng.random() ** 3)}" for _ in range(3)]
        bundles[f"b{n}"] = list(
            dict.fromkeys([*popular, f"i{rng.randrange(200, 20_000)}", f"i{rng.randrange(20_000)}"])
        )
    splits = split_bundles(bundles, seed=0)
    assert held_out_near_duplicates(bundles, splits) == []
