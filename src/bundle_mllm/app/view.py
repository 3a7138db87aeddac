"""The parts of the page that show items: HTML from a template that escapes every text.

Knows nothing about models, or what an action does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2

from bundle_mllm import pages
from bundle_mllm.app.answers import Answer, Result
from bundle_mllm.app.items import ShownItems
from bundle_mllm.app.state import State

PICTURES, SOUNDS = "media/picture", "media/sound"
"""Where the page finds them, below its own address; the row of the item follows."""
_HUES = 12
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(pages.__file__).parent]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_MACROS: Any = _ENVIRONMENT.get_template("view.html").module


@dataclass(frozen=True)
class Card:
    """An item as the page shows it.

    Attributes:
        number: The item.
        title: Its title, or its id where it has none.
        item_id: Its id; of an item of the visitor's own that it is one.
        category: Its category, if there is one.
        picture, sound: Where they are, if there are any.
        picked: Whether the bundle holds it.
        hue: The color of the tile in place of a picture; items of one category share it.
    """

    number: int
    title: str
    item_id: str
    category: str | None
    picture: str | None
    sound: str | None
    picked: bool
    hue: int


def card(items: ShownItems, state: State, number: int) -> Card:
    """Return an item of the catalog, or one of the visitor's own, as the page shows it."""
    picked = number in state.bundle
    if number < 0:
        own = state.own[number]
        category, hue = own.category, _hue(items, own.category, number)
        return Card(number, own.title, "an item of your own", category, own.thumbnail, None, picked, hue)
    item_id, category = items.item_ids[number], items.category(number)
    picture = f"{PICTURES}/{number}" if items.has_picture(number) else None
    sound = f"{SOUNDS}/{number}" if items.sound(number) else None
    title = items.titles[number] or item_id
    return Card(number, title, item_id, category, picture, sound, picked, _hue(items, category, number))


def render_results(items: ShownItems, state: State) -> str:
    """Return what the search found."""
    rows = list(items.search(state.query, state.category))
    cards = [card(items, state, row) for row in islice(rows, state.shown)]
    return _MACROS.results(cards, len(rows), state.query)


def render_bundle(items: ShownItems, state: State) -> str:
    """Return the bundle."""
    return _MACROS.bundle([card(items, state, number) for number in state.bundle])


def render_answers(items: ShownItems, state: State, results: Sequence[tuple[str, Result]]) -> str:
    """Return the answers of one model, or of two side by side; with each the name of the model."""
    shown = [
        (name, result, [(answer, card(items, state, answer.number), _bars(answer)) for answer in result.answers])
        for name, result in results
    ]
    return _MACROS.answers(shown, bool(state.bundle), bool(state.own))


def render_error(message: str) -> str:
    """Return what went wrong with an action; nothing if the message is empty."""
    return _MACROS.error(message)


def render_header(items: ShownItems, models: Sequence[tuple[str, str]]) -> str:
    """Return the head of the page; of each model its name and its parts."""
    return _MACROS.header(len(items), models, items.num_elsewhere)


def _bars(answer: Answer) -> list[dict[str, Any]]:
    """Return the contributions to an answer as bars, with their length in percent of the longest."""
    longest = max(map(abs, answer.contributions.values()), default=0.0) or 1.0
    return [
        {"name": name, "value": value, "percent": round(100 * abs(value) / longest)}
        for name, value in answer.contributions.items()
    ]


def _hue(items: ShownItems, category: str | None, number: int) -> int:
    return (items.categories.index(category) if category in items.categories else abs(number)) % _HUES
