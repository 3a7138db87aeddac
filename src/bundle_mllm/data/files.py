"""Write a file or a folder in one step, so that a reader never sees half of it; check, read and hash files.

Knows nothing about what is written.

What is written first stands in a hidden folder of its own beside its place, so that processes that write to one place
at once do not touch each other's files. A process locks that folder while it lives; the next one that writes there
deletes those that nobody locks.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from bundle_mllm.bounds import check
from bundle_mllm.data.json_text import parse_json
from bundle_mllm.errors import BundleMLLMError

_ABANDONED = 24 * 3600  # seconds, after which a temporary folder counts as left, where folders cannot be locked
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_LOCKS: set[int] = set()
"""The descriptors of this process that keep a file or folder locked."""


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty temporary file that becomes `path` when the block succeeds and is deleted when it fails.

    Its mode is what the umask gives, also where the block puts a file of another mode in its place, as `safetensors`
    does. Of several processes that write one path, the last one wins. The folder of `path` is created when missing.
    """
    path = Path(path)
    if path.is_dir():
        raise BundleMLLMError(f"{path} is a folder, so no file can be written there: give the name of a file.")
    with _temporary(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block succeeds and is deleted when it fails.

    Its files are readable as the umask has it. Of several processes that create one folder, the first that is done
    wins.

    Raises:
        BundleMLLMError: If `path` is neither new nor an empty folder, then or by the end, or is a mount point.
    """
    final = Path(path).resolve()
    delete_abandoned(final.parent)
    if final.is_file() or (final.is_dir() and any(final.iterdir())):
        problem = "is a file" if final.is_file() else "is not empty, so files in it could be overwritten"
        raise BundleMLLMError(f"{path} {problem}: give the name of a new folder.")
    if final.is_mount():
        raise BundleMLLMError(f"{path} is a mount point, which cannot be replaced in one step: give a folder in it.")
    with _temporary(final) as temporary:
        temporary.mkdir()
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


@contextmanager
def replaced_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty temporary folder that takes the place of the folder `path` in one step when the block succeeds.

    A reader of `path` finds the old folder or the new one, after a kill, too. Where the system cannot exchange two
    folders (other than Linux, some file systems), `path` is missing for a moment between two renames.

    Raises:
        BundleMLLMError: If another process has replaced the folder meanwhile; its folder stays.
    """
    final = require_folder(path).resolve()
    before = final.stat().st_ino
    with _temporary(final) as temporary:
        temporary.mkdir()
        yield temporary
        _make_readable(temporary)
        exchange(final, temporary)
        if temporary.stat().st_ino != before:
            exchange(final, temporary)
            raise BundleMLLMError(f"{final} was changed by another process meanwhile, and stays so: repeat this.")


def written_folder(path: str | os.PathLike) -> AbstractContextManager[Path]:
    """Return [`replaced_folder`] for a folder that exists, and [`new_folder`] for another one."""
    return replaced_folder(path) if Path(path).is_dir() else new_folder(path)


@contextmanager
def locked_folder(path: str | os.PathLike) -> Iterator[None]:
    """Keep other processes that lock a folder out of it; it is made when missing. A kill ends the lock, too.

    Nothing is locked where the system or the file system has no locks of folders (Windows, NFS).

    Raises:
        BundleMLLMError: If another process has locked it, or it is no folder.
    """
    _make_folder(Path(path))
    try:
        descriptor = _lock(Path(path))
    except BlockingIOError as error:
        raise BundleMLLMError(
            f"{path} is being written by another process: wait for its end, or name another folder."
        ) from error
    try:
        delete_abandoned(Path(path))
        yield
    finally:
        _unlock(descriptor)


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
    between = _hidden(one).with_suffix(".old")
    os.replace(one, between)
    os.replace(other, one)
    os.replace(between, other)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a place of the name of `path`, in a hidden folder beside it that is locked, and deleted at the end."""
    _make_folder(path.parent)
    delete_abandoned(path.parent)
    hidden, descriptor = _hidden(path), None
    try:
        while True:
            hidden.mkdir()
            with suppress(FileNotFoundError, BlockingIOError):  # another process deletes it: it was not locked yet
                descriptor = _lock(hidden)
                if hidden.exists():
                    break
                _unlock(descriptor)
            hidden = _hidden(path)
        yield hidden / path.name
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        _unlock(descriptor)


def _make_folder(path: Path) -> None:
    """Make a folder, and those above it, where they are missing; refuse a file in their place."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BundleMLLMError(
            f"{path} is not a folder, so nothing can be written there: move that file away, or give another place."
        ) from error


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


@cache
def delete_abandoned(folder: Path) -> None:
    """Delete what killed processes left in a folder: a process does so once, when it first writes there, or may."""
    for left in folder.glob(".*.tmp"):
        if not _TEMPORARY.fullmatch(left.name):
            continue
        with suppress(OSError):  # another process has locked it, or deletes it, too
            descriptor = _lock(left)
            if descriptor is None and left.stat().st_mtime > time.time() - _ABANDONED:
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()
            _unlock(descriptor)


def _lock(path: Path) -> int | None:
    """Lock a file or folder until the descriptor is closed, by a kill, too; `None` where that cannot be done.

    The lock is this process's own: what it forks, and may outlive it, does not hold it.

    Raises:
        BlockingIOError: If it is locked already.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    _LOCKS.add(descriptor)
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor in _LOCKS:  # not in a process that was forked meanwhile
        _LOCKS.remove(descriptor)
        os.close(descriptor)


def _leave_locks() -> None:
    for descriptor in _LOCKS:
        os.close(descriptor)
    _LOCKS.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_leave_locks)


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


FileStates = Mapping[Path, tuple[int, int, int] | None]
"""What tells whether files are as they were; `None` for one that is not there."""


def file_states(paths: Iterable[Path]) -> FileStates:
    """Note the state of files before they are read, for [`check_unchanged`]."""
    return {path: _state(path) for path in paths}


def check_unchanged(before: FileStates) -> None:
    """Refuse to go on with what was read from files if one of them is not as it was.

    Raises:
        BundleMLLMError: If one was changed, removed or added.
    """
    for path, state in before.items():
        if (now := _state(path)) != state:
            what = "removed" if now is None else "added" if state is None else "changed"
            raise BundleMLLMError(
                f"{path} was {what} by another process meanwhile, so what was measured may be of neither state: see "
                "that it is as it should be, and give the same command again."
            )


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        entry = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return entry.st_ino, entry.st_size, entry.st_mtime_ns


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
