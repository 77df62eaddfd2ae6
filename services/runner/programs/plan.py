"""What a run says of its program, what the program is given, and where it puts its answers. Nothing here waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from services.common.models.seeds import derive_seed
from services.common.sandbox import Job, Limits, Mount
from services.runner.harness.chat import Trial
from services.runner.proxy.calls import TrialCalls

PROTOCOL = 1

#: The proxy's port inside the box, which has a network of its own.
PORT = 8080
BASE_URL = f"http://127.0.0.1:{PORT}/v1"
PROGRAM = "/app/program"
OUTPUT = "/app/output"
RESULTS = f"{OUTPUT}/results.jsonl"

_MIB = 1 << 20
#: Names by which programs look for a model, with this proxy's address, the key, and the model's name.
_ADDRESS_NAMES = (
    "OPENAI_BASE_URL",
    "OPENAI_API_BASE",
    "MODEL_BASE_URL",
    "RPE_MODEL_BASE_URL",
    "RPE_BASE_URL",
)
_KEY_NAMES = ("OPENAI_API_KEY", "MODEL_API_KEY", "RPE_MODEL_API_KEY", "RPE_API_KEY")
_MODEL_NAMES = ("MODEL_NAME", "RPE_MODEL_NAME", "RPE_NAME")


@dataclass(frozen=True, slots=True)
class ProgramPlan:
    """The program of a harness, as the run's specification describes it."""

    digest: str
    command: tuple[str, ...]
    io: Literal["jsonl", "text"]
    calls: int
    runtime: str
    limits: Limits


def read_plan(harness_json: str) -> ProgramPlan:
    """Read ``RunSpec.harness_json``."""
    fields: dict[str, Any] = orjson.loads(harness_json)
    limits = fields["limits"]
    return ProgramPlan(
        digest=fields["program"],
        command=tuple(fields["command"]),
        io=fields["io"],
        calls=fields["calls"],
        runtime=fields["runtime"],
        limits=Limits(
            wall_seconds=limits["seconds"],
            cpu_seconds=limits["cpu_seconds"],
            memory_bytes=limits["memory_mb"] * _MIB,
            processes=limits["processes"],
            file_bytes=limits["disk_mb"] * _MIB,
            disk_bytes=limits["disk_mb"] * _MIB,
            output_bytes=limits["output_mb"] * _MIB,
        ),
    )


def job_of(plan: ProgramPlan, program: Path, calls: Sequence[TrialCalls], *, model: str, seed: int) -> Job:
    """One start of a program for some trials.

    :param program: the unpacked program.
    :param seed: of the run.
    """
    return Job(
        command=plan.command,
        cwd=PROGRAM,
        env=_environment(plan, calls, model, seed),
        runtime=plan.runtime,
        mounts=[Mount(program, PROGRAM)],
        folders=(OUTPUT,),
        collect=(OUTPUT,) if plan.io == "jsonl" else (),
        stdin=_stdin(plan, calls, model, seed),
        port=PORT,
        limits=plan.limits,
    )


def _environment(plan: ProgramPlan, calls: Sequence[TrialCalls], model: str, seed: int) -> dict[str, str]:
    environment = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "BENCHGEN_PROTOCOL": str(PROTOCOL),
    }
    if plan.io == "jsonl":
        environment["BENCHGEN_RESULTS"] = RESULTS
    environment |= dict.fromkeys(_ADDRESS_NAMES, BASE_URL) | dict.fromkeys(_MODEL_NAMES, model)
    if len(calls) == 1:
        trial = calls[0].trial
        environment |= dict.fromkeys(_KEY_NAMES, calls[0].token)
        environment |= {
            "BENCHGEN_CASE_ID": trial.case_id,
            "BENCHGEN_TRIAL": str(trial.trial),
            "BENCHGEN_SEED": str(derive_seed(seed, trial.case_id, trial.trial)),
        }
    return environment


def _stdin(plan: ProgramPlan, calls: Sequence[TrialCalls], model: str, seed: int) -> bytes:
    if plan.io == "text":
        asked: str = calls[0].trial.messages[-1]["content"]
        return (asked if asked.endswith("\n") else f"{asked}\n").encode()
    return b"".join(orjson.dumps(_line(one, model, seed)) + b"\n" for one in calls)


def _line(calls: TrialCalls, model: str, seed: int) -> Mapping[str, Any]:
    """A trial as the program reads it."""
    trial: Trial = calls.trial
    return {
        "protocol": PROTOCOL,
        "case_id": trial.case_id,
        "trial": trial.trial,
        "seed": derive_seed(seed, trial.case_id, trial.trial),
        "messages": list(trial.messages) or None,
        "fields": trial.fields or {},
        "model": {"name": model, "base_url": BASE_URL, "api_key": calls.token},
    }
