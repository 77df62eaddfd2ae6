"""One database and one environment for all tests of the scorer: every test has runs of its own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from services.local import credentials
from services.local.servers.postgres import DATABASE, PostgresServer
from services.local.servers.seaweed import BUCKETS, SeaweedServer
from tests import conftest
from tests.integration.scorer import support

# From the far end of those that `object_store` hands out.
_prefixes = reversed(conftest.BUCKET_PREFIXES)


def _run(work: Any) -> None:
    """Wait for something on a thread of its own: a session's fixture has no event loop."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        executor.submit(asyncio.run, work).result()


@pytest.fixture(scope="session")
def scorer_dsn(postgres: PostgresServer) -> Iterator[str]:
    """The address of a database that no other service uses."""
    name = f"scorer_{secrets.token_hex(6)}"

    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(postgres.dsn(credentials.POSTGRES_ADMIN, "postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    _run(execute(f"CREATE DATABASE {name} TEMPLATE {DATABASE}"))
    yield postgres.dsn("scorer", name)
    _run(execute(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> support.Environment:
    """Sums, materialised."""
    return support.materialise(tmp_path_factory.mktemp("environment"), support.case_rows())


@pytest.fixture(scope="session")
def buckets(object_server: SeaweedServer, environment: support.Environment) -> conftest.ObjectStore:
    """Buckets that hold the environment."""
    prefix = next(_prefixes)
    object_server.make_buckets([f"{prefix}{bucket}" for bucket in BUCKETS])
    store = conftest.ObjectStore(object_server, prefix)
    support.uploaded(environment, store)
    return store


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scorer(scorer_dsn: str, buckets: conftest.ObjectStore) -> AsyncIterator[support.Scorer]:
    """A running scorer."""
    async with support.scoring(scorer_dsn, buckets) as running:
        yield running


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory, buckets: conftest.ObjectStore) -> support.Environment:
    """Another environment with cases of the same names; its fields hold what a database has no place for."""
    rows = [row | {"answer": "7", "story": "s\0", "level": "\0"} for row in support.case_rows(3)]
    return support.uploaded(support.materialise(tmp_path_factory.mktemp("other"), rows), buckets)
