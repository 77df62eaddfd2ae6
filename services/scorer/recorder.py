"""Stores results as they come in: batches of one run that wait together are committed together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import asyncpg
import structlog

from services.scorer import metrics, store
from services.scorer.domain import ScoredRecord

log = structlog.get_logger()

#: How many results one transaction takes at most; more wait for the next.
_MOST = 1024


class _Waiting(NamedTuple):
    """A batch, and who waits for it."""

    batch: Sequence[ScoredRecord]
    stored: asyncio.Future[None]


@dataclass(slots=True)
class _Queue:
    waiting: list[_Waiting] = field(default_factory=list)
    writer: asyncio.Task[None] | None = None


class Recorder:
    """Group commit by run.

    Small batches of many streams cost one commit instead of one each, and the transactions of one run do not queue
    for the lock on its progress. Nothing is held here that anybody was told is stored.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self.pending = asyncio.Event()
        """Set when scores are to be made that were not before."""
        self._queues: dict[str, _Queue] = {}

    async def store(self, run_id: str, batch: Sequence[ScoredRecord]) -> None:
        """Return when the batch is committed.

        :raises LeaseLost: the run was sealed.
        """
        queue = self._queues.setdefault(run_id, _Queue())
        stored = asyncio.get_running_loop().create_future()
        queue.waiting.append(_Waiting(batch, stored))
        if queue.writer is None:
            queue.writer = asyncio.create_task(self._write(run_id, queue), name=f"record {run_id}")
        await stored

    async def _write(self, run_id: str, queue: _Queue) -> None:
        try:
            while queue.waiting:
                await self._commit(run_id, _take(queue))
        finally:
            queue.writer = None
            if not queue.waiting:
                self._queues.pop(run_id, None)

    async def _commit(self, run_id: str, taken: Sequence[_Waiting]) -> None:
        """Store batches together. A value that the database cannot take is told to the one that sent it."""
        items = [item for batch, _ in taken for item in batch]
        began = perf_counter()
        try:
            async with self._pool.acquire() as connection:
                added = await store.store_batch(connection, run_id, items)
        except asyncpg.DataError as error:
            if len(taken) > 1:
                for one in taken:
                    await self._commit(run_id, [one])
                return
            log.warning("record.refused", run=run_id, results=len(items), error=str(error))
            _tell(taken, error)
        except Exception as error:
            _tell(taken, error)
        else:
            _tell(taken, None)
            if any(None in item.scores for item in items):
                self.pending.set()
            metrics.stored(items, len(taken), added, perf_counter() - began)


def _tell(taken: Sequence[_Waiting], error: Exception | None) -> None:
    for _, stored in taken:
        if stored.done():
            continue
        if error is None:
            stored.set_result(None)
        else:
            stored.set_exception(error)


def _take(queue: _Queue) -> list[_Waiting]:
    taken: list[_Waiting] = []
    room = _MOST
    while queue.waiting and (not taken or len(queue.waiting[0].batch) <= room):
        taken.append(queue.waiting.pop(0))
        room -= len(taken[-1].batch)
    return taken
