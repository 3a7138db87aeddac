"""Parse JSON that others wrote: one error for whatever is wrong with it.

Knows nothing about files or what a document means.
"""

from __future__ import annotations

import json
from typing import Any

from bundle_mllm.errors import BundleMLLMError


class _RepeatedKeyError(ValueError):
    """An object that has a key twice, so that one of its values would be lost."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise _RepeatedKeyError(f"it has the key {twice!r} twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
_PLAIN = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=lambda _: None)


def parse_json(text: str, where: str, *, constants: bool = True) -> Any:
    """Parse a JSON document.

    Args:
        text: The document.
        where: What messages call it.
        constants: Whether NaN and Infinity, which are no JSON, are read as Python reads them; otherwise as null.

    Raises:
        BundleMLLMError: If it is no JSON, is nested too deeply, has integers of thousands of digits, or a key twice.
    """
    try:
        return (_DECODER if constants else _PLAIN).decode(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} column {error.colno}"
        raise BundleMLLMError(f"{where} is not JSON ({error.msg} at {place}): correct it.") from error
    except _RepeatedKeyError as error:
        raise BundleMLLMError(f"{where} is unclear JSON ({error}): keep one of them.") from error
    except RecursionError as error:
        raise BundleMLLMError(f"{where} is JSON nested too deeply to read: make it flatter.") from error
    except ValueError as error:  # integers of thousands of digits
        raise BundleMLLMError(f"{where} is JSON that cannot be read ({error}): write it again.") from error
