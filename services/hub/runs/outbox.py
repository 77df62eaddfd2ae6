"""Publishes events after the transactions that they belong to. The statements that write them are in ``queries.sql``."""

from __future__ import annotations

import asyncpg

from services.common.bus import Bus
from services.hub.registry.store import Conn
from services.hub.runs.events import Event
from services.hub.runs.store import SQL

_BATCH = 100


async def add(conn: Conn, event: Event) -> None:
    """Publish an event if, and only if, the caller's transaction commits."""
    await conn.execute(SQL["outbox_add"], event.subject, event.payload)


class Outbox:
    """Publishes what is there, in order, at least once."""

    def __init__(self, db: asyncpg.Pool, bus: Bus) -> None:
        self._db = db
        self._bus = bus

    async def step(self) -> None:
        """Publish until nothing is left.

        :raises Unavailable: NATS did not take it; it is tried again.
        """
        while True:
            async with self._db.acquire() as conn:
                rows = await conn.fetch(SQL["outbox_next"], _BATCH)
            if not rows:
                return
            for row in rows:
                await self._bus.publish(row["subject"], row["payload"], message_id=row["message_id"])
            async with self._db.acquire() as conn:
                await conn.execute(SQL["outbox_done"], [row["id"] for row in rows])
