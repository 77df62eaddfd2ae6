"""The tools of the agent: questions to a small table, and a calculator. Decimal numbers throughout."""

from __future__ import annotations

import ast
import csv
import operator
import re
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal, DecimalException
from io import StringIO

Row = dict[str, str]

_CONDITION = re.compile(r"(date|item|category|amount)\s*(!=|<=|>=|=|<|>)\s*(.+)", re.IGNORECASE)
_COMPARE: dict[str, Callable[[object, object], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_OPERATORS: dict[type, Callable[[Decimal, Decimal], Decimal]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_MOST_CHARACTERS = 500


class ToolError(Exception):
    """A command that cannot be carried out; the model is told why."""


class Ledger:
    """Rows of date, item, category and amount."""

    def __init__(self, text: str) -> None:
        self.rows: list[Row] = list(csv.DictReader(StringIO(text)))

    def run(self, word: str, rest: str) -> str:
        """Carry out one command."""
        if word == "CALC":
            return str(calculate(rest))
        rows = self._where(rest)
        if word == "SUM":
            return str(sum((Decimal(row["amount"]) for row in rows), Decimal(0)))
        if word == "COUNT":
            return str(len(rows))
        if word in ("SHOW", "LIST"):
            return "\n".join(",".join(row.values()) for row in rows) or "no rows"
        raise ToolError("expected one line with SHOW, SUM, COUNT, LIST, CALC or ANSWER")

    def _where(self, rest: str) -> list[Row]:
        text = re.sub(r"^where\s+", "", rest.strip(), flags=re.IGNORECASE)
        conditions = [] if not text else re.split(r"\s+and\s+", text, flags=re.IGNORECASE)
        rows = self.rows
        for condition in conditions:
            found = _CONDITION.fullmatch(condition.strip())
            if found is None:
                raise ToolError(f"expected <column> <op> <value>, found {condition[:80]!r}")
            column, compare = found[1].lower(), _COMPARE[found[2]]
            value = found[3].strip().strip("'\"")
            try:
                rows = [row for row in rows if compare(_value(column, row[column]), _value(column, value))]
            except DecimalException:
                raise ToolError(f"expected a number as amount, found {value[:40]!r}") from None
        return rows


def _value(column: str, text: str) -> object:
    return Decimal(text) if column == "amount" else text.casefold()


def calculate(expression: str) -> Decimal:
    """The value of an expression of numbers; nothing else is understood."""
    if len(expression) > _MOST_CHARACTERS:
        raise ToolError("expected a shorter expression")
    try:
        return _evaluated(ast.parse(expression.replace("%", "/100"), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, DecimalException, TypeError):
        raise ToolError(
            f"expected numbers, + - * / ( ), round, min, max, abs; found {expression!r}"
        ) from None


def _evaluated(node: ast.expr) -> Decimal:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Decimal(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluated(operand)
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _OPERATORS:
            return _OPERATORS[type(kind)](_evaluated(left), _evaluated(right))
        case ast.Call(func=ast.Name(id="round"), args=[number]):
            return _evaluated(number).quantize(Decimal(1), ROUND_HALF_UP)
        case ast.Call(func=ast.Name(id="round"), args=[number, digits]):
            places = Decimal(1).scaleb(-int(_evaluated(digits)))
            return _evaluated(number).quantize(places, ROUND_HALF_UP)
        case ast.Call(func=ast.Name(id="min" | "max" | "abs" as name), args=[_, *_] as arguments):
            values = [_evaluated(argument) for argument in arguments]
            return abs(values[0]) if name == "abs" else min(values) if name == "min" else max(values)
        case _:
            raise ValueError("not understood")
