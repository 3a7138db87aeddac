"""Strategies of odd and usual values, and what every input must come to: a result, or one error that we raise."""

import contextlib
import linecache
import math
import os
import shutil
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

from hypothesis import strategies as st

import bundle_mllm
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.settings import field_types

INPUTS = int(os.environ.get("RANDOM_INPUTS", "0"))
"""How many inputs a test draws; 0 for a small sample that is always the same."""
PACKAGE = str(Path(bundle_mllm.__file__).parent)
MEMORY = Path("/dev/shm")
"""A folder in memory, where the system has one."""

TEXT = st.text(max_size=12) | st.sampled_from(
    ["", " ", "NA", "0012", "1.0", "a|b", "&amp;", "<b>x</b>", "\x00", "\ud83d", "C12"]
)
KNOWN = st.sampled_from(["0", "1", "2", "3", "4"])
ID = st.sampled_from(["0", "1", "2", "3", "4", " 1", "01", "1.0", "", "\u00e9", "e\u0301"]) | st.text(max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def oddly(usual, odd, once_in=30):
    """Draw the odd once in so many times, so that inputs of many parts are accepted, too."""
    return st.integers(1, once_in).flatmap(lambda number: odd if number == once_in else usual)


@contextlib.contextmanager
def folder():
    """An empty folder, in memory where that can be."""
    path = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def outcome(function, *args, errors=BundleMLLMError, **kwargs):
    """Return (True, result), or (False, message) for an error of moderate length that this package raises.

    What travels to the Hub raises plain `ValueError`s (`errors`); one that a library raises inside is a fault.
    """
    try:
        return True, function(*args, **kwargs)
    except errors as error:
        assert str(error) and len(str(error)) < 20_000
        if not is_ours(error):
            raise
        return False, str(error)


def is_ours(error):
    """Return whether an error is one of this package: of its class, or raised by a statement in its code."""
    if isinstance(error, BundleMLLMError):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.startswith(PACKAGE) and linecache.getline(last.filename, last.lineno).strip().startswith(
        "raise "
    )


def are_probabilities(scores):
    """Return whether scores are finite, and sum to 1."""
    return all(map(math.isfinite, scores)) and math.isclose(sum(scores), 1, abs_tol=1e-4)


NUMBERS = [0, 1, 2, 3, 4, 8, -1]
SHARES = [0.0, 0.1, 0.5, 0.9, 1.0, 2.0, -1.0, 1e-9, 1e30, math.inf, math.nan]


def of_type(hint, name="", paths=("nowhere",), texts=None):
    """A strategy of the values that an option or setting of this type can be given, most of them sensible.

    Args:
        hint: The type.
        name: The name of the option.
        paths: What a path is chosen from.
        texts: What an option of text is chosen from, by its name.
    """
    kind, inner = get_origin(hint), get_args(hint)
    again = partial(of_type, name=name, paths=paths, texts=texts)
    if kind in (UnionType, Union):
        return st.one_of(*(st.none() if each is NoneType else again(each) for each in inner))
    if kind is Literal:
        return st.sampled_from(inner)
    if kind is tuple and inner[-1] is not Ellipsis:
        return st.tuples(*map(again, inner)).map(lambda pair: tuple(sorted(pair, key=repr)))
    if kind is tuple:
        return st.lists(again(inner[0]), max_size=2).map(tuple)
    if kind in (dict, Mapping):
        return st.dictionaries(again(inner[0]), again(inner[1]), max_size=2)
    if is_dataclass(hint):
        return changes_of(hint, paths, texts)
    if hint is bool:
        return st.booleans()
    if hint is int:
        return oddly(st.sampled_from(NUMBERS[1:]), st.sampled_from(NUMBERS), 5)
    if hint is float:
        return oddly(st.sampled_from(SHARES[1:4]) | st.floats(0.01, 0.99), st.sampled_from(SHARES), 5)
    if hint is Path:
        return st.sampled_from(paths).map(Path)
    if hint is str:
        usual = st.sampled_from((texts or {}).get(name, ["x", "red-bag", "cpu"]))
        return oddly(usual, TEXT, 9)
    return st.nothing()


def changes_of(settings, paths=("nowhere",), texts=None):
    """A strategy of up to two fields of settings with their values, as a mapping."""
    fields = {name: of_type(hint, name, paths, texts) for name, hint in field_types(settings).items()}
    fields = {name: values for name, values in fields.items() if not values.is_empty}
    return st.lists(st.sampled_from(sorted(fields)), max_size=2, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: fields[name] for name in names})
    )
