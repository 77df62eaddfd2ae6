"""Takes back shards whose lease has run out, and forgets runners that are gone."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic

import asyncpg
import structlog

from services.hub import metrics
from services.hub.runs import lease_store, metering, store
from services.hub.runs.domain import Pool, RunId, faults_after_expiry
from services.hub.runs.leases import Leases
from services.hub.runs.locks import PoolLocks

log = structlog.get_logger()

#: A gap between two looks that is longer than this means that nobody could renew meanwhile, seconds.
_GAP = 2.0
#: Runners that have been silent for so long are forgotten; they stop counting much earlier.
_SILENT = timedelta(hours=1)


class Reaper:
    """Ends leases that were not renewed.

    :param grace: how long holders get to renew late after a time in which they could not, seconds.
    """

    def __init__(self, db: asyncpg.Pool, locks: PoolLocks, leases: Leases, *, grace: float) -> None:
        self._db = db
        self._locks = locks
        self._leases = leases
        self._grace = grace
        self._looked = float("-inf")
        self._patient_until = 0.0

    async def step(self) -> None:
        """Take back what has run out."""
        now = monotonic()
        async with self._db.acquire() as conn:
            pools = await lease_store.pools_with_expired(conn)
            await store.forget_runners(conn, _SILENT)
            unaware = await store.unaware_runners(conn)
        # A ring can be lost, and must not let a stopped run go on.
        await self._leases.ring(unaware)
        # This process, or PostgreSQL, was away: leases that ran out meanwhile say nothing about their holders.
        if now - self._looked > _GAP:
            self._patient_until = now + self._grace
        self._looked = monotonic()
        if self._looked < self._patient_until:
            return
        for pool in pools:
            await self._reap(pool)

    async def _reap(self, pool: Pool) -> None:
        runs: set[RunId] = set()
        async with self._locks.hold(pool) as conn:
            for lease in await lease_store.expired(conn, pool, self._leases.duration):
                runs.add(lease.id.run)
                metrics.LEASE_ENDS.labels("expired").inc()
                log.info(
                    "lease.expired",
                    shard=str(lease.id),
                    attempt=lease.attempt,
                    runner=lease.runner,
                    runner_alive=lease.alive,
                )
                await self._leases.take_back(
                    conn,
                    lease,
                    lease.attempt,
                    lease.run_state,
                    faults=faults_after_expiry(
                        lease.run_state, lease.faults, attempt=lease.attempt, alive=lease.alive
                    ),
                    reason=f"the lease of runner {lease.runner} ran out",
                    holder=lease.runner,
                )
                await metering.lose(conn, lease.id, lease.attempt)
            # A runner that is slow, or stands still, may have calls in flight although its lease has run out.
            await lease_store.reserve_idle_permits(conn, pool, self._leases.duration)
            freed = await lease_store.drop_free_permits(conn, pool)
            left = await lease_store.permit_holders(conn, pool) if freed else []
        for run in runs:
            self._leases.wake(run, run_changed=True)
        # What the gone ones had is there for those who are left.
        await self._leases.ring(left)
