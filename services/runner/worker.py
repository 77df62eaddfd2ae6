"""The runner's main loop: hear a ring, take the lease, work it off, say so."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from time import monotonic

import grpc
import structlog
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg
from prometheus_client import Metric

from benchgen.errors import (
    BenchgenError,
    FailedPrecondition,
    InvalidInput,
    LeaseLost,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from benchgen.eval.v1 import event_pb2, lease_pb2, lease_pb2_grpc, result_pb2_grpc
from benchgen.statuses import error_of
from services.common import tracing
from services.common.bus import Bus
from services.common.models.bounds import Tariff, prices_of
from services.common.models.builtin import is_builtin
from services.common.models.client import ModelClient
from services.common.models.meter import Meter
from services.common.models.replies import valid
from services.common.objects import ObjectStore
from services.common.parts import CaseReader
from services.common.process import Process
from services.common.sandbox import SandboxFailed
from services.runner import metrics
from services.runner.grants import read_grant, said
from services.runner.harness.competition import CompetitionTools
from services.runner.keeper import RPC_SECONDS, HeldLease, Keeper
from services.runner.lanes import Lane
from services.runner.patience import until_available
from services.runner.programs.shard import ProgramShard, ProgramTools
from services.runner.shard import PermanentFault, ShardWork

log = structlog.get_logger()

_Reason = lease_pb2.ReleaseShardRequest

#: A runner with work lets others hear the next ring first; one with plenty listens only now and then, because the
#: next ring may be for another model. The more shards it holds the longer it waits: what it holds nobody else can take.
_COURTESY_S = 0.01
_PLENTY_S = 0.25
_LONGEST_PLENTY_S = 1.5
_RING_WAIT_S = 5.0
#: How long a model without shards is remembered, and with it how many calls its endpoint bears.
_REMEMBERED_S = 60.0

#: A ring for a shard that takes a sandbox, when all are taken, is left to others for so long.
_LEAVE_S = 2.0
_NEXT_RING_WAIT_S = 0.1

#: Between two tries to lease a shard while the hub is away.
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 2.0


class Worker:
    """Holds shards of any number of runs and models at once."""

    def __init__(
        self,
        process: Process,
        name: str,
        bus: Bus,
        leases: lease_pb2_grpc.LeaseServiceAsyncStub,
        records: result_pb2_grpc.RecordServiceAsyncStub,
        client: ModelClient,
        inputs: CaseReader,
        objects: ObjectStore,
        tools: ProgramTools,
        competitions: CompetitionTools,
        *,
        simulator_token: str,
        shards: int,
        calls: int,
        stop_seconds: float,
    ) -> None:
        self.name = name
        self._process = process
        self._bus = bus
        self._leases = leases
        self._records = records
        self._client = client
        self._inputs = inputs
        self._objects = objects
        self._tools = tools
        self._competitions = competitions
        self._shards = shards
        self._calls = calls
        self._stop_seconds = stop_seconds
        self._simulator_token = simulator_token
        self._keeper = Keeper(leases, name, lambda: bus.connected)
        self._lanes: dict[str, Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Those of them whose shards take a sandbox.
        self._programs: set[asyncio.Task[None]] = set()
        # How long a lease holds, as the hub said last.
        self._lease_seconds = 30.0
        self._ended = asyncio.Event()

    async def hear_renew(self, _: Msg) -> None:
        """The hub asks to renew now."""
        self._keeper.renew_all()

    async def keep_known(self) -> None:
        """Tell the hub that this runner is there."""
        try:
            answer = await self._leases.KeepRunner(
                lease_pb2.KeepRunnerRequest(runner=self.name, shards=self._shards, calls=self._calls),
                timeout=RPC_SECONDS,
            )
        except grpc.RpcError as failure:
            raise Unavailable(error_of(failure).message) from None
        self._keeper.renew_stopped(answer.stopped_shards)

    async def pull(self) -> None:
        """Hear one ring and start on its shard."""
        if len(self._tasks) >= self._shards:
            self._ended.clear()
            await self._ended.wait()
            return
        if self._tasks:
            until = monotonic() + min(_PLENTY_S * len(self._tasks), _LONGEST_PLENTY_S)
            await self._process.sleep(_COURTESY_S)
            while self._has_plenty() and monotonic() < until:
                await self._process.sleep(_COURTESY_S)
        wait = _RING_WAIT_S
        # Behind rings that are left to others there may be one for a model.
        while (rings := await self._bus.pull_rings(1, wait=wait)) and not await self._take_up(rings[0]):
            wait = _NEXT_RING_WAIT_S

    async def _take_up(self, ring: Msg) -> bool:
        """Deal with a ring; returns whether it was for this runner."""
        try:
            queued = event_pb2.ShardQueued.FromString(ring.data)
        except DecodeError:
            # Nobody can make anything of it, however often it comes again.
            log.warning("ring.unreadable", data=ring.data[:100])
            await self._bus.acknowledge(ring)
            return True
        if queued.sandboxed and self._is_crowded():
            await self._bus.leave(ring, seconds=_LEAVE_S)
            return False
        task = asyncio.create_task(self._traced(ring, queued.shard), name=f"shard {queued.shard}")
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        if queued.sandboxed:
            self._programs.add(task)
            task.add_done_callback(self._programs.discard)
        return True

    async def measure(self) -> Sequence[Metric]:
        """How it stands, for whoever asks for metrics."""
        boxes = self._tools.boxes
        counted = metrics.measure(len(self._tasks), self._shards, self._busy_lanes())
        return [*counted, *metrics.measure_boxes(boxes.busy, boxes.most, boxes.waiting)]

    def _has_plenty(self) -> bool:
        """Whether every model that this runner works for has trials waiting for some time to come."""
        lanes = self._busy_lanes()
        chats = (lane for lane in lanes if lane.shards > lane.programs)
        return all(lane.waiting >= 2 * max(lane.limit.allowed, 1) for lane in chats) and (
            self._is_crowded() or not self._programs
        )

    def _is_crowded(self) -> bool:
        """Whether there are as many programs, or shards that will need one, as there can soon be boxes for."""
        return self._tools.boxes.crowded(len(self._programs))

    def _busy_lanes(self) -> list[Lane]:
        return [lane for lane in self._lanes.values() if lane.shards]

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._ended.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("shard.failed", exc_info=error)

    async def stop(self) -> None:
        """Wait until what is held is done or handed back, then say goodbye."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._stop_seconds + RPC_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._leases.RemoveRunner(
                lease_pb2.RemoveRunnerRequest(runner=self.name), timeout=RPC_SECONDS
            )
        except grpc.RpcError as failure:
            log.info("runner.goodbye_lost", error=error_of(failure).message)

    async def _traced(self, ring: Msg, shard: str) -> None:
        parent = (ring.headers or {}).get(tracing.HEADER, "")
        with tracing.span("shard", parent=parent, shard=shard, runner=self.name):
            await self._answer(ring, shard)

    async def _answer(self, ring: Msg, shard: str) -> None:
        """Lease a shard, acknowledge the ring, work."""
        try:
            lease = await self._lease(shard)
        except (NotFound, FailedPrecondition):
            await self._bus.acknowledge(ring)
            return
        except BenchgenError as error:
            # Not acknowledged: the ring comes again, and the hub rings again as well.
            log.warning("lease.failed", shard=shard, error=error.message)
            return
        await self._bus.acknowledge(ring)
        try:
            await self._work(lease)
        finally:
            lease.lane.programs -= bool(lease.claims.spec.harness_json)
            lease.lane.leave()

    async def _lease(self, shard: str) -> HeldLease:
        request = lease_pb2.LeaseShardRequest(request_id=str(uuid.uuid4()), shard=shard, runner=self.name)
        sent = began = monotonic()
        pause = _FIRST_PAUSE_S
        while True:
            try:
                answer = await self._leases.LeaseShard(request, timeout=RPC_SECONDS)
                break
            except grpc.RpcError as failure:
                # The lease may have been given and the answer lost: the same request has the same answer, for as long
                # as that lease may hold. Without it the shard would be nobody's until then.
                error = error_of(failure)
                tried = monotonic() - began
                if not isinstance(error, Unavailable) or tried > self._lease_seconds:
                    raise error from None
                await self._process.sleep(pause)
                if self._process.stopping.is_set():
                    raise error from None
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            sent = monotonic()
        claims = lease_pb2.LeaseClaims.FromString(answer.lease.claims)
        # Permits belong to the model, whatever parameters a built-in one is given.
        name = claims.spec.subject.model.name.partition("?")[0]
        lane = self._lane(name)
        lane.shards += 1
        lane.programs += bool(claims.spec.harness_json)
        lane.set_permits(answer.permits, answer.permits_version)
        duration = self._lease_seconds = answer.duration.ToTimedelta().total_seconds()
        lease = HeldLease(claims, answer.lease, lane, duration, sent + duration)
        if answer.HasField("grant"):
            lease.meter = Meter(Tariff(prices_of(claims.spec.subject.model)), lease.wake.set)
            lease.meter.apply(read_grant(answer.grant, sent))
        return lease

    def _lane(self, name: str) -> Lane:
        """The lane of a model. What one has learned about its endpoint is forgotten when it has been idle for long."""
        self._lanes = {other: lane for other, lane in self._lanes.items() if lane.idle_for < _REMEMBERED_S}
        return self._lanes.setdefault(name, Lane(name))

    async def _work(self, lease: HeldLease) -> None:
        claims = lease.claims
        started = monotonic()
        reason, message = _Reason.REASON_FAULT, ""
        complete = False
        async with self._keeper.kept(lease):
            try:
                work = await self._prepared(lease)
                complete = await work.run(self._process.stopping, self._stop_seconds)
            except PermanentFault as fault:
                reason, message = _Reason.REASON_PERMANENT, str(fault)
            except (PermissionDenied, Unauthenticated) as error:
                # Somebody has to set something right: the next runner would not fare better.
                reason, message = _Reason.REASON_PERMANENT, error.message
            except BenchgenError as error:
                message = error.message
            except asyncio.CancelledError:
                # The process ends: nobody should have to wait until the lease runs out.
                await self._release(lease, _Reason.REASON_STOPPING, "the runner stopped")
                raise
            except Exception as error:
                log.exception("shard.broke", shard=claims.shard)
                message = f"{type(error).__name__}: {error}"
            if complete:
                await self._complete(lease)
            else:
                if reason == _Reason.REASON_FAULT and not self._wanted(lease):
                    reason = _Reason.REASON_STOPPING
                await self._release(lease, reason, message)
        log.info(
            "shard",
            shard=claims.shard,
            attempt=claims.attempt,
            complete=complete,
            trials=claims.count,
            message=message,
            seconds=round(monotonic() - started, 3),
        )

    async def _prepared(self, lease: HeldLease) -> ShardWork:
        """Get ready to work.

        :raises PermanentFault: the run cannot be worked on as it is set up.
        """
        try:
            secret = await self._secret(lease)
            common = (lease, secret, self._client, self._inputs, self._objects, self._records)
            spec = lease.claims.spec
            if spec.competition_json or not spec.harness_json:
                return ShardWork(*common, self._competitions)
            work = ProgramShard(*common, self._tools)
            await work.ready()
        except LeaseLost:
            raise
        except SandboxFailed as error:
            raise PermanentFault(f"programs cannot be run by {self.name}: {error.message}") from error
        except (FailedPrecondition, InvalidInput, NotFound) as error:
            raise PermanentFault(error.message) from error
        else:
            return work

    def _wanted(self, lease: HeldLease) -> bool:
        """Whether work on a shard should go on."""
        return not (self._process.stopping.is_set() or lease.ended.is_set())

    async def _secret(self, lease: HeldLease) -> str:
        """What the model's endpoint wants to see; it lives here, in memory, and nowhere else."""
        model = lease.claims.spec.subject.model
        if is_builtin(model.name):
            return self._simulator_token
        if not model.has_secret:
            return ""
        request = lease_pb2.GetModelSecretRequest(lease=lease.signed)

        async def ask() -> str:
            try:
                return (await self._leases.GetModelSecret(request, timeout=RPC_SECONDS)).secret
            except grpc.RpcError as failure:
                raise error_of(failure) from None

        return await until_available(ask, lambda: self._wanted(lease))

    async def _complete(self, lease: HeldLease) -> None:
        """Say that the shard is done, for as long as it is not somebody else's."""
        while lease.verdict != lease_pb2.RenewLeaseResponse.VERDICT_LOST:
            async with lease.lane.hub_turn:
                request = lease_pb2.CompleteShardRequest(
                    shard=lease.claims.shard,
                    attempt=lease.claims.attempt,
                    runner=self.name,
                    permits_in_use=lease.lane.permits_in_use,
                    permits_version=lease.lane.permits_version,
                    spending=said(lease.meter, last=True),
                )
                try:
                    answer = await self._leases.CompleteShard(request, timeout=RPC_SECONDS)
                except grpc.RpcError as failure:
                    error = error_of(failure)
                    log.warning("complete.failed", shard=lease.claims.shard, error=error.message)
                    if not isinstance(error, Unavailable):
                        return
                else:
                    lease.lane.set_permits(answer.permits, answer.permits_version)
                    return
            await self._process.sleep(0.3)
            if self._process.stopping.is_set():
                return

    async def _release(
        self, lease: HeldLease, reason: lease_pb2.ReleaseShardRequest.Reason.ValueType, message: str
    ) -> None:
        """Hand the shard back; should that fail, the lease runs out by itself."""
        if lease.verdict == lease_pb2.RenewLeaseResponse.VERDICT_LOST:
            return
        try:
            await self._leases.ReleaseShard(
                lease_pb2.ReleaseShardRequest(
                    shard=lease.claims.shard,
                    attempt=lease.claims.attempt,
                    runner=self.name,
                    reason=reason,
                    # What is no valid text would keep the hub from hearing of it at all.
                    message=valid(message)[:2000],
                    spending=said(lease.meter, last=True),
                ),
                timeout=RPC_SECONDS,
            )
        except grpc.RpcError as failure:
            log.warning("release.failed", shard=lease.claims.shard, error=error_of(failure).message)
