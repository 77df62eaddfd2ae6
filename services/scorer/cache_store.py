"""The table of the response cache.

Transactions lock in one order: answers that are kept, then results, then a run's progress. Whoever removes answers
takes those that nobody holds, and waits for none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import asyncpg

from services.common.queries import load_queries
from services.scorer.domain import CacheKey, Record, ScoredRecord

SQL = load_queries(Path(__file__).with_name("cache.sql"))

_Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy

#: Rows that one statement removes.
_ROWS = 5000
_TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An answer as it is kept, and the tokens of the call that it took."""

    response: str
    reasoning: str | None
    finish_reason: str | None
    reported_model: str | None
    input_digest: bytes | None
    saved: dict[str, int]
    payload_digest: str | None
    payload_bytes: int | None


async def find(
    connection: _Connection, model: bytes, requests: Collection[bytes], max_age: timedelta
) -> dict[bytes, CachedAnswer]:
    """The answers of a model to some requests, those not older than that."""
    rows = await connection.fetch(SQL["find_cached"], model, list(requests), max_age)
    return {
        row["request"]: CachedAnswer(
            response=row["response"],
            reasoning=row["reasoning"],
            finish_reason=row["finish_reason"],
            reported_model=row["reported_model"],
            input_digest=row["input_digest"],
            saved={name: row[name] for name in _TOKENS if row[name] is not None},
            payload_digest=row["payload_digest"],
            payload_bytes=row["payload_bytes"],
        )
        for row in rows
    }


def concerns(items: Sequence[ScoredRecord]) -> bool:
    """Whether any of these is to be kept, or was taken from here."""
    return any(item.record.keep_as is not None or item.record.saved is not None for item in items)


async def settle(connection: _Connection, items: Sequence[ScoredRecord]) -> Sequence[ScoredRecord]:
    """Keep what is to be kept, first in the transaction that stores it; answers with what may be stored.

    That is all but what was taken from here and has a long answer that is not named here any more: its object may go
    at any moment.
    """
    long = {item.record.payload_digest for item in items if item.record.saved is not None} - {None}
    if long:
        rows = await connection.fetch(SQL["hold_payloads"], list(long))
        gone = long - {row["payload_digest"] for row in rows}
        items = [
            item for item in items if item.record.saved is None or item.record.payload_digest not in gone
        ]
    kept = [item.record for item in items if item.record.keep_as is not None]
    if kept:
        await connection.execute(SQL["keep"], *_columns(kept))
    return items


def _columns(records: Sequence[Record]) -> tuple[list[object], ...]:
    rows = [
        (
            *(r.keep_as or ()),
            r.response,
            r.reasoning,
            r.finish_reason,
            r.reported_model,
            r.input_digest,
            r.input_tokens,
            r.output_tokens,
            r.cached_tokens,
            r.reasoning_tokens,
            r.payload_digest,
            r.payload_bytes,
        )
        for r in records
    ]
    return tuple(list(column) for column in zip(*rows, strict=True))


async def forget(connection: _Connection, key: CacheKey) -> None:
    """Remove one answer."""
    await connection.execute(SQL["forget"], *key)


async def expire(connection: _Connection, max_age: timedelta) -> int:
    """Remove what is older than that; returns how many answers that were."""
    removed = 0
    while rows := await connection.fetch(SQL["expire"], max_age, _ROWS):
        removed += len(rows)
    return removed


async def clear(connection: _Connection, model: bytes) -> int:
    """Remove all answers of a model that are there now; returns how many."""
    removed = 0
    until = await connection.fetchval(SQL["now"])
    while True:
        rows = await connection.fetch(SQL["clear"], model, until, _ROWS)
        removed += len(rows)
        if not rows:
            if not await connection.fetchval(SQL["is_left"], model, until):
                return removed
            # Somebody is storing results that name them, which takes a moment.
            await asyncio.sleep(0.05)
