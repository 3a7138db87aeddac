"""The local copy of a repository: a folder that is written whole or not at all and holds what will be uploaded.

Knows nothing about models, data sets or the Hub.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bundle_mllm.errors import BundleMLLMError

MARKER = ".bundle-mllm-repository"
"""Names a folder that was written here and may be written again; it is never uploaded."""

_TEMPORARY, _OLD = ".bundle-mllm.tmp", ".bundle-mllm.old"


def repository_folder(source: Path) -> Path:
    """Return where the repository of a folder is written by default: beside it, with "-hub" at the end of its name."""
    source = source.resolve()
    return source.with_name(f"{source.name}-hub")


def write_repository(
    folder: Path,
    source: Path,
    write: Callable[[Path], None],
    check: Callable[[Path], None],
    sources: Mapping[str, Path] | None = None,
) -> None:
    """Write a repository folder, in place of the one that an earlier call wrote.

    What a killed process left is cleaned up, or brought back, by the next call.

    Args:
        folder: Where it shall be.
        source: What it is made from, so that this is never overwritten.
        write: Fills an empty folder.
        check: Verifies the filled folder. When one of the two fails, `folder` stays as it was.
        sources: Where the files come from, by their path in the repository, if they have other names there; may be
            filled by `write`. Errors name these, since that is where something can be corrected.

    Raises:
        BundleMLLMError: `folder` holds something else, is or contains `source` or lies in it, or `write` or `check`
            fails.
    """
    final, origin = folder.resolve(), source.resolve()
    if origin.is_relative_to(final):
        raise BundleMLLMError(
            f"The repository would be written over {source}, which it is made from: give another --output-dir."
        )
    if final.is_relative_to(origin):
        raise BundleMLLMError(
            f"{folder} lies in {source}, which the repository is made from: give an --output-dir outside of it."
        )
    temporary, old = (final.with_name(f".{final.name}{suffix}") for suffix in (_TEMPORARY, _OLD))
    if old.exists() and not final.exists():  # killed between the two renames below
        os.replace(old, final)
    for left in (temporary, old):
        if left.exists():
            shutil.rmtree(left)
    if final.exists() and not (final / MARKER).is_file() and (not final.is_dir() or any(final.iterdir())):
        raise BundleMLLMError(
            f"{folder} exists and is no repository folder, so its files would be lost: give another --output-dir."
        )
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        (temporary / MARKER).write_text("Written by bundle-mllm from another folder; may be overwritten.\n")
        check(temporary)
        if final.exists():
            os.replace(final, old)
        os.replace(temporary, final)
        shutil.rmtree(old, ignore_errors=True)
    except BundleMLLMError as error:
        message = str(error)
        for name, path in (sources or {}).items():
            message = message.replace(str(temporary / name), str(path))
        raise BundleMLLMError(message.replace(str(temporary), str(source))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def repository_files(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file to upload, by its path in the repository."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def place(source: Path, target: Path) -> None:
    """Copy a file; weights and features as a hard link where that is possible, so that they take no disk space."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # a link to a symbolic link would be uploaded as that
    if source.suffix == ".safetensors":  # written anew when changed; text may be edited in place, in both folders
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copy2(source, target)


def write_json(path: Path, value: Any) -> None:
    """Write a record for others to read; see `Places.reduce`, which it should have gone through."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def parse_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        BundleMLLMError: The file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleMLLMError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    except ValueError as error:
        raise BundleMLLMError(f"{path} is not JSON ({error}): write or copy it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BundleMLLMError: The file is missing, damaged or holds something else.
    """
    value = parse_json(path)
    if not isinstance(value, dict):
        raise BundleMLLMError(f"{path} holds a {type(value).__name__} where an object was expected: check the path.")
    return value
