"""Keeps a lease while the work on it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic

import grpc
import structlog

from benchgen.errors import LeaseLost, NotFound, Unavailable
from benchgen.eval.v1 import lease_pb2, lease_pb2_grpc
from benchgen.statuses import error_of
from services.runner.lanes import Lane

log = structlog.get_logger()

#: How long one exchange with the hub may take.
RPC_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class HeldLease:
    """A lease that this runner holds; times are of the monotonic clock, in seconds."""

    claims: lease_pb2.LeaseClaims
    signed: lease_pb2.SignedLease
    lane: Lane
    duration: float
    expires: float
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the work has to stop: see ``verdict``."""
    verdict: lease_pb2.RenewLeaseResponse.Verdict.ValueType = lease_pb2.RenewLeaseResponse.VERDICT_GO_ON
    lapsed: bool = False
    """Whether it has expired and may be taken back as long as nobody else has the shard."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to renew at once."""

    def end(self, verdict: lease_pb2.RenewLeaseResponse.Verdict.ValueType) -> None:
        self.verdict = verdict
        self.ended.set()


class Keeper:
    """Renews leases every third of their time, and at once when rung."""

    def __init__(self, stub: lease_pb2_grpc.LeaseServiceAsyncStub, runner: str) -> None:
        self._stub = stub
        self._runner = runner
        self._held: set[HeldLease] = set()

    def renew_all(self) -> None:
        """Renew every lease now: a run was cancelled, or permits are dealt anew."""
        for lease in self._held:
            lease.wake.set()

    @asynccontextmanager
    async def kept(self, lease: HeldLease) -> AsyncIterator[None]:
        """Keep a lease for the duration of the block. Sets ``lease.ended`` when it is lost, and never raises."""
        self._held.add(lease)
        renewing = asyncio.create_task(self._renew(lease), name="renew")
        try:
            yield
        finally:
            self._held.discard(lease)
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew(self, lease: HeldLease) -> None:
        delay = lease.duration / 3
        while not lease.ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(lease.wake.wait(), delay)
            lease.wake.clear()
            try:
                permits_before = lease.lane.limit.permits
                await self._exchange(lease)
            except Unavailable as error:
                log.info("lease.waiting", shard=lease.claims.shard, error=error.message)
                delay = min(0.5, lease.duration / 6)
            else:
                delay = lease.duration / 3
                if lease.lane.limit.permits < permits_before:
                    # Others wait for what is taken back here: say so as soon as it is free.
                    await lease.lane.until_lowered()
                    lease.wake.set()
            if monotonic() >= lease.expires and not lease.lapsed:
                lease.lapsed = True
                lease.lane.set_paused(lease.claims.shard, paused=True)

    async def _exchange(self, lease: HeldLease) -> None:
        async with lease.lane.hub_turn:
            sent = monotonic()
            try:
                answer = await self._stub.RenewLease(
                    lease_pb2.RenewLeaseRequest(
                        shard=lease.claims.shard,
                        attempt=lease.claims.attempt,
                        runner=self._runner,
                        permits_in_use=lease.lane.permits_in_use,
                    ),
                    timeout=RPC_SECONDS,
                )
            except grpc.RpcError as failure:
                error = error_of(failure)
                if isinstance(error, LeaseLost | NotFound):
                    lease.end(lease_pb2.RenewLeaseResponse.VERDICT_LOST)
                    return
                raise Unavailable(error.message) from None
            if answer.verdict != lease_pb2.RenewLeaseResponse.VERDICT_GO_ON:
                lease.end(answer.verdict)
                return
            lease.duration = answer.duration.ToTimedelta().total_seconds()
            lease.expires = sent + lease.duration
            lease.lane.set_permits(answer.permits)
        if lease.lapsed:
            lease.lapsed = False
            lease.lane.set_paused(lease.claims.shard, paused=False)
