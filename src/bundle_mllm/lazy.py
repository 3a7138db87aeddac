"""Names of a package that are imported when they are first used: those that its `if TYPE_CHECKING` block imports.

Knows nothing about the names.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package, given its `__name__` and `__file__`.

    A name is imported once and is an attribute of the package from then on. Type checkers read the block as it
    stands, so that every name is written once. The package has no `__all__`: with one, `help` would explain each name
    on hundreds of pages; without, it shows the docstring of the package.
    """
    module_of = {
        name.asname or name.name: statement.module
        for block in ast.parse(Path(file).read_text(encoding="utf-8")).body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for name in statement.names
    }

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(module_of)
