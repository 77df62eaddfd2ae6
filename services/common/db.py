"""PostgreSQL: a pool that waits for its server, and migrations that only one replica runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import structlog

log = structlog.get_logger()

#: What passes when Postgres restarts or the network blinks; the work is tried again.
TRANSIENT = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    # A full disk, no memory, too many connections: somebody makes room.
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.ConnectionDoesNotExistError,
    # Whoever was frozen in a transaction finds it gone.
    asyncpg.IdleInTransactionSessionTimeoutError,
    # Raised by asyncpg itself when the server goes away between two statements.
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

#: Faults of the operating system that no waiting cures.
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


def is_transient(error: BaseException) -> bool:
    """Whether this passes when a neighbour is back. A mistake in how Postgres is called does not."""
    if isinstance(error, asyncpg.InterfaceError):
        return "clos" in str(error) or "released" in str(error)
    if isinstance(error, asyncpg.InternalClientError):
        # A statement met the server's farewell, which has arrived and not been taken in.
        return "another operation" in str(error)
    return isinstance(error, TRANSIENT) and not isinstance(error, _LASTING)


_MIGRATION = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
#: A process that is frozen, or cut off, in a transaction holds its locks for so long and no longer, milliseconds.
_IDLE_MS = "10000"
_LOCK = 0x62656E6368  # any constant will do: all replicas of all services take the same lock


@asynccontextmanager
async def pool(dsn: str, migrations: Path, *, size: int = 8) -> AsyncIterator[asyncpg.Pool]:
    """A pool on a migrated schema. Waits as long as it takes for the server to come up, and to stay."""
    async with await _opened(dsn, migrations, size) as connections:
        yield connections


async def _opened(dsn: str, migrations: Path, size: int) -> asyncpg.Pool:
    delay = 0.05
    while True:
        try:
            await _migrate(dsn, migrations)
            return await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=size,
                command_timeout=60,
                max_inactive_connection_lifetime=0,
                reset=_leave_as_it_is,
                server_settings={"idle_in_transaction_session_timeout": _IDLE_MS},
            )
        except (*TRANSIENT, TimeoutError) as error:
            if isinstance(error, asyncpg.InterfaceError) and not is_transient(error):
                raise
            log.info("postgres.waiting", error=str(error) or type(error).__name__)
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, 2.0)


async def _leave_as_it_is(_: asyncpg.Connection) -> None:
    """Spare the statement that cleans a session: nothing here changes one (locks are held by transactions)."""


async def _migrate(dsn: str, folder: Path) -> None:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        await _apply(connection, folder)
    finally:
        await connection.close()


async def _apply(connection: asyncpg.Connection, folder: Path) -> None:
    """Run what is new, each file in its own transaction, under one lock."""
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
    try:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations"
            " (number int PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        done = {row["number"] for row in await connection.fetch("SELECT number FROM schema_migrations")}
        for path in sorted(folder.glob("*.sql")):
            match = _MIGRATION.match(path.name)
            if match is None:
                raise ValueError(f"{path}: expected a name like 0001_what_it_does.sql")
            if int(match[1]) in done:
                continue
            async with connection.transaction():
                await connection.execute(path.read_text(encoding="utf-8"))
                await connection.execute(
                    "INSERT INTO schema_migrations (number, name) VALUES ($1, $2)", int(match[1]), path.stem
                )
            log.info("postgres.migrated", migration=path.stem)
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)
