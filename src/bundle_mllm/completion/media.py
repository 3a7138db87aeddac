"""The pictures and sounds of a dataset folder, small enough to stand in a page.

Knows nothing about models, or how a page looks.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bundle_mllm.data.tables import iter_records, table_at
from bundle_mllm.encoders.media import UnreadableFileError, file_below, is_web_address, read_picture

THUMBNAIL = 240
"""Pixels of the longer side of a picture in a page."""
SOUND_BYTES = 2_000_000
"""Size of the largest sound in a page."""
SOUND_TYPES = {
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",
    ".flac": "audio/flac",
}
"""The sounds that browsers play, by the end of their names."""


class ItemMedia:
    """What an items table says about items beyond ids and titles: category, picture and sound.

    Args:
        folder: The folder that paths in the table begin in.
        records: Rows of the table; `item_id`, and `category`, `image`, `audio` and `image_url` where there are any.

    Attributes:
        missing: The files that were asked for so far and are not there or cannot be read.
    """

    def __init__(self, folder: str | os.PathLike, records: Iterable[Mapping[str, Any]]):
        self.folder, self.missing = Path(folder), set[str]()
        names = ("category", "image", "audio", "image_url")
        self._records = {str(record["item_id"]): {name: record.get(name) for name in names} for record in records}

    @classmethod
    def open(cls, items: str | os.PathLike) -> ItemMedia:
        """Read the items table of a dataset folder, or a table whose paths begin in its folder.

        Raises:
            BundleMLLMError: If there is no such table.
        """
        table = table_at(
            items, "items", "one row per item with `item_id`, and `image` and `audio` where there are any"
        )
        return cls(table.parent, (record for record in iter_records(table) if record.get("item_id") is not None))

    def category(self, item_id: str | None) -> str | None:
        """Return the category of an item, if it has one."""
        category = self._records.get(item_id or "", {}).get("category")
        return None if category in (None, "") else str(category)

    def is_elsewhere(self, item_id: str | None) -> bool:
        """Return whether the picture of an item is a web address, which is not fetched."""
        record = self._records.get(item_id or "", {})
        return any(is_web_address(record.get(name)) for name in ("image", "image_url"))

    def picture(self, item_id: str | None) -> bytes | None:
        """Return the picture of an item, small, as JPEG; `None` if it has none that can be read."""
        path = self.file(item_id, "image")
        picture = None if path is None else thumbnail(path)
        if path is not None and picture is None:
            self.missing.add(path.name)
        return picture

    def sound(self, item_id: str | None) -> tuple[bytes, str] | None:
        """Return the sound of an item and its media type; `None` if it has none that browsers play, or a large one."""
        path = self.file(item_id, "audio")
        kind = None if path is None else SOUND_TYPES.get(path.suffix.lower())
        if path is None or kind is None or path.stat().st_size > SOUND_BYTES:
            return None
        return path.read_bytes(), kind

    def file(self, item_id: str | None, column: str) -> Path | None:
        """Return the file of an item that a column names (`image` or `audio`), if it is there and in the folder."""
        name = self._records.get(item_id or "", {}).get(column)
        try:
            return file_below(self.folder, name) if isinstance(name, str) and name else None
        except UnreadableFileError:
            self.missing.add(str(name))
            return None


def thumbnail(path: Path, size: int = THUMBNAIL) -> bytes | None:
    """Return a picture, small, as JPEG; `None` if it cannot be read."""
    try:
        picture, _ = read_picture(path, draft=size)
    except UnreadableFileError:
        return None
    picture.thumbnail((size, size))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()
