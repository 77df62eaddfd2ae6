"""Rings on real servers: bounded, fair, repeated when lost, and by the indexes that were made for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import orjson
import pytest

from benchgen.eval.v1 import event_pb2, lease_pb2, run_pb2
from services.hub.registry.store import Conn
from services.hub.runs.store import SQL
from tests.conftest import Database
from tests.integration.hub.runs_support import (
    Hub,
    World,
    empty_streams,
    publish,
    register_model,
    shard,
    world,
)


@pytest.fixture
async def here(database: Callable[..., Database], nats_url: str) -> AsyncIterator[World]:
    async with world(database().dsn("hub"), nats_url) as made:
        yield made


@pytest.fixture
def hub(here: World) -> Hub:
    return here.hub


async def rings(hub: Hub, *, wait: float = 0.3) -> list[str]:
    """Take the rings that are out, as a runner would: the shards' ids in order."""
    taken: list[str] = []
    while messages := await hub.bus.pull_rings(100, wait=wait):
        for message in messages:
            taken.append(event_pb2.ShardQueued.FromString(message.data).shard)
            await message.ack()
    return taken


async def queued(hub: Hub, run: run_pb2.Run) -> int:
    """How many shards of a run are in the window."""
    return sum(row["state"] == "QUEUED" for row in await hub.shards(run.name))


async def age_rings(hub: Hub) -> None:
    """Let the rings that are out be old."""
    await hub.db.execute("UPDATE shards SET rung_at = now() - interval '1 minute' WHERE state = 'QUEUED'")


async def test_a_small_run_is_rung_for_whole_and_in_order(hub: Hub) -> None:
    run = await hub.create(100)
    await hub.dispatcher.step()
    assert await rings(hub) == [shard(run, number) for number in range(4)]
    await hub.dispatcher.step()
    assert await rings(hub) == []


async def test_the_window_is_bounded_and_filled_up_again(hub: Hub) -> None:
    for runner in ("a", "b", "c"):
        await hub.keep(runner)
    run = await hub.create(1000, trials=10)
    assert run.progress.shards == 40
    await hub.dispatcher.step()
    assert await queued(hub, run) == 6
    leases = [await hub.lease(shard(run, number)) for number in range(3)]
    await hub.dispatcher.step()
    # What is leased counts as well: more than two shards a runner only keep it from what is more urgent.
    assert await queued(hub, run) == 3
    for lease in leases:
        await hub.complete(lease)
    await hub.dispatcher.step()
    assert await queued(hub, run) == 6
    assert len(await rings(hub)) == 9


async def test_a_model_that_allows_many_calls_keeps_more_shards_in_hand(hub: Hub) -> None:
    await hub.keep("a")
    run = await hub.create(1000, trials=10)
    await hub.db.execute("UPDATE runs SET cap = 300")
    for expected in (4, 8, 8):
        await hub.dispatcher.step()
        for number, row in enumerate(await hub.shards(run.name)):
            if row["state"] == "QUEUED":
                await hub.lease(shard(run, number))
        held = [row for row in await hub.shards(run.name) if row["state"] == "RUNNING"]
        # Of 256 trials each, until there are four for each call.
        assert len(held) == expected


async def test_who_holds_nothing_gets_something_whatever_others_hold(hub: Hub) -> None:
    await hub.keep("busy")
    run = await hub.create(1000, trials=10)
    await hub.dispatcher.step()
    for number in range(4):
        await hub.lease(shard(run, number), runner="busy")
    await hub.dispatcher.step()
    assert await queued(hub, run) == 0
    await hub.keep("idle")
    await hub.dispatcher.step()
    assert await queued(hub, run) == 1


async def test_a_small_run_behind_a_big_one_is_rung_for_at_once(hub: Hub) -> None:
    big = await hub.create(1000, trials=100)
    await hub.dispatcher.step()
    assert len(await rings(hub)) == await queued(hub, big) == 4
    small = await hub.create(10)
    await hub.dispatcher.step()
    assert await rings(hub) == [shard(small)]


async def test_runs_take_turns(hub: Hub) -> None:
    runs = [await hub.create(1000) for _ in range(3)]
    for number in range(6):
        await hub.keep(f"runner-{number}")
    await hub.dispatcher.step()
    counts = Counter(ring.partition("-")[0] for ring in await rings(hub))
    assert counts == {run.name: 4 for run in runs}
    # What is leased counts as much as what is rung for; who has less in hand comes first.
    held = [await hub.lease(shard(runs[0], number)) for number in range(4)]
    for lease in held[:3]:
        await hub.complete(lease)
    await hub.dispatcher.step()
    counts = Counter(ring.partition("-")[0] for ring in await rings(hub))
    assert counts == {runs[0].name: 3}


async def test_a_higher_priority_goes_first(hub: Hub) -> None:
    low, high = await hub.create(1000, priority=-5), await hub.create(1000, priority=5)
    await hub.dispatcher.step()
    counts = Counter(ring.partition("-")[0] for ring in await rings(hub))
    # What has nothing in hand does not wait: it would never start.
    assert counts == {high.name: 4, low.name: 1}


async def test_models_have_windows_of_their_own(hub: Hub) -> None:
    await register_model(hub.db, "other")
    runs = [
        await hub.create(1000),
        await hub.create(1000, model="other"),
        await hub.create(1000, model="builtin/echo"),
    ]
    await hub.dispatcher.step()
    assert [await queued(hub, run) for run in runs] == [4, 4, 4]


async def test_what_the_scorer_loads_is_never_rung_for(hub: Hub) -> None:
    run = await hub.create(10, model="builtin/oracle")
    await hub.dispatcher.step()
    assert await queued(hub, run) == 0


async def test_a_lost_ring_is_repeated_under_a_new_name(hub: Hub, nats_url: str) -> None:
    await hub.keep("a")
    run = await hub.create(10)
    await hub.dispatcher.step()
    assert await rings(hub) == [shard(run)]
    await age_rings(hub)
    await hub.dispatcher.step()
    # Within the time in which JetStream drops what it has seen before.
    assert await rings(hub) == [shard(run)]
    await empty_streams(nats_url)
    await age_rings(hub)
    await hub.dispatcher.step()
    assert await rings(hub) == [shard(run)]


async def test_nobody_is_rung_again_while_nobody_has_room(hub: Hub) -> None:
    await hub.keep("a", shards=1)
    run = await hub.create(10, trials=3)
    await hub.dispatcher.step()
    await rings(hub)
    held = await hub.lease(shard(run, 0))
    await age_rings(hub)
    await hub.dispatcher.step()
    assert await rings(hub) == []
    await hub.complete(held)
    await hub.dispatcher.step()
    assert await rings(hub) == [shard(run, 1)]


async def test_a_shard_that_came_back_is_rung_for_again(hub: Hub) -> None:
    run = await hub.create(10)
    for attempt in range(3):
        await hub.dispatcher.step()
        assert await rings(hub) == [shard(run)]
        held = await hub.lease(shard(run))
        assert held.claims.attempt == attempt + 1
        await hub.release(held, lease_pb2.ReleaseShardRequest.REASON_STOPPING)


async def test_two_dispatchers_ring_once(here: World) -> None:
    async with here.another_hub() as second:
        run = await here.hub.create(100)
        for _ in range(5):
            await here.hub.dispatcher.step()
            await second.dispatcher.step()
        assert await rings(here.hub) == [shard(run, number) for number in range(4)]


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


async def _explained(conn: Conn, name: str, *values: object) -> list[dict[str, Any]]:
    """The nodes of a statement's plan."""
    found = await conn.fetchval(f"EXPLAIN (FORMAT JSON) {SQL[name]}", *values)
    return _nodes(orjson.loads(found)[0]["Plan"])


async def test_plans_use_the_indexes(hub: Hub) -> None:
    await publish(hub.db, 12_800)
    run = await hub.create(12_800, trials=780)
    await hub.create(1000)
    await hub.keep("a", shards=20)
    await hub.dispatcher.step()
    for number in range(20):
        await hub.lease(shard(run, number))
    second = timedelta(seconds=5)
    async with hub.db.acquire() as conn:
        # As of 13 runs as big: with fewer, some mistakes of the planner do not show.
        await conn.execute(
            "INSERT INTO shards (run_id, number, pool, first, count)"
            " SELECT run_id, number + 39000 * more, pool, first, count FROM shards, generate_series(1, 12) AS more"
            " WHERE run_id = $1",
            run.name,
        )
        assert await conn.fetchval("SELECT count(*) FROM shards") > 500_000
        await conn.execute("ANALYZE")
        statements: list[tuple[str, tuple[object, ...]]] = [
            ("pools_to_dispatch", (second,)),
            ("fill_window", ("gpt", 60, 60, 4, 1)),
            ("ring_again", ("gpt", second, 20)),
            ("runners", (second,)),
            ("pools_with_expired", ()),
            ("expired", ("gpt", second)),
            ("lease_view", (run.name, 7, "a", second, 30.0)),
            ("shards_to_load", ("builtin/loaded", 4)),
            ("runners_of", ("gpt", run.name)),
            ("reserve_idle_permits", ("gpt", second)),
            ("drop_free_permits", ("gpt",)),
            ("keep_runner", ("a", 20, 0)),
        ]
        for name, values in statements:
            scanned = [
                node
                for node in await _explained(conn, name, *values)
                if node["Node Type"] == "Seq Scan" and node.get("Relation Name") == "shards"
            ]
            assert not scanned, name
