"""What pages and notebooks show of answers: items with pictures and sounds, scores and contributions.

Knows nothing about models, or how a page looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from bundle_mllm.completion.media import ItemMedia, thumbnail
from bundle_mllm.completion.rules import Rules
from bundle_mllm.pages import data_uri

Shown = dict[str, Any]
"""Values of a template."""


def shown_answers(
    partial: Sequence[Mapping[str, Any]],
    items: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
    rules: Rules | None = None,
    media: ItemMedia | None = None,
    right: str | None = None,
) -> Shown:
    """Return what `answers.html` shows.

    Args:
        partial: The items of the bundle: `item_id`, `title` and, of new items, `image`.
        items: The answers; see `Answers`.
        notes: Lines about rules.
        rules: The rules.
        media: Pictures and sounds.
        right: The id of the right answer, where it is known.
    """
    answers = [_shown_answer(item, media, right) for item in items]
    bars = [bar for answer in answers for bar in answer["bars"]]
    longest = max((abs(bar["value"]) for bar in bars), default=0.0) or 1.0
    for bar in bars:
        bar["percent"] = 100 * abs(bar["value"]) / longest
    bundle = [_shown_item(item, media) for item in partial]
    return {
        "bundle": bundle,
        "answers": answers,
        "has_pictures": any(item["picture"] for item in bundle + answers),
        "num_elsewhere": sum(item["is_elsewhere"] for item in bundle + answers),
        "explained": bool(bars),
        "notes": list(notes),
        "rules": {} if rules is None else _changed(rules),
    }


def _shown_item(item: Mapping[str, Any], media: ItemMedia | None) -> Shown:
    """Return what a page shows of an item: `item_id`, `title`, `category`, `picture` and `sound` (as addresses).

    `is_elsewhere` says that there is a picture, which is not shown since it would have to be fetched.
    """
    item_id = item.get("item_id")
    picture = media.picture(item_id) if media else None
    if picture is None and item.get("image"):
        picture = thumbnail(Path(item["image"]))
    sound = media.sound(item_id) if media else None
    return {
        "item_id": item_id or "a new item",
        "title": item.get("title") or "",
        "category": media.category(item_id) if media else None,
        "picture": picture and data_uri(picture, "image/jpeg"),
        "is_elsewhere": picture is None and media is not None and media.is_elsewhere(item_id),
        "sound": sound and data_uri(*sound),
    }


def _shown_answer(item: Mapping[str, Any], media: ItemMedia | None, right: str | None = None) -> Shown:
    """Return what a page shows of an answer: the item, `score`, `p_value`, `guess`, `is_right`, `alone`, `bars`."""
    explanation = dict(item.get("explanation") or {})
    parts = dict(explanation.pop("contributions", {}))
    if boost := explanation.pop("boost", None):
        parts["boost"] = boost
    return {
        **_shown_item(item, media),
        "score": item["score"],
        "p_value": item.get("p_value"),
        "guess": bool(item.get("guess")),
        "is_right": right is not None and item.get("item_id") == right,
        "alone": explanation if len(explanation) > 1 else {},
        "bars": [{"name": name, "value": value} for name, value in parts.items()],
    }


def _changed(rules: Rules) -> dict[str, str]:
    """Return the rules that are set, as text."""
    default = Rules()
    values = {each.name: getattr(rules, each.name) for each in fields(rules)}
    return {name: _text(value) for name, value in values.items() if value != getattr(default, name)}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {each:g}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
