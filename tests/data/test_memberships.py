"""Item groups are what sets of Python make of the same bundles, users, words and categories."""

from collections import Counter

import numpy as np
import pytest

from bundle_mllm.data import Bundle, BundleSplits, Interactions, ItemCatalog
from bundle_mllm.data.memberships import ItemGroups


def pairs_of(groups):
    return list(zip(groups.nodes.tolist(), groups.groups.tolist(), strict=True))


@pytest.fixture
def bundles(splits):
    return list(splits.train)


def test_bundles_are_numbered_by_their_sorted_ids_whatever_their_order(bundles, catalog):
    groups = ItemGroups.of_bundles(bundles, catalog)
    number = {bundle_id: i for i, bundle_id in enumerate(sorted(bundle.bundle_id for bundle in bundles))}
    assert pairs_of(groups) == sorted(
        (int(item_id[1:]), number[bundle.bundle_id]) for bundle in bundles for item_id in bundle.items
    )
    assert pairs_of(ItemGroups.of_bundles(bundles[::-1], catalog)) == pairs_of(groups)
    assert (groups.name, groups.num_items, groups.num_groups, groups.num_nodes) == ("bundle_item", 201, 60, 201)
    assert len(groups) == sum(len(bundle.items) for bundle in bundles)


def test_items_of_a_category_share_its_bundles(bundles, catalog):
    groups = ItemGroups.of_bundles_of_categories(bundles, catalog)
    number = {bundle_id: i for i, bundle_id in enumerate(sorted(bundle.bundle_id for bundle in bundles))}
    expected = {(int(item_id[1:]) % 2, number[b.bundle_id]) for b in bundles for item_id in b.items}
    assert pairs_of(groups) == sorted(expected)
    assert groups.node_of_item.tolist() == [row % 2 for row in range(200)] + [-1]
    assert groups.csr().shape == (groups.num_nodes, groups.num_groups) == (2, 60)


def test_items_without_a_category_have_no_groups_of_one():
    catalog = ItemCatalog.from_records([{"item_id": "a"}, {"item_id": "b"}])
    groups = ItemGroups.of_bundles_of_categories([Bundle("x", ("a", "b"), "train")], catalog)
    assert (len(groups), groups.num_nodes, groups.num_groups) == (0, 0, 0)
    assert groups.node_of_item.tolist() == [-1, -1]


def test_users_keep_the_numbers_of_the_interactions(catalog):
    records = [{"user_id": user, "item_id": f"i{row}"} for user, row in (("z", 5), ("a", 3), ("z", 3), ("z", 5))]
    groups = ItemGroups.of_users(Interactions.from_records(records, catalog), len(catalog))
    assert pairs_of(groups) == [(3, 0), (3, 1), (5, 0)]
    assert groups.name == "user_item"


def test_words_are_groups_in_sorted_order():
    catalog = ItemCatalog.from_records(
        [{"item_id": "0", "title": "red Hat red"}, {"item_id": "1"}, {"item_id": "2", "description": "a hat"}]
    )
    assert (catalog[0].text, catalog[1].text) == ("red Hat red", "")
    assert pairs_of(ItemGroups.of_words(catalog)) == [(0, 1), (0, 2), (2, 0), (2, 1)]


def random_pairs(number=400, num_items=30, num_groups=50):
    rng = np.random.default_rng(0)
    return rng.integers(num_items, size=number), (rng.integers(num_groups, size=number) ** 2) // num_groups


def test_repeated_pairs_count_once_in_the_matrix_and_in_sizes():
    nodes, numbers = random_pairs()
    groups = ItemGroups("any", nodes, numbers, 30)
    distinct = set(zip(nodes.tolist(), numbers.tolist(), strict=True))
    assert pairs_of(groups) == sorted(distinct)
    dense = np.zeros((30, numbers.max() + 1))
    dense[nodes, numbers] = 1.0
    np.testing.assert_array_equal(groups.csr().toarray(), dense)
    np.testing.assert_array_equal(groups.group_sizes, dense.sum(axis=0))
    np.testing.assert_array_equal(groups.groups_per_node, dense.sum(axis=1))


@pytest.mark.parametrize("number", [0, 1, 3, 100])
def test_each_node_keeps_its_smallest_groups(number):
    groups = ItemGroups("any", *random_pairs(), 30)
    size = Counter(group for _, group in pairs_of(groups))
    expected = []
    for node in range(30):
        own = sorted((size[group], group) for other, group in pairs_of(groups) if other == node)
        expected += [(node, group) for _, group in own[:number]]
    assert pairs_of(groups.smallest_groups(number)) == sorted(expected)


def test_groups_that_are_left_out_change_no_other_number():
    groups = ItemGroups("any", *random_pairs(), 30)
    left = groups.without(np.array([0, 7, 9]))
    assert pairs_of(left) == [pair for pair in pairs_of(groups) if pair[1] not in (0, 7, 9)]


def test_no_pair_gives_an_empty_matrix(catalog):
    groups = ItemGroups.of_bundles(BundleSplits().train, catalog)
    assert (len(groups), groups.csr().shape, groups.num_groups) == (0, (201, 0), 0)
    assert len(groups.smallest_groups(2)) == len(groups.without(np.array([1]))) == 0
    assert (np.ones((3, 201)) @ groups.csr()).shape == (3, 0)
