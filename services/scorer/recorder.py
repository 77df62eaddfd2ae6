"""Stores results as they come in: batches of one run that wait together are committed together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg

from services.scorer import store
from services.scorer.domain import ScoredRecord

#: How many results one transaction takes at most; more wait for the next.
_MOST = 1024


@dataclass(slots=True)
class _Queue:
    waiting: list[tuple[Sequence[ScoredRecord], asyncio.Future[None]]] = field(default_factory=list)
    writer: asyncio.Task[None] | None = None


class Recorder:
    """Group commit by run.

    Small batches of many streams cost one commit instead of one each, and the transactions of one run do not queue
    for the lock on its progress. Nothing is held here that anybody was told is stored.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._queues: dict[str, _Queue] = {}

    async def store(self, run_id: str, batch: Sequence[ScoredRecord]) -> None:
        """Return when the batch is committed.

        :raises LeaseLost: the run was sealed.
        """
        queue = self._queues.setdefault(run_id, _Queue())
        stored = asyncio.get_running_loop().create_future()
        queue.waiting.append((batch, stored))
        if queue.writer is None:
            queue.writer = asyncio.create_task(self._write(run_id, queue), name=f"record {run_id}")
        await stored

    async def _write(self, run_id: str, queue: _Queue) -> None:
        try:
            while queue.waiting:
                taken = _take(queue)
                try:
                    async with self._pool.acquire() as connection:
                        await store.store_batch(
                            connection, run_id, [item for batch, _ in taken for item in batch]
                        )
                except Exception as error:
                    for _, stored in taken:
                        if not stored.done():
                            stored.set_exception(error)
                else:
                    for _, stored in taken:
                        if not stored.done():
                            stored.set_result(None)
        finally:
            queue.writer = None
            if not queue.waiting:
                self._queues.pop(run_id, None)


def _take(queue: _Queue) -> list[tuple[Sequence[ScoredRecord], asyncio.Future[None]]]:
    taken: list[tuple[Sequence[ScoredRecord], asyncio.Future[None]]] = []
    room = _MOST
    while queue.waiting and (not taken or len(queue.waiting[0][0]) <= room):
        batch, stored = queue.waiting.pop(0)
        taken.append((batch, stored))
        room -= len(batch)
    return taken
