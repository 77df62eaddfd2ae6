"""One transaction at a time for everything that shares a permit pool, over all hubs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

import asyncpg

from services.common import db
from services.hub.registry.store import Conn
from services.hub.runs.domain import Pool


class PoolLocks:
    """Transactions that hold the advisory lock of a pool.

    Permits are dealt from what all leases of a pool add up to, so two deals must not overlap; and with one lock for
    all that happens to a pool's shards no two transactions can wait for each other.
    """

    def __init__(self, db: asyncpg.Pool) -> None:
        self._db = db
        # Waiting here instead of in PostgreSQL leaves the connections to others. Nothing depends on it.
        self._gates: WeakValueDictionary[Pool, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, pool: Pool) -> AsyncIterator[Conn]:
        """A connection in a transaction that nobody else of this pool runs meanwhile; committed at the end."""
        gate = self._gates.setdefault(pool, asyncio.Lock())
        async with gate, self._db.acquire() as conn:
            try:
                # Both at once, to save a trip; the statements that follow see all that was committed before the lock.
                # Who gives up waiting leaves no open transaction behind.
                await conn.execute(f"BEGIN; SELECT pg_advisory_xact_lock({_key(pool)})")
                yield conn
            except BaseException:
                try:
                    await conn.execute("ROLLBACK")
                except db.TRANSIENT:
                    # What ends the transaction otherwise, and never hides why it ends.
                    conn.terminate()
                raise
            await conn.execute("COMMIT")


def _key(pool: Pool) -> int:
    digest = hashlib.blake2b(f"runs:{pool}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
