"""Options of a command, made from dataclasses of settings: each field once, grouped by the class that declares it.

Knows nothing about any command.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import tyro

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.settings import field_types

ALL = "--help-all"
"""Shows the whole help of a command whose options are many."""
LONGEST_HELP = 150
"""Lines; of a longer help, the options of the first group are shown."""


def parse_options(
    settings: Sequence[type],
    argv: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    defaults: Mapping[str, Any] | None = None,
    positional: Sequence[str] = (),
) -> dict[str, Any]:
    """Read the options of a command; print help, or what is missing, and exit where that is called for.

    Args:
        settings: Dataclasses; a field that several have is one option.
        argv: The arguments.
        prog: Name of the command.
        description: What the command does; by default the docstring of the first class.
        defaults: Values that replace the fields' own defaults.
        positional: Names of fields that are given without an option's name.

    Returns:
        The values by field name.

    Raises:
        BundleMLLMError: If there is no such option, one is missing, or a value does not fit.
    """
    _check_names(settings, argv, prog)
    main, groups = settings[0], {settings[0]: {}}
    for owner, field, hint in _fields(settings):
        default = (defaults or {}).get(field.name, _default(field))
        label = _label(field.name, hint, field.name in positional)
        marks: list[Any] = [tyro.conf.arg(help=_docstrings(owner).get(field.name), metavar=label)]
        if field.name in positional:
            marks.append(tyro.conf.Positional)
        if field.name.startswith("no_"):
            marks.append(tyro.conf.FlagCreatePairsOff)
        if default is None:
            hint = hint | None
            marks.append(tyro.conf.DisallowNone)  # leave the option out
        groups.setdefault(main if owner in settings else owner, {})[field.name] = Annotated[(hint, *marks)], default
    titles = {owner: _title(owner) for owner in groups if owner is not main}
    nested = {
        title: (tyro.conf.OmitArgPrefixes[_dataclass(owner, groups[owner])], tyro.MISSING)
        for owner, title in titles.items()
    }
    encoding = sys.stdout.encoding or "utf-8"  # on which the frames depend
    printed, shown = io.StringIO(), io.TextIOWrapper(io.BytesIO(), encoding, errors="replace")
    asks_all = ALL in argv
    given = ["--help" if argument == ALL else argument for argument in argv]
    try:
        with redirect_stderr(printed), redirect_stdout(shown):
            parsed = tyro.cli(_dataclass(main, groups[main] | nested, description), prog=prog, args=given)
    except SystemExit as end:
        if not end.code:  # help
            shown.seek(0)
            print("\n".join(_help_lines(shown.read(), prog, shortened=not asks_all)))
            raise
        raise BundleMLLMError(f"{_in_one_line(printed.getvalue())} `{prog} --help` explains all options.") from None
    parts = [(parsed, groups[main]), *((getattr(parsed, title), groups[owner]) for owner, title in titles.items())]
    return {name: getattr(part, name) for part, names in parts for name in names}


def _help_lines(text: str, prog: str, *, shortened: bool) -> Iterator[str]:
    """Yield the help of tyro, wrapped: of a long one the first group of options, and what the others are about."""
    columns, lines = shutil.get_terminal_size().columns, text.splitlines()
    shortened, group, left_out = shortened and len(lines) > LONGEST_HELP, 0, False
    for line in lines:
        if re.match(r"(╭─)? ([\w.-]+ )?options ", line):
            group, left_out = group + 1, False
        left_out = left_out or (shortened and group > 1 and re.match(r"[│ ] -", line) is not None)
        if not left_out or not line.strip() or line.startswith("╰"):
            indent = "  " if line.startswith("usage: ") else ""
            is_long = len(line) > columns and not group
            yield from textwrap.wrap(line, columns, subsequent_indent=indent) if is_long else [line]
    if shortened:
        yield f"`{prog} {ALL}` explains the options of all groups."


def _label(name: str, hint: Any, is_positional: bool) -> str | None:
    """Return what stands for the value of an option in the help; `None` for what tyro shows."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is UnionType or kind is Union:
        return _label(name, next(each for each in inner if each is not NoneType), is_positional)
    is_list = kind is tuple and inner[-1] is Ellipsis and inner[0] in (str, int, float, Path)
    if is_positional or name == "model":  # a folder, and for some commands a name on the Hub, too
        return name.upper() + (" ..." if is_list else "")
    return f"{inner[0].__name__.upper()} ..." if is_list else None


def _in_one_line(box: str) -> str:
    """Return what an error message of tyro says, without its frame, its title and what it repeats of the help."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()]
    lines = ["" if set(line) == {"-"} else line for line in lines]  # frames of terminals that have ASCII alone
    _title, *rest = itertools.dropwhile(lambda line: not line, lines)
    text = " ".join(itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, rest)))
    return text.removeprefix("Error parsing ").rstrip(".:") + "."


def _fields(settings: Sequence[type]) -> Iterator[tuple[type, dataclasses.Field, Any]]:
    """Yield each field once: the class that declares it, the field, and the type that a command line can give."""
    seen = set()
    for each in settings:
        for field in dataclasses.fields(each):
            hint = _parseable(field_types(each)[field.name])
            if hint is not None and field.name not in seen:
                seen.add(field.name)
                yield next(c for c in each.__mro__ if field.name in inspect.get_annotations(c)), field, hint


def _parseable(hint: Any) -> Any:
    """Return the part of a type that a command line can give: the first of several types, `None` for none."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (UnionType, Union):
        chosen = next((each for each in map(_parseable, inner) if each is not None), None)
        return chosen | None if chosen is not None and NoneType in inner else chosen
    if kind is Mapping:
        return dict[inner[0], inner[1]]
    if kind is tuple:
        return tuple[tuple(each if each is Ellipsis else _parseable(each) for each in inner)]
    if kind is Literal or hint in (str, int, float, bool, Path) or dataclasses.is_dataclass(hint):
        return hint
    return None


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING if field.default is dataclasses.MISSING else field.default


@cache
def _docstrings(settings: type) -> dict[str, str]:
    """Return the docstrings below the fields of a class."""
    [block] = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    assert isinstance(block, ast.ClassDef)
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in zip(block.body, block.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def _title(group: type) -> str:
    """Return the title of a group: `scoring` for `ScoringOptions`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", group.__name__.removesuffix("Options")).lower()


def _dataclass(settings: type, fields: Mapping[str, tuple[Any, Any]], description: str | None = None) -> type:
    """Make the dataclass that tyro reads: required options first."""
    required: list[Any] = [(name, hint) for name, (hint, default) in fields.items() if default is tyro.MISSING]
    others = [
        (name, hint, dataclasses.field(default_factory=lambda default=default: default))
        for name, (hint, default) in fields.items()
        if default is not tyro.MISSING
    ]
    namespace = {"__doc__": description or settings.__doc__}
    return dataclasses.make_dataclass(settings.__name__, required + others, namespace=namespace)


def _check_names(settings: Sequence[type], argv: Sequence[str], prog: str) -> None:
    """Refuse an option that does not exist, and name those that are like it."""
    names = {"--help", ALL, *(name for _, field, hint in _fields(settings) for name in _names(field.name, hint))}
    for argument in argv:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in names:
            alike = get_close_matches(name, names, n=2)
            hint = f"did you mean {' or '.join(alike)}?" if alike else f"`{prog} --help` shows all."
            raise BundleMLLMError(f"{prog} has no option {argument.partition('=')[0]}: {hint}")


def _names(name: str, hint: Any) -> Iterator[str]:
    """Yield the options of a field: those of the fields of a group, and also the one that turns a switch off."""
    if dataclasses.is_dataclass(hint):
        for inner, of_inner in field_types(cast(type, hint)).items():
            yield from _names(f"{name}.{inner}", of_inner)
        return
    group, dot, last = name.replace("_", "-").rpartition(".")
    yield f"--{group}{dot}{last}"
    if hint is bool:
        yield f"--{group}{dot}no-{last}"
