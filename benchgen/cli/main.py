"""The entry point: the commands in their groups, and every failure as one clear line with an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

from benchgen import errors
from benchgen.cli import environments, keys, models, results, run, runs, stack
from benchgen.cli.exits import Exit, Stop
from benchgen.cli.options import Sections, help_alone, server_options

_SECTIONS = {
    "This machine": ["up", "status", "down"],
    "What to measure": ["env", "model"],
    "Who may": ["keys"],
    "Measure": ["run", "runs", "report", "results"],
}


@click.group(
    cls=Sections,
    sections=_SECTIONS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", "show_version", is_flag=True, help="Show the version and stop.")
@server_options
@click.pass_context
def cli(context: click.Context, *, show_version: bool) -> None:
    """Measure how well a language model does a task.

    An environment holds the questions and says how answers are judged. A run puts one environment to one
    model and ends with a report: accuracy with its uncertainty, latency, tokens and cost.

    \b
    Try it, with a made-up model that is right in 8 of 10 cases:
      benchgen run gsm8k-mini --model 'builtin/simulated?accuracy=0.8'
    Then with a real one:
      benchgen model add gpt --base-url https://api.openai.com/v1 \\
          --model gpt-4.1-mini --api-key-env OPENAI_API_KEY
      benchgen run gsm8k-mini --model gpt --limit 20
    """
    if show_version:
        click.echo(f"benchgen {_version()}")
    else:
        help_alone(context)


for command in (
    stack.up,
    stack.down,
    stack.status,
    environments.env,
    models.model,
    keys.keys,
    run.run,
    runs.runs,
    results.report,
    results.results,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see :class:`~benchgen.cli.exits.Exit`."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not end a report.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = cli.main(
            args=None if arguments is None else list(arguments), prog_name="benchgen", standalone_mode=False
        )
        sys.stdout.flush()
    except Stop as stop:
        _say(stop.message, stop.hint, is_error=stop.code != Exit.INTERRUPTED)
        return stop.code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "benchgen"
        _say(error.format_message(), f"`{where} --help` shows how it is used")
        return Exit.BAD_INPUT
    except click.ClickException as error:
        _say(error.format_message())
        return Exit.BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except errors.BenchgenError as error:
        return _explain(error)
    except Exception as error:
        if os.environ.get("BENCHGEN_DEBUG"):
            traceback.print_exc()
        _say(
            f"something unexpected happened: {type(error).__name__}: {error}", "BENCHGEN_DEBUG=1 shows where"
        )
        return Exit.UNFINISHED
    return code if isinstance(code, int) else Exit.DONE


def _explain(error: errors.BenchgenError) -> Exit:
    """Print an error of the library or the server, and choose the exit code."""
    if isinstance(error, errors.Unavailable):
        _say(f"cannot reach the server: {error.message}", "`benchgen status` shows what runs here")
        return Exit.UNREACHABLE
    if problems := getattr(error, "problems", None):
        for problem in problems:
            click.echo(str(problem), err=True)
        count = len(problems) + int(getattr(error, "more", 0))
        _say(f"{count} problem{'' if count == 1 else 's'} found")
        return Exit.BAD_INPUT
    hint = ""
    if isinstance(error, errors.Unauthenticated):
        hint = "set BENCHGEN_API_KEY to a key of this server"
    _say(error.message, hint)
    return Exit.UNFINISHED if type(error) is errors.BenchgenError else Exit.BAD_INPUT


def _say(message: str, hint: str = "", *, is_error: bool = True) -> None:
    prefix = click.style("error:", fg="red", bold=True) + " " if is_error else ""
    click.echo(prefix + message, err=True)
    if hint:
        click.echo(click.style("  hint: ", dim=True) + hint if is_error else hint, err=True)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("benchgen")
    except PackageNotFoundError:
        return "(from a folder)"


if __name__ == "__main__":
    sys.exit(main())
