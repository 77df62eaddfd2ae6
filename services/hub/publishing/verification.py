"""Asking the scorer what the reference solutions and the empty answer of a bundle score."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import orjson
import structlog

from benchgen.errors import BenchgenError, InvalidInput
from benchgen.eval.v1 import result_pb2
from benchgen.statuses import error_of
from services.hub.publishing.domain import Built, Verification, VersionContent
from services.hub.publishing.messages import read_verification

if TYPE_CHECKING:
    from benchgen.eval.v1.result_pb2_grpc import RecordServiceAsyncStub

log = structlog.get_logger()

#: At most 1,000 cases, scored twice: far more than that takes, unless a pattern is made to be slow, or programs judge
#: that are: they get the time that they may take.
_LONGEST_SECONDS = 1_800.0
_LONGEST_SOLUTIONS = 6 * 3600.0
_LONGEST_PAUSE = 5.0


class ScorerFailedError(Exception):
    """The scorer did not say what the bundle scores, and waiting would not help; the message says why."""


async def verify(records: RecordServiceAsyncStub, built: Built) -> Verification:
    """Have the scorer score a bundle whose data is stored. Waits for the scorer as long as it takes.

    :raises InvalidInput: the scorer cannot use the data.
    :raises ScorerFailedError: it failed, or took too long.
    """
    content = built.content
    request = result_pb2.VerifyVersionRequest(
        targets_digest=content.targets_digest,
        solutions_digest=content.solutions_digest,
        scoring_json=content.scoring_json,
        oracle_min=built.oracle_min,
        empty_max=built.empty_max,
        inputs_digest=content.inputs_digest,
        competition_json=content.competition_run,
    )
    seconds = _longest(content)
    pause = 0.1
    while True:
        try:
            return read_verification(await records.VerifyVersion(request, timeout=seconds))
        except grpc.aio.AioRpcError as failure:
            if failure.code() is not grpc.StatusCode.UNAVAILABLE:
                raise _error(failure, seconds) from None
            log.info("publishing.waiting_for_scorer", error=failure.details())
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _longest(content: VersionContent) -> float:
    """How long the scorer may take. Solutions of competitions are run: two steps a task, as long as each may take."""
    if not content.competition_run:
        return _LONGEST_SECONDS
    steps = sum(
        2.0 * float(case["seconds"]) + 60.0 for case in orjson.loads(content.competition_run)["cases"]
    )
    solutions = len(orjson.loads(content.competition_about)["solutions"])
    return min(_LONGEST_SOLUTIONS, _LONGEST_SECONDS + solutions * steps)


def _error(failure: grpc.aio.AioRpcError, seconds: float) -> Exception:
    if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ScorerFailedError(f"scoring took longer than {seconds:g} s")
    error: BenchgenError = error_of(failure)
    return (
        error if isinstance(error, InvalidInput) else ScorerFailedError(f"the scorer failed: {error.message}")
    )
