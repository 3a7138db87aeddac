"""Item-group pairs as buffers: read in both directions as Python sets would be, with shared nodes and folds."""

import pytest
import torch
from tiny_models import make_pairs

from bundle_mllm.modeling.groups_bundle_mllm import BundleRetrieverGroups, ItemPairs

NUM_ITEMS = 6
GROUPS = [[0, 1, 4], [4], [2, 0], [1, 4]]
NODE_OF_ITEM = torch.tensor([1, 1, -1, 0, 4, 4])  # items 0 and 1 share a node, so do 4 and 5; item 2 has none


def make_groups(groups=GROUPS, **fields):
    made = BundleRetrieverGroups(NUM_ITEMS, 0)
    made.replace(NUM_ITEMS, make_pairs(groups, **fields))
    return made


def nodes_of(row, node_of_item):
    return row if node_of_item is None else int(node_of_item[row])


@pytest.mark.parametrize("node_of_item", [None, NODE_OF_ITEM])
def test_the_groups_of_rows_are_those_of_the_pairs(node_of_item):
    made = make_groups(node_of_item=node_of_item)
    rows = torch.tensor([4, 2, 3, 4, 0])
    degree, owner, group, size = made.gather(rows, NUM_ITEMS)
    found = [(int(o), int(g), int(s)) for o, g, s in zip(owner, group, size, strict=True)]
    expected = [
        (index, number, len(nodes))
        for index, row in enumerate(rows.tolist())
        for number, nodes in enumerate(GROUPS)
        if nodes_of(row, node_of_item) in nodes
    ]
    assert sorted(found) == sorted(expected) and owner.tolist() == sorted(owner.tolist())
    assert degree.tolist() == [sum(o == index for o, _, _ in expected) for index in range(5)]
    assert torch.equal(made.degree(rows), degree)


@pytest.mark.parametrize("node_of_item", [None, NODE_OF_ITEM])
def test_the_members_of_groups_are_those_of_the_pairs(node_of_item):
    made = make_groups(node_of_item=node_of_item)
    owner, node, size, degree = made.members(torch.tensor([2, 0, 0]))
    of_node, rows = made.items(node)
    parts = owner[of_node], rows, size[of_node], degree[of_node]
    found = list(zip(*(part.tolist() for part in parts), strict=True))
    expected = [
        (index, row, len(GROUPS[number]), sum(nodes_of(row, node_of_item) in nodes for nodes in GROUPS))
        for index, number in enumerate([2, 0, 0])
        for row in range(NUM_ITEMS)
        if nodes_of(row, node_of_item) in GROUPS[number]
    ]
    assert sorted(found) == sorted(expected)


def test_a_pair_that_is_given_twice_counts_once():
    made = make_groups([[0, 1, 1], [1, 1]])
    assert made.num_pairs == 3
    assert made.degree(torch.tensor([0, 1, 2])).tolist() == [1, 2, 0]


def test_a_row_of_a_fold_is_in_no_group_of_that_fold():
    made = make_groups(fold_of_group=torch.tensor([0, 1, 0, 1]))
    plain, first, second = (made.gather(torch.tensor([4 + fold * NUM_ITEMS]), 3 * NUM_ITEMS) for fold in range(3))
    assert [part[2].tolist() for part in (plain, first, second)] == [[0, 1, 3], [1, 3], [0]]
    assert [int(part[0]) for part in (plain, first, second)] == [3, 2, 1]
    assert "fold_of_group" not in made.state_dict()


def test_groups_without_folds_hold_the_rows_of_every_fold():
    _, _, groups, _ = make_groups().gather(torch.tensor([4 + NUM_ITEMS]), 3 * NUM_ITEMS)
    assert groups.tolist() == [0, 1, 3]


@pytest.mark.parametrize("folds", [None, torch.tensor([0, 1, 0, 1])])
def test_a_row_beyond_the_catalog_is_in_no_group(folds):
    rows = torch.tensor([3 * NUM_ITEMS, 3 * NUM_ITEMS + 4])
    degree, owner, _, _ = make_groups(fold_of_group=folds).gather(rows, 3 * NUM_ITEMS)
    assert degree.tolist() == [0, 0] and len(owner) == 0


def test_pairs_read_back_make_the_same_groups():
    made, again = make_groups(node_of_item=NODE_OF_ITEM), BundleRetrieverGroups(0, 0)
    again.replace(NUM_ITEMS, made.pairs())
    assert all(torch.equal(again.state_dict()[name], value) for name, value in made.state_dict().items())


def test_given_sizes_count_whatever_the_pairs_are():
    """So that an item that is added or removed leaves the sizes of its groups as they were, also after saving."""
    made, again = make_groups([[0, 1], [2]], sizes=torch.tensor([7, 5, 3])), BundleRetrieverGroups(NUM_ITEMS, 3)
    again.load_state_dict(made.state_dict())
    for groups in (made, again):
        assert groups.gather(torch.tensor([0, 2]), NUM_ITEMS)[3].tolist() == [7, 5]
        assert groups.members(torch.tensor([0]))[2].tolist() == [7, 7]
        assert groups.pairs().sizes.tolist() == [7, 5]


def test_extra_rows_are_in_the_groups_that_are_given_with_them():
    made = make_groups()
    extra = ItemPairs(torch.tensor([2, 0, 0, 2]), torch.tensor([3, 2, 9, 0]))  # no item of the catalog is in group 9
    rows = torch.tensor([NUM_ITEMS + 2, 4, NUM_ITEMS, NUM_ITEMS + 1])
    degree, owner, group, size = made.gather(rows, NUM_ITEMS, extra)
    assert degree.tolist() == [2, 3, 1, 0] and owner.tolist() == [0, 0, 1, 1, 1, 2]
    assert sorted(zip(owner.tolist(), group.tolist(), size.tolist(), strict=True)) == [
        (0, 0, 3),
        (0, 3, 2),
        (1, 0, 3),
        (1, 1, 1),
        (1, 3, 2),
        (2, 2, 2),
    ]


def test_no_pairs_and_no_items_are_allowed():
    made = make_groups()
    made.replace(3, None)
    assert made.num_pairs == 0 and made.degree(torch.tensor([0, 2])).tolist() == [0, 0]
    made.replace(0, None)
    assert made.degree(torch.tensor([0])).tolist() == [0]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (make_pairs([[NUM_ITEMS]]), "some pairs have no item"),
        (ItemPairs(torch.tensor([-1]), torch.tensor([0])), "some pairs have no item"),
        (ItemPairs(torch.tensor([0]), torch.tensor([-1])), "groups from 0"),
        (ItemPairs(torch.tensor([0, 1]), torch.tensor([0])), "2 rows and 1 groups for 6 items"),
        (make_pairs([[0], [1]], sizes=torch.tensor([1])), "1 sizes of groups and pairs of group 1"),
        (make_pairs([[0]], node_of_item=torch.tensor([0])), r"node_of_item has shape \[1\] for 6 items"),
        (make_pairs([[0]], node_of_item=torch.full((NUM_ITEMS,), 6)), "or a node outside"),
    ],
)
def test_pairs_that_do_not_fit_the_catalog_are_an_error_and_change_nothing(pairs, message):
    made = make_groups()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        made.replace(NUM_ITEMS, pairs)
    assert all(torch.equal(made.state_dict()[name], value) for name, value in before.items())
