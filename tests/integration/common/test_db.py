"""Migrations: by one replica at a time, each file whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from services.common import db
from tests import conftest
from tests.resilience.network import Background, Edge


@pytest.fixture
def dsn(database: Callable[..., conftest.Database]) -> str:
    return database().dsn("scorer")


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.sql").write_text(text)
    return folder


async def test_replicas_that_start_at_once(dsn: str, tmp_path: Path) -> None:
    slow = "CREATE TABLE a (n int); SELECT pg_sleep(0.2);"
    folder = write(tmp_path, **{"0001_a": slow, "0002_b": "CREATE TABLE b (n int)"})

    async def start() -> int:
        async with db.pool(dsn, folder, size=2) as pool:
            return int(await pool.fetchval("SELECT count(*) FROM schema_migrations"))

    assert await asyncio.gather(*(start() for _ in range(4))) == [2] * 4
    # A later version adds its own.
    write(tmp_path, **{"0003_c": "CREATE TABLE c (n int); INSERT INTO c VALUES (7)"})
    async with db.pool(dsn, folder) as pool:
        assert await pool.fetchval("SELECT n FROM c") == 7
    async with db.pool(dsn, folder) as pool:
        assert await pool.fetchval("SELECT count(*) FROM c") == 1


async def test_a_migration_that_fails_leaves_nothing(dsn: str, tmp_path: Path) -> None:
    folder = write(
        tmp_path, **{"0001_a": "CREATE TABLE a (n int)", "0002_b": "CREATE TABLE b (n int); SELECT 1/0"}
    )

    async def start() -> None:
        async with db.pool(dsn, folder):
            pass

    with pytest.raises(asyncpg.DivisionByZeroError):
        await start()
    write(tmp_path, **{"0002_b": "CREATE TABLE b (n int)"})
    await start()
    misnamed = write(tmp_path / "misnamed", first="SELECT 1")
    with pytest.raises(ValueError, match="expected a name like"):
        async with db.pool(dsn, misnamed):
            pass


async def test_a_server_that_goes_away_while_a_service_starts_is_waited_for(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "0001_thing.sql").write_text("CREATE TABLE thing (id int PRIMARY KEY)")
    port = int(dsn.rpartition(":")[2].partition("/")[0])
    background = Background()
    edge = Edge("hub>postgres", background, [port])
    through_edge = dsn.replace(f":{port}/", f":{edge.port}/")
    try:
        for sent in range(0, 3000, 150):
            # Cut once, when the server has said so much.
            edge.answer_bytes = sent
            async with asyncio.timeout(20), db.pool(through_edge, tmp_path, size=1) as pool:
                edge.answer_bytes = None
                assert await pool.fetchval("SELECT count(*) FROM schema_migrations") == 1
    finally:
        edge.close()
        background.close()
