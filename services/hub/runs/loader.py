"""Has the scorer load shards whose answers are there already: predictions, reference solutions, the empty answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import grpc
import structlog

from benchgen.errors import BenchgenError, FailedPrecondition, InvalidInput, LeaseLost, NotFound, Unavailable
from benchgen.eval.v1 import result_pb2
from benchgen.statuses import error_of
from services.common import db, tracing
from services.common.signing import Signer
from services.hub.runs import store
from services.hub.runs.domain import RunnerId, ShardId, Verdict
from services.hub.runs.lease_service import sign_lease
from services.hub.runs.leases import Lease, Leases, Return, Use
from services.hub.runs.plans import Plans
from services.hub.runs.specs import LOADED_POOL
from services.hub.runs.stops import Stops

if TYPE_CHECKING:
    from benchgen.eval.v1.result_pb2_grpc import RecordServiceAsyncStub

log = structlog.get_logger()

#: As whom the hub leases shards to itself.
LOADER = RunnerId("hub-loader")
_AT_ONCE = 4


class Loader:
    """Leases shards that no runner works on, and has them loaded."""

    def __init__(
        self,
        db: asyncpg.Pool,
        leases: Leases,
        plans: Plans,
        signer: Signer,
        scorer: RecordServiceAsyncStub,
        stops: Stops,
    ) -> None:
        self._db = db
        self._leases = leases
        self._plans = plans
        self._signer = signer
        self._scorer = scorer
        self._stops = stops

    async def step(self) -> None:
        """Load all that is there to load.

        :raises Unavailable: the scorer is away; its shards wait.
        """
        while True:
            async with self._db.acquire() as conn:
                shards = await store.shards_to_load(conn, LOADED_POOL, _AT_ONCE)
            if not shards:
                return
            traces = await store.traces(self._db, {shard.run for shard in shards})
            loads = (self._traced(shard, traces.get(shard.run, "")) for shard in shards)
            done = await asyncio.gather(*loads, return_exceptions=True)
            for outcome in done:
                if isinstance(outcome, BaseException):
                    raise outcome

    async def _traced(self, shard: ShardId, trace: str) -> None:
        with tracing.span("load shard", parent=trace, when=tracing.is_traced(shard.number), shard=str(shard)):
            await self._load(shard)

    async def _load(self, shard: ShardId) -> None:
        try:
            lease = await self._leases.lease(LOADED_POOL, shard, LOADER, str(uuid4()))
        except LeaseLost:
            # Another hub was first, or the run was cancelled.
            return
        try:
            await self._call(shard, lease)
        except (InvalidInput, NotFound, FailedPrecondition) as error:
            await self._give_up(shard, lease, error)
        except Unavailable as error:
            await self._release(shard, lease, Return.STOPPING, error.message)
            raise
        except BenchgenError as error:
            log.warning("load.failed", shard=str(shard), error=error.message)
            await self._release(shard, lease, Return.FAULT, error.message)
        else:
            # Where the lease ran out and another hub loads it again, nothing is lost.
            with suppress(LeaseLost):
                await self._leases.complete(LOADED_POOL, shard, lease.attempt, LOADER, Use(0))

    async def _call(self, shard: ShardId, lease: Lease) -> None:
        plan = await self._plans.get(shard.run)
        signed = sign_lease(self._signer, plan.spec, lease, LOADER)
        async with self._kept(shard, lease):
            try:
                await self._scorer.LoadShard(result_pb2.LoadShardRequest(lease=signed))
            except grpc.RpcError as failure:
                raise error_of(failure) from None

    @asynccontextmanager
    async def _kept(self, shard: ShardId, lease: Lease) -> AsyncIterator[None]:
        """Renew a lease until the block ends; end the block when the shard is wanted back, or the lease may have ended.

        :raises LeaseLost: the block was ended.
        """
        try:
            async with asyncio.timeout(self._leases.duration.total_seconds()) as bound:
                keeper = asyncio.create_task(self._keep(shard, lease, bound))
                try:
                    yield
                finally:
                    keeper.cancel()
                    with suppress(asyncio.CancelledError):
                        await keeper
        except TimeoutError:
            if bound.expired():
                raise LeaseLost from None
            raise

    async def _keep(self, shard: ShardId, lease: Lease, bound: asyncio.Timeout) -> None:
        clock = asyncio.get_running_loop().time
        seconds = self._leases.duration.total_seconds()
        while True:
            await asyncio.sleep(seconds / 3)
            asked = clock()
            try:
                renewal = await self._leases.renew(LOADED_POOL, shard, lease.attempt, LOADER, Use(0))
                held = renewal.verdict is Verdict.GO_ON
            except (*db.TRANSIENT, TimeoutError):
                # The block goes on for as long as the lease surely holds.
                continue
            except NotFound:
                held = False
            if bound.expired():
                return
            bound.reschedule(asked + seconds if held else asked)
            if not held:
                return

    async def _give_up(self, shard: ShardId, lease: Lease, error: BenchgenError) -> None:
        """What the scorer refuses for one shard it refuses for all: there is nothing that could be loaded."""
        if not isinstance(error, LeaseLost):
            log.warning("load.refused", shard=str(shard), error=error.message)
            try:
                await self._stops.fail(LOADED_POOL, shard.run, error.message)
            except FailedPrecondition as late:
                log.info("load.late", shard=str(shard), error=late.message)
        await self._release(shard, lease, Return.STOPPING, error.message)

    async def _release(self, shard: ShardId, lease: Lease, why: Return, message: str) -> None:
        with suppress(LeaseLost):
            await self._leases.release(LOADED_POOL, shard, lease.attempt, LOADER, why, message)
