"""Runs on real servers: followed, stopped, loaded, and ended once."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import grpc
import pytest
from nats.aio.msg import Msg

from benchgen.errors import LeaseLost, NotFound, Unavailable
from benchgen.eval.v1 import event_pb2, lease_pb2, run_pb2
from benchgen.statuses import error_of
from services.common import bus
from tests.conftest import Database
from tests.integration.hub.runs_support import (
    Hub,
    World,
    cancel,
    ended,
    eventually,
    finish,
    refused,
    shard,
    world,
)

DIGEST = "a" * 64
Run = run_pb2.Run


@pytest.fixture
async def here(database: Callable[..., Database], nats_url: str) -> AsyncIterator[World]:
    async with world(database().dsn("hub"), nats_url) as made:
        yield made


@pytest.fixture
def hub(here: World) -> Hub:
    return here.hub


# Ending


async def test_a_run_ends_soon_after_its_last_shard(here: World) -> None:
    hub = here.hub
    here.scorer.answers_before_reported = 3
    hub.start()
    run = await hub.create(100)
    following = asyncio.create_task(ended(hub, run))
    await finish(hub, run)
    started = time.monotonic()
    last = await following
    assert time.monotonic() - started < 0.4
    assert last.state == Run.STATE_SUCCEEDED
    assert last.end_time.ToDatetime() >= last.start_time.ToDatetime() >= last.create_time.ToDatetime()
    sealed = here.scorer.sealed
    assert len(sealed) == 4
    assert sealed[-1].spec == run.spec
    assert sealed[-1].final_state == Run.STATE_SUCCEEDED
    assert sealed[-1].epoch == run.epoch
    assert 0 < sealed[-1].seconds < 15


async def test_a_report_that_takes_long_is_asked_for_until_it_is_there(here: World) -> None:
    here.scorer.answers_before_reported = 9
    here.hub.start()
    run = await here.hub.create(10)
    await finish(here.hub, run)
    assert (await ended(here.hub, run)).state == Run.STATE_SUCCEEDED
    assert len(here.scorer.sealed) == 10


async def test_two_hubs_end_a_run_once(here: World) -> None:
    async with here.another_hub() as second:
        here.hub.start()
        second.start()
        run = await here.hub.create(100)
        following = [asyncio.create_task(ended(hub, run)) for hub in (here.hub, second)]
        await finish(second, run)
        assert [last.state for last in await asyncio.gather(*following)] == [Run.STATE_SUCCEEDED] * 2


@pytest.mark.parametrize("when", ["queued", "running", "scoring", "paused"])
async def test_a_run_is_cancelled_at_any_time(here: World, when: str) -> None:
    hub = here.hub
    run = await hub.create(100)
    held = []
    if when in ("running", "paused"):
        held = [await hub.lease(shard(run, number)) for number in range(3)]
        await hub.complete(held.pop())
    if when == "paused":
        await hub.release(held.pop(), lease_pb2.ReleaseShardRequest.REASON_PERMANENT, "no quota")
    if when == "scoring":
        await finish(hub, run)
    first, again = await cancel(hub, run), await cancel(hub, run)
    assert first.state == again.state == Run.STATE_CANCELLING
    assert first.epoch == again.epoch == 2
    assert first.state_message == "cancelled with the API key key-1"
    with refused(LeaseLost):
        await hub.lease(shard(run, 5))
    await hub.sealer.step()
    # What is in flight is stored first.
    assert (await hub.get(run.name)).state == (Run.STATE_CANCELLING if held else Run.STATE_CANCELLED)
    for lease in held:
        assert (await hub.renew(lease)).verdict == lease_pb2.RenewLeaseResponse.VERDICT_STOP
        await hub.release(lease, lease_pb2.ReleaseShardRequest.REASON_STOPPING)
    await hub.sealer.step()
    last = await cancel(hub, run)
    assert last.state == Run.STATE_CANCELLED
    assert last.epoch == 2
    assert here.scorer.sealed[-1].final_state == Run.STATE_CANCELLED
    assert here.scorer.sealed[-1].epoch == 2
    reasons = {row["reason"] for row in await hub.shards(run.name) if row["state"] == "ABANDONED"}
    assert reasons <= {"cancelled"}
    assert await hub.db.fetchval("SELECT count(*) FROM permits") == 0


async def test_cancelling_rings_those_who_work(hub: Hub) -> None:
    run = await hub.create(100)
    for runner in ("a", "b"):
        await hub.lease(shard(run, "ab".index(runner)), runner)
    heard: set[str] = set()

    async def hear(message: Msg) -> None:
        heard.add(event_pb2.RenewLeases.FromString(message.data).runner)

    await hub.bus.listen(f"{bus.RENEW}.*", hear)
    await cancel(hub, run)
    await eventually(lambda: heard == {"a", "b"})


async def test_a_cancelled_runner_that_is_gone_holds_nothing_up(here: World) -> None:
    hub = here.hub
    hub.start()
    run = await hub.create(10)
    held = await hub.lease(shard(run))
    await cancel(hub, run)
    # It hears of it, but never comes back: its lease is not extended by asking.
    await hub.renew(held)
    assert (await ended(hub, run)).state == Run.STATE_CANCELLED
    assert (await hub.shards(run.name))[0]["state"] == "ABANDONED"


# Following


async def test_who_follows_a_run_hears_of_changes_at_once(here: World) -> None:
    async with here.another_hub() as second:
        here.hub.start()
        run = await here.hub.create(10)
        watch = second.runs.WatchRun(run_pb2.WatchRunRequest(name=run.name), metadata=second.as_())
        seen: list[tuple[float, Run.State.ValueType]] = []

        async def follow() -> None:
            async for now in watch:
                seen.append((time.monotonic(), now.state))

        following = asyncio.create_task(follow())
        await eventually(lambda: bool(seen))
        held = await here.hub.lease(shard(run))
        leased = time.monotonic()
        # The other hub is told through NATS.
        await eventually(lambda: seen[-1][1] == Run.STATE_RUNNING, 0.5)
        await eventually(lambda: len(seen) >= 4, 5)
        assert seen[-1][0] - leased > 0.9
        await here.hub.complete(held)
        await following
    assert seen[-1][1] == Run.STATE_SUCCEEDED


async def test_who_follows_is_let_go_when_the_hub_stops(hub: Hub) -> None:
    run = await hub.create(10)
    watch = hub.runs.WatchRun(run_pb2.WatchRunRequest(name=run.name), metadata=hub.as_())
    first = await watch.read()
    assert isinstance(first, Run)
    assert first.name == run.name
    hub.stopping.set()
    with pytest.raises(grpc.RpcError) as failure:
        await watch.read()
    assert isinstance(error_of(failure.value), Unavailable)


async def test_there_is_nothing_to_follow_where_there_is_no_run(hub: Hub) -> None:
    with refused(NotFound):
        await ended(hub, Run(name="r00000000000"))


async def test_changes_are_published_after_their_commit_and_once(here: World) -> None:
    hub = here.hub
    heard: list[str] = []

    async def hear(message: Msg) -> None:
        heard.append(event_pb2.RunChanged.FromString(message.data).run)

    await hub.bus.listen(f"{bus.RUNS_CHANGED}.*", hear)
    run = await hub.create(10)
    await finish(hub, run)
    await hub.sealer.step()
    assert await hub.db.fetchval("SELECT count(*) FROM outbox") == 4
    await hub.outbox.step()
    await eventually(lambda: len(heard) == 4)
    assert set(heard) == {run.name}
    assert await hub.db.fetchval("SELECT count(*) FROM outbox") == 0


# Loading


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "builtin/oracle"},
        {"model": "builtin/empty"},
        {"predictions": run_pb2.Predictions(digest=DIGEST, rows=100, label="mine.jsonl")},
    ],
)
async def test_what_is_there_is_loaded(here: World, fields: dict[str, Any]) -> None:
    async with here.another_hub() as second:
        here.hub.start()
        second.start()
        run = await here.hub.create(100, **fields)
        assert (await ended(here.hub, run)).state == Run.STATE_SUCCEEDED
    trials = [
        trial
        for claims in here.scorer.loaded
        if claims.run == run.name
        for trial in range(claims.first, claims.first + claims.count)
    ]
    assert sorted(trials) == list(range(100))


async def test_what_cannot_be_loaded_ends_the_run_with_the_reason(here: World) -> None:
    here.scorer.load_error = (grpc.StatusCode.NOT_FOUND, "no such predictions")
    here.hub.start()
    run = await here.hub.create(100, predictions=run_pb2.Predictions(digest=DIGEST))
    last = await ended(here.hub, run)
    assert (last.state, last.state_message) == (Run.STATE_FAILED, "no such predictions")
    assert last.HasField("end_time")
    async with asyncio.timeout(5):
        while {row["state"] for row in await here.hub.shards(run.name)} != {"ABANDONED"}:
            await asyncio.sleep(0.02)


async def test_loading_waits_for_the_scorer(here: World) -> None:
    hub = here.hub
    here.scorer.load_error = (grpc.StatusCode.UNAVAILABLE, "starting")
    run = await hub.create(10, model="builtin/oracle")
    for _ in range(5):
        with pytest.raises(Unavailable):
            await hub.loader.step()
    assert [(row["state"], row["faults"]) for row in await hub.shards(run.name)] == [("PENDING", 0)]
    here.scorer.load_error = None
    await hub.loader.step()
    assert (await hub.get(run.name)).state == Run.STATE_SCORING


async def test_loading_is_given_up_after_faults(here: World) -> None:
    hub = here.hub
    here.scorer.load_error = (grpc.StatusCode.INTERNAL, "broken")
    run = await hub.create(10, model="builtin/oracle")
    await hub.loader.step()
    # In parts, of which each was tried again.
    ends = {(row["state"], row["faults"], row["reason"]) for row in await hub.shards(run.name)}
    assert ends == {("ABANDONED", 3, "broken")}


async def test_loading_takes_as_long_as_it_takes(database: Callable[..., Database], nats_url: str) -> None:
    """The lease is renewed meanwhile: nobody else loads the shard."""
    async with world(database().dsn("hub"), nats_url, lease=1.0) as here:
        here.scorer.load_seconds = 2.5
        here.hub.start()
        run = await here.hub.create(10, model="builtin/oracle")
        assert (await ended(here.hub, run)).state == Run.STATE_SUCCEEDED
        assert [(row["state"], row["attempt"]) for row in await here.hub.shards(run.name)] == [("DONE", 1)]
        assert len(here.scorer.loaded) == 1
        assert here.scorer.loads_broken_off == 0


@pytest.mark.parametrize("stop", ["cancel", "lose"])
async def test_loading_ends_when_the_shard_is_wanted_back(
    database: Callable[..., Database], nats_url: str, stop: str
) -> None:
    async with world(database().dsn("hub"), nats_url, lease=1.0) as here:
        hub = here.hub
        here.scorer.load_seconds = 30.0
        run = await hub.create(10, model="builtin/oracle")
        loading = asyncio.create_task(hub.loader.step())
        await asyncio.sleep(0.1)
        if stop == "cancel":
            await cancel(hub, run)
        else:
            await hub.db.execute("UPDATE shards SET attempt = attempt + 1, runner = 'another'")
        async with asyncio.timeout(2):
            await loading
        await eventually(lambda: here.scorer.loads_broken_off == 1)
        state = (await hub.shards(run.name))[0]["state"]
        assert state == ("ABANDONED" if stop == "cancel" else "RUNNING")


# All together


async def test_work_on_many_runs_by_runners_that_die(here: World) -> None:
    """Runners of two hubs take rings and work; one in five leases is forgotten, one in five handed back."""
    luck = Random(1)
    async with here.another_hub() as second:
        hubs = (here.hub, second)
        for hub in hubs:
            hub.start()
        runs = [await hubs[n % 2].create((10, 100)[n % 2]) for n in range(6)]

        async def work(runner: str, hub: Hub) -> None:
            while True:
                await hub.keep(runner)
                for message in await hub.bus.pull_rings(2, wait=0.2):
                    name = event_pb2.ShardQueued.FromString(message.data).shard
                    await message.ack()
                    try:
                        held = await hub.lease(name, runner, str(uuid.uuid4()))
                        chance = luck.random()
                        if chance < 0.2:
                            continue
                        await hub.renew(held, held.permits)
                        if chance < 0.4:
                            await hub.release(held, lease_pb2.ReleaseShardRequest.REASON_STOPPING)
                        else:
                            await hub.complete(held)
                    except grpc.RpcError as failure:
                        if not isinstance(error_of(failure), LeaseLost):
                            raise

        workers = [asyncio.create_task(work(f"r{n}", hubs[n % 2])) for n in range(4)]
        async with asyncio.timeout(60):
            for run in runs:
                assert (await ended(here.hub, run)).state == Run.STATE_SUCCEEDED
        for worker in workers:
            worker.cancel()
        for outcome in await asyncio.gather(*workers, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), outcome
    rows = await here.hub.db.fetch("SELECT state, count(*) FROM shards GROUP BY state")
    assert {row["state"] for row in rows} <= {"DONE", "ABANDONED"}
    # Of leases that were forgotten they are kept for a while.
    assert await here.hub.db.fetchval("SELECT count(*) FROM permits WHERE free_at IS NULL") == 0
    assert await here.hub.db.fetchval("SELECT sum(shards_open) FROM runs") == 0
