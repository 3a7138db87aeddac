"""Read questions: refuse questions, items and features that would be misread, and name them in messages.

Knows nothing about prompts, tokens or weights.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch

QUESTION_KEYS = ("partial", "candidates", "question_id", "bundle_id", "answer_index", "answer", "name")
"""`partial` and `candidates` are read; question files have the others beside them."""
_ITEM_FIELDS = (("title", str, '"linen shirt"'), ("features", Mapping, '{"visual": [...]}'), ("item_id", str, '"i1"'))
_ITEM_KEYS = tuple(key for key, _, _ in _ITEM_FIELDS)
_AS_DICT = 'the item itself as {"title": ..., "features": {...}}'
_LONGEST_NAME = 60


class EncodedItem(dict):
    """A dict item that the encoders of a model folder have read: its title, id and features.

    Attributes:
        groups: Of each membership that follows from what an item is, the numbers of its groups.
        of_category: The id of an item of the catalog that is of the same category, if there is one.
    """

    def __init__(
        self,
        entry: Mapping,
        features: Mapping[str, Sequence[float]],
        groups: Mapping[str, Sequence[int]],
        of_category: str | None = None,
    ):
        super().__init__({**entry, "features": dict(features)})
        self.groups, self.of_category = dict(groups), of_category


def groups_of(entry: Mapping) -> dict[str, Sequence[int]]:
    """Return the groups of a dict item, of each membership in which it is in any."""
    groups = entry.groups if isinstance(entry, EncodedItem) else {}
    return {name: numbers for name, numbers in groups.items() if len(numbers)}


def needs_encoding(entry: Any) -> bool:
    """Return whether an entry of a question is a dict item without features, which encoders may give it."""
    return isinstance(entry, Mapping) and not isinstance(entry, EncodedItem) and not entry.get("features")


def to_encode(entries: Any) -> list[Mapping]:
    """Return the dict items among the entries of a question that are to be encoded."""
    return [entry for entry in entries if needs_encoding(entry)] if isinstance(entries, (list, tuple)) else []


def encode_entries(questions: Sequence[Any], encode: Callable[[list[Mapping]], Iterable[Mapping]]) -> list[Any]:
    """Return questions whose dict items without features are encoded; `encode` gets them all at once, in order."""
    lists = [(field(question, "partial"), field(question, "candidates")) for question in questions]
    new = [entry for pair in lists for entries in pair for entry in to_encode(entries)]
    if not new:
        return list(questions)
    encoded = iter(encode(new))
    prepared = []
    for question, pair in zip(questions, lists, strict=True):
        entries = [
            [next(encoded) if needs_encoding(entry) else entry for entry in each] if any(to_encode(each)) else each
            for each in pair
        ]
        own = {"question_id": field(question, "question_id"), "partial": entries[0], "candidates": entries[1]}
        prepared.append({**question, **own} if isinstance(question, Mapping) else own)
    return prepared


def field(question: Any, name: str) -> Any:
    """Return a field of a question, which is a mapping or an object; `None` if it has none."""
    return question.get(name) if isinstance(question, Mapping) else getattr(question, name, None)


def id_of(entry: Any) -> str | None:
    """Return the id of an item of a question: the entry itself, or that of a dict item, which may have none."""
    return entry.get("item_id") if isinstance(entry, Mapping) else entry


def check_keys(question: Any) -> None:
    """Refuse a mapping with keys that would be ignored."""
    if isinstance(question, Mapping) and (unknown := [key for key in question if key not in QUESTION_KEYS]):
        raise ValueError(
            f"The question has the keys {shorten(unknown)}, which would be ignored: use {', '.join(QUESTION_KEYS)}; "
            "top_k, group_size and batch_size are parameters, given beside it to the pipeline."
        )


def read_question(question: Any, known: Collection[str]) -> tuple[Sequence, Sequence | None]:
    """Return partial bundle and candidates of a question, once each entry is known to be an item.

    Returns:
        Both lists; `None` for candidates that are left out, which stands for the whole catalog.

    Raises:
        ValueError: If an entry is no item, its id is not in `known`, or one is there twice (as far as ids tell).
    """
    check_keys(question)
    partial = _entries(question, "partial")
    candidates = None if field(question, "candidates") is None else _entries(question, "candidates")
    in_partial: set[str] = set()
    for name, entries in (("partial", partial), ("candidates", candidates or ())):
        seen: set[str] = set()
        for entry in entries:
            item_id = _check_item(entry, known)
            problem = f"more than once in {name} of the question: keep one" if item_id in seen else None
            if item_id in in_partial:
                problem = "in the partial bundle already: remove it from there or from the candidates"
            if problem is not None:
                raise ValueError(f"Item {shorten(item_id)} is {problem}.")
            seen |= set() if item_id is None else {item_id}
        in_partial = seen
    return partial, candidates


def read_features(entry: Mapping, modalities: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Return the features of a dict item as vectors `[width]` (float32), given the width of each modality.

    Raises:
        ValueError: If the model has no such modality, or a vector is not of finite numbers or not of its width.
    """
    features = {}
    for name, value in (entry.get("features") or {}).items():
        if name not in modalities:
            raise ValueError(
                f"Item {name_of(entry)} has features of {shorten(name)}, which this model cannot read: it has "
                f"{sorted(modalities)}; drop them."
            )
        which, width = f"The {name!r} features of item {name_of(entry)}", modalities[name]
        try:
            vector = torch.as_tensor(value, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ValueError(
                f"{which} are {shorten(value)}, which cannot be read: give a vector of {width} numbers, or leave the "
                "modality out."
            ) from None
        if vector.shape != (width,):
            raise ValueError(
                f"{which} have shape {list(vector.shape)}, expected [{width}]: encode the item by the encoder this "
                "model was trained with."
            )
        if not vector.norm().isfinite():
            problem = "too large" if vector.isfinite().all() else "not finite"
            raise ValueError(
                f"{which} are {problem} ({shorten(vector.tolist())}), so scores would mean nothing: repair them, or "
                "leave the modality out."
            )
        features[name] = vector
    return features


def check_scores(question: Any, scores: Sequence[float]) -> None:
    """Refuse scores `[num_candidates]` that are not finite, since they rank nothing."""
    if bad := [score for score in scores if not math.isfinite(score)]:
        raise ValueError(
            f"{len(bad)} of the {len(scores)} options of {describe(question)} have the score {bad[0]}, so they cannot "
            "be ranked: repair the features of these items if they are too large, or take a model whose weights are "
            "finite."
        )


def describe(question: Any) -> str:
    """Name a question in a message, in one line of moderate length."""
    partial, candidates = (_names(field(question, name) or ()) for name in ("partial", "candidates"))
    question_id = field(question, "question_id")
    which = "the question" if question_id is None else f"the question {shorten(question_id)}"
    return f"{which} with partial {partial} and candidates {candidates}"


def name_of(entry: Any) -> str:
    """Name an item in a message."""
    if not isinstance(entry, Mapping):
        return shorten(entry)
    names = (entry.get(key) for key in ("item_id", "title"))
    return shorten(next((name for name in names if isinstance(name, str) and name), dict(entry)))


def shorten(value: Any) -> str:
    """Return the representation of a value, cut to what a line of a message can hold."""
    if isinstance(value, str):
        return repr(_cut(value))
    return _cut(" ".join(repr(value).split()))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 3] + "..."


def _names(entries: Sequence) -> str:
    names = [name_of(entry) for entry in entries[:3]]
    return f"[{', '.join([*names, '...'] if len(entries) > 3 else names)}]"


def _entries(question: Any, name: str) -> Sequence:
    value = field(question, name)
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence) or not value:
        raise ValueError(
            f"{name} of the question is {shorten(value)}, so there is nothing to complete: give a list of at least "
            'one item, for example {"partial": ["i1"], "candidates": ["i2", "i3"]}.'
        )
    return value


def _check_item(entry: Any, known: Collection[str]) -> str | None:
    """Return the id of an item, if it has one, once nothing of the item would be ignored or misread."""
    if isinstance(entry, str):
        if entry not in known:
            raise ValueError(unknown_item(entry, len(known)))
        return entry
    if not isinstance(entry, Mapping):
        raise ValueError(f"{shorten(entry)} is no item: give its id as text, or {_AS_DICT}.")
    if unknown := [key for key in entry if key not in _ITEM_KEYS]:
        raise ValueError(
            f"Item {name_of(entry)} has the keys {shorten(unknown)}, which would be ignored: rename them to one of "
            f"{', '.join(_ITEM_KEYS)}, or drop them."
        )
    for key, kind, example in _ITEM_FIELDS:
        text = entry.get(key)
        if text is not None and not isinstance(text, kind):
            raise ValueError(
                f"{key} of item {name_of(entry)} is {shorten(text)}, which cannot be read: give it as {example}, or "
                "leave it out."
            )
        if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(
                f"Item {name_of(entry)} has half a character in {shorten(text)}, which no tokenizer reads: cut it "
                "elsewhere, not inside an emoji."
            )
    item_id = entry.get("item_id")
    if not entry.get("title") and not entry.get("features") and not isinstance(entry, EncodedItem):
        fix = "give a title or features, or the plain id of an item of the catalog"
        if item_id in known:
            fix = f"give the plain id {shorten(item_id)} for the item of the catalog, or add title or features"
        raise ValueError(
            f"Item {shorten(dict(entry))} has neither title nor features, so nothing would be known about it: {fix}."
        )
    return item_id


def unknown_item(item_id: Any, num_items: int) -> str:
    """Return the message about an id that no catalog row has."""
    return (
        f"Item {shorten(item_id)} is not among the {num_items} items of this catalog, so nothing is known about it: "
        f"check the id, or give {_AS_DICT}."
    )
