"""One result in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click
from rich.text import Text

from benchgen import schemas
from benchgen.cli import competitions, text
from benchgen.cli.output import emit, fields

if TYPE_CHECKING:
    from rich.console import RenderableType

    from benchgen.eval.v1 import result_pb2, run_pb2

_SHORT = 400
_HIDDEN = "hidden: this API key lacks the scope `answers`"


def show_result(spec: run_pb2.RunSpec, result: result_pb2.Result, *, full: bool) -> None:
    """Print one result.

    :param full: whether to show the whole conversation and response, not the last question and a short form.
    """
    primary = next((score for score in result.scores if score.rule == spec.primary_rule), None)
    emit(_head(spec, result, primary))
    if spec.competition_json:
        emit(fields([(f"  {name}", value) for name, value in competitions.rows_of_result(result)]))
        click.echo()
        return
    rows = [*_asked(result, full), *_answered(result, full), *_judged(spec, result), *_ran(result, full)]
    emit(fields([(f"  {name}", value) for name, value in rows]))
    click.echo()


def _head(spec: run_pb2.RunSpec, result: result_pb2.Result, primary: result_pb2.Score | None) -> Text:
    verdict, style = "– no score", "yellow"
    if primary is not None and primary.HasField("passed"):
        verdict, style = ("✓ passed", "green") if primary.passed else ("✗ failed", "red")
    elif primary is not None and primary.HasField("value"):
        verdict, style = f"• {primary.value:.4g}", "bold"
    head = Text.assemble((verdict, style), "  ", (text.clean(result.case_id), "bold"))
    if spec.trials > 1:
        head.append(f"  trial {result.trial}")
    outcome = schemas.outcome_name(result.outcome)
    if outcome != "ok":
        head.append(f"  {outcome.replace('_', ' ')}", style="yellow")
    head.append("  " + " · ".join(_measured(result)), style="dim")
    return head


def _measured(result: result_pb2.Result) -> Iterator[str]:
    if result.cached:
        yield "from the cache"
    if result.HasField("latency_ms"):
        yield text.milliseconds(result.latency_ms)
    usage = schemas.usage_json(result.usage)
    if usage is not None:
        yield f"tokens {text.tokens(usage['input'], usage['output'])}"
    if result.HasField("cost_picousd"):
        yield text.usd(result.cost_picousd / schemas.PICOUSD)
    if result.failed_calls:
        yield f"tried {len(result.failed_calls) + 1} times"


def _asked(result: result_pb2.Result, full: bool) -> Iterator[tuple[str, str]]:
    if full:
        for message in result.input:
            yield message.role, text.clean(message.content)
        return
    asked = [message.content for message in result.input if message.role == "user"]
    if asked:
        yield "input", _short(asked[-1])


def _answered(result: result_pb2.Result, full: bool) -> Iterator[tuple[str, RenderableType | str]]:
    if full and result.reasoning:
        yield "reasoning", text.clean(result.reasoning)
    response = text.clean(result.response) if full else _short(result.response)
    if response:
        yield "response", response
    elif not result.error:
        # An answer that is OK has a text: this one was made of the reference solution, and is not shown.
        hidden = result.outcome == result_pb2.OUTCOME_OK and not result.target_json
        yield "response", Text(_HIDDEN if hidden else "(empty)", style="dim")
    if result.HasField("payload"):
        yield "", Text(f"cut here; the whole reply has {text.size(result.payload.size_bytes)}", style="dim")
    if result.error:
        yield "error", Text(text.clean(result.error), style="yellow")
    yield "expected", _expected(result.target_json)


def _expected(target_json: str) -> str | Text:
    if not target_json:
        return Text(_HIDDEN, style="dim")
    target = json.loads(target_json)
    return text.clean(target if isinstance(target, str) else json.dumps(target, ensure_ascii=False))


def _judged(spec: run_pb2.RunSpec, result: result_pb2.Result) -> Iterator[tuple[str, RenderableType | str]]:
    for score in result.scores:
        name = "answer" if score.rule == spec.primary_rule else score.rule
        if score.error:
            yield name, Text(f"the rule failed: {text.clean(score.error)}", style="yellow")
            continue
        found = text.clean(score.answer) if score.HasField("answer") else "nothing found"
        line = Text(found)
        if score.explanation:
            line.append(f"  {text.clean(score.explanation)}", style="dim")
        yield name, line


def _ran(result: result_pb2.Result, full: bool) -> Iterator[tuple[str, RenderableType | str]]:
    """How the program of a harness went, where that is worth saying."""
    if not result.HasField("program"):
        return
    program = result.program
    how = schemas.program_end(program)
    if full or how != "exit 0":
        line = f"{how} · {program.wall_seconds:.2f} s · {result.calls} model calls"
        yield "program", Text(line, style="dim")
    if full or result.error:
        for name, output in (("stdout", program.stdout), ("stderr", program.stderr)):
            if output.strip():
                yield name, text.clean(output if full else output[-_SHORT:]).strip()


def show_calls(calls: Iterable[result_pb2.ModelCall], *, full: bool) -> None:
    """Print the model calls of one trial.

    :param full: whether to show whole messages, not the last one and a short form.
    """
    for call in calls:
        head = Text(f"  call {call.number}", style="bold")
        head.append("  " + " · ".join(_call_measured(call)), style="dim")
        emit(head)
        emit(fields([(f"    {name}", value) for name, value in _call_said(call, full)]))
    click.echo()


def _call_measured(call: result_pb2.ModelCall) -> Iterator[str]:
    if call.HasField("latency_ms"):
        yield text.milliseconds(call.latency_ms)
    usage = schemas.usage_json(call.usage)
    if usage is not None:
        yield f"tokens {text.tokens(usage['input'], usage['output'])}"
    if call.HasField("cost_picousd"):
        yield text.usd(call.cost_picousd / schemas.PICOUSD)
    if call.failed_calls:
        yield f"tried {call.calls} times"
    if call.answered_by:
        yield f"answered by call {call.answered_by}"


def _call_said(call: result_pb2.ModelCall, full: bool) -> Iterator[tuple[str, RenderableType | str]]:
    shown = text.clean if full else _short
    if not call.request_json:
        yield "", Text(_HIDDEN, style="dim")
        return
    asked = schemas.call_messages(json.loads(call.request_json))
    for role, content in asked if full else asked[-1:]:
        yield role, shown(content)
    if call.error:
        yield "error", Text(text.clean(call.error), style="yellow")
    elif call.answer_json:
        yield "answer", shown(schemas.call_answer(json.loads(call.answer_json)))


def _short(content: str) -> str:
    return text.shortened(" ".join(text.clean(content).split()), _SHORT)
