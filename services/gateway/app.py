"""Builds a gateway and runs it."""

from __future__ import annotations

from pathlib import Path

import structlog

from services.common import clock, db, rpc
from services.common.clock import SharedClock
from services.common.process import Process
from services.common.signing import Signer
from services.gateway import idempotency, public
from services.gateway.backends import Backends
from services.gateway.config import GatewaySettings
from services.gateway.http import server as http_server
from services.gateway.http.app import build
from services.gateway.http.caller import Api
from services.gateway.key_admin import KeyAdmin
from services.gateway.key_service import KeyService
from services.gateway.keys import Keys, ensure_first_key
from services.gateway.passthrough import Passthrough

log = structlog.get_logger()

MIGRATIONS = Path(__file__).with_name("migrations")

_FORGET_EVERY_SECONDS = 600.0


async def serve(settings: GatewaySettings, process: Process) -> None:
    """Open everything, serve until told to stop, close everything in the opposite order.

    Hub and scorer need not be there: calls that need them are answered with what is wrong.
    """
    signer = Signer(settings.principal_signing_key.get_secret_value())
    async with (
        db.pool(
            settings.postgres_dsn.get_secret_value(), MIGRATIONS, size=settings.postgres_connections
        ) as pool,
        rpc.channel(settings.hub_address, settings, presenting=False) as hub,
        rpc.channel(settings.scorer_address, settings, presenting=False) as scorer,
    ):
        await ensure_first_key(pool, settings.bootstrap_key_hash)
        shared = SharedClock(pool)
        await shared.first_look()
        keys = Keys(pool, shared)
        backends = Backends(hub, scorer, settings, signer, shared.now)
        admin = KeyAdmin(pool, keys, backends)
        api = Api(pool, keys, backends, process.stopping, admin)

        async def forget() -> None:
            await idempotency.forget(pool)

        process.loop("clock", shared.step, every=clock.EVERY_SECONDS)
        process.loop("idempotency.forget", forget, every=_FORGET_EVERY_SECONDS)
        async with (
            http_server.listening(build(api), settings.api_listen, process) as api_port,
            public.server(
                settings.grpc_listen, Passthrough(keys, backends), KeyService(keys, admin)
            ) as grpc_port,
        ):
            process.ready = True
            log.info("gateway.ready", api=api_port, grpc=grpc_port)
            await process.stopping.wait()
