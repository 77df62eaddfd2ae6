"""`benchgen report` and `benchgen results`: the numbers of a run, and the cases behind them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchgen.cli import competitions
from benchgen.cli.connection import Target
from benchgen.cli.exits import Exit, Stop
from benchgen.cli.options import json_option, pass_target, server_options
from benchgen.cli.output import note, print_json, print_json_list

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from benchgen.client.client import Client, Which
    from benchgen.eval.v1 import result_pb2

_SHOWN = 20


@click.command()
@click.argument("run", metavar="RUN")
@json_option
@server_options
@pass_target
def report(target: Target, *, run: str, as_json: bool) -> None:
    """Show the report of a run that has ended.

    RUN is a run's id, the beginning of one that fits no other, or `latest`.

    \b
    Examples:
      benchgen report latest
      benchgen report r7k2m9 --json
    """
    from benchgen import schemas
    from benchgen.cli.report_view import show_report
    from benchgen.errors import FailedPrecondition

    with target.connect() as client:
        found = client.get_run(run)
        try:
            numbers = client.report(found.name)
        except FailedPrecondition:
            raise Stop(
                Exit.UNFINISHED,
                f"the run {found.name} is {schemas.state_name(found.state)} and has no report yet",
                f"`benchgen runs watch {found.name}` waits for it",
            ) from None
    if as_json:
        print_json(schemas.report_json(numbers))
    else:
        show_report(found, numbers)


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--failed", "which", flag_value="failed", help="Only those that did not pass.")
@click.option("--passed", "which", flag_value="passed", help="Only those that passed.")
@click.option(
    "--unscored",
    "which",
    flag_value="unscored",
    help="Only those without a score: faults, not wrong answers.",
)
@click.option("--case", "case_id", default="", metavar="ID", help="Only this case.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=0),
    help=f"The first N; 0 for all. [default: {_SHOWN}, with --json all]",
)
@click.option("--full", is_flag=True, help="Show inputs and responses whole, and what a program printed.")
@click.option(
    "--calls",
    "with_calls",
    is_flag=True,
    help="Show the model calls that the program of an environment made; with --json as `model_calls`.",
)
@click.option(
    "--logs", is_flag=True, help="Show what the programs of a competition wrote; with --json as `task`."
)
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write what each task of a competition gave into this folder: predictions, detailed results, cases.",
)
@json_option
@server_options
@pass_target
def results(
    target: Target,
    *,
    run: str,
    which: Which | None,
    case_id: str,
    limit: int | None,
    full: bool,
    with_calls: bool,
    logs: bool,
    save: Path | None,
    as_json: bool,
) -> None:
    """Show a run case by case: question, answer, expected answer, verdict.

    RUN is a run's id, the beginning of one that fits no other, or `latest`.

    \b
    Examples:
      benchgen results latest --failed
      benchgen results r7k2m9 --case gsm8k-mini-007 --full
      benchgen results latest --case trip-03 --calls
      benchgen results latest --logs
      benchgen results latest --json > results.json
    """
    from benchgen.cli.result_view import show_calls, show_result

    if limit is None and not as_json:
        limit = _SHOWN
    with target.connect() as client:
        found = client.get_run(run)
        # One more than is shown tells whether there are more.
        asked = limit + 1 if limit else None
        listed = client.results(found.name, which=which or "all", case_id=case_id, limit=asked)
        if as_json:
            wanted = islice(listed, limit or None)
            print_json_list(_documents(client, wanted, calls=with_calls, logs=logs))
            return
        shown = list(islice(listed, limit)) if limit else listed
        first: result_pb2.Result | None = None
        for result in shown:
            first = first or result
            show_result(found.spec, result, full=full)
            if with_calls:
                show_calls(client.calls(found.name, result.case_id, result.trial), full=full)
            if logs:
                competitions.show_task(client.task(found.name, result.case_id, result.trial))
            if save is not None:
                _save(client, result, save)
        if first is None:
            note(f"no {which} results" if which else "no results")
        elif limit and next(listed, None) is not None:
            note(f"the first {limit}; there are more: --limit 0 shows all")


def _documents(
    client: Client, results: Iterable[result_pb2.Result], *, calls: bool, logs: bool
) -> Iterator[dict[str, Any]]:
    """Results, with the calls that their programs made and with what these wrote, where that is wanted."""
    from benchgen import schemas

    for result in results:
        document = schemas.result_json(result)
        if calls:
            made = (
                client.calls(result.run, result.case_id, result.trial) if result.HasField("program") else ()
            )
            document["model_calls"] = [schemas.call_json(call) for call in made]
        if logs:
            document["task"] = schemas.task_json(client.task(result.run, result.case_id, result.trial))
        yield document


def _save(client: Client, result: result_pb2.Result, folder: Path) -> None:
    """Write the files of a task. Its name comes from the bundle, so it makes no path."""
    from benchgen.errors import NotFound, PermissionDenied
    from benchgen.eval.v1 import result_pb2

    files = result_pb2.DownloadTaskFileRequest
    for name, file in (
        ("predictions.zip", files.FILE_PREDICTIONS),
        ("details.html", files.FILE_DETAILS),
        ("cases.jsonl", files.FILE_CASES),
    ):
        try:
            data = client.task_file(result.run, result.case_id, result.trial, file=file)
        except (NotFound, PermissionDenied):
            continue
        target = folder / f"{result.position}-{result.trial}" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        note(f"wrote {target}")
