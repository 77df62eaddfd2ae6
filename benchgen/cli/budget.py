"""Budgets on the command line: from options to a message, and back for people."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, TypeVar

import click

from benchgen.cli import text
from benchgen.cli.options import HIGHEST_COUNT, HIGHEST_TOKENS, at_most

if TYPE_CHECKING:
    from benchgen.eval.v1 import run_pb2

Function = TypeVar("Function", bound=Callable[..., Any])

_PICOUSD = 10**12
_MOST_USD = 10**6
_MOST_SECONDS = 3_650 * 86_400
_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "min": 60, "s": 1}
_PARTS = re.compile(r"(?:(\d+(?:\.\d+)?)\s*(d|h|min|m|s))", re.ASCII)
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:d|h|min|m|s)\s*)+", re.ASCII)


def read_usd(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """US dollars, as a whole number of 1e-12 of one."""
    if value is None:
        return None
    try:
        amount = Decimal(value.removeprefix("$"))
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or not 0 <= amount <= _MOST_USD:
        raise click.BadParameter(f"expected US dollars such as 2.50, found {value!r}")
    return int(amount * _PICOUSD)


def read_period(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """A time such as `90s` or `1h30m`, in seconds; a number alone is of seconds."""
    if value is None:
        return None
    written, seconds = value.strip(), 0.0
    if re.fullmatch(r"\d+(\.\d+)?", written, re.ASCII):
        seconds = float(written)
    elif _DURATION.fullmatch(written):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PARTS.findall(written))
    if seconds <= 0:
        raise click.BadParameter(f"expected a time such as 90s, 20m or 1h30m, found {value!r}")
    if seconds > _MOST_SECONDS:
        raise click.BadParameter(f"expected at most 3650d, found {value!r}")
    return seconds


def budget_options(function: Function) -> Function:
    """`--max-cost`, `--max-tokens` and so on; what is not given is not limited."""
    options = (
        click.option(
            "--max-cost",
            metavar="USD",
            callback=read_usd,
            help="Pause the run before it costs more US dollars. Needs a model with a known price.",
        ),
        click.option(
            "--max-tokens",
            "max_total_tokens",
            metavar="N",
            type=click.IntRange(min=0),
            callback=at_most(HIGHEST_TOKENS),
            help="Pause the run before it uses more tokens, in and out.",
        ),
        click.option(
            "--max-time",
            metavar="DURATION",
            callback=read_period,
            help="Pause the run after so much working time: 90s, 1h30m.",
        ),
        click.option(
            "--max-errors",
            metavar="N",
            type=click.IntRange(min=0),
            callback=at_most(HIGHEST_COUNT),
            help="Pause the run when more results than this stand at a fault.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def budget_of(given: Mapping[str, Any]) -> run_pb2.Budget | None:
    """What the options of ``budget_options`` say; None where none was given."""
    from benchgen.eval.v1 import run_pb2

    names = ("max_cost", "max_total_tokens", "max_time", "max_errors")
    if all(given[name] is None for name in names):
        return None
    budget = run_pb2.Budget(
        cost_picousd=given["max_cost"], tokens=given["max_total_tokens"], errors=given["max_errors"]
    )
    if given["max_time"] is not None:
        budget.time.FromTimedelta(timedelta(seconds=given["max_time"]))
    return budget


def used_of(budget: run_pb2.Budget) -> Iterator[str]:
    """What was used of each limit, such as `$0.10 of $2.00`."""
    used = budget.used
    if budget.HasField("cost_picousd"):
        reserved = (
            f" ({text.usd(used.reserved_picousd / _PICOUSD)} reserved)" if used.reserved_picousd else ""
        )
        yield (
            f"{text.usd(used.cost_picousd / _PICOUSD)} of {text.usd(budget.cost_picousd / _PICOUSD)}{reserved}"
        )
    if budget.HasField("tokens"):
        yield f"{text.count(used.tokens)} of {text.count(budget.tokens)} tokens"
    if budget.HasField("time"):
        spent, limit = (moment.ToTimedelta().total_seconds() for moment in (used.time, budget.time))
        yield f"{text.duration(spent)} of {text.duration(limit)}"
    if budget.HasField("errors"):
        yield f"{text.count(used.errors)} of {text.counted(budget.errors, 'error')}"
