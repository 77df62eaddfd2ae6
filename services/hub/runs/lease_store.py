"""Leases and permits in PostgreSQL. Every function runs in a transaction that holds the pool's lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import asyncpg

from services.hub.registry.store import Conn
from services.hub.runs.dealing import Holder, Settlement, Table
from services.hub.runs.domain import (
    Company,
    LeaseView,
    Part,
    Pool,
    RunId,
    RunnerId,
    RunState,
    ShardId,
    ShardState,
)
from services.hub.runs.store import SQL


class Situation(NamedTuple):
    """What decides about one word of a runner.

    ``leases`` is how many shards of the pool it holds, ``calls`` what it can do at all (0: it did not say).
    ``version`` is of its permits, 0 when it has none; ``leaving`` tells whether they are only kept until its calls
    must have ended. ``metered`` tells whether the run, or its API key, has a budget.
    """

    shard: LeaseView
    table: Table
    leases: int
    calls: int
    version: int
    leaving: bool
    metered: bool


class Told(NamedTuple):
    """How many calls a runner may have in flight, and which such number this is."""

    permits: int
    version: int


class Left(NamedTuple):
    """What is left of a run when one of its shards has ended."""

    open: int
    state: RunState


@dataclass(frozen=True, slots=True)
class Expired:
    """A lease that has run out."""

    id: ShardId
    first: int
    count: int
    attempt: int
    faults: int
    runner: RunnerId
    run_state: RunState
    alive: bool
    """Whether its holder was heard of since it missed a renewal."""


async def situation(
    conn: Conn, shard: ShardId, runner: RunnerId, *, seen: timedelta, turn_seconds: float
) -> Situation | None:
    """Read a shard and the table of its pool; None when there is no such shard.

    :param seen: runners that were heard of within this time are there.
    :param turn_seconds: how long a turn takes where there are fewer calls than runners.
    """
    row = await conn.fetchrow(SQL["lease_view"], shard.run, shard.number, runner, seen, turn_seconds)
    if row is None:
        return None
    return Situation(
        _read_view(shard, row),
        _read_table(row),
        row["leases"],
        row["calls"],
        row["version"] or 0,
        bool(row["leaving"]),
        row["metered"],
    )


async def take_shard(
    conn: Conn, shard: LeaseView, runner: RunnerId, request_id: str, duration: timedelta
) -> int | None:
    """Lease a shard from now on; returns the attempt, None when somebody else was first."""
    values = (shard.id.run, shard.id.number, shard.attempt, shard.run_epoch, runner, request_id, duration)
    attempt: int | None = await conn.fetchval(SQL["take_shard"], *values)
    return attempt


async def keep_shard(conn: Conn, shard: LeaseView, duration: timedelta) -> None:
    """Let a lease go on from now."""
    await conn.execute(SQL["keep_shard"], shard.id.run, shard.id.number, shard.attempt, duration)


async def return_shard(
    conn: Conn, shard: ShardId, attempt: int, *, holder: RunnerId, faults: int, reason: str
) -> None:
    """Let a shard wait again.

    :param holder: who may still take it up again; nobody when empty.
    """
    await conn.execute(SQL["return_shard"], shard.run, shard.number, attempt, holder, reason, faults)


async def split_shard(
    conn: Conn, shard: ShardId, attempt: int, parts: Sequence[Part], *, reason: str
) -> None:
    """Let a shard wait in parts. The first one keeps its number; nobody may take the whole up again."""
    await conn.execute(
        SQL["split_shard"],
        shard.run,
        shard.number,
        attempt,
        reason,
        [part.first for part in parts],
        [part.count for part in parts],
        [part.faults for part in parts],
    )


async def end_shard(
    conn: Conn, shard: ShardId, attempt: int, state: ShardState, *, faults: int, reason: str = ""
) -> Left | None:
    """End a shard as DONE or ABANDONED; None when it has ended before."""
    row = await conn.fetchrow(SQL["end_shard"], shard.run, shard.number, attempt, state, reason, faults)
    return None if row is None else Left(row["shards_open"], RunState(row["state"]))


async def save(
    conn: Conn, pool: Pool, runner: RunnerId, now: Situation, settled: Settlement, grace: timedelta
) -> Told:
    """Store what a runner may have in flight; returns what it is told.

    :param grace: how long what a runner that leaves still has in flight is kept for it.
    """
    if settled.own is None:
        version = await conn.fetchval(SQL["drop_permits"], pool, runner)
    elif settled.changed or settled.leaving or now.leaving:
        free_after = grace if settled.leaving else None
        numbers = (settled.own.granted, settled.own.told)
        version = await conn.fetchval(SQL["put_permits"], pool, runner, *numbers, free_after)
    else:
        version = now.version
    return Told(settled.permits, version)


async def reserve_idle_permits(conn: Conn, pool: Pool, grace: timedelta) -> None:
    """Tell the time of permits of runners that hold nothing of the pool any more: their calls may go on for so long."""
    await conn.execute(SQL["reserve_idle_permits"], pool, grace)


async def drop_free_permits(conn: Conn, pool: Pool) -> bool:
    """Take the permits of runners whose time has ended; returns whether there were any."""
    dropped: int = await conn.fetchval(SQL["drop_free_permits"], pool)
    return dropped > 0


async def permit_holders(conn: Conn, pool: Pool) -> list[RunnerId]:
    """Everyone who holds permits of a pool, and a lease."""
    return [RunnerId(row["runner"]) for row in await conn.fetch(SQL["permit_holders"], pool)]


async def told(conn: Conn, pool: Pool, runner: RunnerId) -> Told:
    """What a runner was told last; 0 when it holds nothing."""
    row = await conn.fetchrow(SQL["told"], pool, runner)
    assert row is not None
    return Told(row["permits"], row["version"])


async def pools_with_expired(conn: Conn) -> list[Pool]:
    """Pools with leases that have run out, or with permits that have become free."""
    return [Pool(row["pool"]) for row in await conn.fetch(SQL["pools_with_expired"])]


async def expired(conn: Conn, pool: Pool, duration: timedelta) -> list[Expired]:
    """Leases of that duration that have run out."""
    return [
        Expired(
            ShardId(RunId(row["run_id"]), row["number"]),
            row["first"],
            row["count"],
            row["attempt"],
            row["faults"],
            RunnerId(row["runner"]),
            RunState(row["run_state"]),
            row["alive"],
        )
        for row in await conn.fetch(SQL["expired"], pool, duration)
    ]


def _read_view(shard: ShardId, row: asyncpg.Record) -> LeaseView:
    return LeaseView(
        id=shard,
        first=row["first"],
        count=row["count"],
        state=ShardState(row["state"]),
        attempt=row["attempt"],
        faults=row["faults"],
        epoch=row["epoch"],
        runner=RunnerId(row["runner"]),
        request_id=row["request_id"],
        remaining=row["remaining"],
        run_state=RunState(row["run_state"]),
        run_epoch=row["run_epoch"],
        trials=row["trials"],
        selected=None if row["selected"] is None else tuple(row["selected"]),
        company=Company(row["suspects"], row["most_faults"]),
    )


def _read_table(row: asyncpg.Record) -> Table:
    columns = (row["runners"], row["granted"], row["told"], row["holder_calls"])
    holders = () if columns[0] is None else tuple(map(Holder._make, zip(*columns, strict=True)))
    return Table(row["cap"], holders, row["idle"], row["waiting"], row["turn"], row["reserved"])
