"""Works off one leased shard by starting its program once, in a box, for all of its trials."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time_ns
from typing import Any

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from benchgen.errors import BenchgenError
from benchgen.eval.v1 import lease_pb2, result_pb2, result_pb2_grpc
from services.common.models.asking import parameters
from services.common.models.client import ModelClient
from services.common.models.types import Fault
from services.common.objects import ObjectStore
from services.common.parts import CaseReader
from services.common.sandbox import Finished, SandboxFailed
from services.runner.harness.chat import Trial, said, shorten
from services.runner.keeper import HeldLease
from services.runner.lanes import ShardTrials
from services.runner.patience import until_available
from services.runner.programs.answers import failed, read_answers, result_of
from services.runner.programs.boxes import Boxes
from services.runner.programs.plan import job_of, read_plan
from services.runner.programs.store import ProgramStore
from services.runner.proxy.calls import CallSettings, TrialCalls
from services.runner.proxy.server import ModelProxy, serving
from services.runner.proxy.store import CallStore
from services.runner.recording import RecordStream
from services.runner.shard import FAULTS, PermanentFault, ShardWork
from services.runner.subjects import subject_of

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ProgramTools:
    """What running programs takes, shared by all shards of a runner."""

    boxes: Boxes
    programs: ProgramStore


class ProgramTrials(ShardTrials):
    """The trials of one start of a program: all are under way, or none."""

    started = False

    def drop_waiting(self) -> None:
        """Start no more; a box that is there goes on."""
        if not self.started:
            for task in self.tasks:
                task.cancel()
        super().drop_waiting()


class ProgramShard(ShardWork):
    """One shard of a run whose harness is a program."""

    def __init__(
        self,
        lease: HeldLease,
        secret: str,
        client: ModelClient,
        inputs: CaseReader,
        objects: ObjectStore,
        records: result_pb2_grpc.RecordServiceAsyncStub,
        tools: ProgramTools,
    ) -> None:
        super().__init__(lease, secret, client, inputs, objects, records)
        spec = lease.claims.spec
        self._tools = tools
        self._plan = read_plan(spec.harness_json)
        self._subject = subject_of(spec, secret, client, lease.lane.limit, lease.lane.calls.note, lease.meter)
        model = spec.subject.model
        self._settings = CallSettings(
            model.model_id or model.name,
            self._plan.calls,
            parameters(spec.generation),
            spec.seed,
            metered=lease.meter is not None,
        )
        self._calls = CallStore(
            records, lease.signed, lambda: lease.verdict != lease_pb2.RenewLeaseResponse.VERDICT_LOST
        )
        self._failed = asyncio.Event()
        self._failure: Exception | None = None

    async def ready(self) -> None:
        """Make sure that the program can be run here.

        :raises SandboxFailed: it cannot; says why.
        """
        await self._tools.boxes.ready(self._plan.runtime)

    def _start(self, trials: list[Trial], stream: RecordStream) -> ShardTrials:
        """Start the program as soon as there is a box for it."""
        shard = ProgramTrials(self._claims.shard, self._claims.run, [], _no_work, lambda: self._lease.holds)
        if trials:
            shard.done.clear()
            task = asyncio.create_task(self._work_off(shard, trials, stream), name=self._claims.shard)
            shard.tasks.add(task)
            # Not in the task itself: one that is cancelled before it begins never says anything.
            task.add_done_callback(shard.left)
        return shard

    async def _work_off(self, shard: ProgramTrials, trials: Sequence[Trial], stream: RecordStream) -> None:
        try:
            async with self._tools.boxes.slot(self._claims.run):
                shard.started = True
                numbers = [self._streak.begin() for _ in trials]
                try:
                    results = await self._run(trials)
                finally:
                    for number in numbers:
                        self._streak.drop(number)
            reasons = [
                await self._hand_in(number, result, stream)
                for number, result in zip(numbers, results, strict=True)
            ]
            shard.finished += len(trials)
            if reason := next(filter(None, reasons), None):
                raise PermanentFault(reason)
        except Exception as error:
            shard.fail(error)

    async def _run(self, trials: Sequence[Trial]) -> list[result_pb2.TrialResult]:
        """Start the program once, and say what came of each trial."""
        began = time_ns()
        program = await until_available(
            lambda: self._tools.programs.folder(self._plan.digest), lambda: not self._lease.ended.is_set()
        )
        calls = [await self._calls_of(trial) for trial in trials]
        try:
            finished = await self._boxed(calls, program)
        except SandboxFailed as error:
            log.warning("sandbox.failed", shard=self._claims.shard, error=error.message)
            outcome = result_pb2.OUTCOME_SANDBOX_ERROR
            return [failed(trial, outcome, error.message, batch=len(trials)) for trial in trials]
        finally:
            await asyncio.gather(*(one.close() for one in calls))
        # The last calls may have failed to be stored only now.
        self._check()
        results = await asyncio.to_thread(self._results, calls, finished)
        for result in results:
            result.start_time.CopyFrom(Timestamp(seconds=began // 10**9, nanos=began % 10**9))
        return results

    async def _calls_of(self, trial: Trial) -> TrialCalls:
        # Nobody has asked anything before the first attempt.
        again = self._claims.attempt > 1
        stored = await self._calls.answers(trial.position, trial.trial) if again else []
        return TrialCalls(
            trial,
            self._settings,
            self._subject,
            self._lane.limit,
            self._calls.record,
            stored,
            self._fail,
        )

    async def _boxed(self, calls: Sequence[TrialCalls], program: Path) -> Finished:
        """Run the program in a box, with the proxy at its port.

        :raises SandboxFailed: the box could not be made, or broke.
        :raises PermanentFault: the provider refuses for good.
        :raises BenchgenError: calls cannot be stored any more.
        """
        model = self._settings.model
        job = job_of(self._plan, program, calls, model=model, seed=self._settings.seed)
        async with self._tools.boxes.provider.run(job) as running:
            assert running.listener is not None
            async with serving(running.listener, ModelProxy(calls, model)):
                finishing = asyncio.ensure_future(running.wait())
                failing = asyncio.ensure_future(self._failed.wait())
                ends: set[asyncio.Future[Any]] = {finishing, failing}
                try:
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                    self._check()
                    return await finishing
                finally:
                    for end in ends:
                        end.cancel()
                    await asyncio.gather(*ends, return_exceptions=True)

    def _fail(self, reason: Fault | BenchgenError) -> None:
        """End the work on the shard: nothing that its program does counts any more."""
        if self._failure is None:
            self._failure = PermanentFault(reason.message) if isinstance(reason, Fault) else reason
            self._failed.set()

    def _check(self) -> None:
        """:raises Exception: what ended the work on the shard, if anything did."""
        if self._failure is not None:
            raise self._failure

    def _results(self, calls: Sequence[TrialCalls], finished: Finished) -> list[result_pb2.TrialResult]:
        answers = read_answers(self._plan, finished, [one.trial for one in calls])
        results = []
        for one in calls:
            try:
                results.append(result_of(one, self._plan, finished, answers, batch=len(calls)))
            except Exception as error:
                log.exception("harness.broke", case=one.trial.case_id)
                outcome = result_pb2.OUTCOME_HARNESS_ERROR
                results.append(failed(one.trial, outcome, said(error), batch=len(calls)))
        return results

    async def _hand_in(self, number: int, result: result_pb2.TrialResult, stream: RecordStream) -> str | None:
        """Send a result on its way to the scorer; says why the run should not go on, if it should not."""
        payload = shorten(result)
        if payload is not None:
            await self._keep(payload)
        self._lane.unstored += 1
        stream.add(result)
        if self._meter is not None and result.outcome in FAULTS:
            self._meter.note_fault()
        return self._streak.end(number, result)


async def _no_work(trial: Trial) -> None:
    raise AssertionError(f"programs are not started by lanes, and {trial.case_id} is of one")
