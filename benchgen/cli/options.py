"""Options that many commands share, and how their help is laid out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from benchgen.cli.connection import Target

Function = TypeVar("Function", bound=Callable[..., Any])

#: The highest numbers that the server takes.
HIGHEST_COUNT = 2**31 - 1
HIGHEST_TOKENS = 2**60
HIGHEST_SEED = 2**64 - 1


def at_most(highest: int) -> Callable[[click.Context, click.Parameter, int | None], int | None]:
    """A callback that refuses higher numbers. As a part of the type it would fill the help with digits."""

    def check(_context: click.Context, _option: click.Parameter, value: int | None) -> int | None:
        if value is not None and value > highest:
            raise click.BadParameter(f"expected at most {highest:,}, found {value:,}")
        return value

    return check


class Sections(click.Group):
    """A group whose help lists its commands under headings."""

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of commands for each heading."""
        width = max(len(name) for names in self._sections.values() for name in names)
        for heading, names in self._sections.items():
            rows = [
                (name.ljust(width), command.get_short_help_str(70))
                for name in names
                if (command := self.get_command(ctx, name)) is not None
            ]
            with formatter.section(heading):
                formatter.write_dl(rows)


def help_alone(context: click.Context) -> None:
    """Show the help of a group that was called without a command."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value is not None:
        setattr(context.ensure_object(Target), str(option.name), value)


def server_options(function: Function) -> Function:
    """`--server` and `--data-dir`, which go into the context's :class:`Target`."""
    server = click.option(
        "--server",
        metavar="HOST:PORT",
        expose_value=False,
        callback=_remember,
        help="Use this server, with the key in BENCHGEN_API_KEY; https://HOST:PORT for TLS.  "
        "[env: BENCHGEN_SERVER]",
    )
    return server(data_dir_option(function))


def data_dir_option(function: Function) -> Function:
    """`--data-dir` alone, for what concerns this machine only."""
    return click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        expose_value=False,
        callback=_remember,
        help="Where the local stack keeps its data.  [env: BENCHGEN_DATA_DIR]",
    )(function)


def json_option(function: Function) -> Function:
    """`--json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else there."
    )(function)


def generation_options(function: Function) -> Function:
    """How a model is asked: what is not given is left as it is.

    `--max-reply-tokens`, since `--max-tokens` is the budget of a run.
    """
    options = (
        click.option(
            "--temperature",
            metavar="X",
            type=click.FloatRange(min=0),
            help="0 always takes the likeliest word.",
        ),
        click.option(
            "--top-p",
            metavar="X",
            type=click.FloatRange(min=0, min_open=True, max=1),
            help="Nucleus sampling.",
        ),
        click.option(
            "--max-reply-tokens",
            "max_tokens",
            metavar="N",
            type=click.IntRange(min=1),
            callback=at_most(HIGHEST_COUNT),
            help="The longest a reply may get.",
        ),
        click.option("--stop", multiple=True, metavar="TEXT", help="End replies at this text. Repeatable."),
        click.option(
            "--extra", metavar="JSON", help='Further request fields, such as \'{"reasoning_effort": "low"}\'.'
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


pass_target = click.make_pass_decorator(Target, ensure=True)
