"""From what a program left behind to the results of its trials. Nothing here waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from benchgen.eval.v1 import result_pb2
from services.common.models.replies import valid
from services.common.sandbox import Ended, Finished
from services.runner.harness.chat import MAX_ERROR, Trial
from services.runner.programs.plan import RESULTS, ProgramPlan
from services.runner.proxy.calls import TrialCalls

#: Of each output of a program, over all trials that it was started for, in bytes; a trial gets at least the second.
_LOG_BYTES = 32 * 1024
_LEAST_LOG_BYTES = 2 * 1024
_RESULTS_BYTES = 64 << 20
#: So much of its time may a program have waited for the endpoint before a limit of time is not the model's doing.
_WAITING_SHARE = 0.05

_TIME_LIMITS = frozenset({Ended.WALL_LIMIT, Ended.CPU_LIMIT})


@dataclass(frozen=True, slots=True)
class Said:
    """What a program said of one trial: an answer, or why there is none."""

    response: str = ""
    error: str = ""


@dataclass(slots=True)
class Answers:
    """What a program said, by trial, and what of it could not be understood."""

    by_trial: dict[tuple[str, int], Said] = field(default_factory=dict)
    problem: str = ""


def read_answers(plan: ProgramPlan, finished: Finished, trials: Sequence[Trial]) -> Answers:
    """What a program left behind."""
    if plan.io == "text":
        answers = Answers()
        if finished.ended is Ended.EXITED and finished.exit_code == 0:
            trial = trials[0]
            text = finished.stdout.decode("utf-8", "replace").rstrip()
            answers.by_trial[trial.case_id, trial.trial] = Said(text)
        return answers
    try:
        written = finished.read(RESULTS, _RESULTS_BYTES)
    except OSError as error:
        return Answers(problem=f"its results cannot be read: {error}")
    return _read_lines(written or b"", trials)


def _read_lines(written: bytes, trials: Sequence[Trial]) -> Answers:
    answers = Answers()
    numbers: dict[str, list[int]] = {}
    for trial in trials:
        numbers.setdefault(trial.case_id, []).append(trial.trial)
    for place, line in enumerate(written.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            key, said = _read_line(line, numbers)
        except ValueError as error:
            answers.problem = answers.problem or f"results.jsonl line {place}: {error}"
            continue
        # Who corrects itself means the last one.
        answers.by_trial[key] = said
    return answers


def _read_line(line: bytes, numbers: Mapping[str, Sequence[int]]) -> tuple[tuple[str, int], Said]:
    """:raises ValueError: it is no answer to one of the trials; says why."""
    try:
        fields: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"expected a JSON object, found: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError("expected a JSON object")  # noqa: TRY004 - the file's content is at fault
    case_id = fields.get("case_id")
    if not isinstance(case_id, str) or case_id not in numbers:
        raise ValueError(f"case_id: expected one of the cases that it was given, found {str(case_id)[:80]!r}")
    known = numbers[case_id]
    trial: Any = fields.get("trial")
    if trial is None and len(known) == 1:
        trial = known[0]
    if trial not in known or isinstance(trial, bool):
        raise ValueError(f"trial: expected one of {list(known)[:5]} for case {case_id!r}, found {trial!r}")
    key = (case_id, int(trial))
    if (problem := fields.get("error")) is not None:
        return key, Said(error=str(problem) or "it said that it failed")
    response = fields.get("response")
    if not isinstance(response, str):
        raise ValueError(f"response: expected a text, found {type(response).__name__}")  # noqa: TRY004
    return key, Said(response)


def result_of(
    calls: TrialCalls, plan: ProgramPlan, finished: Finished, answers: Answers, *, batch: int
) -> result_pb2.TrialResult:
    """The result of one trial of a program that ended."""
    trial = calls.trial
    result = blank(trial, program_run(finished, batch))
    result.reported_model = calls.reported_model
    # For what is decided here; the scorer counts the calls that it has stored.
    result.calls = min(calls.tries, 10_000)
    if batch == 1:
        result.latency_ms = finished.wall_seconds * 1000
    said = answers.by_trial.get((trial.case_id, trial.trial))
    if calls.fault:
        # Whatever the program made of it: with the endpoint's answer it would have been another one.
        result.outcome, result.error = result_pb2.OUTCOME_PROVIDER_ERROR, calls.fault
    elif said is not None and not said.error:
        result.response = valid(said.response)
        empty = not said.response.strip()
        result.outcome = result_pb2.OUTCOME_EMPTY if empty else result_pb2.OUTCOME_OK
    elif finished.ended in _TIME_LIMITS and _was_kept_waiting(calls, plan):
        result.outcome = result_pb2.OUTCOME_PROVIDER_ERROR
        waited = calls.waited_seconds()
        result.error = (
            f"the program {finished.describe()}, of which it waited {waited:.1f} s for the endpoint"
        )
    elif finished.ended in _TIME_LIMITS or calls.limit_reached:
        result.outcome = result_pb2.OUTCOME_LIMIT
        result.finish_reason = finished.ended if finished.ended in _TIME_LIMITS else "call_limit"
        if plan.io == "text":
            result.response = valid(finished.stdout.decode("utf-8", "replace").rstrip())
    else:
        result.outcome = result_pb2.OUTCOME_HARNESS_ERROR
        result.error = valid(_reason(said, finished, answers.problem))[:MAX_ERROR]
    return result


def failed(
    trial: Trial, outcome: result_pb2.Outcome.ValueType, error: str, *, batch: int
) -> result_pb2.TrialResult:
    """The result of a trial whose program did not come to an end of its own."""
    result = blank(trial, result_pb2.ProgramRun(ended="not_run", batch=batch))
    result.outcome, result.error = outcome, valid(error)[:MAX_ERROR]
    return result


def blank(trial: Trial, program: result_pb2.ProgramRun) -> result_pb2.TrialResult:
    """A result that says nothing yet but how the program went."""
    return result_pb2.TrialResult(
        position=trial.position,
        trial=trial.trial,
        case_id=trial.case_id,
        input_digest=trial.input_digest,
        program=program,
    )


def _was_kept_waiting(calls: TrialCalls, plan: ProgramPlan) -> bool:
    return calls.waited_seconds() > _WAITING_SHARE * plan.limits.wall_seconds


def _reason(said: Said | None, finished: Finished, problem: str) -> str:
    """Why there is no answer."""
    if said is not None:
        return f"the program said: {said.error}"
    words = [f"no answer: the program {finished.describe()}"]
    if problem:
        words.append(problem)
    if last := finished.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]:
        words.append(f"the last it wrote to stderr: {last[:500]}")
    return "; ".join(words)


def program_run(finished: Finished, batch: int) -> result_pb2.ProgramRun:
    """How a program went, with as much of its outputs as is kept."""
    most = max(_LEAST_LOG_BYTES, _LOG_BYTES // batch)
    stdout, stderr = log_text(finished.stdout, most), log_text(finished.stderr, most)
    return result_pb2.ProgramRun(
        ended=finished.ended,
        exit_code=finished.exit_code,
        signal=finished.signal,
        wall_seconds=finished.wall_seconds,
        cpu_seconds=finished.cpu_seconds,
        peak_memory_bytes=finished.peak_memory_bytes,
        stdout=stdout,
        stderr=stderr,
        cut=finished.truncated or max(len(finished.stdout), len(finished.stderr)) > most,
        batch=batch,
    )


def log_text(output: bytes, most: int) -> str:
    """An output as text of at most so many bytes: its beginning and, more of it, its end."""
    if len(output) > most:
        note = f"\n[... {len(output) - most:,} bytes left out ...]\n".encode()
        room = most - len(note) - 16
        output = output[: room // 4] + note + output[-(room - room // 4) :]
    text = output.decode("utf-8", "replace")
    while len(text.encode()) > most:
        # What is no text takes three bytes where it had one.
        text = text[: len(text) * most // len(text.encode())]
    return text
