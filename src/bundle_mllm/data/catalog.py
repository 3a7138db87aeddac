"""Read and hold the items of a data set, in the order of their rows.

Knows nothing about features, tokenizers or models.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

from bundle_mllm.data.records import require_fields, to_id, to_text
from bundle_mllm.data.tables import iter_records, table_at, write_records
from bundle_mllm.errors import BundleMLLMError

MEDIA = ("image", "audio")
"""The columns of an item that name files."""
_TEXT_FIELDS = ("title", "description", "category", *MEDIA)


@dataclass(frozen=True)
class Item:
    """One item of the catalog.

    Attributes:
        item_id: A stable name, unique in the catalog.
        title: What a question shows; an item with an empty title is shown by its item token alone.
        description: A longer text.
        category: A label; hard negatives share it with the answer.
        image: The path of a picture, relative to the data set's folder.
        audio: The path of a sound, relative to the data set's folder.
        extra: All other fields of the record.
    """

    item_id: str
    title: str = ""
    description: str | None = None
    category: str | None = None
    image: str | None = None
    audio: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def text(self) -> str:
        """Title, category and description in one text; empty if there is none of them."""
        parts = (part.strip() for part in (self.title, self.category or "", self.description or ""))
        return ". ".join(part for part in parts if part)


class ItemCatalog(Sequence[Item]):
    """An immutable sequence of items; the position of an item is its row, in features as in the model.

    `catalog[row]` is an [`Item`] and `item_id in catalog` looks an id up. Build one with [`~ItemCatalog.load`] or
    [`~ItemCatalog.from_records`].
    """

    def __init__(self, items: Iterable[Item], source: str = "The catalog"):
        items = tuple(items)
        self._columns = {name: tuple(getattr(item, name) for item in items) for name in ("item_id", *_TEXT_FIELDS)}
        self._extra = tuple(item.extra for item in items)
        self._row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
        for row, item_id in enumerate(self.item_ids) if len(self._row_of) < len(items) else ():
            if (other := self._row_of[item_id]) != row:
                raise BundleMLLMError(
                    f"{source} has the item id {item_id!r} in row {row + 1} and in row {other + 1}, so it names two "
                    "items: remove or rename one."
                )

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]], source: str = "items") -> ItemCatalog:
        """Build a catalog from dictionaries.

        Args:
            records: One mapping per item with `item_id` (text, or an integer that becomes text) and, optionally,
                `title`, `description`, `category`, `image`, `audio` and anything else. A missing title is empty.
            source: What error messages call the records, such as a file name.

        Raises:
            BundleMLLMError: If there is no record, or an id is missing, empty or repeated.
        """
        items = [_to_item(record, source, number) for number, record in enumerate(records, start=1)]
        if not items:
            raise BundleMLLMError(f"{source} holds no item, so no question can be made: add one record per item.")
        return cls(items, source)

    @classmethod
    def load(cls, path_or_folder: str | os.PathLike) -> ItemCatalog:
        """Read a catalog from a table, or from the table `items` of a folder.

        Raises:
            BundleMLLMError: If there is no such table, or for what [`~ItemCatalog.from_records`] refuses.
        """
        path = table_at(path_or_folder, "items", "one row per item with at least `item_id`")
        return cls.from_records(iter_records(path), source=str(path))

    def save(self, path: str | os.PathLike) -> None:
        """Write the catalog as a table whose format the suffix chooses.

        [`~ItemCatalog.load`] reads an equal catalog back, except that CSV turns `extra` values into text.
        """
        write_records(path, self.records())

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield each item as [`~ItemCatalog.from_records`] takes it."""
        return (_to_record(item) for item in self)

    @property
    def item_ids(self) -> tuple[str, ...]:
        """All item ids, in row order."""
        return self._columns["item_id"]

    @property
    def titles(self) -> tuple[str, ...]:
        """All titles, in row order; an unknown title is empty."""
        return self._columns["title"]

    @property
    def categories(self) -> tuple[str | None, ...]:
        """All categories, in row order."""
        return self._columns["category"]

    @cached_property
    def other_columns(self) -> tuple[str, ...]:
        """The names of all other columns, the fields in `extra`."""
        return tuple(dict.fromkeys(name for extra in self._extra for name in extra))

    def cells(self, name: str) -> tuple[Any, ...]:
        """Return the cells of one of the other columns, in row order; `None` where an item has none."""
        return tuple(extra.get(name) for extra in self._extra)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over ids and titles in row order: what features and models were made for."""
        digest = hashlib.sha256()
        for pair in zip(self.item_ids, self.titles, strict=True):
            digest.update(json.dumps(pair).encode() + b"\n")
        return digest.hexdigest()

    def differences(self, item_ids: Sequence[str], titles: Sequence[str]) -> list[str]:
        """Say how these items differ from others, such as those of a model; an empty list if they do not."""
        own = dict(zip(self.item_ids, self.titles, strict=True))
        other = dict(zip(item_ids, titles, strict=True))
        shared = [item_id for item_id in own if item_id in other]
        order = [item_id for item_id in other if item_id in own]
        cases = (
            ("new", [item_id for item_id in own if item_id not in other]),
            ("gone", [item_id for item_id in other if item_id not in own]),
            ("with another title", [item_id for item_id in shared if own[item_id] != other[item_id]]),
            ("at another place", [a for a, b in zip(shared, order, strict=True) if a != b]),
        )
        return [f"{len(ids)} {what} (such as {ids[0]!r})" for what, ids in cases if ids]

    def row(self, item_id: str) -> int:
        """Return the row of one item; errors are those of [`~ItemCatalog.rows`]."""
        return self.rows((item_id,))[0]

    def rows(self, item_ids: Iterable[str], *, where: str = "") -> list[int]:
        """Return the rows of several items.

        Raises:
            BundleMLLMError: If the catalog lacks an item; the message opens with `where` and names up to three.
        """
        item_ids = list(item_ids)
        try:
            return [self._row_of[item_id] for item_id in item_ids]
        except (KeyError, TypeError):
            raise BundleMLLMError(f"{where}: " * bool(where) + self._unknown_message(item_ids)) from None

    def _unknown_message(self, item_ids: list[Any]) -> str:
        unknown = [item_id for item_id in item_ids if item_id not in self]
        named = ", ".join(repr(item_id) for item_id in unknown[:3]) + (", …" if len(unknown) > 3 else "")
        if all(str(item_id) in self for item_id in unknown):
            return f"Item ids are text, so {named} names no item: write {str(unknown[0])!r}."
        like = f", such as {self.item_ids[0]!r}" if self else ""
        return (
            f"The catalog has no item {named} ({len(unknown)} unknown of {len(item_ids)}): "
            f"use the ids of its {len(self)} items{like}, or add the missing ones to the items file."
        )

    def __contains__(self, item_id: object) -> bool:
        return isinstance(item_id, str) and item_id in self._row_of

    def __len__(self) -> int:
        return len(self._row_of)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Item, ...]: ...

    def __getitem__(self, index: int | slice) -> Item | tuple[Item, ...]:
        if isinstance(index, slice):
            return tuple(self[row] for row in range(*index.indices(len(self))))
        return Item(**{name: column[index] for name, column in self._columns.items()}, extra=self._extra[index])

    def __iter__(self) -> Iterator[Item]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ItemCatalog):
            return NotImplemented
        return self._columns == other._columns and self._extra == other._extra

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def __repr__(self) -> str:
        return f"ItemCatalog({len(self)} items)"


def _to_item(record: Mapping[str, Any], source: str, number: int) -> Item:
    where = f"{source} row {number}"
    require_fields(record, ("item_id",), where)
    texts = {name: to_text(record.get(name), name, where) for name in _TEXT_FIELDS}
    extra = {name: value for name, value in record.items() if name != "item_id" and name not in texts}
    return Item(item_id=to_id(record["item_id"], where), **{**texts, "title": texts["title"] or ""}, extra=extra)


def _to_record(item: Item) -> dict[str, Any]:
    texts = {name: text for name in _TEXT_FIELDS if (text := getattr(item, name)) is not None}
    return {"item_id": item.item_id, **texts, **item.extra}
