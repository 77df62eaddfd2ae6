"""``code_tests``: a response's code and hidden tests, in a box of their own."""

from __future__ import annotations

import marshal
import math
import secrets
from functools import cache
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from typing import Any

import orjson

from benchgen.scoring.limits import ProgramLimits
from benchgen.scoring.rules import RuleScore, failed, passed, rule_error
from benchgen.scoring.spec import CodeTests
from services.common.sandbox import Ended, Finished, Job, Limits, Provider, SandboxFailed, run
from services.scorer.domain import Subject

#: On a busy machine everything takes longer on the clock, and no longer to compute. Code that sleeps does so at the
#: expense of all others: of 3 s, HumanEval's limit, it gets 8, which ends its sample that sleeps for 10.
_CLOCK = 2.0
_CLOCK_MORE = 2.0
#: What a box may take beyond what the tests may, so that the driver in it says first what took too long.
_SLACK = 2.0
_MOST_EXPLAINED = 500
_MIB = 1 << 20
#: An interpreter and the driver, twice: these are not the code's.
_OWN_MEMORY = 64 * _MIB
_OWN_PROCESSES = 4
_NO_COMMAND = (126, 127)

_FOLDER = "/app/judge"
_BOXED = Path(__file__).with_name("boxed")


@cache
def _files() -> dict[str, bytes]:
    """What runs in the box, under the names that it has here; compiled, too, for a Python of our version."""
    found = {f"{_FOLDER}/services/__init__.py": b"", f"{_FOLDER}/services/scorer/__init__.py": b""}
    for path in _BOXED.glob("*.py"):
        source = path.read_bytes()
        inside = f"{_FOLDER}/services/scorer/boxed/{path.name}"
        found[inside] = source
        code = compile(source, inside, "exec", dont_inherit=True)
        # Marked as never to be compared with its source.
        found[cache_from_source(inside)] = (
            MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + marshal.dumps(code)
        )
    return found


def _start_of(driver: str) -> list[str]:
    """What starts a driver: without looking for what is installed, which takes longest of all."""
    words = f"import sys; sys.path.insert(0, {_FOLDER!r}); from services.scorer.boxed.{driver} import main; main()"
    return ["python3", "-I", "-S", "-c", words]


def limits_of(limits: ProgramLimits, *, cpu: float, wall: float) -> Limits:
    """A rule's limits, as those of a box."""
    return Limits(
        wall_seconds=wall,
        cpu_seconds=cpu,
        memory_bytes=limits.memory_mb * _MIB,
        processes=limits.processes,
        file_bytes=limits.disk_mb * _MIB,
        disk_bytes=limits.disk_mb * _MIB,
        output_bytes=math.ceil(limits.output_mb * _MIB),
    )


async def judge(provider: Provider, spec: CodeTests, subject: Subject) -> RuleScore:
    """Whether the tests pass.

    :raises SandboxFailed: there is no box, or nothing in it to run the code with.
    """
    tests = subject.values["tests"]
    if isinstance(tests, str):
        return await _by_tests(provider, spec, subject, tests)
    return await _by_output(provider, spec, subject, tests)


async def _by_tests(provider: Provider, spec: CodeTests, subject: Subject, tests: str) -> RuleScore:
    job = {
        "setup": subject.values.get("setup", ""),
        "code": subject.response,
        "join": spec.join,
        "entry_point": subject.values.get("entry_point", ""),
        "tests": tests,
        "isolation": spec.isolation,
        "token": secrets.token_hex(16),
    }
    found = await _boxed(provider, spec, "driver", job, times=1)
    if isinstance(found, str):
        return _wrong(subject, found)
    if "error" in found:
        return rule_error(str(found["error"]))
    return passed(subject.response) if found["passed"] is True else _wrong(subject, str(found["why"]))


async def _by_output(
    provider: Provider, spec: CodeTests, subject: Subject, tests: list[dict[str, str]]
) -> RuleScore:
    """The box is told what the program reads. What it should print is compared here."""
    code = subject.values.get("setup", "") + subject.response
    job = {"code": code, "stdins": [test["stdin"] for test in tests]}
    found = await _boxed(provider, spec, "programs", job, times=len(tests))
    if isinstance(found, str):
        return _wrong(subject, found)
    for number, test in enumerate(tests):
        told = found[number] if number < len(found) else {"stdout": "", "why": "was not run"}
        which = f"test {number + 1} of {len(tests)}, given {_shown(test['stdin'])}"
        if told["why"]:
            return _wrong(subject, f"{which}: {told['why']}")
        if _lines(told["stdout"]) != _lines(test["stdout"]):
            return _wrong(
                subject, f"{which}: expected {_shown(test['stdout'])}, got {_shown(told['stdout'])}"
            )
    return passed(subject.response)


def _lines(text: str) -> list[str]:
    """White space at the end of a line, and empty lines at the end, do not count."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _shown(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 120 else f"{shown[:117]}..."


def _wrong(subject: Subject, why: str) -> RuleScore:
    return failed(subject.response, why, most=_MOST_EXPLAINED)


async def _boxed(provider: Provider, spec: CodeTests, driver: str, job: dict[str, Any], *, times: int) -> Any:
    """What a driver said; a text says why it said nothing."""
    cpu = spec.limits.cpu_seconds or spec.limits.seconds
    wall = _CLOCK * spec.limits.seconds + _CLOCK_MORE
    limits = limits_of(spec.limits, cpu=cpu * times + _SLACK, wall=wall * times + _SLACK)
    finished = await run(
        provider,
        Job(
            command=_start_of(driver),
            cwd="/app/output",
            files=_files(),
            collect=(),
            stdin=orjson.dumps({**job, "cpu_seconds": cpu, "wall_seconds": wall}),
            limits=Limits(
                wall_seconds=limits.wall_seconds,
                cpu_seconds=limits.cpu_seconds,
                memory_bytes=limits.memory_bytes + _OWN_MEMORY,
                processes=limits.processes + _OWN_PROCESSES,
                file_bytes=limits.file_bytes,
                disk_bytes=limits.disk_bytes,
                # The driver's own words: what code prints does not come here.
                output_bytes=times * _MIB * 7,
            ),
        ),
    )
    return _said(finished)


def _said(finished: Finished) -> Any:
    if finished.ended is Ended.EXITED and finished.exit_code == 0 and not finished.truncated:
        try:
            return orjson.loads(finished.stdout)
        except orjson.JSONDecodeError:
            return "it ended before its tests did"
    if finished.ended is Ended.EXITED and finished.exit_code in _NO_COMMAND:
        words = finished.stderr.decode(errors="replace").strip()
        raise SandboxFailed(f"the runtime has no Python that can be started: {words[:200]}")
    return f"it {finished.describe()}"
