"""Leases on real servers: given once, kept, lost, taken back; permits never above the cap."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import grpc
import pytest
from nats.aio.msg import Msg

from benchgen.errors import InvalidInput, LeaseLost, NotFound, PermissionDenied
from benchgen.eval.v1 import event_pb2, lease_pb2, run_pb2
from benchgen.statuses import error_of
from services.common import bus
from services.common.signing import Signer
from services.hub.runs.domain import Pool
from services.hub.runs.locks import PoolLocks
from services.hub.runs.reaper import Reaper
from tests.conftest import Database
from tests.integration.hub.runs_support import (
    LEASE_SECONDS,
    SECRET,
    Held,
    Hub,
    World,
    eventually,
    refused,
    register_model,
    shard,
    world,
)
from tests.integration.hub.support import seed

STOPPING = lease_pb2.ReleaseShardRequest.REASON_STOPPING
FAULT = lease_pb2.ReleaseShardRequest.REASON_FAULT
PERMANENT = lease_pb2.ReleaseShardRequest.REASON_PERMANENT
GO_ON = lease_pb2.RenewLeaseResponse.VERDICT_GO_ON
STOP = lease_pb2.RenewLeaseResponse.VERDICT_STOP
LOST = lease_pb2.RenewLeaseResponse.VERDICT_LOST


@pytest.fixture
async def here(database: Callable[..., Database], nats_url: str) -> AsyncIterator[World]:
    async with world(database().dsn("hub"), nats_url) as made:
        yield made


@pytest.fixture
def hub(here: World) -> Hub:
    return here.hub


async def states(hub: Hub, run: run_pb2.Run) -> Counter[str]:
    """How many shards of a run are in which state."""
    return Counter(row["state"] for row in await hub.shards(run.name))


async def expire(hub: Hub, run: run_pb2.Run) -> None:
    """Let the leases of a run run out."""
    await hub.db.execute(
        "UPDATE shards SET expires_at = now() - interval '1 second' WHERE run_id = $1", run.name
    )


async def permits(hub: Hub) -> dict[str, int]:
    """What each runner can have in flight."""
    return {row["runner"]: row["granted"] for row in await hub.db.fetch("SELECT * FROM permits")}


async def test_a_lease_says_all_that_is_needed(hub: Hub) -> None:
    run = await hub.create(100, trials=3)
    held = await hub.lease(shard(run, 1))
    claims = held.claims
    assert (claims.shard, claims.run, claims.attempt, claims.epoch) == (shard(run, 1), run.name, 1, run.epoch)
    assert (claims.runner, claims.first, claims.count) == ("a", 19, 19)
    assert list(claims.positions) == list(range(6, 13))
    assert claims.spec == run.spec
    assert held.seconds == LEASE_SECONDS
    after = await hub.get(run.name)
    assert after.state == run_pb2.Run.STATE_RUNNING
    assert after.HasField("start_time")


async def test_a_sample_is_leased_by_position(hub: Hub) -> None:
    run = await hub.create(1000, selection=run_pb2.Selection(sample=40), trials=2, seed=5)
    rows = await hub.shards(run.name)
    seen: Counter[int] = Counter()
    for row in rows:
        claims = (await hub.lease(shard(run, row["number"]))).claims
        for trial in range(claims.first, claims.first + claims.count):
            seen[claims.positions[trial // 2 - claims.first // 2]] += 1
    selection = await hub.db.fetchval("SELECT selection FROM runs WHERE id = $1", run.name)
    assert len(selection) == 40
    assert seen == Counter(dict.fromkeys(selection, 2))


async def test_the_same_request_gets_the_same_lease(hub: Hub) -> None:
    run = await hub.create(10)
    request = str(uuid.uuid4())
    one, other = await hub.lease(shard(run), "a", request), await hub.lease(shard(run), "a", request)
    assert one.claims == other.claims
    assert one.lease == other.lease
    with refused(LeaseLost):
        await hub.lease(shard(run), "a")
    with refused(LeaseLost):
        await hub.lease(shard(run), "b", request)


async def test_of_many_that_ask_at_once_one_gets_the_lease(here: World) -> None:
    run = await here.hub.create(10)
    async with here.another_hub() as second:
        hubs = [here.hub, second] * 5
        answers = await asyncio.gather(
            *(hub.lease(shard(run), f"runner-{number}") for number, hub in enumerate(hubs)),
            return_exceptions=True,
        )
    held = [answer for answer in answers if isinstance(answer, Held)]
    failures = [error_of(answer) for answer in answers if isinstance(answer, grpc.RpcError)]
    assert len(held) == 1
    assert [type(failure) for failure in failures] == [LeaseLost] * 9


async def test_there_is_nothing_to_lease_where_there_is_nothing(hub: Hub) -> None:
    run = await hub.create(10)
    for name in ("", "nonsense", "r00000000000-000000", shard(run, 1)):
        with refused(NotFound):
            await hub.lease(name)
    with refused(InvalidInput):
        await hub.lease(shard(run), "a.b")


async def test_a_lease_is_kept_by_renewals(hub: Hub) -> None:
    run = await hub.create(10)
    held = await hub.lease(shard(run))
    await hub.db.execute("UPDATE shards SET expires_at = now() + interval '10 milliseconds'")
    answer = await hub.renew(held)
    await hub.reaper.step()
    assert answer.verdict == GO_ON
    assert answer.duration.ToTimedelta().total_seconds() == LEASE_SECONDS
    assert await states(hub, run) == {"RUNNING": 1}


async def test_a_lease_that_runs_out_is_another_runners(hub: Hub) -> None:
    run = await hub.create(10)
    first = await hub.lease(shard(run), "a")
    await expire(hub, run)
    await hub.reaper.step()
    second = await hub.lease(shard(run), "b")
    assert second.claims.attempt == 2
    assert (await hub.renew(first)).verdict == LOST
    with refused(LeaseLost):
        await hub.complete(first)
    with refused(LeaseLost):
        await hub.release(first, FAULT)
    await hub.complete(second)
    assert (await hub.shards(run.name))[0]["faults"] == 1


async def test_a_late_renewal_succeeds_while_nobody_else_has_the_shard(hub: Hub) -> None:
    run = await hub.create(10)
    held = await hub.lease(shard(run))
    for _ in range(5):
        await expire(hub, run)
        await hub.reaper.step()
        assert await states(hub, run) == {"PENDING": 1}
        assert (await hub.renew(held, 7)).verdict == GO_ON
    assert await states(hub, run) == {"RUNNING": 1}
    assert (await hub.shards(run.name))[0]["faults"] == 0
    with refused(LeaseLost):
        await hub.lease(shard(run), "b")


async def test_a_lost_reply_is_asked_for_again_even_after_the_lease_ran_out(hub: Hub) -> None:
    run = await hub.create(10)
    held = await hub.lease(shard(run), "a", "request")
    await expire(hub, run)
    await hub.reaper.step()
    assert (await hub.lease(shard(run), "a", "request")).claims == held.claims


async def test_a_hub_that_was_away_gives_holders_time(here: World) -> None:
    hub = here.hub
    run = await hub.create(10)
    held = await hub.lease(shard(run))
    await expire(hub, run)
    patient = Reaper(hub.db, hub.locks, hub.leases, grace=0.3)
    await patient.step()
    assert await states(hub, run) == {"RUNNING": 1}
    assert (await hub.renew(held)).verdict == GO_ON
    await expire(hub, run)
    await asyncio.sleep(0.31)
    await patient.step()
    assert await states(hub, run) == {"PENDING": 1}


@pytest.mark.parametrize("stop", ["cancel", "pause"])
async def test_a_stopped_run_is_wound_up_under_its_leases(hub: Hub, stop: str) -> None:
    """What came back may have to wait for the scorer for longer than a lease: it is not refused then."""
    run = await hub.create(100)
    held = await hub.lease(shard(run, 0))
    if stop == "cancel":
        await hub.runs.CancelRun(run_pb2.CancelRunRequest(name=run.name), metadata=hub.as_())
    else:
        await hub.runs.PauseRun(run_pb2.PauseRunRequest(name=run.name), metadata=hub.as_())
    for _ in range(3):
        await hub.db.execute("UPDATE shards SET expires_at = now() + interval '10 milliseconds'")
        answer = await hub.renew(held)
        assert answer.verdict == STOP
        assert answer.duration.ToTimedelta().total_seconds() == LEASE_SECONDS
        await asyncio.sleep(0.02)
        await hub.reaper.step()
        assert (await states(hub, run))["RUNNING"] == 1
    await hub.release(held, STOPPING)
    assert (await states(hub, run))["RUNNING"] == 0


async def test_a_lease_of_a_stopped_run_that_ran_out_is_not_taken_up_again(hub: Hub) -> None:
    run = await hub.create(100)
    held = await hub.lease(shard(run, 0))
    await hub.runs.PauseRun(run_pb2.PauseRunRequest(name=run.name), metadata=hub.as_())
    await expire(hub, run)
    await hub.reaper.step()
    assert (await hub.renew(held)).verdict == STOP
    assert (await states(hub, run))["RUNNING"] == 0


async def test_a_runner_hears_of_stopped_runs_without_a_ring(hub: Hub) -> None:
    run, other = await hub.create(100), await hub.create(100)
    for held_run, number, runner in ((run, 0, "a"), (run, 1, "a"), (run, 2, "b"), (other, 0, "a")):
        await hub.lease(shard(held_run, number), runner)
    ask = lease_pb2.KeepRunnerRequest(runner="a", shards=4)
    assert not (await hub.runner.KeepRunner(ask)).stopped_shards
    await hub.runs.CancelRun(run_pb2.CancelRunRequest(name=run.name), metadata=hub.as_())
    answer = await hub.runner.KeepRunner(ask)
    assert sorted(answer.stopped_shards) == [shard(run, 0), shard(run, 1)]


async def test_who_gives_up_waiting_for_a_pool_leaves_no_transaction(
    database: Callable[..., Database],
) -> None:
    pool, dsn = Pool("p"), database().dsn("hub")
    holding, waiting = asyncio.Event(), asyncio.Event()

    async def hold(locks: PoolLocks) -> None:
        async with locks.hold(pool):
            holding.set()
            await waiting.wait()

    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=1) as one,
        asyncpg.create_pool(dsn, min_size=1, max_size=1, reset=leave_as_it_is) as db,
    ):
        first = asyncio.create_task(hold(PoolLocks(one)))
        await holding.wait()
        # Another hub waits in PostgreSQL, on the only connection that it has.
        second = asyncio.create_task(hold(PoolLocks(db)))
        await asyncio.sleep(0.2)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert second.cancelled()
        waiting.set()
        await first
        async with db.acquire() as conn:
            assert not conn.is_in_transaction()


async def leave_as_it_is(_: asyncpg.Connection) -> None:
    """As in the services: a connection goes back to its pool as it is."""


async def test_completing_twice_is_the_same_as_once(hub: Hub) -> None:
    run = await hub.create(100)
    one, other = await hub.lease(shard(run, 0)), await hub.lease(shard(run, 1))
    assert await hub.complete(one, 64) == 64
    assert await hub.complete(one, 64) == 64
    assert (await hub.get(run.name)).progress.shards_done == 1
    assert await hub.complete(other) == 0
    assert await hub.complete(other) == 0
    assert await permits(hub) == {}


async def test_the_last_shards_completed_at_once_end_the_run_once(here: World) -> None:
    async with here.another_hub() as second:
        run = await here.hub.create(100)
        held = [await here.hub.lease(shard(run, number), f"r{number}") for number in range(7)]
        await asyncio.gather(*((here.hub, second)[n % 2].complete(lease) for n, lease in enumerate(held)))
    after = await here.hub.get(run.name)
    assert after.state == run_pb2.Run.STATE_SCORING
    assert after.progress.shards_done == after.progress.shards == 7


async def test_stopping_is_no_fault(hub: Hub) -> None:
    run = await hub.create(10)
    for _ in range(5):
        held = await hub.lease(shard(run))
        await hub.release(held, STOPPING)
        await hub.release(held, STOPPING)
        assert (await hub.renew(held)).verdict == LOST
    assert await states(hub, run) == {"PENDING": 1}
    assert [(row["faults"], row["attempt"]) for row in await hub.shards(run.name)] == [(0, 5)]


async def test_a_third_fault_ends_a_single_trial_with_its_reason(hub: Hub) -> None:
    run = await hub.create(10, selection=run_pb2.Selection(limit=1))
    for number in range(3):
        assert await states(hub, run) == {"PENDING": 1}
        await hub.release(await hub.lease(shard(run)), FAULT, f"disk full {number}")
    row = (await hub.shards(run.name))[0]
    assert (row["state"], row["faults"], row["reason"]) == ("ABANDONED", 3, "disk full 2")
    # A run with missing results has not failed: it is scored, and says what is missing.
    assert (await hub.get(run.name)).state == run_pb2.Run.STATE_SCORING


async def test_a_runner_that_dies_three_times_of_a_trial_ends_it(hub: Hub) -> None:
    run = await hub.create(10, selection=run_pb2.Selection(limit=1))
    for runner in "abc":
        await hub.lease(shard(run), runner)
        await expire(hub, run)
        await hub.reaper.step()
    row = (await hub.shards(run.name))[0]
    assert (row["state"], row["reason"]) == ("ABANDONED", "the lease of runner c ran out")


async def test_leases_that_run_out_under_a_runner_that_lives_are_no_faults(hub: Hub) -> None:
    run = await hub.create(10)
    for attempt in range(1, 6):
        held = await hub.lease(shard(run), f"r{attempt}")
        assert held.claims.attempt == attempt
        await expire(hub, run)
        # Slow, or not heard; but it is there.
        await hub.keep(f"r{attempt}")
        await hub.reaper.step()
        assert await states(hub, run) == {"PENDING": 1}
    assert (await hub.shards(run.name))[0]["faults"] == 0


def trials_of(claims: lease_pb2.LeaseClaims) -> list[tuple[int, int]]:
    """The positions and repeats that a lease is for."""
    repeats, first = claims.spec.trials, claims.first
    numbers = range(first, first + claims.count)
    return [(claims.positions[n // repeats - first // repeats], n % repeats) for n in numbers]


async def test_two_faults_split_a_shard(hub: Hub) -> None:
    run = await hub.create(1000, trials=3, selection=run_pb2.Selection(sample=67))
    before = await hub.shards(run.name)
    await hub.release(await hub.lease(shard(run), "a"), FAULT, "out of memory")
    late = await hub.lease(shard(run), "b")
    await expire(hub, run)
    await hub.reaper.step()
    rows = await hub.shards(run.name)
    parts = [row for row in rows if row["reason"]]
    # The first keeps its number, the others have new ones, and all of them the attempt: it ranks results.
    assert [row["number"] for row in parts] == [0, *range(len(before), len(rows))]
    assert len(parts) > 1
    assert {(row["state"], row["attempt"], row["reason"]) for row in parts} == {
        ("PENDING", 2, "the lease of runner b ran out")
    }
    now = await hub.get(run.name)
    assert (now.progress.shards, now.progress.shards_done) == (len(rows), 0)
    # Who had the whole has nothing of it any more, and whoever comes next has its part.
    assert (await hub.renew(late)).verdict == LOST
    with refused(LeaseLost):
        await hub.complete(late)
    held = [await hub.lease(shard(run, row["number"]), "c") for row in parts]
    assert {each.claims.attempt for each in held} == {3}
    assert [trial for each in held for trial in trials_of(each.claims)] == trials_of(late.claims)
    for each in held:
        await hub.complete(each)
    for row in before[1:]:
        await hub.complete(await hub.lease(shard(run, row["number"]), "c"))
    assert (await hub.get(run.name)).state == run_pb2.Run.STATE_SCORING


async def test_what_the_provider_refuses_for_good_pauses_the_run(here: World) -> None:
    hub = here.hub
    run = await hub.create(100)
    await hub.dispatcher.step()
    rung = await rings_of(hub, "b")
    one, other = await hub.lease(shard(run, 0), "a"), await hub.lease(shard(run, 1), "b")
    await hub.release(one, PERMANENT, "401 invalid_api_key")
    after = await hub.get(run.name)
    assert after.state == run_pb2.Run.STATE_PAUSED
    assert after.state_message == "401 invalid_api_key"
    assert await states(hub, run) == {"PENDING": 6, "RUNNING": 1}
    await eventually(lambda: rung == ["b"])
    assert (await hub.renew(other)).verdict == STOP
    await hub.release(other, STOPPING)
    await hub.dispatcher.step()
    assert await states(hub, run) == {"PENDING": 7}
    with refused(LeaseLost):
        await hub.lease(shard(run, 2))


async def test_what_is_refused_for_good_pauses_the_run_also_when_the_lease_has_just_run_out(hub: Hub) -> None:
    run = await hub.create(100)
    held = await hub.lease(shard(run, 0), "a")
    await expire(hub, run)
    await hub.reaper.step()
    await hub.release(held, STOPPING)
    assert (await hub.get(run.name)).state == run_pb2.Run.STATE_RUNNING
    await hub.release(held, PERMANENT, "401 invalid_api_key")
    after = await hub.get(run.name)
    assert (after.state, after.state_message) == (run_pb2.Run.STATE_PAUSED, "401 invalid_api_key")
    # What was met before the run was resumed does not pause it again.
    request = run_pb2.ResumeRunRequest(name=run.name, epoch=after.epoch)
    await hub.runs.ResumeRun(request, metadata=hub.as_())
    await hub.release(held, PERMANENT, "401 invalid_api_key")
    assert (await hub.get(run.name)).state == run_pb2.Run.STATE_RUNNING


async def rings_of(hub: Hub, runner: str) -> list[str]:
    """Hear the rings for a runner from now on."""
    heard: list[str] = []

    async def hear(message: Msg) -> None:
        heard.append(event_pb2.RenewLeases.FromString(message.data).runner)

    await hub.bus.listen(f"{bus.RENEW}.{runner}", hear)
    return heard


async def test_permits_are_shared_and_given_back(hub: Hub) -> None:
    """A runner alone has all; a second one gets its half as calls of the first end."""
    run = await hub.create(100)
    for_a, for_b = await rings_of(hub, "a"), await rings_of(hub, "b")
    a = await hub.lease(shard(run, 0), "a")
    assert a.permits == 64
    b = await hub.lease(shard(run, 1), "b")
    assert b.permits == 0
    await eventually(lambda: for_a == ["a"])
    # It hears that it has too many, while 60 are in flight; then 40; then 20.
    assert (await hub.renew(a, 64)).permits == 32
    assert (await hub.renew(a, 60)).permits == 32
    assert (await hub.renew(b, 0)).permits == 4
    await eventually(lambda: "b" in for_b)
    assert (await hub.renew(a, 20)).permits == 32
    assert (await hub.renew(b, 4)).permits == 32
    assert await permits(hub) == {"a": 32, "b": 32}
    # Alone again, it has all again.
    assert await hub.complete(a) == 0
    await eventually(lambda: len(for_b) >= 2)
    assert (await hub.renew(b, 32)).permits == 64


async def test_a_share_is_kept_for_runners_with_room(hub: Hub) -> None:
    await hub.keep("a")
    await hub.keep("b")
    run = await hub.create(100)
    assert (await hub.lease(shard(run, 0), "a")).permits == 32
    assert (await hub.lease(shard(run, 1), "b")).permits == 32
    small = await hub.create(10, model="builtin/echo")
    assert (await hub.lease(shard(small), "a")).permits == 256


async def test_permits_of_a_runner_end_at_what_it_can_do(hub: Hub) -> None:
    await hub.keep("a", calls=10)
    await hub.keep("b")
    run = await hub.create(100)
    assert (await hub.lease(shard(run, 0), "a")).permits == 10
    assert (await hub.lease(shard(run, 1), "b")).permits == 54


async def passes(hub: Hub) -> None:
    """Let the time pass for which permits of gone runners are kept."""
    await hub.db.execute("UPDATE permits SET free_at = now() - interval '1 second' WHERE free_at IS NOT NULL")


async def test_permits_of_a_runner_whose_lease_ran_out_are_kept_for_a_while(hub: Hub) -> None:
    """It may only stand still, and its calls be in flight: nobody else gets them before they must have ended."""
    run = await hub.create(100)
    for_b = await rings_of(hub, "b")
    a, b = await hub.lease(shard(run, 0), "a"), await hub.lease(shard(run, 1), "b")
    for in_use in (64, 32):
        await hub.renew(a, in_use)
    assert (await hub.renew(b)).permits == 32
    await hub.db.execute("UPDATE shards SET expires_at = now() - interval '1 second' WHERE runner = 'a'")
    await hub.reaper.step()
    assert (await hub.renew(b, 32)).permits == 32
    assert await permits(hub) == {"a": 32, "b": 32}
    await hub.reaper.step()
    assert await permits(hub) == {"a": 32, "b": 32}
    rung = len(for_b)
    await passes(hub)
    await hub.reaper.step()
    await eventually(lambda: len(for_b) > rung)
    assert (await hub.renew(b, 32)).permits == 64
    assert await permits(hub) == {"b": 64}


async def test_permits_that_were_kept_are_the_runners_again_when_it_renews(hub: Hub) -> None:
    run = await hub.create(100)
    a = await hub.lease(shard(run, 0), "a")
    await expire(hub, run)
    await hub.reaper.step()
    assert (await hub.renew(a, 64)).permits == 64
    await passes(hub)
    await hub.reaper.step()
    assert await permits(hub) == {"a": 64}


async def test_a_runner_that_leaves_leaves_its_permits(hub: Hub) -> None:
    run = await hub.create(100)
    await hub.keep("a")
    await hub.lease(shard(run, 0), "a")
    await expire(hub, run)
    await hub.reaper.step()
    assert await permits(hub) == {"a": 64}
    await hub.runner.RemoveRunner(lease_pb2.RemoveRunnerRequest(runner="a"))
    assert await permits(hub) == {}


async def test_calls_that_are_in_flight_without_a_lease_are_counted_for_a_while(hub: Hub) -> None:
    """A runner wakes up after its shard was given to another one: what it says it has is there."""
    run = await hub.create(100)
    a = await hub.lease(shard(run, 0), "a")
    await expire(hub, run)
    await hub.reaper.step()
    await passes(hub)
    await hub.reaper.step()
    b = await hub.lease(shard(run, 0), "b")
    assert (await hub.renew(b)).permits == 64
    # Told 64 and none of them in use: there is room for nothing else until b has given some back.
    assert (await hub.renew(a, 20)).verdict == LOST
    assert await permits(hub) == {"b": 64}
    await hub.complete(b)
    b = await hub.lease(shard(run, 1), "b")
    await hub.release(b, STOPPING)
    assert (await hub.renew(a, 20)).verdict == LOST
    assert await permits(hub) == {"a": 20}
    assert (await hub.lease(shard(run, 1), "b")).permits == 44


async def test_every_answer_about_permits_says_which_is_newer(hub: Hub) -> None:
    run = await hub.create(100)
    versions = []
    for number in range(2):
        request = lease_pb2.LeaseShardRequest(
            shard=shard(run, number), runner="a", request_id=str(uuid.uuid4())
        )
        held = await hub.runner.LeaseShard(request)
        claims = lease_pb2.LeaseClaims.FromString(held.lease.claims)
        versions.append(held.permits_version)
        of: dict[str, Any] = {
            "shard": claims.shard,
            "attempt": claims.attempt,
            "runner": "a",
            "permits_in_use": 64,
        }
        versions.append((await hub.runner.RenewLease(lease_pb2.RenewLeaseRequest(**of))).permits_version)
        for _ in range(2):
            done = await hub.runner.CompleteShard(lease_pb2.CompleteShardRequest(**of))
            assert done.permits == 0
            versions.append(done.permits_version)
    # Nothing was said twice; where it is nothing, it may be a newer nothing.
    assert versions[0] == versions[1]
    assert sorted(versions) == versions
    assert len(set(versions)) == 6


async def test_a_report_that_was_overtaken_counts_for_nothing(hub: Hub) -> None:
    """A renewal is processed late, at a hub that stood still, after the runner was told of more and took it."""
    run = await hub.create(100)
    a, b = await hub.lease(shard(run, 0), "a"), await hub.lease(shard(run, 1), "b")

    async def renew(held: Held, in_use: int, version: int) -> lease_pb2.RenewLeaseResponse:
        return await hub.runner.RenewLease(
            lease_pb2.RenewLeaseRequest(
                shard=held.claims.shard,
                attempt=held.claims.attempt,
                runner=held.claims.runner,
                permits_in_use=in_use,
                permits_version=version,
            )
        )

    first = await renew(a, 64, 0)
    assert first.permits == 32
    # Forty calls are in flight still; it was said before that only ten are.
    assert (await renew(a, 10, first.permits_version - 1)).permits == 32
    assert (await renew(b, 0, 0)).permits == 0
    assert (await permits(hub))["a"] == 64
    assert (await renew(a, 40, first.permits_version)).permits == 32
    assert (await renew(b, 0, 0)).permits == 24


async def test_caps_hold_under_load(here: World) -> None:
    """Runners that come and go at two hubs at once: at no moment more is granted than the model allows."""
    hub = here.hub
    await register_model(hub.db, "small", cap=7)
    run = await hub.create(1000, model="small", trials=2)
    waiting = list(range(run.progress.shards))
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, await hub.db.fetchval("SELECT coalesce(sum(granted), 0) FROM permits"))
            await asyncio.sleep(0)

    async def work(runner: str, at: Hub) -> None:
        while waiting:
            held = await at.lease(shard(run, waiting.pop()), runner)
            for in_use in (held.permits, 0):
                await at.renew(held, in_use)
            await at.complete(held)

    async with here.another_hub() as second:
        watching = asyncio.create_task(watch())
        await asyncio.gather(*(work(f"r{n}", (hub, second)[n % 2]) for n in range(9)))
        watching.cancel()
    assert 0 < most <= 7
    assert await states(hub, run) == {"DONE": run.progress.shards}
    assert await permits(hub) == {}


async def test_a_secret_is_given_for_a_held_lease_only(here: World) -> None:
    hub = here.hub
    await register_model(hub.db, "locked", secret=True)
    run = await hub.create(10, model="locked")
    held = await hub.lease(shard(run))

    async def ask(lease: lease_pb2.SignedLease) -> str:
        return (await hub.runner.GetModelSecret(lease_pb2.GetModelSecretRequest(lease=lease))).secret

    assert await ask(held.lease) == f"{SECRET}-locked"
    forged = held.lease.claims, Signer(seed()).sign(held.lease.claims)
    with refused(PermissionDenied):
        await ask(lease_pb2.SignedLease(claims=forged[0], signature=forged[1]))
    changed = lease_pb2.LeaseClaims()
    changed.CopyFrom(held.claims)
    changed.attempt = 2
    with refused(PermissionDenied):
        await ask(lease_pb2.SignedLease(claims=changed.SerializeToString(), signature=held.lease.signature))
    await hub.release(held, STOPPING)
    with refused(LeaseLost):
        await ask(held.lease)
    open_model = await hub.lease(shard(await hub.create(10)))
    assert await ask(open_model.lease) == ""


async def test_no_runner_leases_what_the_scorer_loads(hub: Hub) -> None:
    run = await hub.create(10, model="builtin/oracle")
    with refused(LeaseLost):
        await hub.lease(shard(run))


async def test_only_runners_lease(hub: Hub) -> None:
    run = await hub.create(10)
    with refused(PermissionDenied):
        await hub.runner_as_gateway.LeaseShard(
            lease_pb2.LeaseShardRequest(shard=shard(run), runner="a", request_id=str(uuid.uuid4()))
        )
