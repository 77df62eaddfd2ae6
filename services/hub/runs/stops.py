"""Stopping a run before its shards have ended: by hand, for now or for good, or because it cannot be carried out."""

from __future__ import annotations

from services.hub.runs import store
from services.hub.runs.domain import Pool, RunEvent, RunId, RunRow
from services.hub.runs.leases import Leases
from services.hub.runs.locks import PoolLocks


class Stops:
    """Stops runs, and sees to it that those who work on them hear of it."""

    def __init__(self, locks: PoolLocks, leases: Leases) -> None:
        self._locks = locks
        self._leases = leases

    async def cancel(self, pool: Pool, run: RunId, message: str) -> RunRow:
        """Stop a run by hand; one that has ended, or is being stopped, is returned as it is.

        :raises NotFound: there is no such run.
        """
        return await self._stop(pool, run, RunEvent.CANCELLED, message, reason="cancelled")

    async def pause(self, pool: Pool, run: RunId, message: str, *, epoch: int | None = None) -> RunRow:
        """Stop a run for now; one that is paused already is returned as it is.

        :param epoch: the one in which the reason was seen: a run that was resumed since is returned as it is.
        :raises NotFound: there is no such run.
        :raises FailedPrecondition: its shards have ended, or it is being stopped for good.
        """
        async with self._locks.hold(pool) as conn:
            row = await store.get_run(conn, run)
            if epoch is not None and row.epoch != epoch:
                return row
            if await store.move_run(conn, run, row.state, RunEvent.PAUSED, message=message) == row.state:
                return row
            await store.unqueue(conn, run)
            holders = await store.runners_of(conn, pool, run)
            row = await store.get_run(conn, run)
        self._leases.wake(run, run_changed=True)
        await self._leases.ring(holders)
        return row

    async def fail(self, pool: Pool, run: RunId, message: str) -> RunRow:
        """End a run that cannot be carried out.

        :raises NotFound: there is no such run.
        :raises FailedPrecondition: its shards have ended, or it is being stopped.
        """
        return await self._stop(pool, run, RunEvent.FAILED, message, reason=message)

    async def _stop(self, pool: Pool, run: RunId, event: RunEvent, message: str, *, reason: str) -> RunRow:
        async with self._locks.hold(pool) as conn:
            row = await store.get_run(conn, run)
            moved = await store.move_run(conn, run, row.state, event, message=message)
            assert moved is not None, "its state was read under the pool's lock"
            if moved == row.state:
                return row
            await store.abandon_waiting(conn, run, reason)
            holders = await store.runners_of(conn, pool, run)
            row = await store.get_run(conn, run)
        self._leases.wake(run, run_changed=True)
        await self._leases.ring(holders)
        return row
