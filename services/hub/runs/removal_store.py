"""Removed runs in PostgreSQL: notes of what the scorer still has to remove."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from services.hub.registry.store import Conn
from services.hub.runs import events, outbox
from services.hub.runs.domain import Pool, RunId
from services.hub.runs.store import SQL


class Removed(NamedTuple):
    """A run that is gone from the hub. ``spec`` is a serialised ``RunSpec``."""

    run: RunId
    spec: bytes
    created_at: datetime
    ended_at: datetime


async def remove(conn: Conn, run: RunId) -> None:
    """Remove a run that has ended, within the caller's transaction, and leave a note of it."""
    await conn.execute(SQL["remove_run"], run)
    await outbox.add(conn, events.run_changed(run))


async def removed(conn: Conn, count: int) -> list[Removed]:
    """Runs that the scorer has not removed all of."""
    rows = await conn.fetch(SQL["removed_runs"], count)
    return [Removed(RunId(row["run_id"]), row["spec"], row["created_at"], row["ended_at"]) for row in rows]


async def cleared(conn: Conn, run: RunId) -> None:
    """Note that nothing is left of a removed run."""
    await conn.execute(SQL["forget_removed"], run)


async def ended_before(conn: Conn, age: timedelta, count: int) -> list[tuple[Pool, RunId]]:
    """Runs that ended longer ago than that, the oldest first."""
    rows = await conn.fetch(SQL["ended_before"], age, count)
    return [(Pool(row["pool"]), RunId(row["id"])) for row in rows]


async def predictions_in_use(conn: Conn, digests: Sequence[str]) -> set[str]:
    """Those of these recorded answers that a run is of."""
    rows = await conn.fetch(SQL["predictions_in_use"], list(digests))
    return {row["digest"] for row in rows}
