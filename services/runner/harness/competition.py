"""The prediction step of a competition: a submission, or a model through the ingestion program of the bundle."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from time import time_ns
from typing import Any, TypeVar

import orjson
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from benchgen.errors import BenchgenError
from benchgen.eval.v1 import lease_pb2, result_pb2, result_pb2_grpc
from services.common.competition import PackStore, Prediction, ProgramLog, Steps
from services.common.competition.packs import SUBMISSIONS
from services.common.competition.steps import MODEL_PORT
from services.common.competition.tasks import read_run, work_of
from services.common.models.asking import parameters
from services.common.models.replies import valid
from services.common.models.types import Fault
from services.common.objects import Bucket, ObjectStore
from services.common.sandbox import SandboxFailed
from services.runner.harness.chat import MAX_ERROR, Payload, Subject, Trial, broken
from services.runner.keeper import HeldLease
from services.runner.patience import until_available
from services.runner.programs.boxes import Boxes
from services.runner.proxy.calls import CallSettings, TrialCalls
from services.runner.proxy.server import ModelProxy, serving
from services.runner.proxy.store import CallStore

log = structlog.get_logger()

#: How often a box that breaks is tried, and the pause in between, seconds.
_TRIES = 3
_PAUSE_SECONDS = 0.5
#: How many calls one task may make: what a task asks a model is up to its bundle.
_MOST_CALLS = 100_000
#: So many names of files are told with a result.
_MOST_NAMES = 200

_BASE_URL = f"http://127.0.0.1:{MODEL_PORT}/v1"
_ADDRESS_NAMES = (
    "OPENAI_BASE_URL",
    "OPENAI_API_BASE",
    "MODEL_BASE_URL",
    "RPE_MODEL_BASE_URL",
    "RPE_BASE_URL",
)
_KEY_NAMES = ("OPENAI_API_KEY", "MODEL_API_KEY", "RPE_MODEL_API_KEY", "RPE_API_KEY")
_MODEL_NAMES = ("MODEL_NAME", "RPE_MODEL_NAME", "RPE_NAME")

_T = TypeVar("_T")
_Fail = Callable[[Fault | BenchgenError], None]


@dataclass(frozen=True, slots=True)
class CompetitionTools:
    """What prediction steps take, shared by all shards of a runner."""

    packs: PackStore
    steps: Steps
    boxes: Boxes


class CompetitionHarness:
    """Makes the predictions of one run's tasks.

    :param subject: the model; None for a submission.
    """

    def __init__(
        self,
        lease: HeldLease,
        subject: Subject | None,
        tools: CompetitionTools,
        objects: ObjectStore,
        records: result_pb2_grpc.RecordServiceAsyncStub,
    ) -> None:
        spec = lease.claims.spec
        self._lease = lease
        self._spec = spec
        self._subject = subject
        self._tools = tools
        self._objects = objects
        self._image = read_run(spec.competition_json).image
        model = spec.subject.model
        self._settings = CallSettings(
            model.model_id or model.name, _MOST_CALLS, parameters(spec.generation), spec.seed
        )
        self._calls = CallStore(
            records, lease.signed, lambda: lease.verdict != lease_pb2.RenewLeaseResponse.VERDICT_LOST
        )

    async def run(self, trial: Trial) -> tuple[result_pb2.TrialResult, Payload | None] | Fault:
        """Carry out the prediction step of a task; a fault that is permanent for the whole run comes back as it is."""
        assert trial.task is not None
        reason = ""
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_SECONDS)
            try:
                return await self._run(trial)
            except SandboxFailed as error:
                log.warning("sandbox.failed", case=trial.case_id, error=error.message)
                reason = error.message
        result = broken(trial, reason, calls=0)
        result.outcome = result_pb2.OUTCOME_SANDBOX_ERROR
        return result, None

    async def _run(self, trial: Trial) -> tuple[result_pb2.TrialResult, Payload | None] | Fault:
        if self._subject is None:
            with tempfile.TemporaryDirectory(prefix="benchgen-") as folder:
                return await self._predicted(trial, Path(folder), None)
        ended: asyncio.Future[Fault | BenchgenError] = asyncio.get_running_loop().create_future()

        def fail(why: Fault | BenchgenError) -> None:
            if not ended.done():
                ended.set_result(why)

        calls = await self._calls_of(trial, self._subject, fail)
        with tempfile.TemporaryDirectory(prefix="benchgen-") as folder:
            working = asyncio.ensure_future(self._predicted(trial, Path(folder), calls))
            try:
                ends: set[asyncio.Future[Any]] = {working, ended}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    return await working
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
        why = ended.result()
        if isinstance(why, Fault):
            return why
        raise why

    async def _calls_of(self, trial: Trial, subject: Subject, fail: _Fail) -> TrialCalls:
        again = self._lease.claims.attempt > 1
        stored = await self._calls.answers(trial.position, trial.trial) if again else []
        limit = self._lease.lane.limit
        return TrialCalls(trial, self._settings, subject, limit, self._calls.record, stored, fail)

    async def _predicted(
        self, trial: Trial, folder: Path, calls: TrialCalls | None
    ) -> tuple[result_pb2.TrialResult, Payload | None]:
        began = time_ns()
        work = await self._patiently(
            lambda: work_of(self._tools.packs, Bucket.INPUTS, trial.task or {}, self._image)
        )
        submission = None
        submitted = self._spec.subject.submission
        if submitted.digest:
            submission = await self._patiently(
                lambda: self._tools.packs.zip(Bucket.INPUTS, submitted.digest, SUBMISSIONS)
            )

        @asynccontextmanager
        async def serve(listener: socket) -> AsyncIterator[None]:
            assert calls is not None
            async with serving(listener, ModelProxy([calls], self._settings.model)):
                yield

        try:
            async with self._tools.boxes.slot(self._spec.run):
                made = await self._tools.steps.predict(
                    work,
                    submission,
                    folder,
                    answers_only=submitted.answers_only,
                    env=None if calls is None else self._environment(calls),
                    serve=None if calls is None else serve,
                )
        finally:
            if calls is not None:
                await calls.close()
        key = f"responses/{made.files.sha256}.json"
        await self._patiently(lambda: self._objects.put_file(Bucket.PAYLOADS, key, made.files.path))
        result = _result(trial, made, calls)
        result.start_time.CopyFrom(Timestamp(seconds=began // 10**9, nanos=began % 10**9))
        return result, None

    def _environment(self, calls: TrialCalls) -> dict[str, str]:
        return (
            dict.fromkeys(_ADDRESS_NAMES, _BASE_URL)
            | dict.fromkeys(_MODEL_NAMES, self._settings.model)
            | dict.fromkeys(_KEY_NAMES, calls.token)
        )

    async def _patiently(self, work: Callable[[], Awaitable[_T]]) -> _T:
        return await until_available(work, lambda: not self._lease.ended.is_set())


def _result(trial: Trial, made: Prediction, calls: TrialCalls | None) -> result_pb2.TrialResult:
    files = made.files
    said = {
        "predictions": files.sha256,
        "bytes": files.bytes,
        "files": files.names[:_MOST_NAMES],
        "limit": made.limit,
    }
    result = result_pb2.TrialResult(
        position=trial.position,
        trial=trial.trial,
        case_id=trial.case_id,
        input_digest=trial.input_digest,
        outcome=result_pb2.OUTCOME_LIMIT if made.limit else result_pb2.OUTCOME_OK,
        response=orjson.dumps(said).decode(),
        predictions=result_pb2.PayloadRef(digest=files.sha256, size_bytes=files.bytes),
        programs=[_program(one) for one in made.logs],
    )
    if made.logs:
        result.latency_ms = max(one.seconds for one in made.logs) * 1000
    if calls is not None:
        result.program.CopyFrom(_model_program(made.logs))
        if calls.fault:
            # Whatever the program made of it: with the endpoint's answer it would have been something else.
            result.outcome, result.error = result_pb2.OUTCOME_PROVIDER_ERROR, valid(calls.fault)[:MAX_ERROR]
    return result


def _program(one: ProgramLog) -> result_pb2.StepProgram:
    return result_pb2.StepProgram(
        step="prediction",
        name=one.name,
        ended=one.ended,
        exit_code=one.exit_code,
        seconds=one.seconds,
        stdout=valid(one.stdout),
        stderr=valid(one.stderr),
        cut=one.cut,
    )


def _model_program(logs: Sequence[ProgramLog]) -> result_pb2.ProgramRun:
    """How the program went that asked the model: its calls are counted one by one. What it wrote is with the step."""
    one = next(log for log in logs if log.name == "ingestion")
    return result_pb2.ProgramRun(
        ended=one.ended, exit_code=one.exit_code, wall_seconds=one.seconds, cut=one.cut, batch=1
    )
