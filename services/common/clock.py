"""What time it is for all services: PostgreSQL's time. The clocks of their machines may differ by hours."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import asyncpg

from services.common import db

#: How often a process looks again, seconds: as long as it takes two machines to drift apart by nothing that matters.
EVERY_SECONDS = 30.0
_RETRY_SECONDS = 0.2


class SharedClock:
    """PostgreSQL's time between two looks at it, by a clock of this machine that nobody sets.

    What one service writes down for another to compare, such as when a principal ends or how old an object is, is told
    by this clock. Before the first look it is the machine's own.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._ahead = time.time() - time.monotonic()

    async def first_look(self) -> None:
        """Look at PostgreSQL's clock; waits as long as it takes for the server to be there."""
        while True:
            try:
                return await self.step()
            except (*db.TRANSIENT, TimeoutError) as error:
                if not db.is_transient(error) and not isinstance(error, TimeoutError):
                    raise
                await asyncio.sleep(_RETRY_SECONDS)

    async def step(self) -> None:
        """Look at PostgreSQL's clock."""
        async with self._pool.acquire() as connection:
            began = time.monotonic()
            there: float = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
            self._ahead = there - (began + time.monotonic()) / 2

    def now(self) -> float:
        """Seconds since 1970."""
        return time.monotonic() + self._ahead

    def moment(self) -> datetime:
        """The same as a date."""
        return datetime.fromtimestamp(self.now(), UTC)
