"""Write a file or a folder in one step, so that a reader never sees half of it; and fingerprint a file.

It must not know what is written.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundle_mllm.errors import BundleMLLMError


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block succeeds and is deleted when it fails.

    Args:
        path: The file to create or replace; its folder is created when missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block succeeds and is deleted when it fails.

    What a killed process left of an earlier attempt is deleted, too.

    Args:
        path: The folder to create; it must not exist, or be empty. Its parents are created when missing.

    Raises:
        BundleMLLMError: Something is at `path` already, or `path` cannot be replaced in one step.
    """
    final = Path(path).resolve()
    if final.is_file() or (final.is_dir() and any(final.iterdir())):
        problem = "is a file" if final.is_file() else "is not empty, so files in it could be overwritten"
        raise BundleMLLMError(f"{path} {problem}: give the name of a new folder.")
    if final.is_mount():
        raise BundleMLLMError(f"{path} is a mount point, which cannot be replaced in one step: give a folder in it.")
    temporary = final.with_name(f".{final.name}.bundle-mllm.tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
