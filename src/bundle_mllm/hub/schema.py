"""Rebuild JSON values from a schema: numbers, and text of a known form in fields that are named; nothing else passes.

Knows nothing about models, data sets or files.

A schema is a kind (a function that returns what may pass, or raises `WithheldError`), a list of one schema, or a
dictionary from names of fields, or patterns of names, to schemas. What does not fit is left out, in a list all of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

Kind: TypeAlias = Callable[[Any], Any]
Schema: TypeAlias = "Kind | list[Schema] | Mapping[str | re.Pattern[str], Schema]"

NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}(@\d+\w{0,20})?|[A-Z]|\d+(-\d+|\+)?")
"""A field of a record: an identifier, a metric such as "hit_rate@1", a letter, a number or a range of numbers."""


class WithheldError(ValueError):
    """Raised for a value that may not pass."""


def rebuild(value: Any, schema: Schema) -> Any:
    """Return the parts of a JSON value that a schema lets pass.

    Raises:
        WithheldError: If the value as a whole does not fit.
    """
    if isinstance(schema, list) and isinstance(value, list):
        return [rebuild(entry, schema[0]) for entry in value]
    if isinstance(schema, Mapping) and isinstance(value, dict):
        kept = {}
        for name, entry in value.items():
            patterns = (key for key in schema if isinstance(key, re.Pattern) and key.fullmatch(name))
            if (key := name if name in schema else next(patterns, None)) is not None:
                with suppress(WithheldError):
                    kept[name] = rebuild(entry, schema[key])
        return kept
    if not callable(schema):
        raise WithheldError
    return schema(value)


def matching(pattern: str, *, most: int = 100) -> Kind:
    """Return the kind of texts that match a pattern as a whole and are not too long."""

    def kind(value: Any) -> str:
        if not isinstance(value, str) or len(value) > most or not re.fullmatch(pattern, value):
            raise WithheldError
        return value

    return kind


def either(*kinds: Kind) -> Kind:
    """Return the kind of what one of several kinds lets pass."""

    def kind(value: Any) -> Any:
        for each in kinds:
            with suppress(WithheldError):
                return each(value)
        raise WithheldError

    return kind


def nested(kind: Kind, names: re.Pattern[str] = NAME) -> Kind:
    """Return the kind of lists and objects of any depth, with fields of these names, of what a kind lets pass."""

    def nest(value: Any) -> Any:
        if isinstance(value, dict | list):
            return rebuild(value, {names: nest} if isinstance(value, dict) else [nest])
        return kind(value)

    return nest


def number(value: Any) -> float | None:
    """Pass a finite number, a truth value or null; infinity and NaN become null, as JSON knows neither.

    Raises:
        WithheldError: If it is anything else.
    """
    if value is not None and not isinstance(value, int | float):
        raise WithheldError
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text(value: Any) -> str:
    """Pass any text: of what is published because it is text, such as the wording of prompts.

    Raises:
        WithheldError: If it is no text.
    """
    if not isinstance(value, str):
        raise WithheldError
    return value


def hub_name(value: Any) -> str:
    """Pass a name that a repository of the Hub can have.

    Raises:
        WithheldError: If it can have no such name.
    """
    try:
        validate_repo_id(text(value))
    except HFValidationError as error:
        raise WithheldError from error
    return value


def table_name(value: Any) -> str:
    """Pass the last part of the path of a table."""
    name = re.split(r"[/\\]", text(value))[-1]
    return matching(r"[\w.-]+\.(jsonl|csv|parquet)(\.gz)?")(name)


numbers = nested(number)
word = matching(r"[a-z][a-z0-9_.-]*", most=32)
digest = matching(r"[0-9a-f]{64}")
version = matching(r"\d+(\.\d+)*([.+-]?[a-z0-9]+)*", most=40)
label = matching(r"\w[\w .,()+@-]*", most=60)
