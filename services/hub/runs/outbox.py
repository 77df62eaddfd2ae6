"""Events that are published after the transaction that they belong to, and only if it commits."""

from __future__ import annotations

import asyncpg

from services.common.bus import Bus
from services.hub.registry.store import Conn
from services.hub.runs.events import Event

_BATCH = 100
_ADD = "INSERT INTO outbox (subject, payload) VALUES ($1, $2)"
_NEXT = "SELECT id, subject, payload, message_id FROM outbox ORDER BY id LIMIT $1"
_REMOVE = "DELETE FROM outbox WHERE id = ANY($1)"


async def add(conn: Conn, event: Event) -> None:
    """Publish an event when the transaction of this connection has committed."""
    await conn.execute(_ADD, event.subject, event.payload)


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
                rows = await conn.fetch(_NEXT, _BATCH)
            if not rows:
                return
            for row in rows:
                await self._bus.publish(row["subject"], row["payload"], message_id=row["message_id"])
            async with self._db.acquire() as conn:
                await conn.execute(_REMOVE, [row["id"] for row in rows])
