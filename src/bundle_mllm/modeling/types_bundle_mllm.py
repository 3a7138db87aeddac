"""Whether values are of the types that fields declare: settings are read from JSON, which may hold any.

Knows nothing about what a field means.
"""

from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin

from transformers.configuration_utils import PreTrainedConfig


def check_type(name: str, value: Any, hint: Any, where: str) -> None:
    """Refuse a value that is not of the type of its field.

    Raises:
        ValueError: If it is not; the message says that `name` of `where` is this value.
    """
    if not _fits(value, hint):
        raise ValueError(
            f"{name} of {where} is {str(value)[:60]!r}, which cannot be used: give it as "
            f"{getattr(hint, '__name__', hint)}."
        )


def check_widths(modalities: Mapping[str, Any]) -> None:
    """Refuse widths of features, by modality, that are not positive integers.

    Raises:
        ValueError: If one is not.
    """
    for name, width in modalities.items():
        if not _fits(width, int) or width < 1:
            raise ValueError(
                f"Modality {name!r} has width {str(width)[:60]}, so no encoder can be built for it: give the number "
                "of columns of its features."
            )


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type, as far as that is not checked by itself: not the values of a dictionary."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is UnionType:
        return any(_fits(value, each) for each in inner)
    if kind in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(each, inner[0]) for each in value)
    if kind is dict:
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, PreTrainedConfig | dict if hint is PreTrainedConfig else hint)
