"""Identify a question file, and note beside it how it was made.

Knows nothing about models, metrics or how a question is shown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle_mllm.data.files import atomic_path, read_json, require_file, sha256
from bundle_mllm.errors import BundleMLLMError

SUFFIX = ".json"
"""What the name of the note beside a question file adds to the file's."""


def write_question_manifest(path: str | os.PathLike, made: Mapping[str, Any]) -> Path:
    """Write the note beside a question file: its SHA-256 and how it was made.

    `made` are the settings that make it again, such as split, negatives and seed. Nothing in the note depends on time
    or place. Returns the path of the note.
    """
    note = manifest_path(path)
    with atomic_path(note) as temporary:
        temporary.write_text(json.dumps({"sha256": sha256(path), "made": dict(made)}, indent=2) + "\n", "utf-8")
    return note


def read_question_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """Return `path` and `sha256` of a question file and, where a note stands beside it, `made`.

    Raises:
        BundleMLLMError: If there is no such file, or the note is unreadable or about another file.
    """
    manifest = {"path": str(path), "sha256": sha256(require_file(path))}
    note = manifest_path(path)
    if not note.is_file():
        return manifest
    try:
        content = read_json(note)
        expected, made = str(content["sha256"]), dict(content["made"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleMLLMError(
            f"{note} does not hold how {path} was made ({error!r}): delete it, or make the questions again."
        ) from error
    if expected != manifest["sha256"]:
        raise BundleMLLMError(
            f"{path} is not the file that {note} describes ({manifest['sha256'][:12]}…, not {expected[:12]}…): "
            "it was changed after it was made: make it again, or delete the note if the change is meant."
        )
    return {**manifest, "made": made}


def manifest_path(path: str | os.PathLike) -> Path:
    """Return the path of the note beside a question file: of `q.jsonl` it is `q.jsonl.json`."""
    return Path(f"{os.fspath(path)}{SUFFIX}")
