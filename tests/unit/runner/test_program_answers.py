"""What a program left behind, read: lines, logs, and what cannot be understood."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.sandbox import Ended, Finished
from services.runner.harness.chat import Trial
from services.runner.programs.answers import Said, log_text, read_answers
from services.runner.programs.plan import ProgramPlan, read_plan

HARNESS = """{"type": "program", "program": "x", "command": ["run"], "io": "IO", "batch": 4, "calls": 5,
"runtime": "default", "limits": {"seconds": 1.0, "cpu_seconds": 1.0, "memory_mb": 64, "processes": 4, "disk_mb": 8,
"output_mb": 1}}"""
TRIALS = [Trial(0, 0, "a", [], ""), Trial(1, 0, "b", [], ""), Trial(1, 1, "b", [], "")]


def plan(way: str = "jsonl") -> ProgramPlan:
    return read_plan(HARNESS.replace("IO", way))


def finished(results: bytes = b"", **fields: Any) -> Finished:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo("results.jsonl")
        info.size = len(results)
        tar.addfile(info, io.BytesIO(results))
    given: dict[str, Any] = {
        "ended": Ended.EXITED,
        "exit_code": 0,
        "signal": None,
        "stdout": b"",
        "stderr": b"",
        "truncated": False,
        "files": {"/app/output": packed},
        "refused": (),
        "wall_seconds": 0.5,
        "cpu_seconds": 0.1,
        "peak_memory_bytes": None,
    }
    return Finished(**(given | fields))


def test_the_last_line_of_a_trial_counts() -> None:
    lines = b"""
{"case_id": "a", "response": "first"}
{"case_id": "b", "trial": 1, "response": "one"}

{"case_id": "a", "trial": 0, "response": "second", "more": [1]}
{"case_id": "b", "trial": 0, "error": "no idea"}
"""
    answers = read_answers(plan(), finished(lines), TRIALS)
    assert answers.by_trial == {
        ("a", 0): Said("second"),
        ("b", 1): Said("one"),
        ("b", 0): Said(error="no idea"),
    }
    assert answers.problem == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "line 1: expected a JSON object"),
        (b"[]", "line 1: expected a JSON object"),
        (
            b'{"case_id": "z", "response": ""}',
            "case_id: expected one of the cases that it was given, found 'z'",
        ),
        (b'{"case_id": "b", "response": ""}', "trial: expected one of [0, 1] for case 'b', found None"),
        (b'{"case_id": "b", "trial": 2, "response": ""}', "found 2"),
        (b'{"case_id": "b", "trial": true, "response": ""}', "found True"),
        (b'{"case_id": "a", "response": null}', "response: expected a text, found NoneType"),
        (b"\xff", "line 1: expected a JSON object"),
    ],
)
def test_lines_that_cannot_be_understood_are_told(line: bytes, said: str) -> None:
    answers = read_answers(plan(), finished(line + b"\n"), TRIALS)
    assert answers.by_trial == {}
    assert said in answers.problem


def test_what_is_printed_is_the_answer_if_the_program_says_that_it_went_well() -> None:
    trial = TRIALS[:1]
    assert read_answers(plan("text"), finished(stdout=b"42 \n\n"), trial).by_trial == {("a", 0): Said("42")}
    assert read_answers(plan("text"), finished(stdout=b"42", exit_code=1), trial).by_trial == {}
    killed = finished(stdout=b"42", ended=Ended.SIGNALLED, exit_code=None, signal=9)
    assert read_answers(plan("text"), killed, trial).by_trial == {}


@given(st.binary(max_size=20_000), st.integers(min_value=2_048, max_value=8_192))
def test_a_log_never_takes_more_than_it_may(output: bytes, most: int) -> None:
    kept = log_text(output, most)
    assert len(kept.encode()) <= most
    if len(output) <= most // 3:
        assert kept == output.decode("utf-8", "replace")


def test_of_a_long_log_the_end_is_kept() -> None:
    kept = log_text(b"begin" + b"x" * 100_000 + b"end", 4_096)
    assert kept.startswith("begin")
    assert kept.endswith("end")
    assert "bytes left out" in kept
