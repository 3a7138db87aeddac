"""Find, and take out, what tells where files lie on this machine.

Knows nothing about models, data sets or the Hub.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from bundle_mllm.data.tables import SUFFIXES, iter_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.repository import parse_json

_PATH_FIELDS = {"data", "output_dir", "path", "model"}
_NAME_FIELDS = {"name_or_path", "_name_or_path", "base_model_name_or_path"}
_ABSOLUTE = re.compile(r"(?:[\w+-]+:)?((?:~[/\\]|/(?!/)|[A-Za-z]:[/\\])[^\n]*)")  # also local-dir:/path
_UPWARDS = re.compile(r"(?:\.\.[/\\])+[^\s/\\][^\n]*|\.\.(?:[/\\]\.\.)+[/\\]?")
_WITHIN = re.compile(r"""(?<![\w.\-/\\~:])(?:[\w+-]+:)?(/[^\s"'`<>|()\[\]{},;:]+)""")
_FILE_URL = re.compile(r"\bfile:/+[^\s\"'<>]*", re.IGNORECASE)
_DEVICES = ("dev", "proc", "sys")
_SYSTEM = (*_DEVICES, "bin", "etc", "lib", "usr")  # the same everywhere: these tell nothing
_IDS = ("item_id", "bundle_id", "question_id")
_TEXTS = (".jinja", ".md", ".py", ".txt")
_VOCABULARY = ("added_tokens.json", "merges.txt", "tokenizer.json", "vocab.json", "vocab.txt")


class Places:
    """The folders of this machine that no published text may name.

    Args:
        folders: What is published and where it is written; home, working and temporary folder always count.
    """

    def __init__(self, *folders: Path):
        roots = {os.path.abspath(path) for path in (Path.home(), Path.cwd(), tempfile.gettempdir(), *folders)}
        roots |= {os.path.realpath(root) for root in roots}
        named = sorted((root for root in roots if len(Path(root).parts) > 1), key=len, reverse=True)
        # What is a folder of its own tells where it lies; one at the top, such as /tmp, only with what is in it.
        patterns = [re.escape(root) + (r"(?=[/\\]\S)" if len(Path(root).parts) == 2 else "") for root in named]
        self._roots = re.compile(rf"(?<![\w.\-])(?:{'|'.join(patterns) or '(?!)'})(?![\w\-])[^\s\"'<>|]*")

    def find(self, text: str) -> str | None:
        """Return the part of a text that is a path of this machine, if there is one.

        A path counts if it lies in one of the folders, exists here, leads out of the folder, or is a file:// URL.
        """
        if "/" not in text and "\\" not in text:
            return None
        for pattern in (_FILE_URL, self._roots):
            if match := pattern.search(text):
                return match[0]
        if _UPWARDS.fullmatch(text) or _exists(text):
            return text
        return next((match[1] for match in _WITHIN.finditer(text) if _exists(match[1])), None)

    def reduce(self, value: Any, fields: Sequence[str] = (), field: str = "") -> Any:
        """Return JSON values with each path reduced to its last part: where files lie here is nobody's business.

        Args:
            value: The values.
            fields: Fields that hold a path, relative or not, besides those that always do.
            field: The field that `value` is of.
        """
        if isinstance(value, dict):
            return {key: self.reduce(entry, fields, key) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.reduce(entry, fields, field) for entry in value]
        if not isinstance(value, str):
            return value
        if field in _PATH_FIELDS or field in fields or _ABSOLUTE.fullmatch(value) or _UPWARDS.fullmatch(value):
            return _last_part(value)
        while (found := self.find(value)) is not None and (
            shorter := value.replace(found, _last_part(found))
        ) != value:
            value = shorter
        return value

    def check(self, folder: Path) -> None:
        """Check that no text in a folder names a path of this machine: tables, JSON, code, notes in safetensors files.

        Raises:
            BundleMLLMError: The first one, with its file, its row or line, and its column or field.
        """
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in _VOCABULARY):
            for where, field, text in _texts_of(path):
                found = self.find(text)
                if found is None and path.suffix == ".json" and (_is_place(text) or _is_folder(field, text)):
                    found = text  # settings name places even where these are gone
                if found is not None:
                    raise BundleMLLMError(
                        f"{path}{where} names {found!r}, a path of this machine that nobody else has and that says "
                        "where you work: remove it, or write a path relative to the folder."
                    )


def _texts_of(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each text of a file with where it stands and the field it is of."""
    if path.name.endswith(SUFFIXES):
        for number, record in enumerate(iter_records(path), start=1):
            named = next((f" ({key} {record[key]!r})" for key in _IDS if key in record), "")
            for field, text in _strings(record):
                yield f", row {number}{named}, column {field!r},", field, text
    elif path.suffix == ".json":
        for field, text in _strings(parse_json(path)):
            yield f", field {field!r},", field, text
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        for field, text in _strings(metadata):
            yield f", metadata {field!r} (save the file again without),", field, text
    elif path.suffix in _TEXTS:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            yield f", line {number},", "", line


def _strings(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield field, str(key)
            yield from _strings(entry, str(key))
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _strings(entry, field)
    elif isinstance(value, str):
        yield field, value


def _exists(text: str) -> bool:
    """Return whether a text is an absolute path that exists here and is not the same everywhere."""
    match = _ABSOLUTE.fullmatch(text)
    if match is None or len(text) > 4096 or "\0" in text:
        return False
    path = Path(match[1].rstrip(".,;:)"))
    if path.parts[0] == "~":
        return not text.endswith("~/") and "~/ " not in text
    return len(path.parts) > 2 and path.parts[1] not in _SYSTEM and os.path.exists(path)


def _is_place(text: str) -> bool:
    """Return whether a text is an absolute path whose first folder exists here."""
    match = _ABSOLUTE.fullmatch(text)
    parts = Path(match[1]).expanduser().parts if match else ()
    return len(parts) > 2 and parts[1] not in _DEVICES and Path(*parts[:2]).exists()


def _is_folder(field: str, text: str) -> bool:
    return field in _NAME_FIELDS and os.path.isdir(text)


def _last_part(path: str) -> str:
    return next((part for part in reversed(re.split(r"[/\\]", path)) if part not in ("", ".", "..")), "")
