"""Write the local copy of a repository: a folder that appears whole or not at all and holds what will be uploaded.

Knows nothing about what the files mean, or about the network.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from bundle_mllm.data.files import written_folder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.integrity import read_tensors

if TYPE_CHECKING:
    from bundle_mllm.hub.verify import Verification

CARD = "README.md"
MARKER = ".bundle-mllm-repository"
"""Names a folder that was written here and may be written again; it is never uploaded."""


@dataclass(frozen=True)
class PublishReport:
    """What was, or in a dry run would be, published."""

    repo_id: str
    folder: Path
    """The local folder that was uploaded; it stays for inspection."""
    files: dict[str, int]
    """Size in bytes of each file, by its path in the repository."""
    commit_url: str | None = None
    """The address of the commit, `None` after a dry run."""
    left_out: tuple[str, ...] = ()
    """What the source folder holds besides."""
    verification: Verification | None = None
    """How a clean process answered a model's questions; `None` for a data set."""
    space: PublishReport | None = None
    """The Space that opens the model."""
    notes: tuple[str, ...] = ()
    """What is published as it is, and should be looked at."""

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(self.files.values())


def write_repository(
    folder: Path,
    source: Path,
    write: Callable[[Path], None],
    check: Callable[[Path], None],
    sources: Mapping[str, Path] | None = None,
) -> None:
    """Write a repository folder, instead of the one that an earlier call wrote.

    What a killed process left is deleted by a call a day later. Of two calls at a time, the first to end writes the
    folder.

    Args:
        folder: Where it shall be.
        source: What it is made from, so that this is never overwritten.
        write: Fills an empty folder.
        check: Verifies the filled folder. When one of the two fails, `folder` stays as it was.
        sources: The files that errors name, by their path in the repository; may be filled by `write`.

    Raises:
        BundleMLLMError: If `folder` holds something else, is or contains `source` or lies in it, was written by
            another call meanwhile, or `write` or `check` fails.
    """
    final, origin = folder.resolve(), source.resolve()
    if origin.is_relative_to(final):
        raise BundleMLLMError(f"{source} would be written over by its own repository: give another --output-dir.")
    if final.is_relative_to(origin):
        raise BundleMLLMError(f"{folder} lies in {source}, which it is made from: give an --output-dir outside of it.")
    if final.exists() and not (final / MARKER).is_file() and (not final.is_dir() or any(final.iterdir())):
        raise BundleMLLMError(
            f"{folder} exists and is no repository folder, so its files would be lost: give another --output-dir."
        )
    with written_folder(final) as temporary:
        try:
            write(temporary)
            (temporary / MARKER).write_text("Written by bundle-mllm from another folder; may be overwritten.\n")
            check(temporary)
        except BundleMLLMError as error:
            message = str(error)
            for name, path in (sources or {}).items():
                message = message.replace(str(temporary / name), str(path))
            raise BundleMLLMError(message.replace(str(temporary), str(source))) from error


def repository_files(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file to upload, by its path in the repository."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a file of a repository matches one of some patterns, in which "*" stays within a folder."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def link_or_copy(source: Path, target: Path) -> None:
    """Copy a file; weights and features as a hard link where that is possible, so that they take no disk space."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # a link to a symbolic link would be uploaded as that
    if source.suffix == ".safetensors":  # written anew when changed; text may be edited, in both folders
        with suppress(OSError):
            return os.link(source, target)
    shutil.copyfile(source, target)


def place_tensors(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Copy a safetensors file with this metadata and no other; a hard link where the file has it already."""
    if read_tensors(source)[1] in (metadata, {}):
        return link_or_copy(source, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as old, open(target, "wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        text = json.dumps({**header, "__metadata__": metadata}).encode()
        text += b" " * (-len(text) % 8)  # tensors stay aligned
        new.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(old, new, 1 << 24)
