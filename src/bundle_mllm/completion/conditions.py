"""Conditions on item columns, such as `in_stock == true and price <= 50`: read, checked, computed on whole columns.

Knows nothing about rules, models or files. A condition is parsed as an expression of Python and only what the table
of the class lists is accepted; nothing is executed.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bundle_mllm.completion.columns import Column, ItemColumns
from bundle_mllm.errors import BundleMLLMError

MAX_LENGTH = 10_000
"""Characters of the longest condition."""

_CONSTANTS = {"true": True, "false": False, "null": None}
_COMPARISONS: dict[type, tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
_MIRRORED = {"<": ast.Gt, "<=": ast.GtE, ">": ast.Lt, ">=": ast.LtE, "==": ast.Eq, "!=": ast.NotEq}
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`([^`]+)`""")
_GRAMMAR = (
    'join comparisons such as price <= 50, category != "gift card", color in ["red", "blue"], "sale" in tags or '
    "discount != null by and, or, not and parentheses, with names of columns that are no plain words in backticks"
)


@dataclass(frozen=True)
class Condition:
    """A condition on the columns of an item.

    | | |
    |---|---|
    | `price <= 50`, `10 < price <= 50`, `price < list_price` | numbers |
    | `released >= "2026-05-01"` | texts, in the order of their characters |
    | `category != "gift card"`, `color in ["red", "blue"]` | equality, also of numbers and of `true` and `false` |
    | `in_stock` | a column of `true` and `false` |
    | `"sale" in tags`, `"linen" in title` | a member of a list; a part of a text |
    | `price == null`, `price != null` | whether a value is missing |
    | `and`, `or`, `not`, `( )` | |

    Text is in quotes, and case counts. A comparison with a missing value does not hold; `!=` and `not in` are the
    opposites of `==` and `in`, and so hold where the value is missing.

    Attributes:
        text: The condition as it was written.
    """

    text: str
    _tree: ast.expr
    _columns: tuple[str, ...]  # those in backticks

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition.

        Raises:
            BundleMLLMError: If it is none: the message says where.
        """
        quoted: list[str] = []

        def name(match: re.Match) -> str:
            if match[1] is None:
                return match[0]
            quoted.append(match[1])
            return f"_column_{len(quoted) - 1}_"

        if len(text) > MAX_LENGTH:
            raise BundleMLLMError(
                f"The condition {text[:40]!r}… has {len(text)} characters, of at most {MAX_LENGTH}: list items in a "
                "file of allowed or excluded ids instead."
            )
        try:
            tree = ast.parse(_QUOTED.sub(name, text.strip()), mode="eval").body
            condition = cls(text, tree, tuple(quoted))
            for _ in condition._names(tree):
                pass
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if isinstance(error, BundleMLLMError):
                raise
            raise BundleMLLMError(f"The condition {text!r} cannot be read: {_GRAMMAR}.") from error
        return condition

    @property
    def columns(self) -> list[str]:
        """Names of the columns that it reads, each once."""
        return list(dict.fromkeys(self._names(self._tree)))

    @property
    def parts(self) -> list[Condition]:
        """The conditions that `and` joins at the top; the condition itself if there are none."""
        if not (isinstance(self._tree, ast.BoolOp) and isinstance(self._tree.op, ast.And)):
            return [self]
        return [Condition(self._write(node), node, self._columns) for node in self._tree.values]

    def mask(self, columns: ItemColumns) -> np.ndarray:
        """Return for which items it holds, `[num_items]` bool.

        Raises:
            BundleMLLMError: If there is no such column, or its values cannot be compared in this way.
        """
        return self._mask(self._tree, columns)

    def _names(self, node: ast.expr) -> Iterator[str]:
        """Yield the columns below a node; refuse what is no part of a condition."""
        match node:
            case ast.BoolOp(values=values):
                for value in values:
                    yield from self._names(value)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield from self._names(operand)
            case ast.Compare(left=left, comparators=comparators):
                for operand in (left, *comparators):
                    yield from self._names(operand)
            case ast.Name():
                if node.id not in _CONSTANTS:
                    yield self._column_name(node)
            case ast.List() | ast.Tuple() | ast.Set() | ast.Constant() | ast.UnaryOp():
                self._value(node)
            case _:
                raise self._refused(node)

    def _mask(self, node: ast.expr, columns: ItemColumns) -> np.ndarray:
        match node:
            case ast.BoolOp(op=op, values=values):
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return join.reduce([self._mask(value, columns) for value in values])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self._mask(operand, columns)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                operands = [left, *comparators]
                pairs = zip(operands, ops, operands[1:], strict=False)
                return np.logical_and.reduce([self._compare(*pair, columns) for pair in pairs])
            case ast.Name() if node.id not in _CONSTANTS:
                column = columns[self._column_name(node)]
                if column.kind != "boolean":
                    raise self._misfit(column, "is no condition by itself", "compare it, for example with != null")
                return column.values == 1
        raise BundleMLLMError(f"{self._write(node)} of the condition {self.text!r} compares no column: {_GRAMMAR}.")

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr, columns: ItemColumns) -> np.ndarray:
        if isinstance(op, ast.In | ast.NotIn):
            found = self._contains(left, right, columns)
            return ~found if isinstance(op, ast.NotIn) else found
        if type(op) not in _COMPARISONS:
            raise self._refused(left, "`is` (write == or !=)")
        a, b = self._operand(left, columns), self._operand(right, columns)
        if not isinstance(a, Column):
            a, b, op = b, a, _MIRRORED[_COMPARISONS[type(op)][0]]()
        if not isinstance(a, Column):
            raise BundleMLLMError(f"The condition {self.text!r} compares no column with anything: {_GRAMMAR}.")
        symbol, compare = _COMPARISONS[type(op)]
        if b is not None and "list" in (a.kind, b.kind if isinstance(b, Column) else None):
            raise self._misfit(a, f"cannot be compared by {symbol}", f'ask for a member, as in "x" in {a.name}')
        if symbol == "!=":
            return ~self._holds(a, operator.eq, "==", b)
        return self._holds(a, compare, symbol, b)

    def _holds(self, a: Column, compare: Callable, symbol: str, b: Any) -> np.ndarray:
        if b is None:
            if symbol != "==":
                raise self._misfit(a, f"cannot be compared with null by {symbol}", "use == null or != null")
            return a.missing
        if isinstance(b, Column):
            if (a.kind == "text") != (b.kind == "text"):
                raise self._misfit(
                    a, f"cannot be compared with {b.name}, such as {b.example}", "compare like with like"
                )
            if a.kind == "text":
                names = {name: code for code, name in enumerate(sorted({*a.names, *b.names}))}
                x, y = (np.array([names[name] for name in c.names] + [-1])[c.values] for c in (a, b))
            else:
                x, y = a.values, b.values
            return compare(x, y) & ~a.missing & ~b.missing
        if a.kind == "text":
            if not isinstance(b, str):
                fix = f"compare with a text, such as {a.example}, or give only numbers in the column"
                raise self._misfit(a, f"cannot be compared with {_literal(b)}", fix)
            if symbol == "==":
                return a.values == a.codes.get(b, -2)
            held = np.array([*(compare(name, b) for name in a.names), False])  # the last of missing values
            return held[a.values]
        if isinstance(b, str):
            fix = "write numbers, true and false without quotes"
            raise self._misfit(a, f"cannot be compared with the text {b!r}", fix)
        if symbol != "==" and isinstance(b, bool):
            raise self._misfit(a, f"cannot be compared with {_literal(b)} by {symbol}", "use == or !=")
        return compare(a.values, float(b))  # false where NaN

    def _contains(self, left: ast.expr, right: ast.expr, columns: ItemColumns) -> np.ndarray:
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            column = self._operand(left, columns)
            if not isinstance(column, Column) or column.kind == "list":
                raise BundleMLLMError(
                    f"{self._write(left)} in [...] of the condition {self.text!r} asks for no single value of a "
                    f"column: {_GRAMMAR}."
                )
            values = self._value(right)
            held = [self._holds(column, operator.eq, "==", value) for value in values]
            return np.logical_or.reduce(held, initial=False) if held else np.zeros(columns.num_items, dtype=bool)
        column, text = self._operand(right, columns), self._operand(left, columns)
        if not isinstance(column, Column) or column.kind not in ("list", "text") or not isinstance(text, str):
            raise BundleMLLMError(
                f"{self._write(left)} in {self._write(right)} of the condition {self.text!r} looks for no text in a "
                f'column of texts or lists: write it as "x" in tags, or color in ["x", "y"].'
            )
        if column.rows is None:
            return np.array([*(text in name for name in column.names), False])[column.values]
        found = np.zeros(columns.num_items, dtype=bool)
        found[column.rows[column.values == column.codes.get(text, -2)]] = True
        return found

    def _operand(self, node: ast.expr, columns: ItemColumns) -> Any:
        if isinstance(node, ast.Name) and node.id not in _CONSTANTS:
            return columns[self._column_name(node)]
        return self._value(node)

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=str() | bool() | float() | None):
                return node.value
            case ast.Constant(value=int() as number) if abs(number) < 1 << 63:
                return number
            case ast.Name() if node.id in _CONSTANTS:
                return _CONSTANTS[node.id]
            case ast.UnaryOp(
                op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as number)
            ):
                if not isinstance(number, bool):
                    return -number if isinstance(sign, ast.USub) else number
            case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
                return [self._value(element) for element in elements]
        raise self._refused(node)

    def _column_name(self, node: ast.Name) -> str:
        number = re.fullmatch(r"_column_(\d+)_", node.id)
        return self._columns[int(number[1])] if number and int(number[1]) < len(self._columns) else node.id

    def _write(self, node: ast.expr) -> str:
        text = ast.unparse(node)
        for number, name in enumerate(self._columns):
            text = text.replace(f"_column_{number}_", f"`{name}`")
        return text

    def _refused(self, node: ast.expr, what: str | None = None) -> BundleMLLMError:
        what = what or self._write(node)
        return BundleMLLMError(f"The condition {self.text!r} holds {what}, which is no part of one: {_GRAMMAR}.")

    def _misfit(self, column: Column, problem: str, fix: str) -> BundleMLLMError:
        return BundleMLLMError(
            f"The column {column.name!r} in the condition {self.text!r} holds {_KINDS[column.kind]} such as "
            f"{column.example} and {problem}: {fix}."
        )


_KINDS = {"number": "numbers", "boolean": "true and false,", "text": "texts", "list": "lists with members"}


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"the number {value}"
