"""Who makes a request, and what its handler may use."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import asyncpg
import grpc
from fastapi import Depends, Request

from services.common.auth import Principal
from services.gateway.backends import CALL_SECONDS, Backends
from services.gateway.key_admin import KeyAdmin
from services.gateway.keys import Keys

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Api:
    """What the routes are made of."""

    pool: asyncpg.Pool
    keys: Keys
    backends: Backends
    stopping: asyncio.Event
    """Set when the process should end."""
    key_admin: KeyAdmin


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of the key that came with a request, and the services called on its behalf."""

    who: Principal
    api: Api

    @property
    def backends(self) -> Backends:
        """The services behind the gateway."""
        return self.api.backends

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, Answer],
        request: object,
        *,
        seconds: float = CALL_SECONDS,
    ) -> Answer:
        """Call a service; see :meth:`Backends.call`."""
        return await self.backends.call(method, request, self.who, seconds=seconds)


def _caller(request: Request) -> Caller:
    # The key was checked before the application had the request.
    return Caller(request.state.principal, request.app.state.api)


CallerDep = Annotated[Caller, Depends(_caller)]
