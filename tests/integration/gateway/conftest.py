"""A gateway in the test's own process: its real composition, its own database, steerable services behind it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import aiohttp
import asyncpg
import grpc
import pytest

from services.common.auth import Scope, hash_token
from services.common.process import Process
from services.common.signing import Signer
from services.gateway import store
from services.gateway.app import serve
from services.gateway.config import GatewaySettings
from services.local.credentials import Credentials
from services.local.ports import free_port
from tests.conftest import Database
from tests.integration.gateway.services import TOKEN, Services, serving


@dataclass(slots=True)
class Gateway:
    """A running gateway and what is behind it."""

    api: str
    """The HTTP address, a URL."""
    address: str
    """The gRPC address."""
    key: str
    """An API key with every scope."""
    services: Services
    http: aiohttp.ClientSession
    """Sends the key."""
    channel: grpc.aio.Channel
    """Sends nothing by itself."""
    pool: asyncpg.Pool
    process: Process
    backend_port: int

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a gRPC caller sends."""
        return bearer(self.key)

    async def new_key(self, *scopes: Scope, key_id: str = "k1", expires_at: datetime | None = None) -> str:
        """Make an API key with these scopes."""
        key = "bg_" + secrets.token_urlsafe(30)
        names = [str(scope) for scope in scopes]
        assert await store.add_key(self.pool, key_id, "a key of a test", hash_token(key), names, expires_at)
        return key


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """The metadata that passes an API key."""
    return (("authorization", f"Bearer {key}"),)


@asynccontextmanager
async def running_gateway(
    dsn: str, credentials: Credentials, backend_port: int
) -> AsyncIterator[tuple[Process, GatewaySettings]]:
    """Run a gateway until the block ends."""
    settings = GatewaySettings(
        api_listen=f"127.0.0.1:{free_port()}",
        grpc_listen=f"127.0.0.1:{free_port()}",
        hub_address=f"127.0.0.1:{backend_port}",
        scorer_address=f"127.0.0.1:{backend_port}",
        postgres_dsn=dsn,
        principal_signing_key=credentials.principal_seed,
        bootstrap_key_hash=credentials.api_key_hash(),
        service_token=TOKEN,
    )
    async with asyncio.TaskGroup() as group:
        process = Process("gateway", group)
        serving_task = group.create_task(serve(settings, process))
        while not process.ready:
            assert not serving_task.done()
            await asyncio.sleep(0.01)
        try:
            yield process, settings
        finally:
            process.stopping.set()


@pytest.fixture
async def gateway(
    database: Callable[..., Database], secrets_of_session: Credentials
) -> AsyncIterator[Gateway]:
    """A gateway of this test's own."""
    services = Services()
    dsn = database().dsn("gateway")
    signer = Signer(secrets_of_session.principal_seed)
    async with (
        serving(services, signer.public_key, "127.0.0.1:0") as backend_port,
        running_gateway(dsn, secrets_of_session, backend_port) as (process, settings),
        asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool,
        aiohttp.ClientSession(
            f"http://{settings.api_listen}",
            headers={"Authorization": f"Bearer {secrets_of_session.api_key}"},
        ) as http,
        grpc.aio.insecure_channel(settings.grpc_listen) as channel,
    ):
        yield Gateway(
            api=f"http://{settings.api_listen}",
            address=settings.grpc_listen,
            key=secrets_of_session.api_key,
            services=services,
            http=http,
            channel=channel,
            pool=pool,
            process=process,
            backend_port=backend_port,
        )
