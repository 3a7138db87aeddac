"""Put the pictures and sounds of items into a dataset folder, byte for byte.

Knows nothing about their content.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from bundle_mllm.importers.summary import ImportNotes

FOLDERS = {"image": "images", "audio": "audio"}
_PLURAL = {"image": "pictures", "audio": "sounds"}
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
        self._listed: dict[Path, dict[str, list[str]]] = {}
        self._stored = dict.fromkeys(FOLDERS, 0)
        self._left_out: dict[str, list[str]] = {kind: [] for kind in FOLDERS}

    def sound_alarm(self) -> None:
        """Say it first where most pictures or sounds were left out."""
        for kind, reasons in self._left_out.items():
            total = len(reasons) + self._stored[kind]
            if len(reasons) * 2 > total:
                reason = max(set(reasons), key=reasons.count)
                self._notes.alarm(
                    f"{len(reasons)} of {total} {_PLURAL[kind]} were left out (most: the file {reason}): check the "
                    f"column, and --media-dir, the folder that its paths are relative to."
                )

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
        stored = None
        if data is not None:
            stored = self._write(kind, row, data, path, item)
        elif isinstance(path, str) and path.strip():
            stored = self._copy(kind, row, path, item)
        elif path is not None and path != "":
            self._leave_out(kind, "is no path", f"{item}: {type(path).__name__}")
        self._stored[kind] += stored is not None
        return stored

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
            source, as_written = self._find(path)
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
        if not as_written:
            what = (
                f"{_PLURAL[kind]} whose path is written otherwise than their file (case, \\, %20), found nevertheless"
            )
            self._notes.add(what, f"{shown} is {source.name}", harmless=True)
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

    def _find(self, path: str) -> tuple[Path, bool]:
        """Return the file of a path, and whether it is written as the path is: else Windows or a web shop wrote it."""
        base = self._base or Path()
        source = Path(base, path).resolve()
        if source.is_file():
            return source, True
        slashes = path.strip().replace("\\", "/")
        for other in dict.fromkeys((path.strip(), slashes, unquote(slashes))):
            source_of_other = self._in_any_case(base, other)
            if source_of_other is not None and source_of_other.is_file():
                return source_of_other, False
        return source, True

    def _in_any_case(self, base: Path, path: str) -> Path | None:
        found = Path(base, PurePosixPath(path).anchor) if PurePosixPath(path).is_absolute() else base
        for part in PurePosixPath(path).parts:
            if part in ("/", "//"):
                continue
            candidates = [part] if (found / part).exists() else self._names(found).get(part.casefold(), [])
            if len(candidates) != 1:
                return None
            found = found / candidates[0]
        return found.resolve()

    def _names(self, folder: Path) -> dict[str, list[str]]:
        """Return the names in a folder by what they are in small letters."""
        if folder not in self._listed:
            names: dict[str, list[str]] = {}
            for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
                names.setdefault(name.casefold(), []).append(name)
            self._listed[folder] = names
        return self._listed[folder]

    def _claim(self, name: str, source: Path | int) -> str:
        """Return a name that no other source has: a path of a file, or the row of bytes."""
        path, number = PurePosixPath(name), 1
        while self._source_of.setdefault(name, source) != source:
            number += 1
            name = str(path.with_stem(f"{path.stem}-{number}"))
        return name

    def _leave_out(self, kind: str, reason: str, example: str) -> None:
        self._left_out[kind].append(reason)
        self._notes.add(f"{_PLURAL[kind]} whose file {reason}, left out", example)


def _suffix(data: bytes, path: str | None) -> str:
    """Return the suffix that fits the first bytes of a file, else that of its path, else `.bin`."""
    if data[:4] == b"RIFF" and data[8:12] in _RIFF:
        return _RIFF[data[8:12]]
    for suffix, magic in _MAGIC.items():
        if data.startswith(magic):
            return suffix
    suffix = PurePosixPath(path or "").suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) else ".bin"
