"""Removes what nobody has a use for any more: the rows and objects of removed runs, and objects that nothing names."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta
from time import monotonic

import asyncpg
import structlog

from services.common.clock import SharedClock
from services.common.objects import Bucket, ObjectStore
from services.scorer import calls, payloads, pending_store, predictions
from services.scorer.competition import store as competition_store
from services.scorer.store import SQL, Connection

log = structlog.get_logger()

#: Rows that one transaction removes, and how long one call goes on with the next, seconds.
_ROWS = 5000
#: What goes at once, in this order.
_WHOLE = ("mark_removed", "remove_progress", "remove_scorings", "remove_reports", "remove_charges")
_SECONDS = 5.0
_OBJECTS = 1000


class Remover:
    """Removes rows and objects. All of it can be repeated, and done by several replicas."""

    def __init__(self, pool: asyncpg.Pool, objects: ObjectStore, clock: SharedClock) -> None:
        self._pool = pool
        self._clock = clock
        self._objects = objects

    async def remove(self, run: str, ended_at: datetime) -> bool:
        """Remove some of a run; returns whether nothing is left.

        :param ended_at: objects that were written later are somebody else's.
        """
        until = monotonic() + _SECONDS
        while monotonic() < until:
            async with self._pool.acquire() as connection, connection.transaction():
                if not await connection.fetchval(SQL["try_claim_removal"], run):
                    return False
                for query in _WHOLE:
                    await connection.execute(SQL[query], run)
                if not await self._remove_rows(connection, run, ended_at):
                    return True
        return False

    async def _remove_rows(self, connection: Connection, run: str, ended_at: datetime) -> bool:
        """Remove some rows, and what only they name; returns whether there were any."""
        rows = await connection.fetch(SQL["remove_results"], run, _ROWS)
        digests = {row["payload_digest"] for row in rows} - {None}
        if digests:
            # Before the commit: should it fail, the rows are there to name them again.
            unused = digests - await _in_use(connection, digests)
            await asyncio.gather(
                *(self._remove_older(payloads.payload_key(digest), ended_at) for digest in unused)
            )
        removed = len(rows)
        await connection.execute(competition_store.SQL["remove_from_leaderboard"], run)
        removals = [competition_store.SQL["remove_programs"], competition_store.SQL["remove_scorings"]]
        removals += [SQL["remove_attempts"], SQL["remove_scores"], pending_store.SQL["remove"]]
        removals += [calls.SQL["remove_calls"], calls.SQL["remove_program_runs"]]
        for query in removals:
            removed += len(await connection.fetch(query, run, _ROWS))
        return removed > 0

    async def _remove_older(self, key: str, than: datetime) -> None:
        await self._objects.remove_unless_newer(Bucket.PAYLOADS, key, than)

    async def sweep(self, age: timedelta) -> None:
        """Remove stored answers that no result names, if they are older than that."""
        before = self._clock.moment() - age
        after, removed = "", 0
        while page := await self._objects.page(Bucket.PAYLOADS, payloads.FOLDER, after=after, count=_OBJECTS):
            old = {payloads.digest_of(item.key): item.key for item in page if item.written_at < before}
            async with self._pool.acquire() as connection:
                unused = old.keys() - await _in_use(connection, old)
            for digest in unused:
                await self._remove_older(old[digest], before)
            removed += len(unused)
            after = page[-1].key
        if removed:
            log.info("sweep.payloads", removed=removed)

    async def predictions(self, before: datetime, after: str) -> tuple[list[tuple[str, str]], str]:
        """A page of recorded answers with parts that were written before, as digests of targets and of the file,
        and where the next page begins; empty on the last."""
        page = await self._objects.page(Bucket.PREDICTIONS, "", after=after, count=_OBJECTS)
        found: dict[tuple[str, str], None] = {}
        for item in page:
            targets_digest, _, rest = item.key.partition("/")
            if item.written_at < before:
                found[targets_digest, rest.partition("/")[0]] = None
        return list(found), page[-1].key if len(page) == _OBJECTS else ""

    async def remove_predictions(self, targets_digest: str, digest: str, before: datetime) -> None:
        """Remove recorded answers, but for parts that were written later."""
        after = ""
        folder = predictions.folder_of(targets_digest, digest)
        while page := await self._objects.page(Bucket.PREDICTIONS, folder, after=after, count=_OBJECTS):
            for item in page:
                await self._objects.remove_unless_newer(Bucket.PREDICTIONS, item.key, before)
            after = page[-1].key


async def _in_use(connection: Connection, digests: Iterable[str]) -> set[str]:
    rows = await connection.fetch(SQL["payloads_in_use"], list(digests))
    return {row["digest"] for row in rows}
