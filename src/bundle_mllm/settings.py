"""Settings: the arguments of the package's functions as frozen dataclasses, which the command line reads, too.

Knows nothing about what a setting means; imports neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from bundle_mllm.bounds import check
from bundle_mllm.errors import BundleMLLMError

SCRATCH = "scratch"
"""The base model that needs no download: a small Llama, trained in full."""
MAX_SEED = 1 << 31
"""Seeds are below this; some steps take the next one or two."""
NO_RANKER = "none"
"""The base model of a run that trains a retriever alone."""

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


@dataclass(frozen=True)
class Settings:
    """Base of settings: a value of a related type becomes that of its field (a string a path, a list a tuple).

    The docstring below a field is its help text. Fields that several functions share stand in a base class with
    `kw_only=True`; the command line shows each such class as a group of options, under its docstring.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            default = None if field.default_factory is dataclasses.MISSING else field.default_factory()
            hint = field_types(type(self))[field.name]
            object.__setattr__(self, field.name, fit(field.name, getattr(self, field.name), hint, default))
            if field.name == "seed":
                check_seed(getattr(self, field.name))


def check_seed(seed: int | None) -> None:
    """Refuse a seed that one of the generators of random numbers cannot take (NumPy's: 0 or more, below 2^32).

    Raises:
        BundleMLLMError: If it is such a one.
    """
    if seed is not None and not 0 <= seed < MAX_SEED:
        raise BundleMLLMError(f"seed is {seed}, so no numbers can be drawn: give 0 or more, below {MAX_SEED:,}.")


def configured_by(settings_type: Callable[P, S]) -> Callable[[Callable[[S], R]], Callable[P, R]]:
    """Give a function of one settings object the fields of its class as arguments.

    A call with an instance of the class as the only argument works, too; with others beside it, it is a `TypeError`.
    """

    def decorate(function: Callable[[S], R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            first: Any = next(iter(args), None)
            if not isinstance(first, cast(type, settings_type)):
                return function(settings_type(*args, **kwargs))
            refuse_beside(first, [*map(repr, args[1:]), *kwargs])
            return function(first)

        returned = inspect.signature(function).return_annotation
        vars(call)["__signature__"] = inspect.signature(settings_type).replace(return_annotation=returned)
        return call

    return decorate


def refuse_beside(settings: Any, others: Collection[str]) -> None:
    """Refuse arguments beside a settings object, which would replace or lose some of its values.

    Raises:
        TypeError: If there are any.
    """
    if others:
        raise TypeError(
            f"{', '.join(others)} beside {type(settings).__name__}(...), which says everything: give either the "
            "settings object or single arguments (dataclasses.replace changes a settings object)."
        )


@cache
def field_types(settings_type: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name."""
    hints = get_type_hints(settings_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings_type)}


def read_overrides(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings (nested like their dataclass).

    Raises:
        BundleMLLMError: If the file is missing or holds something else.
    """
    import yaml

    try:
        check("yaml_bytes", Path(path).stat().st_size, f"The config file {path}")
        text = Path(path).read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):  # a few can stand for gigabytes
            raise BundleMLLMError(f"The config file {path} has an alias (*name): write the value again instead.")
        values = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise BundleMLLMError(f"The config file {path} does not exist: check --config.") from error
    except OSError as error:
        raise BundleMLLMError(f"The config file {path} cannot be read ({error.strerror}): give a file.") from error
    except UnicodeDecodeError as error:
        raise BundleMLLMError(f"The config file {path} is not UTF-8 text ({error}): save it as UTF-8.") from error
    except RecursionError as error:
        raise BundleMLLMError(f"The config file {path} is nested too deeply: settings are two levels deep.") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        if isinstance(error, BundleMLLMError):
            raise
        raise BundleMLLMError(f"The config file {path} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BundleMLLMError(f"The config file {path} holds a {type(values).__name__}; it must map names to values.")
    return values


def with_overrides(settings: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Return a copy of a dataclass with values replaced by field name, of a nested one by a mapping.

    Raises:
        BundleMLLMError: If a name is not a field, or a value does not fit the field's type.
    """
    types = field_types(type(settings))
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types:
            raise BundleMLLMError(f"Unknown setting {f'{prefix}{name}'!r}: the settings here are {', '.join(types)}.")
        changes[name] = fit(prefix + name, value, types[name], getattr(settings, name))
    return dataclasses.replace(settings, **changes)


def fit(name: str, value: Any, hint: Any, default: Any = None) -> Any:
    """Bring a value, such as YAML or a caller gives it, to a field's type (path, tuple, number, choice, group).

    Args:
        name: How the field is called in messages.
        value: The value.
        hint: The type; of several the first that fits, and the message about a misfit is of the last.
        default: Of a group, the settings that a mapping changes.

    Raises:
        BundleMLLMError: If it does not fit.
    """
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (UnionType, Union):
        if value is None and NoneType in inner:
            return None
        *others, last = [each for each in inner if each is not NoneType]
        for other in others:
            with suppress(BundleMLLMError):
                return fit(name, value, other)
        return fit(name, value, last)
    if dataclasses.is_dataclass(default) and isinstance(hint, type) and not isinstance(value, hint):
        if not isinstance(value, Mapping):
            raise BundleMLLMError(f"{name} is a group of settings; give a mapping, not {value!r}.")
        return with_overrides(default, value, prefix=f"{name}.")
    if kind is Literal:
        if value not in inner:
            raise BundleMLLMError(f"{name} must be one of {', '.join(map(repr, inner))}, not {value!r}.")
        return value
    if kind is tuple:
        any_number = inner[-1] is Ellipsis
        if not isinstance(value, (list, tuple)) or (not any_number and len(value) != len(inner)):
            raise BundleMLLMError(f"{name} must be a list{'' if any_number else f' of {len(inner)}'}, not {value!r}.")
        hints = inner[:1] * len(value) if any_number else inner
        return tuple(fit(name, each, of_each) for each, of_each in zip(value, hints, strict=True))
    if kind in (dict, Mapping) and isinstance(value, Mapping) and Any not in inner:
        of_key, of_value = inner
        return {fit(name, key, of_key): fit(f"{name}[{key!r}]", each, of_value) for key, each in value.items()}
    if hint in (Path, str) and isinstance(value, (str, os.PathLike)):
        return hint(value)
    if not isinstance(value, bool):
        if hint is float and isinstance(value, (Real, str)):
            try:
                number = float(value)  # YAML reads 1e-3 as text
            except (ValueError, OverflowError) as error:
                raise BundleMLLMError(f"{name} must be a number, not {value!r}.") from error
            if math.isnan(number):
                raise BundleMLLMError(f"{name} must be a number, not {value!r}.")
            return number
        if hint is int and isinstance(value, Integral):
            return int(value)
    expected: Any = kind or hint
    if getattr(hint, "_is_protocol", False) or (isinstance(value, expected) and hint is not int):
        return value
    raise BundleMLLMError(f"{name} must be of type {getattr(hint, '__name__', hint)}, not {value!r}.")


def as_dict(settings: Any) -> dict[str, Any]:
    """Return a dataclass as plain JSON/YAML values."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))
