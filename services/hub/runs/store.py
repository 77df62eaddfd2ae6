"""Runs in PostgreSQL: the only file here, with ``lease_store``, that sees rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import asyncpg

from benchgen.errors import NotFound
from services.common import tracing
from services.common.queries import load_queries
from services.hub import metrics
from services.hub.registry.store import Conn, Queryable
from services.hub.runs import events, outbox
from services.hub.runs.budgets import NO_BUDGET, Budget
from services.hub.runs.domain import (
    ENDED,
    ENDS_EPOCH,
    Pool,
    RunEvent,
    RunId,
    RunnerId,
    RunRow,
    RunState,
    ShardId,
    Subject,
    transition,
)

SQL = load_queries(Path(__file__).with_name("queries.sql"))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run to insert. ``request`` is the serialised request, ``spec`` a serialised ``RunSpec``."""

    id: RunId
    request_id: UUID
    request: bytes
    key_id: str
    environment: str
    model: str
    subject: Subject
    pool: Pool
    cap: int
    priority: int
    spec: bytes
    selection: list[int] | None
    trials: int
    planned: int
    shards: int
    shard_size: int
    budget: Budget = NO_BUDGET


class KnownRequest(NamedTuple):
    """A request that made a run."""

    run: RunId
    request: bytes


class RunFacts(NamedTuple):
    """What never changes about a run."""

    pool: Pool
    spec: bytes


class Window(NamedTuple):
    """How much of a pool may be rung for: ``rings`` that are out, and ``shards`` that are rung for or held.

    More shards than these are for pools whose trials in hand are fewer than ``rounds`` times the calls that the model
    allows, and for ``idle`` runners.
    """

    rings: int
    shards: int
    rounds: int
    idle: int


class Ring(NamedTuple):
    """A ring to send: for which shard, and what tells it from every other one."""

    shard: ShardId
    attempt: int
    ring: int

    @property
    def message_id(self) -> str:
        """Unlike that of any ring before."""
        return f"{self.shard}:{self.attempt}:{self.ring}"


class Runners(NamedTuple):
    """How many runners are there, how many more shards they can hold, and how many hold none."""

    there: int
    free: int
    idle: int


class KeptRunner(NamedTuple):
    """Whether a runner was not there before, and which shards it holds although their run does not go on."""

    new: bool
    stopped: list[ShardId]


class ShardRange(NamedTuple):
    """The trials of a shard, by dataset position and repeat."""

    number: int
    first_position: int
    first_trial: int
    last_position: int
    last_trial: int
    trials: int


class Cursor(NamedTuple):
    """The last run of a page."""

    created_at: datetime
    run: RunId


async def insert_run(conn: Conn, run: NewRun) -> bool:
    """Insert a run with its shards and its first event; False when its request has made one already."""
    status = await conn.execute(
        SQL["insert_run"],
        run.id,
        run.request_id,
        run.request,
        run.key_id,
        run.environment,
        run.model,
        run.subject,
        run.pool,
        run.cap,
        run.priority,
        run.spec,
        run.selection,
        run.trials,
        run.planned,
        run.shards,
        run.shard_size,
        run.budget.picousd,
        run.budget.tokens,
        run.budget.seconds,
        run.budget.errors,
    )
    if status == "INSERT 0 0":
        return False
    await outbox.add(conn, events.run_changed(run.id))
    if trace := tracing.traceparent():
        await conn.execute(SQL["insert_trace"], run.id, trace)
    metrics.RUNS_CREATED.inc()
    return True


async def traces(db: Queryable, runs: Iterable[RunId]) -> dict[RunId, str]:
    """The ``traceparent`` of each of these runs that is traced; nothing is read while no traces are exported."""
    if not tracing.enabled():
        return {}
    rows = await db.fetch(SQL["traces"], list(runs))
    return {RunId(row["run_id"]): row["traceparent"] for row in rows}


async def known_request(conn: Conn, request_id: UUID) -> KnownRequest | None:
    """The run that a request made, if it did."""
    row = await conn.fetchrow(SQL["request_of"], request_id)
    return None if row is None else KnownRequest(RunId(row["id"]), row["request"])


async def get_run(conn: Conn, run: str) -> RunRow:
    """:raises NotFound: there is no such run."""
    row = await conn.fetchrow(SQL["run"], run)
    if row is None:
        raise NotFound(f"no run {run[:80]!r}")
    return _read_run(row)


async def list_runs(
    conn: Conn, *, after: Cursor | None, environment: str, model: str, state: str, count: int
) -> list[RunRow]:
    """Runs from newest to oldest; empty filters let everything through."""
    position = (None, "") if after is None else after
    rows = await conn.fetch(SQL["list_runs"], *position, environment, model, state, count)
    return [_read_run(row) for row in rows]


async def has_active_runs(conn: Conn, model: str) -> bool:
    """Whether a run of a registered model is under way."""
    active: bool = await conn.fetchval(SQL["has_active_runs"], model)
    return active


async def run_facts(conn: Conn, run: RunId) -> RunFacts:
    """:raises NotFound: there is no such run."""
    row = await conn.fetchrow(SQL["run_facts"], run)
    if row is None:
        raise NotFound(f"no run {run[:80]!r}")
    return RunFacts(Pool(row["pool"]), row["spec"])


async def move_run(
    conn: Conn,
    run: RunId,
    state: RunState,
    event: RunEvent,
    *,
    message: str | None = None,
    epoch: int | None = None,
) -> RunState | None:
    """Let an event happen to a run that is in ``state``, within the caller's transaction, and tell of it afterwards.

    :param epoch: also in this epoch, where ``state`` was read before the transaction began.
    :returns: the new state; None when the run is in another state, or epoch, by now.
    :raises FailedPrecondition: that cannot happen in this state.
    """
    following = transition(state, event)
    if following == state:
        return state
    values = (run, state, following, message, int(event in ENDS_EPOCH), following in ENDED, epoch)
    if await conn.fetchval(SQL["move_run"], *values) is None:
        return None
    if following in ENDED:
        metrics.RUNS_ENDED.labels(following).inc()
    await outbox.add(conn, events.run_changed(run))
    return following


async def abandon_waiting(conn: Conn, run: RunId, reason: str) -> int:
    """Give up every shard that nobody holds; returns how many are still open."""
    left: int = await conn.fetchval(SQL["abandon_waiting"], run, reason)
    return left


async def trial_ranges(conn: Conn, run: RunId, after: int, count: int) -> list[ShardRange]:
    """The stretches that ended shards of a run cover, by number, after a shard's number."""
    return [ShardRange._make(row) for row in await conn.fetch(SQL["trial_ranges"], run, after, count)]


async def reopen_shards(conn: Conn, run: RunId, numbers: Sequence[int]) -> None:
    """Let ended shards wait again, and forget the faults of all that are open."""
    await conn.execute(SQL["reopen_shards"], run, list(numbers))
    await conn.execute(SQL["forget_faults"], run)


async def unqueue(conn: Conn, run: RunId) -> None:
    """Take a run's shards out of the window."""
    await conn.execute(SQL["unqueue"], run)


async def runners_of(conn: Conn, pool: Pool, run: RunId) -> list[RunnerId]:
    """Who holds shards of a run."""
    return [RunnerId(row["runner"]) for row in await conn.fetch(SQL["runners_of"], pool, run)]


async def unaware_runners(conn: Conn) -> list[RunnerId]:
    """Who holds shards of runs that were stopped since."""
    return [RunnerId(row["runner"]) for row in await conn.fetch(SQL["unaware_runners"])]


async def is_held(conn: Conn, shard: ShardId, attempt: int, runner: RunnerId) -> bool:
    """Whether a runner holds a shard by this attempt."""
    held: bool = await conn.fetchval(SQL["is_held"], shard.run, shard.number, attempt, runner)
    return held


async def keep_runner(conn: Conn, runner: RunnerId, shards: int, calls: int) -> KeptRunner:
    """Note that a runner is there."""
    row = await conn.fetchrow(SQL["keep_runner"], runner, shards, calls)
    assert row is not None
    stopped = zip(row["runs"] or (), row["numbers"] or (), strict=True)
    return KeptRunner(row["new"], [ShardId(RunId(run), number) for run, number in stopped])


async def remove_runner(conn: Conn, runner: RunnerId) -> None:
    """Note that a runner is gone."""
    await conn.execute(SQL["remove_runner"], runner)


async def forget_runners(conn: Conn, silent: timedelta) -> None:
    """Remove runners that have not been heard of for so long."""
    await conn.execute(SQL["forget_runners"], silent)


async def pools_to_dispatch(conn: Conn, stale: timedelta) -> list[Pool]:
    """Pools with shards that may enter the window, or with rings that nobody answered for so long."""
    return [Pool(row["pool"]) for row in await conn.fetch(SQL["pools_to_dispatch"], stale)]


async def runners(conn: Conn, seen: timedelta) -> Runners:
    """The runners that were heard of within that time."""
    row = await conn.fetchrow(SQL["runners"], seen)
    assert row is not None
    return Runners(row["there"], row["free"], row["idle"])


async def fill_window(conn: Conn, pool: Pool, window: Window) -> list[Ring]:
    """Queue shards, fair between runs, until the window is full; returns their rings, the most urgent first."""
    return _read_rings(await conn.fetch(SQL["fill_window"], pool, *window))


async def ring_again(conn: Conn, pool: Pool, stale: timedelta, count: int) -> list[Ring]:
    """New rings for at most so many shards whose ring has not been answered for that long."""
    return _read_rings(await conn.fetch(SQL["ring_again"], pool, stale, count))


async def given_up(conn: Conn, run: RunId) -> str | None:
    """How many trials were given up and why, in the first words; None when none were, but by hand."""
    row = await conn.fetchrow(SQL["given_up"], run)
    if row is None or not row["trials"]:
        return None
    return f"{row['trials']:,} trials were given up: {row['reason']}"


async def runs_to_seal(conn: Conn, count: int, without: Sequence[RunId]) -> list[RunRow]:
    """Runs whose shards have all ended and whose report is not made."""
    return [_read_run(row) for row in await conn.fetch(SQL["runs_to_seal"], count, list(without))]


async def shards_to_load(conn: Conn, pool: Pool, count: int) -> list[ShardId]:
    """Shards that the scorer is to load."""
    rows = await conn.fetch(SQL["shards_to_load"], pool, count)
    return [ShardId(RunId(row["id"]), row["number"]) for row in rows]


def _read_rings(rows: list[asyncpg.Record]) -> list[Ring]:
    ordered = sorted(rows, key=lambda row: row["place"])
    return [
        Ring(ShardId(RunId(row["run_id"]), row["number"]), row["attempt"], row["ring"]) for row in ordered
    ]


def _read_run(row: asyncpg.Record) -> RunRow:
    return RunRow(
        id=RunId(row["id"]),
        state=RunState(row["state"]),
        state_message=row["state_message"],
        epoch=row["epoch"],
        priority=row["priority"],
        spec=row["spec"],
        pool=Pool(row["pool"]),
        planned=row["planned"],
        shards=row["shards"],
        shards_open=row["shards_open"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        worked_seconds=row["worked_seconds"],
        working_since=row["working_since"],
        worked_until=row["worked_until"],
        ended_at=row["ended_at"],
        budgeted=row["budgeted"],
    )
