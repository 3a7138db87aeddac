"""Put the pictures and sounds of items into a dataset folder, byte for byte.

Knows nothing about their content.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from bundle_mllm.importers.summary import ImportNotes

FOLDERS = {"image": "images", "audio": "audio"}
_MAGIC = {
    ".jpg": (b"\xff\xd8\xff",),
    ".png": (b"\x89PNG\r\n\x1a\n",),
    ".gif": (b"GIF8",),
    ".bmp": (b"BM",),
    ".tif": (b"II*\0", b"MM\0*"),
    ".flac": (b"fLaC",),
    ".ogg": (b"OggS",),
    ".mp3": (b"ID3", b"\xff\xfb"),
}
_RIFF = {b"WEBP": ".webp", b"WAVE": ".wav"}
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")


class MediaFolder:
    """Stores the media of items, byte for byte, in `images/` and `audio/` of a dataset folder.

    What cannot be stored is reported, and its item is left without.

    Args:
        folder: The dataset folder.
        base: The folder that relative paths start at; `None` if there is none.
        notes: Receives what could not be stored.
        caches: Further folders that files may be taken from. Nothing outside of them and `base` is read, links
            followed: a table from elsewhere must not choose among the files of this machine.
    """

    def __init__(self, folder: Path, base: Path | None, notes: ImportNotes, caches: Sequence[Path] = ()):
        self._folder = folder
        self._base = None if base is None else base.resolve()
        self._roots = [root.resolve() for root in ([] if base is None else [base]) + list(caches)]
        self._notes = notes
        self._source_of: dict[str, Path | int] = {}

    def __call__(self, kind: str, row: int, value: Any, item: str) -> str | None:
        """Store the picture or sound of one item, and return its path in the dataset folder, or `None`.

        Args:
            kind: `"image"` or `"audio"`.
            row: The item's row, which names a file that is given by its bytes.
            value: A path, or bytes, or, as in `Image` and `Audio` columns of `datasets`, a mapping of both.
            item: What to call the item in the notes.
        """
        given = {"bytes" if isinstance(value, bytes) else "path": value}
        both: dict[str, Any] = value if isinstance(value, dict) else given
        data, path = both.get("bytes"), both.get("path")
        if data is not None:
            return self._write(kind, row, data, path, item)
        if isinstance(path, str) and path.strip():
            return self._copy(kind, row, path, item)
        if path is not None and path != "":
            self._leave_out(kind, "is no path", f"{item}: {type(path).__name__}")
        return None

    def _write(self, kind: str, row: int, data: bytes, path: str | None, item: str) -> str | None:
        if not data:
            return self._leave_out(kind, "has no bytes", item)
        name = self._claim(f"{FOLDERS[kind]}/{row:07d}{_suffix(data, path)}", row)
        target = self._folder / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
        return name

    def _copy(self, kind: str, row: int, path: str, item: str) -> str | None:
        shown = f"{item}: {path}"
        if "://" in path:
            return self._leave_out(kind, "is a web address, which is not fetched", shown)
        if self._base is None and not Path(path).is_absolute():
            return self._leave_out(kind, "is not part of the data", shown)
        try:
            source = Path(self._base or "", path).resolve()
            is_file = source.is_file()
        except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a ring of links
            return self._leave_out(kind, "is no path of a file", shown)
        root = next((root for root in self._roots if source.is_relative_to(root)), None)
        if root is None:
            return self._leave_out(kind, "lies outside of the source folder", shown)
        if not is_file:
            return self._leave_out(kind, "does not exist", shown)
        if not source.stat().st_size:
            return self._leave_out(kind, "has no bytes", shown)
        if root == self._base:
            relative = PurePosixPath(source.relative_to(root).as_posix())
            inside = relative.parts[0] == FOLDERS[kind] and len(relative.parts) > 1
            name = str(relative if inside else PurePosixPath(FOLDERS[kind]) / relative)
        else:
            name = f"{FOLDERS[kind]}/{row:07d}{_suffix(b'', path)}"
        name = self._claim(name, source)
        target = self._folder / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        return name

    def _claim(self, name: str, source: Path | int) -> str:
        """Return a name that no other source has: a path of a file, or the row of bytes."""
        path, number = PurePosixPath(name), 1
        while self._source_of.setdefault(name, source) != source:
            number += 1
            name = str(path.with_stem(f"{path.stem}-{number}"))
        return name

    def _leave_out(self, kind: str, reason: str, example: str) -> None:
        what = {"image": "pictures", "audio": "sounds"}[kind]
        self._notes.add(f"{what} whose file {reason}, left out", example)


def _suffix(data: bytes, path: str | None) -> str:
    """Return the suffix that fits the first bytes of a file, else that of its path, else `.bin`."""
    if data[:4] == b"RIFF" and data[8:12] in _RIFF:
        return _RIFF[data[8:12]]
    for suffix, magic in _MAGIC.items():
        if data.startswith(magic):
            return suffix
    suffix = PurePosixPath(path or "").suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) else ".bin"
