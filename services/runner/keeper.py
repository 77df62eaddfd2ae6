"""Keeps a lease while the work on it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

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
        # With the timer that goes off when the lease ends.
        self._held: dict[HeldLease, asyncio.TimerHandle] = {}

    def renew_all(self) -> None:
        """Renew every lease now: a run was cancelled, or permits are dealt anew."""
        for lease in self._held:
            lease.wake.set()

    @asynccontextmanager
    async def kept(self, lease: HeldLease) -> AsyncIterator[None]:
        """Keep a lease for the duration of the block. Sets ``lease.ended`` when it is lost, and never raises."""
        self._hold(lease)
        renewing = asyncio.create_task(self._renew(lease), name="renew")
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            self._held.pop(lease).cancel()

    def _hold(self, lease: HeldLease) -> None:
        """Count the lease's time: no calls are started after it ended, until it is renewed late."""
        if lease in self._held:
            self._held[lease].cancel()
        left = max(0.0, lease.expires - monotonic())
        self._held[lease] = asyncio.get_running_loop().call_later(left, self._set_lapsed, lease, True)

    def _set_lapsed(self, lease: HeldLease, lapsed: bool) -> None:
        lease.lapsed = lapsed
        lease.lane.set_paused(lease.claims.shard, paused=lapsed)

    async def _renew(self, lease: HeldLease) -> None:
        limit = lease.lane.limit
        delay = lease.duration / 3
        owing = False
        while not lease.ended.is_set():
            await self._until_due(lease, delay, owing=owing)
            permits_before = limit.permits
            try:
                await self._exchange(lease)
            except Unavailable as error:
                log.info("lease.waiting", shard=lease.claims.shard, error=error.message)
                delay = min(0.5, lease.duration / 6)
            else:
                delay = lease.duration / 3
                # Others wait for what is taken back here: the hub is told as soon as it is free.
                owing = limit.permits < permits_before or (owing and limit.in_flight > limit.permits)

    async def _until_due(self, lease: HeldLease, delay: float, *, owing: bool) -> None:
        """Wait until it is time to renew, for a ring, or until calls have come down to the permits that are left."""
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(lease.wake.wait())]
        if owing:
            waits.append(asyncio.create_task(lease.lane.until_lowered()))
        try:
            await asyncio.wait(waits, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        lease.wake.clear()

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
            self._hold(lease)
            lease.lane.set_permits(answer.permits)
        if lease.lapsed:
            self._set_lapsed(lease, False)
