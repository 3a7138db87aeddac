"""What a visitor of the app has done so far, and how each action changes it: functions from state to state.

Knows nothing about models, pages or where an action comes from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bundle_mllm.completion.rules import Rules
from bundle_mllm.errors import BundleMLLMError

PAGE = 24
"""Search results that are shown at first, and that "show more" adds."""
MAX_BUNDLE, MAX_OWN = 50, 20
"""Items of a bundle, and items of one's own."""
MAX_TITLE = 300
"""Characters of the title of an item of one's own."""
MIN_ANSWERS, MAX_ANSWERS = 3, 30
"""How many answers can be asked for."""


@dataclass(frozen=True)
class OwnItem:
    """An item that the visitor made up.

    Attributes:
        title: Its title.
        category: Its category, one of the catalog's.
        picture: The file that was uploaded.
        thumbnail: The same, small, as a data URI.
    """

    title: str
    category: str | None = None
    picture: str | None = None
    thumbnail: str | None = None


@dataclass(frozen=True)
class State:
    """What a visitor has done. Items are numbers: rows of the catalog, and below 0 the visitor's own.

    Attributes:
        bundle: The items that were picked, in their order.
        own: The visitor's own items. Those that are not in the bundle are ranked among the answers.
        query, category: What is searched for.
        shown: How many results are shown.
        rules: What may be answered.
        top_k: How many answers are wanted.
        coverage: Answers are those of the smallest set that holds the right item with this probability, and none where
            nothing fits; `None` for the best items however well they fit.
    """

    bundle: tuple[int, ...] = ()
    own: Mapping[int, OwnItem] = field(default_factory=dict)
    query: str = ""
    category: str | None = None
    shown: int = PAGE
    rules: Rules = field(default_factory=Rules)
    top_k: int = 10
    coverage: float | None = None

    @property
    def ranked(self) -> dict[int, OwnItem]:
        """The visitor's own items that are not in the bundle."""
        return {number: item for number, item in self.own.items() if number not in self.bundle}


def act(state: State, action: str, number: int | None, item_ids: Sequence[str]) -> State:
    """Do what a button of the page asks for: add or remove, hide or drop an item, clear the bundle, show more results.

    A button that is pressed again before the page has changed does nothing more.

    Raises:
        BundleMLLMError: If there is no such action or item, or it cannot be done.
    """
    if action == "clear":
        return replace(state, bundle=())
    if action == "more":
        return replace(state, shown=state.shown + PAGE)
    if isinstance(number, int) and (0 <= number < len(item_ids) or number in state.own):
        if action == "add":
            return add(state, number)
        if action == "remove":
            return remove(state, number)
        if action == "hide" and number >= 0:
            return exclude(state, item_ids[number])
        if action == "drop" and number < 0:
            return remove_own(state, number)
    raise BundleMLLMError(f"The page asked to {action!r} the item {number!r}, which cannot be done: load it again.")


def add(state: State, number: int) -> State:
    """Put an item into the bundle.

    Raises:
        BundleMLLMError: If the bundle is full.
    """
    if number in state.bundle:
        return state
    if len(state.bundle) == MAX_BUNDLE:
        raise BundleMLLMError(f"The bundle holds {MAX_BUNDLE} items, the most it can: take one out first.")
    return replace(state, bundle=(*state.bundle, number))


def remove(state: State, number: int) -> State:
    """Take an item out of the bundle."""
    return replace(state, bundle=tuple(other for other in state.bundle if other != number))


def search(state: State, query: str, category: str | None) -> State:
    """Search for something else."""
    return replace(state, query=query.strip(), category=category or None, shown=PAGE)


def exclude(state: State, item_id: str) -> State:
    """Never answer an item again."""
    excluded = dict.fromkeys([*state.rules.excluded, item_id])
    return replace(state, rules=replace(state.rules, excluded=tuple(excluded)))


def add_own(state: State, item: OwnItem) -> State:
    """Add an item of one's own.

    Raises:
        BundleMLLMError: If it has no title or one that is too long, or there are too many.
    """
    title = " ".join(item.title.split())
    if not title:
        raise BundleMLLMError("Your item has no title, so there is nothing to show: give it one.")
    if len(title) > MAX_TITLE:
        raise BundleMLLMError(f"The title has {len(title)} characters: keep it to {MAX_TITLE}.")
    if len(state.own) == MAX_OWN:
        raise BundleMLLMError(f"There are {MAX_OWN} items of your own, the most there can be: remove one first.")
    number = min(state.own, default=0) - 1
    return replace(state, own={**state.own, number: replace(item, title=title)})


def remove_own(state: State, number: int) -> State:
    """Remove an item of one's own, from the bundle, too."""
    own = {other: item for other, item in state.own.items() if other != number}
    return replace(remove(state, number), own=own)


def set_rules(
    state: State, top_k: int, coverage: float | None, categories: Sequence[str], where: str, **rules: object
) -> State:
    """Set the rules; what was excluded stays so.

    Args:
        state: The state.
        top_k: How many answers are wanted.
        coverage: See `State`.
        categories: The only categories of answers; all if there is none.
        where: A condition on item columns; none if it is blank.
        **rules: Other fields of `Rules`; what is `None`, blank or 0 is no rule.

    Raises:
        BundleMLLMError: If there are too many answers; or see `Rules`.
    """
    if not MIN_ANSWERS <= top_k <= MAX_ANSWERS:
        raise BundleMLLMError(f"{top_k} answers were asked for: choose {MIN_ANSWERS} to {MAX_ANSWERS}.")
    conditions = [where.strip()] if where.strip() else []
    if categories:
        conditions.append(f"category in {json.dumps(list(categories), ensure_ascii=False)}")
    if len(conditions) == 2:
        conditions[0] = f"({conditions[0]})"
    given = {name: value for name, value in rules.items() if value not in (None, "", 0, ())}
    made = Rules.from_dict(
        {**given, "where": " and ".join(reversed(conditions)) or None, "excluded": state.rules.excluded}
    )
    return replace(state, rules=made, top_k=top_k, coverage=coverage)


def clear_rules(state: State) -> State:
    """Drop all rules, and what was excluded."""
    return replace(state, rules=Rules(), top_k=State.top_k, coverage=None)
