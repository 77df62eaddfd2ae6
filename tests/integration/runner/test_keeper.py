"""Leases are kept, given up and taken back late, over a real hub's interface."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest

from benchgen.errors import BenchgenError, LeaseLost, NotFound, Unavailable
from benchgen.eval.v1 import lease_pb2
from services.common.signing import Signer
from services.runner.harness.chat import Trial
from services.runner.keeper import HeldLease, Keeper
from services.runner.lanes import Lane, ShardTrials
from tests.integration.runner.support import Hub, held, reached
from tests.integration.scorer.support import new_seed

Answer = lease_pb2.RenewLeaseResponse


@pytest.fixture
def hub() -> Hub:
    return Hub(Signer(new_seed()))


@pytest.fixture
def lane() -> Lane:
    return Lane("m")


@pytest.fixture
async def keeper(hub: Hub) -> AsyncIterator[Keeper]:
    async with reached(hub) as stub:
        yield Keeper(stub, "runner-1")


def claims(number: int = 0) -> lease_pb2.LeaseClaims:
    return lease_pb2.LeaseClaims(shard=f"r1-{number:06d}", run="r1", attempt=4)


@asynccontextmanager
async def keeping(hub: Hub, keeper: Keeper, lane: Lane) -> AsyncIterator[HeldLease]:
    lease = held(hub, lane, claims())
    async with keeper.kept(lease):
        yield lease


def gone(lease: HeldLease) -> bool:
    return lease.ended.is_set()


async def test_a_lease_is_renewed_every_third_of_its_time(hub: Hub, keeper: Keeper, lane: Lane) -> None:
    async with keeping(hub, keeper, lane) as lease:
        started = monotonic()
        await hub.until(lambda: len(hub.renewals) == 3)
        took = monotonic() - started
        assert 0.45 <= took < 1.5
        assert not gone(lease)
        assert lease.expires > monotonic() + 0.3
    first = hub.renewals[0]
    assert (first.shard, first.attempt, first.runner, first.permits_in_use) == ("r1-000000", 4, "runner-1", 8)
    count = len(hub.renewals)
    await asyncio.sleep(0.4)
    assert len(hub.renewals) == count, "a lease is renewed after the work on it has ended"


async def test_a_ring_renews_at_once(hub: Hub, keeper: Keeper, lane: Lane) -> None:
    hub.seconds = 60
    async with keeping(hub, keeper, lane) as lease:
        other = held(hub, lane, claims(1))
        async with keeper.kept(other):
            hub.permits = 3
            keeper.renew_all()
            await hub.until(lambda: {renewal.shard for renewal in hub.renewals} == {"r1-000000", "r1-000001"})
            assert lane.limit.permits == 3
            assert not gone(lease)


@pytest.mark.parametrize("verdict", [Answer.VERDICT_STOP, Answer.VERDICT_LOST])
async def test_a_verdict_ends_the_work(
    hub: Hub, keeper: Keeper, lane: Lane, verdict: Answer.Verdict.ValueType
) -> None:
    async with keeping(hub, keeper, lane) as lease:
        hub.verdict = verdict
        keeper.renew_all()
        async with asyncio.timeout(5):
            await lease.ended.wait()
        assert lease.verdict == verdict
        count = len(hub.renewals)
        keeper.renew_all()
        # What came back before a stop may have to wait for the scorer, for longer than a lease.
        if verdict == Answer.VERDICT_STOP:
            await hub.until(lambda: len(hub.renewals) >= count + 4)
            assert lease.expires > monotonic()
        else:
            await asyncio.sleep(0.3)
            assert len(hub.renewals) == count
    count = len(hub.renewals)
    await asyncio.sleep(0.4)
    assert len(hub.renewals) == count


@pytest.mark.parametrize("error", [LeaseLost("it is not yours"), NotFound("there is no such shard")])
async def test_a_refusal_means_that_it_is_lost(
    hub: Hub, keeper: Keeper, lane: Lane, error: BenchgenError
) -> None:
    hub.error = error
    async with keeping(hub, keeper, lane) as lease:
        async with asyncio.timeout(5):
            await lease.ended.wait()
        assert lease.verdict == Answer.VERDICT_LOST


class Calls:
    """Trials whose calls end when they are told to."""

    def __init__(self, lane: Lane, lease: HeldLease, count: int) -> None:
        self.started = 0
        self.ends = asyncio.Semaphore(0)
        self._lane = lane
        trials = [Trial(n, 0, f"case-{n}", (), "") for n in range(count)]
        self.shard = ShardTrials(lease.claims.shard, "r1", trials, self._call, lambda: lease.holds)
        lane.add(self.shard)

    async def _call(self, trial: Trial) -> None:
        await self._lane.limit.acquire()
        try:
            self.started += 1
            await self.ends.acquire()
        finally:
            self._lane.limit.release()


async def test_no_call_is_started_after_the_lease_has_ended(hub: Hub, keeper: Keeper, lane: Lane) -> None:
    async with keeping(hub, keeper, lane) as lease:
        calls = Calls(lane, lease, 20)
        hub.error = Unavailable("the hub is away")
        await hub.until(lambda: not lease.holds)
        assert calls.started == 8
        for _ in range(5):
            calls.ends.release()
        await asyncio.sleep(0.05)
        assert (calls.started, calls.shard.finished) == (8, 5)
        assert not gone(lease)
        # Nobody else took it meanwhile: it goes on.
        hub.error = None
        await hub.until(lambda: lease.holds)
        await asyncio.sleep(0.01)
        assert calls.started == 13
        assert lease.expires > monotonic()
        await calls.shard.abort()


async def test_a_hub_that_does_not_answer_at_all(lane: Lane, hub: Hub) -> None:
    """The lease ends while an exchange hangs, and that is when calls stop."""
    hanging = asyncio.Event()

    class Hanging(Hub):
        async def RenewLease(self, request: lease_pb2.RenewLeaseRequest, context: object) -> Answer:  # noqa: N802
            await hanging.wait()
            return await super().RenewLease(request, context)

    hub = Hanging(hub.key)
    async with reached(hub) as stub:
        keeper = Keeper(stub, "runner-1")
        async with keeping(hub, keeper, lane) as lease:
            await hub.until(lambda: not lease.holds)
            hanging.set()
            await hub.until(lambda: lease.holds)
            assert not gone(lease)


async def test_no_try_is_started_after_the_lease_has_ended(hub: Hub, keeper: Keeper, lane: Lane) -> None:
    """A trial that is under way tries again; without a lease it waits for its turn."""
    async with keeping(hub, keeper, lane) as lease:
        hub.error = Unavailable("the hub is away")
        await hub.until(lambda: not lease.holds)
        again = asyncio.create_task(lane.limit.acquire())
        await asyncio.sleep(0.05)
        assert not again.done()
        assert lane.permits_in_use == 0
        hub.error = None
        async with asyncio.timeout(5):
            await again
        assert lease.holds
        assert lane.permits_in_use == 8


async def test_calls_in_flight_are_called_off_before_others_get_their_permits(
    hub: Hub, keeper: Keeper, lane: Lane
) -> None:
    async with keeping(hub, keeper, lane) as lease:
        calls = Calls(lane, lease, 10)
        await asyncio.sleep(0.01)
        hub.error = Unavailable("the hub is away")
        await hub.until(lambda: not lease.holds)
        # Who comes back soon has not been called for nothing.
        for _ in range(3):
            calls.ends.release()
        await asyncio.sleep(0.05)
        assert (calls.shard.finished, lane.limit.in_flight) == (3, 5)
        await hub.until(lambda: not lane.limit.in_flight)
        assert monotonic() - lease.expires < 0.9 * hub.seconds
        assert (calls.started, calls.shard.finished) == (8, 3)
        # The trials are there still.
        hub.error = None
        for _ in range(10):
            calls.ends.release()
        async with asyncio.timeout(5):
            await calls.shard.done.wait()
        assert calls.shard.finished == 10


async def test_an_older_answer_about_permits_changes_nothing(hub: Hub, keeper: Keeper, lane: Lane) -> None:
    async with keeping(hub, keeper, lane):
        lane.set_permits(2, 7)
        lane.set_permits(8, 6)
        assert lane.limit.permits == 2
        keeper.renew_all()
        await hub.until(lambda: hub.renewals)
        assert hub.renewals[0].permits_version == 7


async def test_a_process_that_was_stopped_for_a_while(hub: Hub, keeper: Keeper, lane: Lane) -> None:
    """What came in meanwhile is dealt with first when it goes on; the lease has ended all the same."""
    async with keeping(hub, keeper, lane) as lease:
        calls = Calls(lane, lease, 20)
        await asyncio.sleep(0.01)
        assert calls.started == 8
        for _ in range(4):
            calls.ends.release()
        # As a stop signal does it: nothing of this process runs, and time goes by.
        time.sleep(hub.seconds + 0.1)
        for _ in range(10):
            await asyncio.sleep(0)
        assert (calls.started, calls.shard.finished) == (8, 4)
        await hub.until(lambda: lease.holds)
        await asyncio.sleep(0.01)
        assert calls.started == 12
        await calls.shard.abort()


async def test_permits_that_are_taken_back_are_reported_when_they_are_free(
    hub: Hub, keeper: Keeper, lane: Lane
) -> None:
    hub.seconds = 30
    async with keeping(hub, keeper, lane) as lease:
        calls = Calls(lane, lease, 20)
        await asyncio.sleep(0.01)
        assert calls.started == 8
        hub.permits = 5
        keeper.renew_all()
        await hub.until(lambda: len(hub.renewals) == 1)
        await asyncio.sleep(0.05)
        calls.ends.release()
        calls.ends.release()
        await asyncio.sleep(0.05)
        assert len(hub.renewals) == 1
        # The eighth, seventh and sixth have come back: now the hub may deal them to others.
        calls.ends.release()
        await hub.until(lambda: len(hub.renewals) == 2)
        assert [renewal.permits_in_use for renewal in hub.renewals] == [8, 5]
        assert calls.started == 8
        calls.ends.release()
        await asyncio.sleep(0.05)
        assert calls.started == 9
        assert len(hub.renewals) == 2
        await calls.shard.abort()


async def test_calls_that_take_long_do_not_cost_the_lease(hub: Hub, keeper: Keeper, lane: Lane) -> None:
    """Permits were taken back, and the calls that hold them take longer than the lease."""
    hub.seconds = 1.2
    async with keeping(hub, keeper, lane) as lease:
        calls = Calls(lane, lease, 8)
        await asyncio.sleep(0.01)
        hub.permits = 1
        keeper.renew_all()
        await hub.until(lambda: len(hub.renewals) == 3)
        assert lease.holds
        assert {renewal.permits_in_use for renewal in hub.renewals} == {8}
        hub.verdict = Answer.VERDICT_STOP
        rung = monotonic()
        keeper.renew_all()
        async with asyncio.timeout(5):
            await lease.ended.wait()
        assert monotonic() - rung < 0.35
        await calls.shard.abort()
