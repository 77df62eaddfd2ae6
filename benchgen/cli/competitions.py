"""What the command line says about ``competition.yaml`` bundles."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from benchgen.cli import text
from benchgen.cli.exits import Exit, Stop
from benchgen.cli.output import emit, note, print_json, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from benchgen.bundle import BundleTree
    from benchgen.bundle.competition import Competition, ReadCompetition
    from benchgen.eval.v1 import environment_pb2, result_pb2


def tell(tree: BundleTree, read: ReadCompetition, *, as_json: bool) -> None:
    """Say that a bundle is valid, what is in it, and what was probably not meant."""
    competition = read.competition
    if as_json:
        print_json(
            {
                "valid": True,
                "name": competition.slug,
                "digest": tree.digest,
                "cases": sum(len(phase.tasks) for phase in competition.phases),
                "problems": [],
                "warnings": [str(warning) for warning in read.warnings],
                "competition": outline(competition),
            }
        )
        return
    for warning in read.warnings:
        note(f"warning: {warning}")
    counts = ", ".join(
        text.counted(len(things), noun)
        for things, noun in (
            (competition.phases, "phase"),
            (competition.tasks, "task"),
            (competition.solutions, "solution"),
            (competition.columns, "column"),
        )
    )
    click.echo(
        f"valid: {competition.title} (competition.yaml, version {competition.dialect}), {counts},"
        f" digest {tree.digest[:12]}"
    )


def outline(competition: Competition) -> dict[str, Any]:
    """The phases, tasks and columns of a competition, as JSON."""
    return {
        "version": competition.dialect.value,
        "title": competition.title,
        "phases": [
            {
                "name": phase.name,
                "tasks": [competition.task(index).name for index in phase.tasks],
                "start": phase.start and phase.start.isoformat(),
                "end": phase.end and phase.end.isoformat(),
                "seconds": phase.seconds,
            }
            for phase in competition.phases
        ],
        "solutions": [solution.name for solution in competition.solutions],
        "columns": [
            {
                "key": column.key,
                "title": column.title,
                "sorting": column.sorting,
                "computation": column.computation,
                "primary": column.key == competition.board.primary.key,
            }
            for column in competition.columns
        ],
    }


def said_of(one: environment_pb2.SolutionScores) -> str:
    """What a solution scored, in a line."""
    scores = ", ".join(f"{column} {one.scores[column]:g}" for column in sorted(one.scores))
    if one.error:
        return f"{scores}; {text.clean(one.error)}" if scores else f"no scores: {text.clean(one.error)}"
    return scores or "no scores"


def rows_of(about: dict[str, Any], verification: environment_pb2.Verification) -> Iterator[tuple[str, str]]:
    """What `env show` says of a competition."""
    for phase in about["phases"]:
        dates = " to ".join(date[:10] for date in (phase["start"], phase["end"]) if date)
        tasks = ", ".join(task["name"] for task in phase["tasks"])
        yield (
            f"phase {phase['index']}",
            text.clean(f"{phase['name']}: {tasks}" + (f" ({dates})" if dates else "")),
        )
    board = about["leaderboard"]
    columns = ", ".join(
        f"{column['key']} ({column['computation'] or column['sorting']})" for column in board["columns"]
    )
    yield "columns", text.clean(columns)
    if about["pages"]:
        yield "pages", text.clean(", ".join(page["title"] for page in about["pages"]))
    for one in verification.solutions:
        yield "solution", text.clean(f"{one.solution} on {one.case_id}: {said_of(one)}")
    for warning in about["warnings"]:
        yield "warning", text.clean(warning)


def number(value: float) -> str:
    """A column's value: it is a share only where the bundle means it so."""
    return f"{value:.6g}"


def columns_of(report: result_pb2.Report) -> Iterator[tuple[str, RenderableType]]:
    """What a report says of every column, the one that ranks first."""
    from rich.text import Text

    names = sorted(report.metrics, key=lambda name: (name != report.primary_rule, name))
    for name in names:
        metric = report.metrics[name]
        if not metric.HasField("mean"):
            yield text.clean(name), Text("no score", style="yellow")
            continue
        tasks = f"   mean of {metric.n} tasks" if metric.n > 1 else ""
        missing = f"   {text.counted(metric.missing, 'task')} without a score" if metric.missing else ""
        line = Text(number(metric.mean), style="bold")
        line.append(tasks, style="dim not bold")
        line.append(missing, style="yellow")
        yield text.clean(name), line
    coverage = report.coverage
    yield (
        "coverage",
        Text(f"{coverage.scored} of {text.counted(coverage.planned, 'task')} scored in every column"),
    )
    if report.totals_only:
        yield "", Text("this bundle gives totals only: it says nothing of single cases", style="dim")


def rows_of_result(result: result_pb2.Result) -> Iterator[tuple[str, RenderableType]]:
    """What a task of a competition gave: every column, and the files of the predictions."""
    from rich.text import Text

    for score in result.scores:
        if score.HasField("value"):
            yield text.clean(score.rule), number(score.value)
        else:
            yield text.clean(score.rule), Text(text.clean(score.error), style="yellow")
    if result.error:
        yield "error", Text(text.clean(result.error), style="yellow")
    if result.response:
        made = json.loads(result.response)
        yield "files", text.clean(", ".join(made["files"])) or "none"
        if made["limit"]:
            yield "limit", Text(f"the prediction {text.clean(made['limit'])}", style="yellow")


def phase_of(version: environment_pb2.EnvironmentVersion, phase: str) -> int:
    """The place of a phase that is given by name or by place."""
    if not version.competition_json:
        raise Stop(
            Exit.BAD_INPUT, f"{version.name} is no competition.yaml environment: it has no leaderboard"
        )
    names = [one["name"] for one in json.loads(version.competition_json)["phases"]]
    if phase in names:
        return names.index(phase)
    if phase.isdecimal() and int(phase) < len(names):
        return int(phase)
    raise Stop(Exit.BAD_INPUT, f"expected one of the phases {', '.join(names)}, found {phase!r}")


def show_leaderboard(board: result_pb2.Leaderboard) -> None:
    """Print a leaderboard."""
    if not board.entries:
        note("no run has been reported for this phase yet")
        return
    rows = table("place", "run", "model", *board.columns, right=["place", *board.columns])
    for entry in board.entries:
        scores = (f"{entry.scores[key]:g}" if key in entry.scores else "–" for key in board.columns)
        rows.add_row(str(entry.place), entry.run, text.clean(entry.label), *scores)
    emit(rows)


def show_task(task: result_pb2.Task) -> None:
    """Print how a task went."""
    for program in task.programs:
        code = f", exit code {program.exit_code}" if program.HasField("exit_code") else ""
        click.echo(
            f"  {program.step}: {program.name} {program.ended}{code}, {text.duration(program.seconds)}"
        )
        for name, output in (("stdout", program.stdout), ("stderr", program.stderr)):
            for line in text.clean(output).splitlines():
                click.echo(f"    {name}: {line}")
    if task.error:
        click.echo(f"  no scores: {text.clean(task.error)}")
