"""KeyService over gRPC: the one public service that the gateway answers itself."""

# ruff: noqa: N802 - gRPC names the methods and passes a context

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from grpc_status import rpc_status

from benchgen.eval.v1 import key_pb2, key_pb2_grpc
from services.common.auth import Principal
from services.common.rpc import status_of
from services.gateway.key_admin import KeyAdmin
from services.gateway.keys import Keys

Answer = TypeVar("Answer")
Context = grpc.aio.ServicerContext[Any, Any]


class KeyService(key_pb2_grpc.KeyServiceServicer):
    """Serves holders of the scope `admin`."""

    def __init__(self, keys: Keys, admin: KeyAdmin) -> None:
        self._keys = keys
        self._admin = admin

    async def CreateKey(
        self, request: key_pb2.CreateKeyRequest, context: Context
    ) -> key_pb2.CreateKeyResponse:
        return await self._answer(context, lambda who: self._admin.create(who, request))

    async def ListKeys(self, request: key_pb2.ListKeysRequest, context: Context) -> key_pb2.ListKeysResponse:
        return await self._answer(context, self._admin.list)

    async def RevokeKey(self, request: key_pb2.RevokeKeyRequest, context: Context) -> key_pb2.ApiKey:
        return await self._answer(context, lambda who: self._admin.revoke(who, request))

    async def SetKeyBudget(self, request: key_pb2.SetKeyBudgetRequest, context: Context) -> key_pb2.ApiKey:
        return await self._answer(context, lambda who: self._admin.set_budget(who, request))

    async def _answer(self, context: Context, act: Callable[[Principal], Awaitable[Answer]]) -> Answer:
        """Act for the holder of the key that came with a call; errors become statuses."""
        try:
            return await act(await self._keys.principal_of(_authorization(context)))
        except Exception as error:
            await context.abort_with_status(rpc_status.to_status(status_of(error)))
            raise


def _authorization(context: Context) -> str | None:
    for name, value in context.invocation_metadata() or ():
        if name == "authorization":
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return None
