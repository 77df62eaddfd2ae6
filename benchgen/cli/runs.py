"""`benchgen runs`: what was run and what runs now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from benchgen.cli import text
from benchgen.cli.budget import budget_of, budget_options, used_of
from benchgen.cli.connection import Target
from benchgen.cli.options import help_alone, json_option, pass_target, server_options
from benchgen.cli.output import emit, fields, note, print_json, table
from benchgen.cli.run import finish

if TYPE_CHECKING:
    from benchgen.eval.v1 import run_pb2

_STATES = ("queued", "running", "scoring", "succeeded", "failed", "cancelling", "cancelled", "paused")


@click.group(invoke_without_command=True)
@click.pass_context
def runs(context: click.Context) -> None:
    """Runs: what was run and what runs now.

    RUN is a run's id, the beginning of one that fits no other, or `latest`.

    \b
    Examples:
      benchgen runs list
      benchgen runs watch latest
      benchgen runs cancel r7k2m9
      benchgen runs resume latest
    """
    help_alone(context)


def _cost(progress: run_pb2.RunProgress) -> str:
    """What a run cost so far, and at least that where it is not known of every call."""
    from benchgen import schemas

    if not progress.calls:
        return "none: no model was called"
    if progress.calls_of_unknown_cost and progress.cost_picousd:
        calls = text.counted(progress.calls_of_unknown_cost, "call")
        return f"unknown of {calls}; the others {text.usd(progress.cost_picousd / schemas.PICOUSD)}"
    return text.usd(schemas.cost_usd(progress))


@runs.command("list")
@click.option("--env", "environment", default="", metavar="NAME", help="Only runs of this environment.")
@click.option("--model", default="", metavar="NAME", help="Only runs of this model.")
@click.option("--state", type=click.Choice(_STATES), help="Only runs in this state.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="The newest N; 0 for all.",
)
@json_option
@server_options
@pass_target
def list_(
    target: Target, *, environment: str, model: str, state: str | None, limit: int, as_json: bool
) -> None:
    """List runs, newest first.

    \b
    Examples:
      benchgen runs list
      benchgen runs list --env gsm8k-mini --state running --json
    """
    from benchgen import schemas
    from benchgen.eval.v1 import run_pb2

    wanted = run_pb2.Run.State.Value(f"STATE_{(state or 'unspecified').upper()}")
    with target.connect() as client:
        found = list(
            client.list_runs(environment=environment, model=model, state=wanted, limit=limit or None)
        )
    if as_json:
        print_json([schemas.run_json(run) for run in found])
        return
    if not found:
        note(
            "no run yet: `benchgen run ENV --model NAME` makes one"
            if not (environment or model or state)
            else "none"
        )
        return
    rows = table(
        "run",
        "environment",
        "model",
        "state",
        "done",
        "accuracy",
        "created",
        "next",
        right=["done", "accuracy"],
    )
    for run in found:
        done = f"{text.count(run.progress.recorded)}/{text.count(run.spec.planned)}"
        rows.add_row(
            run.name,
            run.spec.environment,
            text.clean(schemas.subject_name(run.spec)),
            schemas.state_name(run.state),
            done,
            _accuracy(run),
            text.age(run.create_time),
            ", ".join(_commands(run)),
        )
    emit(rows)


def _accuracy(run: run_pb2.Run) -> str:
    return text.score(run.progress.passed / run.progress.scored) if run.progress.scored else "–"


@runs.command()
@click.argument("run", metavar="RUN")
@json_option
@server_options
@pass_target
def show(target: Target, *, run: str, as_json: bool) -> None:
    """Show one run: what it is, where it stands, and how far it is.

    \b
    Examples:
      benchgen runs show latest
      benchgen runs show r7k2m9 --json
    """
    from benchgen import schemas

    with target.connect() as client:
        found = client.get_run(run)
    if as_json:
        print_json(schemas.run_json(found))
        return
    spec, progress = found.spec, found.progress
    settings = {
        key: value
        for key, value in schemas.generation_json(spec.generation).items()
        if value not in (None, [], {})
    }
    message = f": {text.clean(found.state_message)}" if found.state_message else ""
    rows = [
        ("run", found.name),
        ("state", schemas.state_name(found.state) + message),
        ("environment", f"{spec.environment} (digest {spec.digest[:12]})"),
        ("model", text.clean(schemas.subject_name(spec)) + (" (simulated)" if spec.simulated else "")),
        ("cases", _selection(spec)),
        ("settings", ", ".join(f"{key} {value}" for key, value in settings.items())),
        ("seed", str(spec.seed)),
        ("done", f"{text.count(progress.recorded)} of {text.count(spec.planned)}"),
        ("faults", text.count(progress.faults)),
        ("accuracy", f"{_accuracy(found)} of {text.count(progress.scored)} scored"),
        ("calls", text.count(progress.calls)),
        ("cost", _cost(progress)),
        *([("cache", _cache(progress))] if spec.use_cache else []),
        ("budget", " · ".join(used_of(found.budget)) if found.HasField("budget") else ""),
        ("created", text.age(found.create_time)),
        *(("next", f"benchgen runs {command} {found.name}") for command in _commands(found)),
    ]
    emit(fields(rows))


def _cache(progress: run_pb2.RunProgress) -> str:
    return f"{text.count(progress.cache_hits)} of {text.count(progress.recorded)} answers"


def _commands(run: run_pb2.Run) -> list[str]:
    """The commands that can be used on a run as it stands."""
    from benchgen import schemas

    return ["rm" if action == "delete" else action for action in schemas.run_actions(run)]


def _selection(spec: run_pb2.RunSpec) -> str:
    how = "all"
    if spec.selection.limit:
        how = "the first ones"
    elif spec.selection.sample:
        how = "drawn with the seed"
    trials = f", {spec.trials} times each" if spec.trials > 1 else ""
    return f"{text.count(spec.cases)} ({how}){trials}"


@runs.command()
@click.argument("run", metavar="RUN")
@json_option
@server_options
@pass_target
def watch(target: Target, *, run: str, as_json: bool) -> None:
    """Watch a run to its end and show its report. Ctrl-C ends the watching, not the run.

    \b
    Examples:
      benchgen runs watch latest
      benchgen runs watch r7k2m9 --json
    """
    with target.connect() as client:
        finish(client, client.get_run(run), as_json=as_json)


@runs.command()
@click.argument("run", metavar="RUN")
@json_option
@server_options
@pass_target
def cancel(target: Target, *, run: str, as_json: bool) -> None:
    """Stop a run. What was recorded stays and is reported.

    \b
    Examples:
      benchgen runs cancel latest
    """
    from benchgen import schemas

    with target.connect() as client:
        stopped = client.cancel(client.get_run(run).name)
    if as_json:
        print_json(schemas.run_json(stopped))
    else:
        click.echo(f"{stopped.name} is {schemas.state_name(stopped.state)}")


@runs.command()
@click.argument("run", metavar="RUN")
@json_option
@server_options
@pass_target
def pause(target: Target, *, run: str, as_json: bool) -> None:
    """Stop a run for now. What comes back meanwhile is stored; `resume` lets it go on.

    \b
    Examples:
      benchgen runs pause latest
    """
    from benchgen import schemas

    with target.connect() as client:
        paused = client.pause(client.get_run(run).name)
    if as_json:
        print_json(schemas.run_json(paused))
    else:
        click.echo(f"{paused.name} is {schemas.state_name(paused.state)}")
        note(f"let it go on: benchgen runs resume {paused.name}")


@runs.command()
@click.argument("run", metavar="RUN")
@budget_options
@json_option
@server_options
@pass_target
def resume(target: Target, /, *, run: str, as_json: bool, **given: Any) -> None:
    """Run what is missing of a paused or ended run, and nothing else.

    Trials with a final result are not asked again; at the end there is a new report over all of them. A budget that is
    given takes the place of the one the run had; what was spent before counts.

    \b
    Examples:
      benchgen runs resume latest && benchgen runs watch latest
      benchgen runs resume latest --max-cost 5
    """
    from benchgen import schemas

    with target.connect() as client:
        before = client.get_run(run)
        resumed = client.resume(before.name, epoch=before.epoch, budget=budget_of(given))
    if as_json:
        print_json(schemas.run_json(resumed))
        return
    click.echo(f"{resumed.name} is {schemas.state_name(resumed.state)}")
    if resumed.epoch > before.epoch:
        note(f"watch it: benchgen runs watch {resumed.name}")
    else:
        note("nothing is missing" if resumed.HasField("end_time") else "it was under way already")


@runs.command()
@click.argument("run", metavar="RUN")
@server_options
@pass_target
def rm(target: Target, *, run: str) -> None:
    """Remove an ended run, with its results and reports. It cannot be brought back.

    \b
    Examples:
      benchgen runs rm r7k2m9qd4x1c
    """
    from contextlib import suppress

    from benchgen.errors import NotFound

    with target.connect() as client:
        name = client.get_run(run).name
        # It was there a moment ago: an answer may have been lost, or somebody else was faster.
        with suppress(NotFound):
            client.delete_run(name)
    click.echo(f"{name} is removed")
