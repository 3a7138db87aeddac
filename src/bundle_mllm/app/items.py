"""The items of a model as the app shows them: search by words and category, their pictures and sounds.

Knows nothing about models, or how a page looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from bundle_mllm.completion.columns import ItemColumns
from bundle_mllm.completion.media import SOUND_TYPES, ItemMedia, thumbnail
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.pages import data_uri


class ShownItems:
    """The items of a model, by their rows.

    Args:
        item_ids: Their ids.
        titles: Their titles.
        model: The model's name.
        data: The dataset folder: columns, pictures and sounds; without it, columns are those of the model folder.

    Raises:
        BundleMLLMError: See `ItemColumns.of_model`.
    """

    def __init__(self, item_ids: Sequence[str], titles: Sequence[str], model: str, data: Path | None):
        self.item_ids, self.titles = item_ids, titles
        self.row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        self.columns = ItemColumns.of_model(model, item_ids, titles, data)
        self._media = None if data is None else ItemMedia.open(data)
        named = [self.columns.record(row).get("category") for row in range(len(item_ids))]
        self._category = [None if category is None else str(category) for category in named]
        self.categories = sorted({category for category in self._category if category is not None})
        self._text = [f"{title} {item_id}".casefold() for title, item_id in zip(titles, item_ids, strict=True)]
        self.picture = lru_cache(maxsize=512)(self._picture)

    def __len__(self) -> int:
        return len(self.item_ids)

    def category(self, row: int) -> str | None:
        """Return the category of an item, if it has one."""
        return self._category[row]

    def search(self, query: str, category: str | None) -> Iterator[int]:
        """Yield the rows of the items of a category whose title or id holds each word, or a part of it."""
        wanted = query.casefold().split()
        for row, text in enumerate(self._text):
            if all(word in text for word in wanted) and category in (None, self.category(row)):
                yield row

    def has_picture(self, row: int) -> bool:
        """Return whether an item has a picture in the dataset folder that can be read."""
        return self.picture(row) is not None

    @property
    def num_elsewhere(self) -> int:
        """How many items have a picture that is a web address, which is not fetched."""
        return 0 if self._media is None else sum(map(self._media.is_elsewhere, self.item_ids))

    def sound(self, row: int) -> tuple[Path, str] | None:
        """Return the file of an item's sound in the dataset folder and its type, if browsers play it."""
        path = self._file(row, "audio")
        kind = None if path is None else SOUND_TYPES.get(path.suffix.lower())
        return None if path is None or kind is None else (path, kind)

    def _picture(self, row: int) -> bytes | None:
        """Return an item's picture, small, as JPEG; `None` if it has none that can be read."""
        return None if self._media is None else self._media.picture(self.item_ids[row])

    def _file(self, row: int, column: str) -> Path | None:
        return None if self._media is None else self._media.file(self.item_ids[row], column)


def uploaded_picture(path: str) -> str:
    """Return an uploaded picture, small, as an address that holds it.

    Raises:
        BundleMLLMError: If it cannot be read.
    """
    picture = thumbnail(Path(path))
    if picture is None:
        raise BundleMLLMError("Your picture cannot be read: choose a photo or drawing, such as a JPEG or PNG.")
    return data_uri(picture, "image/jpeg")
