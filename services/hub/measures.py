"""What stands in the hub's tables, for whoever asks for metrics. Every hub shows the same: take `max` over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import asyncpg
from prometheus_client import Metric

from services.common.queries import load_queries
from services.common.telemetry import MOST_LABELS, OTHER, gauge
from services.hub.runs import store
from services.hub.runs.domain import ENDED, RunState, ShardState
from services.hub.runs.leases import SEEN
from services.hub.runs.specs import LOADED_POOL

_SQL = load_queries(Path(__file__).with_name("measures.sql"))

_PICOUSD = 10**12
_UNENDED = sorted(set(RunState) - ENDED)


class _Single(NamedTuple):
    name: str
    what: str
    value: float


@dataclass(slots=True)
class _Pool:
    """The sums of one pool, or of all that have no label of their own."""

    pending: int = 0
    queued: int = 0
    running: int = 0
    cap: int = 0
    permits: int = 0
    ring_age: float = 0.0


class Measures:
    """Reads a few small figures in five statements."""

    def __init__(self, db: asyncpg.Pool) -> None:
        self._db = db

    async def __call__(self) -> Sequence[Metric]:
        async with self._db.acquire() as conn:
            pools = await conn.fetch(_SQL["pools"])
            runs = {row["state"]: row for row in await conn.fetch(_SQL["runs"])}
            other = await conn.fetchrow(_SQL["others"])
            budgets = await conn.fetchrow(_SQL["budgets"])
            runners = await store.runners(conn, SEEN)
        assert other is not None
        assert budgets is not None
        # Every shard that is worked on has at least one call in flight: more than there are permits cannot be.
        wanted = sum(min(row["open"], row["cap"]) for row in pools if row["pool"] != LOADED_POOL)
        singles = [
            _Single("wanted_shards", "Shards that runners could work on now. Scale runners on it.", wanted),
            _Single("runners", "Runners that were heard of within 15 seconds.", runners.there),
            _Single("runner_room_shards", "How many more shards the runners can hold.", runners.free),
            _Single("outbox_events", "Events that are not published yet.", other["events"]),
            _Single("outbox_lag_seconds", "Age of the oldest of them.", other["event_age"]),
            _Single("publications", "Uploads on their way to being a version.", other["publications"]),
            _Single("publication_age_seconds", "Age of the oldest of them.", other["publication_age"]),
        ]
        return [
            *_pool_gauges(pools),
            gauge(
                "benchgen_hub_runs",
                "Runs that have not ended, by state.",
                ["state"],
                {(state,): runs[state]["runs"] if state in runs else 0 for state in _UNENDED},
            ),
            gauge(
                "benchgen_hub_run_still_seconds",
                "The longest that a run of this state has been without a shard that ended.",
                ["state"],
                {(state,): runs[state]["still"] if state in runs else 0 for state in _UNENDED},
            ),
            gauge(
                "benchgen_hub_budget_usd",
                "Cost budgets of runs that have not ended: their `limit`, and what is `spent` and `reserved` of it.",
                ["part"],
                {(part,): budgets[part] / _PICOUSD for part in ("limit", "spent", "reserved")},
            ),
            *(gauge(f"benchgen_hub_{name}", what, [], {(): value}) for name, what, value in singles),
        ]


def _pool_gauges(rows: Sequence[asyncpg.Record]) -> list[Metric]:
    pools: dict[str, _Pool] = {}
    for place, row in enumerate(rows):
        pool = pools.setdefault(row["pool"] if place < MOST_LABELS else OTHER, _Pool())
        pool.pending += row["pending"]
        pool.queued += row["queued"]
        pool.running += row["running"]
        pool.cap += row["cap"]
        pool.permits += row["permits"]
        pool.ring_age = max(pool.ring_age, row["ring_age"])
    shards: dict[tuple[str, ...], float] = {}
    for name, pool in pools.items():
        shards[name, ShardState.PENDING] = pool.pending
        shards[name, ShardState.QUEUED] = pool.queued
        shards[name, ShardState.RUNNING] = pool.running
    return [
        gauge(
            "benchgen_hub_shards",
            "Shards that have not ended, of runs that are not paused; RUNNING ones are leased.",
            ["pool", "state"],
            shards,
        ),
        gauge(
            "benchgen_hub_permits_granted",
            "Calls that runners may have in flight.",
            ["pool"],
            {(name,): pool.permits for name, pool in pools.items()},
        ),
        gauge(
            "benchgen_hub_permits_cap",
            "Calls that the model allows in flight.",
            ["pool"],
            {(name,): pool.cap for name, pool in pools.items()},
        ),
        gauge(
            "benchgen_hub_ring_lag_seconds",
            "Age of the oldest ring that nobody has answered.",
            ["pool"],
            {(name,): pool.ring_age for name, pool in pools.items()},
        ),
    ]
