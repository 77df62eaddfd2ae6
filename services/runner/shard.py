"""Works off one leased shard."""

from __future__ import annotations

import asyncio

import grpc
import structlog

from benchgen.errors import InvalidInput, Unavailable
from benchgen.eval.v1 import result_pb2, result_pb2_grpc
from benchgen.statuses import error_of
from services.common import tracing
from services.common.amounts import NOTHING
from services.common.models.client import ModelClient
from services.common.models.meter import Meter, tallied
from services.common.models.types import Fault
from services.common.objects import Bucket, ObjectStore
from services.common.parts import CaseReader
from services.runner.harness.chat import ChatHarness, Payload, Trial, broken, said
from services.runner.harness.competition import CompetitionHarness, CompetitionTools
from services.runner.keeper import HeldLease
from services.runner.lanes import ShardTrials
from services.runner.patience import until_available
from services.runner.recording import RecordStream, recording
from services.runner.subjects import subject_of

log = structlog.get_logger()

#: How long the scorer may take to judge what the cache has of a shard; then it is asked again, and goes on from there.
_CACHE_SECONDS = 120.0


#: Outcomes that are not the model's doing.
FAULTS = frozenset(
    {
        result_pb2.OUTCOME_PROVIDER_ERROR,
        result_pb2.OUTCOME_SANDBOX_ERROR,
        result_pb2.OUTCOME_HARNESS_ERROR,
        result_pb2.OUTCOME_JUDGE_ERROR,
    }
)


class PermanentFault(Exception):
    """The provider refuses for good; the message has its own words."""


class ShardWork:
    """One shard from its lease to the acknowledgement of its last result."""

    def __init__(
        self,
        lease: HeldLease,
        secret: str,
        client: ModelClient,
        inputs: CaseReader,
        objects: ObjectStore,
        records: result_pb2_grpc.RecordServiceAsyncStub,
        competitions: CompetitionTools | None = None,
    ) -> None:
        self._lease = lease
        self._claims = lease.claims
        self._lane = lease.lane
        self._inputs = inputs
        self._objects = objects
        self._records = records
        spec = self._claims.spec
        self._meter = lease.meter
        subject = None
        if spec.subject.WhichOneof("kind") != "submission":
            subject = subject_of(spec, secret, client, self._lane.limit, self._lane.calls.note, self._meter)
        self._harness: ChatHarness | CompetitionHarness
        if spec.competition_json:
            assert competitions is not None
            self._harness = CompetitionHarness(lease, subject, competitions, objects, records)
        else:
            assert subject is not None
            self._harness = ChatHarness(subject, spec.generation, spec.seed, names_requests=spec.use_cache)
        self._streak = self._lane.streaks.of(self._claims.run, self._claims.epoch)
        # The trial whose call is traced, and the span that it belongs to: lanes work in contexts of their own.
        self._sampled: Trial | None = None
        self._trace = tracing.traceparent()

    async def run(self, stopping: asyncio.Event, grace: float) -> bool:
        """Work until every trial is stored, or the lease or the runner ends.

        :param stopping: set when the runner stops: no new calls, and those in flight have ``grace`` seconds.
        :returns: whether every trial of the shard is stored.
        :raises PermanentFault: the provider refuses for good.
        :raises BenchgenError: the scorer refuses results, or what the shard needs cannot be had. Servers that are
            away are waited for, as long as the shard is wanted.
        """

        def wanted() -> bool:
            return not (stopping.is_set() or self._lease.ended.is_set())

        harness = self._harness
        if isinstance(harness, ChatHarness) and self._claims.spec.use_cache:
            # First, so that the stream finds held what the cache has.
            await until_available(lambda: self._load_cached(harness), wanted)
        async with recording(self._records, self._lease.signed, self._lane.stored, wanted) as (
            stream,
            carrier,
        ):
            self._streak.answered |= bool(stream.held)
            trials = await until_available(lambda: self._trials(stream.held), wanted)
            if not wanted():
                return not trials
            shard = self._start(trials, stream)
            try:
                await self._watch(shard, carrier, stopping, grace)
            finally:
                await shard.abort()
                # What came back was paid for: it is stored whatever ended the work.
                drained = asyncio.ensure_future(stream.drained())
                await asyncio.wait({drained, carrier}, return_when=asyncio.FIRST_COMPLETED)
                drained.cancel()
                self._lane.stored(stream.outstanding)
            stored = shard.finished == len(trials) and not stream.outstanding
            if carrier.done() and not stored:
                await carrier
            if shard.failure is not None:
                raise shard.failure
            if stream.rejections:
                first = stream.rejections[0]
                raise InvalidInput(
                    f"the scorer refused {len(stream.rejections)} results, the first, of case"
                    f" {first.position}, because: {first.reason}"
                )
            return stored

    def _start(self, trials: list[Trial], stream: RecordStream) -> ShardTrials:
        """Start on the trials; how far they are, the answer knows."""
        # The scorer, too, takes the first that is not held.
        self._sampled = trials[0] if trials and self._trace else None
        shard = ShardTrials(
            self._claims.shard,
            self._claims.run,
            trials,
            lambda trial: self._execute(trial, stream),
            lambda: self._lease.holds,
        )
        if self._meter is not None and isinstance(self._harness, ChatHarness):
            self._limit_spending(shard, self._meter, self._harness)
        self._lane.add(shard)
        return shard

    def _limit_spending(self, shard: ShardTrials, meter: Meter, harness: ChatHarness) -> None:
        """Start trials only as the grant of the lease allows."""
        is_free = not self._claims.spec.subject.model.base_url
        most = {
            id(trial): NOTHING if is_free else meter.most(harness.request(trial)) for trial in shard.waiting
        }

        def may_start() -> bool:
            return self._lease.holds and meter.admits(most[id(shard.waiting[0])])

        shard.may_start = may_start
        meter.outlook = lambda: (most[id(trial)] for trial in shard.waiting)
        meter.wake = self._lane.pump

    async def _watch(
        self, shard: ShardTrials, carrier: asyncio.Task[None], stopping: asyncio.Event, grace: float
    ) -> None:
        """Wait for the end of the work, and stop it when the lease, the runner or the stream ends first."""
        done = asyncio.ensure_future(shard.done.wait())
        ended = asyncio.ensure_future(self._lease.ended.wait())
        stopped = asyncio.ensure_future(stopping.wait())
        waits = {done, ended, stopped, carrier}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done() and not done.done():
                shard.drop_waiting()
                await asyncio.wait({done, ended, carrier}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in (done, ended, stopped):
                wait.cancel()

    async def _trials(self, held: frozenset[int]) -> list[Trial]:
        claims = self._claims
        rows = await self._inputs.rows(claims.spec.inputs_digest, claims.positions)
        first_slot = claims.first // claims.spec.trials
        trials = []
        for offset in range(claims.count):
            if offset not in held:
                slot, number = divmod(claims.first + offset, claims.spec.trials)
                row = rows[slot - first_slot]
                trials.append(
                    Trial(
                        row["position"],
                        number,
                        row["id"],
                        row["messages"],
                        row["digest"],
                        row.get("fields"),
                        row.get("task"),
                    )
                )
        return trials

    async def _load_cached(self, harness: ChatHarness) -> None:
        """Have the scorer store what the response cache knows of this shard; its trials are held then."""
        trials = await self._trials(frozenset())
        # Prompts can be long: off the event loop.
        digests = await asyncio.to_thread(lambda: [harness.request_digest(trial) for trial in trials])
        request = result_pb2.LoadCachedRequest(lease=self._lease.signed, request_digests=digests)
        try:
            answer = await self._records.LoadCached(request, timeout=_CACHE_SECONDS)
        except grpc.RpcError as failure:
            error = error_of(failure)
            if isinstance(error, Unavailable):
                raise error from None
            # The calls can be made all the same; a lease that is not good any more is told again by the stream.
            log.warning("cache.failed", shard=self._claims.shard, error=error.message)
            return
        log.debug("shard.cached", shard=self._claims.shard, loaded=answer.loaded)

    async def _execute(self, trial: Trial, stream: RecordStream) -> None:
        """Work off one trial. What breaks on it ends this trial, and no other."""
        number = self._streak.begin()
        try:
            result = await (self._ask(trial) if self._meter is None else self._metered(trial, self._meter))
            reason = self._streak.end(number, result)
        finally:
            self._streak.drop(number)
        self._lane.unstored += 1
        stream.add(result)
        if reason is not None:
            raise PermanentFault(reason)

    async def _metered(self, trial: Trial, meter: Meter) -> result_pb2.TrialResult:
        """The same under a grant: the result says what its calls count for."""
        with tallied() as tally:
            result = await self._ask(trial)
        result.charge.picousd, result.charge.tokens = tally.charge
        if result.outcome in FAULTS:
            meter.note_fault()
        return result

    async def _ask(self, trial: Trial) -> result_pb2.TrialResult:
        """Have one trial answered.

        :raises PermanentFault: the provider refuses for good.
        """
        try:
            answer = await (
                self._harness.run(trial) if trial is not self._sampled else self._traced_run(trial)
            )
        except Exception as error:
            log.exception("trial.broke", shard=self._claims.shard, case=trial.case_id)
            answer = broken(trial, said(error), calls=0), None
        if isinstance(answer, Fault):
            raise PermanentFault(answer.message)
        result, payload = answer
        if payload is not None:
            try:
                await self._keep(payload)
            except Exception as error:
                log.exception("payload.broke", shard=self._claims.shard, case=trial.case_id)
                reason = f"the answer could not be stored: {said(error)}"
                result = broken(trial, reason, calls=result.calls)
        return result

    async def _traced_run(self, trial: Trial) -> tuple[result_pb2.TrialResult, Payload | None] | Fault:
        case, number = trial.case_id, trial.trial
        with tracing.span("model call", parent=self._trace, case=case, trial=number) as span:
            answer = await self._harness.run(trial)
            if span is not None and not isinstance(answer, Fault):
                span.set_attribute("benchgen.outcome", result_pb2.Outcome.Name(answer[0].outcome))
                span.set_attribute("benchgen.calls", answer[0].calls)
            return answer

    async def _keep(self, payload: Payload) -> None:
        """Store what does not fit into a result; it was paid for, so the object store is waited for."""
        key = f"responses/{payload.digest}.json"
        await until_available(
            lambda: self._objects.put(Bucket.PAYLOADS, key, payload.data), wanted=lambda: True
        )
