"""Keeps a lease while the work on it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import grpc
import structlog

from benchgen.errors import LeaseLost, NotFound, Unavailable
from benchgen.eval.v1 import lease_pb2, lease_pb2_grpc
from benchgen.statuses import error_of
from services.common.models.meter import Meter
from services.runner.grants import read_grant, said
from services.runner.lanes import Lane

log = structlog.get_logger()

#: How long one exchange with the hub may take.
RPC_SECONDS = 5.0
#: How often leases are renewed while no ring can be heard.
_DEAF_SECONDS = 1.5
#: How often more is asked for while there is nothing: others may give back what they do not need.
_SHORT_SECONDS = 0.5


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
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to renew at once."""
    meter: Meter | None = None
    """What may be spent under it; None where nothing limits that."""

    @property
    def holds(self) -> bool:
        """Whether calls may be started under it at this moment.

        By the clock, and not by a timer: a process that was stopped for a while deals with what came in meanwhile
        before its timers go off. A lease that expired holds again when it is renewed late.
        """
        return not self.ended.is_set() and monotonic() < self.expires

    def end(self, verdict: lease_pb2.RenewLeaseResponse.Verdict.ValueType) -> None:
        self.verdict = verdict
        self.ended.set()


class Keeper:
    """Renews leases every third of their time, and at once when rung.

    :param hears: whether rings can be heard; while they cannot, leases are renewed more often, so that a run that was
        stopped does not go on for long.
    """

    def __init__(
        self,
        stub: lease_pb2_grpc.LeaseServiceAsyncStub,
        runner: str,
        hears: Callable[[], bool] = lambda: True,
    ) -> None:
        self._stub = stub
        self._runner = runner
        self._hears = hears
        self._held: set[HeldLease] = set()

    def renew_all(self) -> None:
        """Renew every lease now: a run was cancelled, or permits are dealt anew."""
        for lease in self._held:
            lease.wake.set()

    def renew_stopped(self, shards: Collection[str]) -> None:
        """Renew the leases of shards whose run does not go on, where that is not known yet."""
        for lease in self._held:
            if lease.claims.shard in shards and not lease.ended.is_set():
                lease.wake.set()

    @asynccontextmanager
    async def kept(self, lease: HeldLease) -> AsyncIterator[None]:
        """Keep a lease for the duration of the block. Sets ``lease.ended`` when it is lost, and never raises."""
        self._held.add(lease)
        self._hold(lease)
        renewing = asyncio.create_task(self._renew(lease), name="renew")
        try:
            yield
        finally:
            self._held.discard(lease)
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    @staticmethod
    def _hold(lease: HeldLease) -> None:
        # The hub keeps the permits of a runner whose leases have ended for the time of another one: calls in flight
        # get the first half of that to come back, the second is for whatever is late.
        lease.lane.hold_until(lease.expires, lease.expires + lease.duration / 2)

    async def _renew(self, lease: HeldLease) -> None:
        # A run that was stopped is wound up under the lease: what came back may have to wait for the scorer.
        limit = lease.lane.limit
        delay = lease.duration / 3
        owing = False
        while lease.verdict != lease_pb2.RenewLeaseResponse.VERDICT_LOST:
            await self._until_due(lease, delay, owing=owing)
            permits_before = limit.permits
            try:
                await self._exchange(lease)
            except Unavailable as error:
                log.info("lease.waiting", shard=lease.claims.shard, error=error.message)
                delay = min(0.5, lease.duration / 6)
            else:
                delay = lease.duration / 3
                if lease.meter is not None and lease.meter.is_short:
                    delay = min(delay, _SHORT_SECONDS)
                # Others wait for what is taken back here: the hub is told as soon as it is free.
                owing = limit.permits < permits_before or (owing and limit.in_flight > limit.permits)

    async def _until_due(self, lease: HeldLease, delay: float, *, owing: bool) -> None:
        """Wait until it is time to renew, for a ring, or until calls have come down to the permits that are left."""
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(lease.wake.wait())]
        if owing:
            waits.append(asyncio.create_task(lease.lane.until_lowered()))
        due = monotonic() + delay
        try:
            while (left := due - monotonic()) > 0:
                done, _ = await asyncio.wait(
                    waits, timeout=min(left, _DEAF_SECONDS), return_when=asyncio.FIRST_COMPLETED
                )
                if done or not self._hears():
                    return
        finally:
            for wait in waits:
                wait.cancel()
            lease.wake.clear()

    def _end(self, lease: HeldLease, verdict: lease_pb2.RenewLeaseResponse.Verdict.ValueType) -> None:
        """End a lease. What stops one stops all of its run: no call that one drops makes room for one of another."""
        lease.end(verdict)
        if verdict == lease_pb2.RenewLeaseResponse.VERDICT_STOP:
            run, epoch = lease.claims.run, lease.claims.epoch
            for other in self._held:
                if other.claims.run == run and other.claims.epoch <= epoch and not other.ended.is_set():
                    other.end(verdict)

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
                        permits_version=lease.lane.permits_version,
                        spending=said(lease.meter, last=lease.ended.is_set()),
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
                self._end(lease, answer.verdict)
            if answer.verdict != lease_pb2.RenewLeaseResponse.VERDICT_LOST:
                lease.duration = answer.duration.ToTimedelta().total_seconds()
                lease.expires = sent + lease.duration
            if lease.meter is not None and answer.HasField("grant"):
                lease.meter.apply(read_grant(answer.grant, sent))
            # Starts what had to wait, too.
            lease.lane.set_permits(answer.permits, answer.permits_version)
            self._hold(lease)
