"""Moves shards into the window and rings for them. The shard table is the queue; a ring only says where to look."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import asyncpg
import structlog

from benchgen.errors import NotFound
from services.common import tracing
from services.common.bus import Bus
from services.hub import metrics
from services.hub.runs import events, store
from services.hub.runs.domain import RunId
from services.hub.runs.leases import SEEN
from services.hub.runs.locks import PoolLocks
from services.hub.runs.plans import Plans
from services.hub.runs.store import Ring, Window

log = structlog.get_logger()

#: How many rings of a pool may be out for each runner, and at least. Few: rings are heard in order, so what is rung
#: for later waits behind all of them, and a shard that is rung for can no longer make way for a more urgent one.
_WINDOW_PER_RUNNER = 2
_SMALLEST_WINDOW = 4
#: How many shards of a pool are in hand for each runner, and at least: one to work on and one to go on with. With more,
#: a runner is full of what it cannot begin, and what is more urgent finds no place.
_HELD_PER_RUNNER = 2
_FEWEST_HELD = 4
#: A model that allows more calls at once than these shards have trials gets more: so many trials for each call.
_ROUNDS = 4


class Dispatcher:
    """Keeps as many rings out as runners can soon answer.

    :param ring_seconds: a ring that nobody answered for so long is rung again, if a runner has room.
    """

    def __init__(
        self, db: asyncpg.Pool, locks: PoolLocks, bus: Bus, plans: Plans, *, ring_seconds: float = 5.0
    ) -> None:
        self._db = db
        self._plans = plans
        self._locks = locks
        self._bus = bus
        self._stale = timedelta(seconds=ring_seconds)

    async def step(self) -> None:
        """Look at every pool that may have something to ring for.

        :raises Unavailable: NATS took no ring; the shards are rung again later.
        """
        async with self._db.acquire() as conn:
            pools = await store.pools_to_dispatch(conn, self._stale)
            runners = await store.runners(conn, SEEN)
        window = Window(
            rings=max(_SMALLEST_WINDOW, _WINDOW_PER_RUNNER * runners.there),
            shards=max(_FEWEST_HELD, _HELD_PER_RUNNER * runners.there),
            rounds=_ROUNDS,
            idle=runners.idle,
        )
        for pool in pools:
            async with self._locks.hold(pool) as conn:
                rings = await store.fill_window(conn, pool, window)
                # While nobody has room, more rings would only pile up behind those that are out.
                again = await store.ring_again(conn, pool, self._stale, runners.free) if runners.free else []
            if again:
                log.info("dispatch.again", pool=pool, shards=len(again))
            await self._publish([*rings, *again])
            metrics.RINGS.labels("first").inc(len(rings))
            metrics.RINGS.labels("again").inc(len(again))

    async def _publish(self, rings: Sequence[Ring]) -> None:
        """Ring after the commit: whoever hears it finds the shard."""
        runs = {ring.shard.run for ring in rings}
        traces = await store.traces(self._db, runs)
        sandboxed = {run: await self._takes_sandbox(run) for run in runs}
        # Sent in this order, and acknowledged while the next ones are sent.
        await asyncio.gather(
            *(self._ring(ring, traces.get(ring.shard.run, ""), sandboxed[ring.shard.run]) for ring in rings)
        )

    async def _takes_sandbox(self, run: RunId) -> bool:
        try:
            spec = (await self._plans.get(run)).spec
        except NotFound:
            # Removed since: whoever hears the ring finds nothing.
            return False
        return bool(spec.harness_json or spec.competition_json)

    async def _ring(self, ring: Ring, trace: str, sandboxed: bool) -> None:
        event = events.shard_queued(ring.shard, sandboxed=sandboxed)
        when = tracing.is_traced(ring.shard.number)
        with tracing.span("dispatch", parent=trace, when=when, shard=str(ring.shard), ring=ring.ring):
            await self._bus.publish(event.subject, event.payload, message_id=ring.message_id)
