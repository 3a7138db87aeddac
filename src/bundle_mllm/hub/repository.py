"""The local copy of a repository: a folder that is written whole or not at all and holds what will be uploaded.

Knows nothing about models, data sets or the Hub.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bundle_mllm.errors import BundleMLLMError

MARKER = ".bundle-mllm-repository"
"""Names a folder that was written here and may be written again; it is never uploaded."""

_PATH_FIELDS = {"data", "output_dir", "path", "model"}
_ABSOLUTE = re.compile(r"(?:[\w+-]+:)?((?:~[/\\]|/(?!/)|[A-Za-z]:[/\\])[^\n]*)")  # also local-dir:/path


def repository_folder(source: Path) -> Path:
    """Return where the repository of a folder is written by default: beside it, with "-hub" at the end of its name."""
    source = source.resolve()
    return source.with_name(f"{source.name}-hub")


def write_repository(folder: Path, source: Path, write: Callable[[Path], None]) -> None:
    """Write a repository folder, in place of the one that an earlier call wrote.

    Args:
        folder: Where it shall be.
        source: What it is made from, so that this is never overwritten.
        write: Fills an empty folder. When it fails, `folder` stays as it was.

    Raises:
        BundleMLLMError: `folder` holds something else, or is or contains `source`.
    """
    if source.resolve().is_relative_to(folder.resolve()):
        raise BundleMLLMError(
            f"The repository would be written over {source}, which it is made from: give another --output-dir."
        )
    if folder.exists() and not (folder / MARKER).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleMLLMError(
            f"{folder} exists and is no repository folder, so its files would be lost: give another --output-dir."
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        (temporary / MARKER).write_text("Written by bundle-mllm from another folder; may be overwritten.\n")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def repository_files(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file to upload, by its path in the repository."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def place(source: Path, target: Path) -> None:
    """Put a file at another place without using disk space (a hard link), or copy it where that is not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # a link to a symbolic link would be uploaded as that
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_json(path: Path, value: Any) -> None:
    """Write a record for others to read: the paths of this machine reduced to names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(without_local_paths(value), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BundleMLLMError: The file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleMLLMError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    except ValueError as error:
        raise BundleMLLMError(f"{path} is not JSON ({error}): write or copy it again.") from error
    if not isinstance(value, dict):
        raise BundleMLLMError(f"{path} holds a {type(value).__name__} where an object was expected: check the path.")
    return value


def without_local_paths(value: Any, field: str = "") -> Any:
    """Return JSON values with each path reduced to its last part: where files lie here is nobody's business."""
    if isinstance(value, dict):
        return {key: without_local_paths(entry, key) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_local_paths(entry, field) for entry in value]
    if isinstance(value, str) and (field in _PATH_FIELDS or _ABSOLUTE.fullmatch(value)):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def local_paths(value: Any) -> list[str]:
    """Return the strings among JSON values that are paths of this machine: absolute, and their first folder exists."""
    if isinstance(value, dict):
        return [path for entry in value.values() for path in local_paths(entry)]
    if isinstance(value, list):
        return [path for entry in value for path in local_paths(entry)]
    if isinstance(value, str) and (match := _ABSOLUTE.fullmatch(value)):
        path = Path(match[1]).expanduser()
        if len(path.parts) > 2 and Path(*path.parts[:2]).exists():
            return [value]
    return []
