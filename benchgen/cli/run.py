"""`benchgen run`: the main job, from a name to a report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from benchgen.cli import text
from benchgen.cli.budget import budget_of, budget_options
from benchgen.cli.connection import Target
from benchgen.cli.environments import publish, require_manifest
from benchgen.cli.exits import Exit, Stop
from benchgen.cli.generation import generation_of
from benchgen.cli.options import (
    HIGHEST_COUNT,
    HIGHEST_SEED,
    at_most,
    generation_options,
    json_option,
    pass_target,
    server_options,
)
from benchgen.cli.output import emit, fields, note, print_json
from benchgen.cli.progress import follow

if TYPE_CHECKING:
    from benchgen.client import Client
    from benchgen.eval.v1 import result_pb2, run_pb2


Answer = TypeVar("Answer")

_SEEDS = 2**63


def _share(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """A share from 0 to 1, also as a percentage."""
    if value is None:
        return None
    try:
        share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise click.BadParameter(f"expected a share such as 0.8 or 80%, found {value!r}")
    return share


@click.command()
@click.argument("environment", metavar="ENV")
@click.option("--model", metavar="NAME", help="Who answers; see `benchgen model list`.")
@click.option(
    "--predictions",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='Score recorded answers instead: JSON lines {"case_id", "response"}; for a competition a zip.',
)
@click.option(
    "--submission",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Submit a zip to a competition: a program with its metadata, or predictions.",
)
@click.option(
    "--phase", default="", help="Only this phase of a competition, by its name or its place from 0."
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    callback=at_most(HIGHEST_COUNT),
    help="Only the first N cases.",
)
@click.option(
    "--sample",
    metavar="N",
    type=click.IntRange(min=1),
    callback=at_most(HIGHEST_COUNT),
    help="Only N cases, drawn with the seed.",
)
@click.option(
    "--trials",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="How often each case is asked.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(min=0),
    callback=at_most(HIGHEST_SEED),
    default=0,
    show_default=True,
    help="Where all randomness starts.",
)
@generation_options
@budget_options
@click.option(
    "--fail-under",
    metavar="X",
    callback=_share,
    help="Exit with code 1 below this accuracy: 0.8 or 80%.",
)
@click.option(
    "--priority",
    metavar="N",
    type=click.IntRange(-100, 100),
    default=0,
    show_default=True,
    help="Higher goes first where runs share a model.",
)
@click.option(
    "--cache",
    is_flag=True,
    help="Take answers that the same requests got before, at no cost, and keep new ones.",
)
@click.option("--estimate", is_flag=True, help="Only say what the run would take at most; make none.")
@click.option("--detach", is_flag=True, help="Come back at once, and let the run go on.")
@json_option
@server_options
@pass_target
def run(target: Target, /, *, environment: str, as_json: bool, **given: Any) -> None:
    """Put an environment to a model, and report.

    ENV is a published environment (NAME or NAME@VERSION), or the folder of one, which is published first.
    Where no server is configured, one is started on this machine.

    \b
    Examples:
      benchgen run gsm8k-mini --model builtin/simulated
      benchgen run gsm8k-mini --model gpt --limit 20
      benchgen run ./my-task --model gpt --trials 3 --temperature 0.7
      benchgen run gsm8k-mini --predictions answers.jsonl
      benchgen run gsm8k-mini --model gpt --estimate
      benchgen run gsm8k-mini --model gpt --max-cost 2.50 --max-errors 20
      benchgen run letters --submission program.zip --phase Final
      benchgen run gsm8k-mini --model gpt --fail-under 0.8 --json > report.json
      benchgen run gsm8k-mini --model gpt --cache

    \b
    Exit codes: 0 done, 1 lower than --fail-under, 2 wrong input, 3 the run did not finish, 4 no server.
    """
    from benchgen import schemas

    _check(given)
    generation = generation_of(given)
    folder = _folder(environment)
    if folder is not None:
        require_manifest(folder)
    with target.connect(start=True) as client:
        if folder is not None:
            environment = publish(client, folder).environment_version
        request = _request(client, environment, generation, given)
        if given["estimate"]:
            _show_estimate(_explained(environment, lambda: client.estimate_run(request)), as_json=as_json)
            return
        _say_most(client, request)
        made = _explained(environment, lambda: client.create_run(request))
        if given["detach"]:
            if as_json:
                print_json(schemas.run_json(made))
            else:
                click.echo(made.name)
                note(f"watch it: benchgen runs watch {made.name}")
            return
        finish(client, made, as_json=as_json, fail_under=given["fail_under"])


def _check(given: dict[str, Any]) -> None:
    named = [f"--{name}" for name in ("model", "predictions", "submission") if given[name] is not None]
    if len(named) != 1:
        found = " and ".join(named) or "none of them"
        raise click.UsageError(
            f"expected one of --model NAME, --predictions FILE and --submission FILE, found {found}"
        )
    if given["limit"] and given["sample"]:
        raise click.UsageError("expected either --limit or --sample, found both")
    if given["seed"] >= _SEEDS:
        raise click.UsageError(f"--seed: expected less than {_SEEDS}, found {given['seed']}")
    if given["detach"] and given["fail_under"] is not None:
        raise click.UsageError("--fail-under needs the report, and --detach does not wait for it")


def _request(
    client: Client, environment: str, generation: Any, given: dict[str, Any]
) -> run_pb2.CreateRunRequest:
    return _explained(
        environment,
        lambda: client.run_request(
            environment,
            model=given["model"],
            predictions=given["predictions"],
            submission=given["submission"],
            phase=given["phase"],
            limit=given["limit"] or 0,
            sample=given["sample"] or 0,
            trials=given["trials"],
            seed=given["seed"],
            generation=generation,
            priority=given["priority"],
            use_cache=given["cache"],
            budget=budget_of(given),
        ),
    )


def _explained(environment: str, ask: Callable[[], Answer]) -> Answer:
    """Ask the server about an environment; where it knows none of that name, say what else may have been meant."""
    from benchgen.errors import NotFound

    try:
        return ask()
    except NotFound as error:
        # Only who writes ./NAME means a folder; whoever forgot it is told.
        hint = f"to run the folder, write ./{environment}" if Path(environment).is_dir() else ""
        raise Stop(Exit.BAD_INPUT, error.message, hint) from None


def _say_most(client: Client, request: run_pb2.CreateRunRequest) -> None:
    """Before a run that costs something, what it costs at most, where that is known."""
    from benchgen.errors import BenchgenError

    if not request.model or request.model.startswith("builtin/"):
        return
    # What is wrong with the request is said when it is made; an older server estimates nothing.
    with suppress(BenchgenError):
        estimate = client.estimate_run(request)
        if estimate.most_cost_picousd:
            most = text.usd(estimate.most_cost_picousd / 10**12)
            note(f"{text.counted(estimate.calls, 'call')}, at most {most} without retries")


def _show_estimate(estimate: run_pb2.RunEstimate, *, as_json: bool) -> None:
    from benchgen import schemas

    document = schemas.estimate_json(estimate)
    if as_json:
        print_json(document)
        return

    def known(name: str) -> str:
        return text.UNKNOWN if document[name] is None else text.count(document[name])

    rows = [
        ("environment", estimate.environment),
        ("trials", text.count(estimate.planned)),
        ("calls", f"{text.count(estimate.calls)}, retries apart"),
        ("tokens in", f"about {known('input_tokens')}, at most {known('most_input_tokens')}"),
        ("tokens out", f"at most {known('most_output_tokens')}"),
        ("cost", f"at most {text.usd(document['most_cost_usd'])}"),
        *(("not known", reason) for reason in estimate.unknown),
    ]
    emit(fields(rows))


def _folder(environment: str) -> Path | None:
    """The folder that ENV means, if it means one. A plain word is always a name."""
    path = Path(environment).expanduser()
    if environment.startswith((".", "/", "~")) or environment.endswith("/"):
        if not path.is_dir():
            raise Stop(Exit.BAD_INPUT, f"there is no folder {environment}")
        return path
    # `org/name` is a name too, unless there is such a folder.
    manifests = (path / "environment.yaml", path / "competition.yaml")
    return path if "/" in environment and any(one.is_file() for one in manifests) else None


def finish(client: Client, run: run_pb2.Run, *, as_json: bool, fail_under: float | None = None) -> None:
    """Watch a run to its end and show its report; ends the command where run or gate did not succeed."""
    from benchgen import schemas
    from benchgen.eval.v1 import run_pb2

    ended = follow(client, run)
    report = _report(client, ended)
    failure = None if report is None or fail_under is None else gate_failure(report, fail_under)
    if as_json:
        document = schemas.run_json(ended) if report is None else schemas.report_json(report)
        if report is not None and fail_under is not None:
            document["gate"] = {"fail_under": fail_under, "passed": failure is None}
        print_json(document)
    elif report is not None:
        from benchgen.cli.report_view import show_report

        show_report(ended, report)
    if ended.state != run_pb2.Run.STATE_SUCCEEDED:
        why = f": {ended.state_message}" if ended.state_message else ""
        hint = ""
        if "resume" in schemas.run_actions(ended):
            hint = f"let it go on: benchgen runs resume {ended.name}"
            if ended.state == run_pb2.Run.STATE_PAUSED and ended.HasField("budget"):
                hint += ", with --max-... for more"
        raise Stop(Exit.UNFINISHED, f"the run {ended.name} is {schemas.state_name(ended.state)}{why}", hint)
    if failure is not None:
        raise Stop(Exit.GATE_FAILED, failure)


def _report(client: Client, run: run_pb2.Run) -> result_pb2.Report | None:
    """The report of a run that has stopped; None where it has none."""
    from benchgen.errors import FailedPrecondition, NotFound
    from benchgen.eval.v1 import run_pb2

    if run.state == run_pb2.Run.STATE_PAUSED:
        return None
    try:
        return client.report(run.name)
    except (FailedPrecondition, NotFound):
        if run.state == run_pb2.Run.STATE_SUCCEEDED:
            raise
        return None


def gate_failure(report: result_pb2.Report, fail_under: float) -> str | None:
    """Why a report does not pass the gate, or None where it does.

    Missing results are not zeros, but they must not open a gate either: it opens when it would even at worst.
    """
    rule = report.primary_rule
    metric = report.metrics[rule]
    if not metric.HasField("mean"):
        return f"the gate is closed: nothing was scored, and {fail_under:g} was asked for"
    if metric.mean < fail_under:
        return f"the gate is closed: {rule} is {metric.mean:.4f}, and {fail_under:g} was asked for"
    if metric.HasField("worst") and metric.worst < fail_under:
        missing = report.coverage.planned - report.coverage.scored
        return (
            f"the gate is closed: {rule} is {metric.mean:.4f}, but {missing} of "
            f"{report.coverage.planned} results are missing, and with them it could be {metric.worst:.4f}"
        )
    return None
