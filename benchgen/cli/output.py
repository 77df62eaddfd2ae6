"""Where the command writes: answers to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_WIDEST = 110


def console(*, err: bool = False) -> Console:
    """A console on stdout or stderr. It styles on a terminal only and takes every text literally."""
    from rich.console import Console

    made = Console(file=sys.stderr if err else sys.stdout, markup=False, highlight=False, emoji=False)
    if made.width > _WIDEST or not (made.is_terminal or os.environ.get("COLUMNS")):
        made.width = _WIDEST
    return made


def emit(renderable: RenderableType, target: Console | None = None) -> None:
    """Print to stdout, without the blanks that rich puts at the ends of lines."""
    target = target or console()
    with target.capture() as captured:
        target.print(renderable)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def note(text: str) -> None:
    """One line on stderr, for people."""
    click.echo(text, err=True)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_json_list(documents: Iterable[Any]) -> None:
    """One JSON list on stdout, written while it is read: lists can be longer than memory."""
    separator = "["
    for document in documents:
        click.echo(f"{separator}\n{json.dumps(document, ensure_ascii=False)}", nl=False)
        separator = ","
    click.echo("[]" if separator == "[" else "\n]")


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table with a thin line under its head.

    :param right: the columns of numbers.
    """
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def fields(rows: Iterable[tuple[str, Any]]) -> Table:
    """Two columns: what it is, and what it says. Rows that say nothing are left out."""
    from rich.table import Table
    from rich.text import Text

    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        if value not in (None, ""):
            made.add_row(name, Text(value) if isinstance(value, str) else value)
    return made
