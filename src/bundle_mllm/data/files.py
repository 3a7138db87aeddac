"""Write a file or a folder in one step, so that a reader never sees half of it; check, read and hash files.

Knows nothing about what is written.

Temporary names are unique, so that processes that write to one place at once do not touch each other's files.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from bundle_mllm.bounds import check
from bundle_mllm.data.json_text import parse_json
from bundle_mllm.errors import BundleMLLMError

_ABANDONED = 24 * 3600  # seconds, after which a temporary folder counts as left by a killed process


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty temporary file that becomes `path` when the block succeeds and is deleted when it fails.

    Its mode is what the umask gives, also where the block puts a file of another mode in its place, as `safetensors`
    does. Of several processes that write one path, the last one wins. The folder of `path` is created when missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block succeeds and is deleted when it fails.

    Its files are readable as the umask has it. Of several processes that create one folder, the first that is done
    wins. What killed processes left is deleted after a day.

    Raises:
        BundleMLLMError: If `path` is neither new nor an empty folder, then or by the end, or is a mount point.
    """
    final = Path(path).resolve()
    if final.is_file() or (final.is_dir() and any(final.iterdir())):
        problem = "is a file" if final.is_file() else "is not empty, so files in it could be overwritten"
        raise BundleMLLMError(f"{path} {problem}: give the name of a new folder.")
    if final.is_mount():
        raise BundleMLLMError(f"{path} is a mount point, which cannot be replaced in one step: give a folder in it.")
    _delete_abandoned(final)
    temporary = _temporary(final)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _make_readable(temporary)
        try:
            os.replace(temporary, final)
        except OSError as error:
            if final.is_dir() and any(final.iterdir()):
                raise BundleMLLMError(
                    f"{final} was written by another process meanwhile, whose files stay: name a new folder."
                ) from error
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def replaced_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty temporary folder that takes the place of the folder `path` in one step when the block succeeds.

    A reader of `path` finds the old folder or the new one, after a kill, too. Where the system cannot exchange two
    folders (other than Linux, some file systems), `path` is missing for a moment between two renames.

    Raises:
        BundleMLLMError: If another process has replaced the folder meanwhile; its folder stays.
    """
    final = require_folder(path).resolve()
    _delete_abandoned(final)
    before, temporary = final.stat().st_ino, _temporary(final)
    temporary.mkdir()
    try:
        yield temporary
        _make_readable(temporary)
        exchange(final, temporary)
        if temporary.stat().st_ino != before:
            exchange(final, temporary)
            raise BundleMLLMError(f"{final} was changed by another process meanwhile, and stays so: repeat this.")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def exchange(one: Path, other: Path) -> None:
    """Exchange two files or folders of one file system: in one step on Linux, elsewhere by renaming.

    A kill between the renames leaves `one` beside its place, under a hidden name that ends in `.old`.
    """
    if sys.platform == "linux":
        here, flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        with suppress(AttributeError):  # a C library without this function
            renameat2 = ctypes.CDLL(None).renameat2
            if not renameat2(here, os.fsencode(one), here, os.fsencode(other), flag):
                return
    between = _temporary(one).with_suffix(".old")
    os.replace(one, between)
    os.replace(other, one)
    os.replace(between, other)


def _delete_abandoned(final: Path) -> None:
    """Delete the temporary folders of a folder that killed processes left a day ago or more."""
    for other in final.parent.glob(f".{escape(final.name)}.*.tmp"):
        if other.is_dir() and other.stat().st_mtime < time.time() - _ABANDONED:
            shutil.rmtree(other, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def _make_readable(folder: Path) -> None:
    """Add the permissions that the umask gives to files that lack them; hard links stay as they are."""
    probe = folder / f".{uuid.uuid4().hex}"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        entry = path.lstat()
        if stat.S_ISREG(entry.st_mode) and entry.st_nlink == 1 and entry.st_mode | mode != entry.st_mode:
            path.chmod(entry.st_mode | mode)


def require_file(path: str | os.PathLike, fix: str = "check the path") -> Path:
    """Return the path of a file; refuse one that does not exist."""
    if not Path(path).is_file():
        raise BundleMLLMError(f"There is no file {path}: {fix}.")
    return Path(path)


def require_folder(path: str | os.PathLike, fix: str = "check the path") -> Path:
    """Return the path of a folder; refuse one that does not exist."""
    if not Path(path).is_dir():
        raise BundleMLLMError(f"There is no folder {path}: {fix}.")
    return Path(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; refuse a file that is missing, damaged or holds something else."""
    try:
        check("json_bytes", path.stat().st_size, str(path), "check the path")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BundleMLLMError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    except UnicodeDecodeError as error:
        raise BundleMLLMError(f"{path} is not UTF-8 text ({error}): write or copy it again.") from error
    value = parse_json(text, str(path))
    if not isinstance(value, dict):
        raise BundleMLLMError(f"{path} holds a {type(value).__name__} where an object was expected: check the path.")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step; a number that is not finite as null."""
    with atomic_path(path) as temporary:
        text = json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def without_nan(value: Any) -> Any:
    """Return JSON values with null for every number that is not finite."""
    if isinstance(value, Mapping):
        return {name: without_nan(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
