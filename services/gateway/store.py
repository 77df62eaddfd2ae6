"""The gateway's rows."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import orjson

from services.common.auth import DailyLimits
from services.common.queries import load_queries
from services.gateway.domain import Answer, ApiKey, KeyRow, KnownRequest

_SQL = load_queries(Path(__file__).with_name("queries.sql"))


async def find_key(pool: asyncpg.Pool, key_hash: str) -> ApiKey | None:
    """The key with this hash, revoked and expired ones included; notes that it was used."""
    row = await pool.fetchrow(_SQL["find_key"], key_hash)
    if row is None:
        return None
    return _read_key(row)


def _read_key(row: asyncpg.Record) -> ApiKey:
    daily = DailyLimits(row["daily_picousd"], row["daily_tokens"], row["budget_version"])
    scopes = frozenset(row["scopes"])
    return ApiKey(row["id"], row["name"], scopes, row["expires_at"], row["revoked_at"], daily)


async def list_keys(pool: asyncpg.Pool) -> list[KeyRow]:
    """All keys, oldest first."""
    return [
        KeyRow(_read_key(row), row["created_at"], row["last_used_at"])
        for row in await pool.fetch(_SQL["list_keys"])
    ]


async def set_key_budget(pool: asyncpg.Pool, key_id: str, picousd: int | None, tokens: int | None) -> None:
    """Replace what a key may spend a day."""
    await pool.execute(_SQL["set_key_budget"], key_id, picousd, tokens)


async def add_key(
    pool: asyncpg.Pool,
    key_id: str,
    name: str,
    key_hash: str,
    scopes: list[str],
    expires_at: datetime | None = None,
) -> bool:
    """Add a key; says whether its hash is new."""
    done = await pool.execute(_SQL["add_key"], key_id, name, key_hash, scopes, expires_at)
    return done.endswith(" 1")


async def revoke_key(pool: asyncpg.Pool, key_id: str) -> bool:
    """Revoke a key; says whether it was good before."""
    return (await pool.execute(_SQL["revoke_key"], key_id)).endswith(" 1")


async def claim(
    pool: asyncpg.Pool,
    key_id: str,
    idempotency_key: str,
    method: str,
    path: str,
    mine: UUID,
    lasts: timedelta,
) -> bool:
    """Take the right to execute a request; says whether it was free."""
    row = await pool.fetchrow(_SQL["claim"], key_id, idempotency_key, method, path, mine, lasts)
    return row is not None


async def known_request(pool: asyncpg.Pool, key_id: str, idempotency_key: str) -> KnownRequest | None:
    """What is known of the request that carried this idempotency key."""
    row = await pool.fetchrow(_SQL["known_request"], key_id, idempotency_key)
    if row is None:
        return None
    answer = None
    if row["status"] is not None:
        answer = Answer(row["status"], orjson.loads(row["headers"]), row["body"])
    return KnownRequest(row["method"], row["path"], row["request_hash"], answer)


async def keep_claim(
    pool: asyncpg.Pool, key_id: str, idempotency_key: str, mine: UUID, lasts: timedelta
) -> None:
    """Prolong a claim, counted from now."""
    await pool.execute(_SQL["keep_claim"], key_id, idempotency_key, mine, lasts)


async def answer_claim(
    pool: asyncpg.Pool, key_id: str, idempotency_key: str, mine: UUID, request_hash: str, answer: Answer
) -> None:
    """Store what the claimed request was answered with."""
    headers = orjson.dumps(answer.headers).decode()
    await pool.execute(
        _SQL["answer_claim"],
        key_id,
        idempotency_key,
        mine,
        request_hash,
        answer.status,
        headers,
        answer.body,
    )


async def release_claim(pool: asyncpg.Pool, key_id: str, idempotency_key: str, mine: UUID) -> None:
    """Give a claim back: the request had no effect and may be made again."""
    await pool.execute(_SQL["release_claim"], key_id, idempotency_key, mine)


async def forget_answers(pool: asyncpg.Pool, older_than: timedelta) -> None:
    """Remove answers that nobody will ask for again."""
    await pool.execute(_SQL["forget_answers"], older_than)
