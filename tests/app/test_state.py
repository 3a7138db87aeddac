import pytest

from bundle_mllm.app.state import (
    MAX_BUNDLE,
    MAX_OWN,
    MAX_TITLE,
    PAGE,
    OwnItem,
    State,
    act,
    add_own,
    clear_rules,
    search,
    set_rules,
)
from bundle_mllm.completion.rules import Rules
from bundle_mllm.errors import BundleMLLMError

IDS = [f"i{number}" for number in range(100)]


def after(*actions, state=None):
    state = state or State()
    for action, number in actions:
        state = act(state, action, number, IDS)
    return state


def test_items_are_added_in_order_and_taken_out_and_a_second_press_changes_nothing():
    assert after(("add", 3), ("add", 1), ("add", 3), ("add", 7)).bundle == (3, 1, 7)
    assert after(("add", 3), ("add", 1), ("remove", 3), ("remove", 3)).bundle == (1,)
    assert after(("add", 3), ("clear", None)).bundle == ()


def test_a_state_is_never_changed():
    first = after(("add", 3))
    after(("add", 4), ("hide", 5), ("more", None), state=first)
    assert first == State(bundle=(3,))


@pytest.mark.parametrize(
    "action, number",
    [("add", 100), ("add", -1), ("add", None), ("add", "3"), ("eat", 3), ("drop", 3), ("hide", -1)],
)
def test_what_the_page_cannot_ask_for_is_refused(action, number):
    with pytest.raises(BundleMLLMError, match="cannot be done"):
        after((action, number))


def test_a_bundle_has_a_largest_size():
    full = after(*(("add", number) for number in range(MAX_BUNDLE)))
    with pytest.raises(BundleMLLMError, match="take one out first"):
        after(("add", 99), state=full)


def test_a_new_search_begins_with_its_first_results():
    more = after(("more", None), ("more", None))
    assert more.shown == 3 * PAGE
    assert search(more, " red ", "shoes") == State(query="red", category="shoes")
    assert search(more, "", "").category is None


def test_hidden_items_are_excluded_until_the_rules_are_cleared():
    hidden = after(("hide", 3), ("hide", 5), ("hide", 3))
    assert hidden.rules.excluded == ("i3", "i5")
    ruled = set_rules(hidden, 5, None, [], "")
    assert ruled.rules.excluded == ("i3", "i5")
    assert clear_rules(ruled) == State()


def test_own_items_are_ranked_until_they_are_in_the_bundle():
    state = add_own(add_own(State(), OwnItem("  linen \n shirt")), OwnItem("hat"))
    assert {number: item.title for number, item in state.ranked.items()} == {-1: "linen shirt", -2: "hat"}
    picked = after(("add", 4), ("add", -1), state=state)
    assert picked.bundle == (4, -1)
    assert set(picked.ranked) == {-2}
    dropped = after(("drop", -1), state=picked)
    assert dropped.bundle == (4,)
    assert set(dropped.own) == {-2}
    assert set(add_own(dropped, OwnItem("belt")).own) == {-2, -3}


@pytest.mark.parametrize("title, message", [(" \n", "no title"), ("x" * (MAX_TITLE + 1), f"keep it to {MAX_TITLE}")])
def test_titles_of_own_items_are_checked(title, message):
    with pytest.raises(BundleMLLMError, match=message):
        add_own(State(), OwnItem(title))


def test_there_are_not_too_many_own_items():
    state = State()
    for number in range(MAX_OWN):
        state = add_own(state, OwnItem(f"hat {number}"))
    with pytest.raises(BundleMLLMError, match="remove one first"):
        add_own(state, OwnItem("hat"))


def test_rules_are_those_of_the_form():
    state = set_rules(
        State(),
        7,
        0.9,
        ["bag", 'a "b"'],
        "price < 3 or sale",
        max_per_category=2,
        budget=None,
        diversity=0,
        promoted="",
        promoted_share=0,
    )
    assert (state.top_k, state.coverage) == (7, 0.9)
    assert state.rules == Rules(where='category in ["bag", "a \\"b\\""] and (price < 3 or sale)', max_per_category=2)
    assert set_rules(state, 7, None, [], " ", max_per_category=None).rules == Rules()


def test_rules_that_are_none_are_refused_and_name_the_mistake():
    with pytest.raises(BundleMLLMError, match="cannot be read"):
        set_rules(State(), 5, None, [], "price <")
    with pytest.raises(BundleMLLMError, match="choose 3 to 30"):
        set_rules(State(), 31, None, [], "")
    with pytest.raises(BundleMLLMError, match="promoted_share"):
        set_rules(State(), 5, None, [], "", promoted_share=0.5)
