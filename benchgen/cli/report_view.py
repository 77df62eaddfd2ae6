"""A report in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from benchgen import schemas
from benchgen.cli import competitions, text
from benchgen.cli.budget import used_of
from benchgen.cli.output import emit, fields, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from benchgen.eval.v1 import result_pb2, run_pb2

_BAR_CELLS = 40


def show_report(run: run_pb2.Run, report: result_pb2.Report) -> None:
    """Print the report, its slices, and what to look at next."""
    style = "green" if report.state == "succeeded" else "yellow"
    title = Text.assemble((report.run, "bold"), " · ", (report.state, style))
    emit(Panel(_summary(run, report), title=title, title_align="left", border_style="dim", expand=False))
    for field in sorted(report.slices):
        emit(_slices(field, report.slices[field].values, run, report))
    for hint in _hints(report):
        emit(Text(hint, style="dim"))


def _summary(run: run_pb2.Run, report: result_pb2.Report) -> RenderableType:
    head = Text.assemble((report.environment, "bold"), "  ×  ", (text.clean(report.model), "bold"))
    parts: list[RenderableType] = [head]
    if report.simulated:
        parts.append(Text("simulated answers: not a measurement of any model", style="yellow"))
    parts.append(Text())
    scores = competitions.columns_of(report) if run.spec.competition_json else _scores(report)
    parts.append(fields([*scores, *_rest(run, report)]))
    return Group(*parts)


def _scores(report: result_pb2.Report) -> Iterator[tuple[str, RenderableType]]:
    """Every rule, the primary one first and with its interval drawn."""
    primary = report.metrics[report.primary_rule]
    accuracy = _mean(primary)
    if len(report.metrics) > 1:
        accuracy.append(f"   by the rule {report.primary_rule}", style="dim not bold")
    yield "accuracy", accuracy
    if primary.ci95:
        yield "", interval_bar(primary)
    points = report.pass_at_k[report.primary_rule].points if report.primary_rule in report.pass_at_k else []
    if points:
        yield "pass@k", Text(" · ".join(f"{point.k}: {text.score(point.mean)}" for point in points))
    coverage = report.coverage
    complete = coverage.scored == coverage.planned
    share = coverage.scored / coverage.planned if coverage.planned else 0.0
    yield (
        "coverage",
        Text(
            f"{text.count(coverage.scored)} of {text.count(coverage.planned)} scored ({text.score(share)})",
            style="" if complete else "yellow",
        ),
    )
    if not complete and primary.HasField("worst"):
        bounds = f"{text.score(primary.worst)} at worst, {text.score(primary.best)} at best"
        yield "", Text(f"accuracy with the missing ones: {bounds}", style="yellow")
    verdicts = f"{text.count(primary.passed)} passed, {text.count(primary.failed)} failed"
    if primary.errors:
        verdicts += f", the rule itself failed on {text.count(primary.errors)}"
    yield "verdicts", Text(verdicts)
    for name in sorted(report.metrics):
        if name != report.primary_rule:
            yield name, _mean(report.metrics[name])


def _mean(metric: result_pb2.Metric) -> Text:
    if not metric.HasField("mean"):
        return Text("unknown: nothing was scored", style="yellow")
    line = Text(text.score(metric.mean), style="bold")
    if metric.ci95:
        line.append(f"   95% interval {_interval(metric)}", style="not bold")
    line.append(f"   n = {text.count(metric.n)}", style="not bold")
    if metric.method:
        line.append(f" ({metric.method})", style="dim not bold")
    return line


def _interval(metric: result_pb2.Metric) -> str:
    low, high = metric.ci95
    return f"{text.score(low)} to {text.score(high)}"


def interval_bar(metric: result_pb2.Metric) -> Text:
    """The interval and the mean on a scale from 0 to 1."""
    low, high = (min(max(end, 0.0), 1.0) for end in metric.ci95)
    first, last = (round(end * (_BAR_CELLS - 1)) for end in (low, high))
    middle = round(min(max(metric.mean, 0.0), 1.0) * (_BAR_CELLS - 1))
    bar = Text("0 ", style="dim")
    for cell in range(_BAR_CELLS):
        if cell == middle:
            bar.append("●", style="bold green")
        elif first <= cell <= last:
            bar.append("━", style="green")
        else:
            bar.append("─", style="dim")
    bar.append(" 1", style="dim")
    return bar


def _rest(run: run_pb2.Run, report: result_pb2.Report) -> Iterator[tuple[str, RenderableType]]:
    if report.trials > 1:
        yield "trials", Text(f"{report.trials} of each case")
    if report.HasField("latency_ms"):
        latency = report.latency_ms
        named = (("mean", latency.mean), ("p50", latency.p50), ("p95", latency.p95))
        yield "latency", Text(" · ".join(f"{name} {text.milliseconds(value)}" for name, value in named))
    if (tokens := schemas.report_json(report)["tokens"]) is not None:
        yield "tokens", Text(text.tokens(tokens["input"], tokens["output"]))
    elif report.calls:
        yield "tokens", Text("unknown: the endpoint reported none")
    yield "cost", Text(_cost(run, report))
    if run.spec.use_cache:
        yield "cache", Text(_cache(report))
    if report.HasField("budget"):
        yield "budget", Text(" · ".join(used_of(report.budget)))
    outcomes = schemas.outcomes_json(report.outcomes)
    yield (
        "outcomes",
        Text(" · ".join(f"{name.replace('_', ' ')} {text.count(n)}" for name, n in outcomes.items())),
    )
    speed = f" · {text.rate(report.coverage.recorded / report.seconds)}" if report.seconds > 0 else ""
    yield "time", Text(text.duration(report.seconds) + speed)


def _cache(report: result_pb2.Report) -> str:
    """What the response cache gave, and what that spared."""
    line = f"{text.count(report.cache_hits)} of {text.count(report.coverage.recorded)} answers"
    saved = schemas.report_json(report)["saved_tokens"]
    return (
        line if saved is None else f"{line} · spared tokens: {text.tokens(saved['input'], saved['output'])}"
    )


def _cost(run: run_pb2.Run, report: result_pb2.Report) -> str:
    """The cost, or why nobody knows it."""
    if report.HasField("cost_usd"):
        return f"{text.usd(report.cost_usd.total)} · {text.usd(report.cost_usd.per_case)} a case"
    if not report.calls:
        return "none: no model was called"
    model = run.spec.subject.model
    if model.builtin:
        return "unknown: built-in models have no price"
    if not (model.price.input_usd_per_mtok and model.price.output_usd_per_mtok):
        return f"unknown: {model.name} has no price (`benchgen model add` takes --price-in and --price-out)"
    return "unknown: the endpoint did not report the tokens of every call"


def _slices(
    field: str, values: Mapping[str, result_pb2.Metric], run: run_pb2.Run, report: result_pb2.Report
) -> Table:
    name: str = "accuracy"
    shown: Callable[[float], str] = text.score
    if run.spec.competition_json:
        name, shown = report.primary_rule, competitions.number
    rows = table(field, "n", name, "95% interval", right=["n", name])
    for value in sorted(values):
        metric = values[value]
        mean = shown(metric.mean) if metric.HasField("mean") else "–"
        interval = _interval(metric) if metric.ci95 else "–"
        rows.add_row(text.clean(value), text.count(metric.n), mean, interval)
    return rows


def _hints(report: result_pb2.Report) -> Iterator[str]:
    if report.metrics[report.primary_rule].failed:
        yield f"what failed:     benchgen results {report.run} --failed"
    else:
        yield f"case by case:    benchgen results {report.run}"
    if report.coverage.scored < report.coverage.planned:
        yield f"what is missing: benchgen results {report.run} --unscored"
