"""RecordService: what runners stream and what the hub asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC
from functools import partial
from typing import Any

import asyncpg
import grpc

from benchgen.errors import InvalidInput
from benchgen.eval.v1 import environment_pb2, lease_pb2, result_pb2, result_pb2_grpc, run_pb2
from services.common import tracing
from services.common.competition import ProgramLog
from services.common.objects import ObjectStore
from services.common.parts import CaseReader
from services.common.signing import Verifier
from services.scorer import calls, metrics, reporting, store, verification
from services.scorer.caching import ResponseCache
from services.scorer.cases import Judge, judge_of
from services.scorer.competition import store as competition_store
from services.scorer.competition.solutions import SolutionRunner
from services.scorer.competition.store import StepLog
from services.scorer.domain import Record, ScoredRecord, TrialKey
from services.scorer.intake import Intake, clean
from services.scorer.leases import open_lease
from services.scorer.loading import Loader
from services.scorer.payloads import whole_response
from services.scorer.recorder import Recorder
from services.scorer.removal import Remover
from services.scorer.turns import in_turns

_MAX_RESULTS = 256
_MAX_RANGES = 1000
_MAX_LEASES = 1000
_MOST_PROGRAMS, _MOST_NAME, _MOST_LOG = 4, 40, 40_000
#: One result may be larger: it cannot be sent in two.
_MAX_BYTES = 1024 * 1024 + 1024

Context = grpc.aio.ServicerContext[Any, Any]


def facts_of(spec: run_pb2.RunSpec) -> store.RunFacts:
    """What the scorer keeps of a run."""
    return store.RunFacts(
        spec.run, spec.SerializeToString(deterministic=True), spec.scoring_digest, spec.scoring_json
    )


class RecordService(result_pb2_grpc.RecordServiceServicer):
    """Records and judges, for runners and the hub."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        recorder: Recorder,
        book: calls.CallBook,
        targets: CaseReader,
        objects: ObjectStore,
        loader: Loader,
        cache: ResponseCache,
        reporter: reporting.Reporter,
        remover: Remover,
        verifier: verification.VersionVerifier,
        solutions: SolutionRunner,
        hub: Verifier,
        scoring_threads: Executor,
    ) -> None:
        self._pool = pool
        self._recorder = recorder
        self._calls = book
        self._targets = targets
        self._objects = objects
        self._loader = loader
        self._cache = cache
        self._reporter = reporter
        self._remover = remover
        self._verifier = verifier
        self._solutions = solutions
        self._hub = hub
        self._threads = scoring_threads

    async def RecordResults(  # noqa: N802
        self, requests: AsyncIterator[result_pb2.RecordResultsRequest], context: Context
    ) -> AsyncIterator[result_pb2.RecordResultsResponse]:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("part") != "lease":
            raise InvalidInput("the first message must open with a lease")
        claims = open_lease(first.lease, self._hub)
        intake = Intake(claims, await self._cache.requests(claims))
        judge, held = await asyncio.gather(self._judge(claims), self._held(claims, intake))
        yield result_pb2.RecordResultsResponse(held=result_pb2.HeldTrials(offsets=held))
        sampled = _sampled(claims, held)
        async for request in requests:
            if request.WhichOneof("part") != "batch":
                raise InvalidInput("after the first message only batches are expected")
            batch = request.batch
            traced = sampled is not None and any(
                intake.offset(result.position, result.trial) == sampled for result in batch.results
            )
            with tracing.span("record batch", when=traced, results=len(batch.results)):
                rejections = await self._record(claims, intake, judge, batch, traced=traced)
            yield result_pb2.RecordResultsResponse(
                ack=result_pb2.BatchAck(sequence=request.batch.sequence, rejections=rejections)
            )

    async def _judge(self, claims: lease_pb2.LeaseClaims) -> Judge:
        spec = claims.spec
        return await judge_of(self._targets, spec.targets_digest, spec.scoring_json, claims.positions)

    async def _held(self, claims: lease_pb2.LeaseClaims, intake: Intake) -> list[int]:
        """Register the run if need be; answer with the offsets that need not be made."""
        async with self._pool.acquire() as connection:
            await store.check_open(connection, facts_of(claims.spec), epoch=claims.epoch)
            held = await store.held_trials(
                connection, claims.run, min(claims.positions), max(claims.positions)
            )
        offsets = (intake.offset(key.position, key.trial) for key in held)
        return sorted(offset for offset in offsets if offset is not None)

    async def _record(
        self,
        claims: lease_pb2.LeaseClaims,
        intake: Intake,
        judge: Judge,
        batch: result_pb2.ResultBatch,
        *,
        traced: bool,
    ) -> list[result_pb2.Rejection]:
        """Store one batch. A bad result is refused alone."""
        results = batch.results
        if not 0 < len(results) <= _MAX_RESULTS:
            raise InvalidInput(f"a batch has 1 to {_MAX_RESULTS} results, this one has {len(results)}")
        if len(results) > 1 and batch.ByteSize() > _MAX_BYTES:
            raise InvalidInput(f"a batch has at most {_MAX_BYTES} bytes, this one has {batch.ByteSize()}")
        with tracing.span("score", when=traced):
            judged = await self._judged(intake, judge, [r for r in results if not r.HasField("payload")])
        for result in results:
            # One at a time: an answer can be a hundred times as long as what is kept of it.
            if result.HasField("payload"):
                try:
                    whole = await whole_response(self._objects, result.payload)
                except InvalidInput as error:
                    judged.add(_refused(result, error))
                else:
                    judged.join(await self._judged(intake, judge, [result], whole))
        if programs := _programs(judged.scored, results):
            await self._calls.close_trials(claims.run, programs)
        if steps := [log for result in results for log in _steps(claims, result)]:
            async with self._pool.acquire() as connection:
                await competition_store.add_programs(connection, claims.run, steps)
        if judged.scored:
            with tracing.span("store", when=traced):
                await self._recorder.store(claims.run, judged.scored)
        metrics.REJECTIONS.inc(len(judged.rejections))
        return judged.rejections

    async def _judged(
        self,
        intake: Intake,
        judge: Judge,
        results: Sequence[result_pb2.TrialResult],
        whole: str | None = None,
    ) -> _Judged:
        # Off the event loop: a slow pattern must not keep heartbeats and acknowledgements waiting.
        judged = _Judged()
        async for turn in in_turns(self._threads, partial(_judge, intake, judge, whole), results):
            for item in turn:
                judged.add(item)
        return judged

    async def RecordCall(  # noqa: N802
        self, request: result_pb2.RecordCallRequest, context: Context
    ) -> result_pb2.RecordCallResponse:
        claims = await self._open(request.lease)
        stored = await self._calls.record(claims.run, Intake(claims).call(request.call))
        return result_pb2.RecordCallResponse(number=stored.number, answer_json=stored.answer)

    async def ReplayCalls(  # noqa: N802
        self, request: result_pb2.ReplayCallsRequest, context: Context
    ) -> AsyncIterator[result_pb2.ReplayCallsResponse]:
        claims = await self._open(request.lease)
        Intake(claims).check(request.position, request.trial)
        async for stored in self._calls.answers(claims.run, request.position, request.trial):
            yield result_pb2.ReplayCallsResponse(calls=stored)

    async def _open(self, lease: lease_pb2.SignedLease) -> lease_pb2.LeaseClaims:
        """The claims of a lease under which something may be recorded now."""
        claims = open_lease(lease, self._hub)
        async with self._pool.acquire() as connection:
            await store.check_open(connection, facts_of(claims.spec), epoch=claims.epoch)
        return claims

    async def LoadShard(  # noqa: N802
        self, request: result_pb2.LoadShardRequest, context: Context
    ) -> result_pb2.LoadShardResponse:
        claims = open_lease(request.lease, self._hub)
        intake = Intake(claims)
        judge, held = await asyncio.gather(self._judge(claims), self._held(claims, intake))
        loaded = await self._loader.load(claims, intake, judge, frozenset(held))
        return result_pb2.LoadShardResponse(loaded=loaded)

    async def LoadCached(  # noqa: N802
        self, request: result_pb2.LoadCachedRequest, context: Context
    ) -> result_pb2.LoadCachedResponse:
        claims = open_lease(request.lease, self._hub)
        judge, held = await asyncio.gather(self._judge(claims), self._held(claims, Intake(claims)))
        loaded = await self._cache.load(claims, judge, frozenset(held), request.request_digests)
        return result_pb2.LoadCachedResponse(loaded=loaded)

    async def SealRun(  # noqa: N802
        self, request: result_pb2.SealRunRequest, context: Context
    ) -> result_pb2.SealRunResponse:
        async with self._pool.acquire() as connection:
            standing = await store.seal(
                connection,
                facts_of(request.spec),
                epoch=request.epoch,
                final_state=run_pb2.Run.State.Name(request.final_state).removeprefix("STATE_").lower(),
                seconds=request.seconds,
            )
        reported = not standing.pending_scores and await self._reporter.report(
            request.spec, standing, request.budget if request.HasField("budget") else None
        )
        state = (
            result_pb2.SealRunResponse.STATE_REPORTED
            if reported
            else result_pb2.SealRunResponse.STATE_REPORTING
        )
        return result_pb2.SealRunResponse(state=state, pending_scores=standing.pending_scores)

    async def GetProgress(  # noqa: N802
        self, request: result_pb2.GetProgressRequest, context: Context
    ) -> result_pb2.GetProgressResponse:
        if len(request.runs) > 1000:
            raise InvalidInput("at most 1,000 runs at once")
        async with self._pool.acquire() as connection:
            found = await store.progress(connection, request.runs)
        return result_pb2.GetProgressResponse(
            progress={
                run: run_pb2.RunProgress(
                    recorded=totals.recorded,
                    scored=totals.scored,
                    passed=totals.passed,
                    faults=totals.faults,
                    calls=totals.calls,
                    input_tokens=totals.input_tokens,
                    output_tokens=totals.output_tokens,
                    cost_picousd=totals.cost_picousd,
                    calls_of_unknown_cost=totals.calls_of_unknown_cost,
                    cache_hits=totals.cache_hits,
                )
                for run, totals in found.items()
            }
        )

    async def FindMissing(  # noqa: N802
        self, request: result_pb2.FindMissingRequest, context: Context
    ) -> result_pb2.FindMissingResponse:
        if len(request.ranges) > _MAX_RANGES:
            raise InvalidInput(f"at most {_MAX_RANGES} ranges at once")
        ranges = [
            (r.first_position, r.first_trial, r.last_position, r.last_trial, r.count) for r in request.ranges
        ]
        if not ranges:
            return result_pb2.FindMissingResponse()
        async with self._pool.acquire() as connection:
            incomplete = await store.find_incomplete(connection, request.run, ranges)
        return result_pb2.FindMissingResponse(incomplete=incomplete)

    async def GetCharges(  # noqa: N802
        self, request: result_pb2.GetChargesRequest, context: Context
    ) -> result_pb2.GetChargesResponse:
        if len(request.leases) > _MAX_LEASES:
            raise InvalidInput(f"at most {_MAX_LEASES} leases at once")
        leases = [(lease.shard, lease.attempt) for lease in request.leases]
        async with self._pool.acquire() as connection:
            found = await store.charges(connection, request.run, leases)
        return result_pb2.GetChargesResponse(
            charges=[result_pb2.Charge(picousd=charge.picousd, tokens=charge.tokens) for charge in found]
        )

    async def DeleteResults(  # noqa: N802
        self, request: result_pb2.DeleteResultsRequest, context: Context
    ) -> result_pb2.DeleteResultsResponse:
        done = await self._remover.remove(request.run, request.end_time.ToDatetime(UTC))
        return result_pb2.DeleteResultsResponse(done=done)

    async def ListPredictions(  # noqa: N802
        self, request: result_pb2.ListPredictionsRequest, context: Context
    ) -> result_pb2.ListPredictionsResponse:
        found, token = await self._remover.predictions(
            request.written_before.ToDatetime(UTC), request.page_token
        )
        stored = [result_pb2.StoredPredictions(targets_digest=t, digest=d) for t, d in found]
        return result_pb2.ListPredictionsResponse(predictions=stored, next_page_token=token)

    async def DeletePredictions(  # noqa: N802
        self, request: result_pb2.DeletePredictionsRequest, context: Context
    ) -> result_pb2.DeletePredictionsResponse:
        stored = request.predictions
        await self._remover.remove_predictions(
            stored.targets_digest, stored.digest, request.written_before.ToDatetime(UTC)
        )
        return result_pb2.DeletePredictionsResponse()

    async def VerifyVersion(  # noqa: N802
        self, request: result_pb2.VerifyVersionRequest, context: Context
    ) -> environment_pb2.Verification:
        if request.competition_json:
            return await self._solutions.verify(request)
        return await self._verifier.verify(request)


def _programs(
    scored: Sequence[ScoredRecord], results: Sequence[result_pb2.TrialResult]
) -> list[tuple[Record, result_pb2.ProgramRun]]:
    """The records that programs made, and how those went."""
    went = {(r.position, r.trial): r.program for r in results if r.HasField("program")}
    records = (item.record for item in scored) if went else ()
    return [(record, went[record.key]) for record in records if record.key in went]


def _steps(claims: lease_pb2.LeaseClaims, result: result_pb2.TrialResult) -> Iterator[StepLog]:
    """How the programs of a competition's prediction went."""
    for program in result.programs[:_MOST_PROGRAMS]:
        log = ProgramLog(
            clean(program.name[:_MOST_NAME]),
            clean(program.ended[:_MOST_NAME]),
            program.exit_code if program.HasField("exit_code") else None,
            program.seconds,
            clean(program.stdout[-_MOST_LOG:]),
            clean(program.stderr[-_MOST_LOG:]),
            program.cut,
        )
        key = TrialKey(result.position, result.trial)
        yield StepLog(key, claims.attempt, competition_store.PREDICTION, log)


def _sampled(claims: lease_pb2.LeaseClaims, held: Sequence[int]) -> int | None:
    """The trial of a shard whose way is traced, the first that is not held: the runner takes the same."""
    if not tracing.traceparent():
        return None
    known = frozenset(held)
    return next((offset for offset in range(claims.count) if offset not in known), None)


@dataclass(slots=True)
class _Judged:
    """What became of some results."""

    scored: list[ScoredRecord] = field(default_factory=list)
    rejections: list[result_pb2.Rejection] = field(default_factory=list)

    def add(self, item: ScoredRecord | result_pb2.Rejection) -> None:
        if isinstance(item, ScoredRecord):
            self.scored.append(item)
        else:
            self.rejections.append(item)

    def join(self, other: _Judged) -> None:
        self.scored += other.scored
        self.rejections += other.rejections


def _judge(
    intake: Intake, judge: Judge, whole: str | None, result: result_pb2.TrialResult
) -> ScoredRecord | result_pb2.Rejection:
    """Check a result and score it.

    :param whole: the answer to score, where it does not fit into its result.
    """
    try:
        record = intake.record(result)
        if result.HasField("program"):
            calls.check_program_run(result.program)
        target = judge.target(record.position)
        if target is None or target.case_id != record.case_id:
            raise InvalidInput(f"case_id: there is no case {record.case_id!r} at {record.position}")
    except InvalidInput as error:
        return _refused(result, error)
    record.cluster, record.slices = target.cluster, target.slices
    scores = judge.score(record.position, record.outcome, record.response if whole is None else whole)
    return ScoredRecord(record, scores, judge.primary)


def _refused(result: result_pb2.TrialResult, error: InvalidInput) -> result_pb2.Rejection:
    return result_pb2.Rejection(position=result.position, trial=result.trial, reason=error.message)
