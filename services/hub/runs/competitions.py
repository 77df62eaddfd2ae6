"""What a request for a run of a ``competition.yaml`` environment means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from benchgen.bundle.problems import did_you_mean
from benchgen.eval.v1 import run_pb2
from services.hub.publishing.domain import Version

_LOADED_MODELS = ("builtin/oracle", "builtin/empty", "builtin/simulated")


def problems(request: run_pb2.CreateRunRequest, version: Version) -> list[str]:
    """Everything about a request that does not fit a competition, or that only a competition has; a line each."""
    subject, phase = request.WhichOneof("subject"), request.selection.phase
    if not version.competition_run:
        found = []
        if subject == "submission":
            found.append(f"submission: {version.name} is no competition.yaml environment, and takes none")
        if phase:
            found.append(
                f"selection.phase: {version.name} is no competition.yaml environment, and has no phases"
            )
        return found
    run = orjson.loads(version.competition_run)
    found = _phase_problems(request, run)
    if subject == "predictions":
        found.append(
            f"predictions: {version.name} is a competition.yaml environment: upload a zip, not JSON lines"
        )
    if subject == "model" and request.model.partition("?")[0] in _LOADED_MODELS:
        found.append(f"model: {request.model} has no answers for a competition.yaml environment")
    elif subject == "model" and not all(case["ingestion"] for case in _cases(request, run)):
        found.append(
            f"model: {version.name} has no ingestion program that could ask a model:"
            " give predictions or a submission"
        )
    return found


def _phase_problems(request: run_pb2.CreateRunRequest, run: dict[str, Any]) -> list[str]:
    phase, selection = request.selection.phase, request.selection
    if not phase:
        return []
    if selection.limit or selection.sample:
        return ["selection: expected a phase, or limit or sample, found both"]
    names = run["phases"]
    if _phase_of(phase, names) is None:
        return [
            f"selection.phase: expected one of {', '.join(names)}, or its place from 0,"
            f" found {phase[:80]!r}{did_you_mean(phase, names)}"
        ]
    return []


def _phase_of(phase: str, names: Sequence[str]) -> int | None:
    if phase in names:
        return names.index(phase)
    return int(phase) if phase.isascii() and phase.isdecimal() and int(phase) < len(names) else None


def _cases(request: run_pb2.CreateRunRequest, run: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases that a request selects."""
    place = _phase_of(request.selection.phase, run["phases"]) if request.selection.phase else None
    return [case for case in run["cases"] if place is None or case["phase"] == place]


def positions_of_phase(request: run_pb2.CreateRunRequest, version: Version) -> list[int] | None:
    """The positions of the cases of the phase that a request selects; None where it selects none that there is."""
    if not request.selection.phase or not version.competition_run:
        return None
    run = orjson.loads(version.competition_run)
    place = _phase_of(request.selection.phase, run["phases"])
    if place is None:
        return None
    return [position for position, case in enumerate(run["cases"]) if case["phase"] == place]
