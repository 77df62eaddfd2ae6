"""ModelService: registers, lists, tests and removes models."""

# ruff: noqa: N802 - gRPC names the methods and passes a context

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import asyncpg
import grpc

from benchgen.errors import AlreadyExists, FailedPrecondition
from benchgen.eval.v1 import model_pb2, model_pb2_grpc
from services.common.auth import Scope, require
from services.common.models.builtin import BUILTINS, PREFIX, is_builtin, parse_builtin
from services.common.models.client import ModelClient
from services.common.paging import Page, next_token
from services.hub.registry import probe, store
from services.hub.registry.domain import Generation, ModelRow, checked_model
from services.hub.registry.messages import builtin_message, model_message, read_model
from services.hub.registry.secrets import Vault
from services.hub.registry.store import Conn
from services.hub.wire import checked_request_id

Context = grpc.aio.ServicerContext[Any, Any]
HasActiveRuns = Callable[[Conn, str], Awaitable[bool]]

#: First part of a page token's key: built-in models come before registered ones.
_BUILTIN, _REGISTERED = "0", "1"


async def resolve_subject_model(conn: Conn, ref: str, simulator_url: str) -> model_pb2.Model:
    """The model that a run means, as it is now: a registered name, or ``builtin/NAME?key=value``.

    Inside a transaction a registered model cannot be removed before its end.

    :raises NotFound: no such model is registered.
    :raises InvalidInput: there is no such built-in model, or its parameters are wrong.
    :raises FailedPrecondition: the simulated model is wanted where no simulator runs.
    """
    if not is_builtin(ref):
        return model_message(await store.keep_model(conn, ref))
    return _builtin_subject(ref, simulator_url)


def _builtin_subject(ref: str, simulator_url: str) -> model_pb2.Model:
    builtin = parse_builtin(ref)
    if builtin.spec.answered_by == "simulator" and not simulator_url:
        raise FailedPrecondition("builtin/simulated needs a simulator, and this hub was given none")
    return builtin_message(ref, builtin, simulator_url)


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """Serves the registry.

    :param has_active_runs: whether a run of a model is under way.
    :param simulator_url: where the simulated model is; empty where there is none.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        vault: Vault,
        client: ModelClient,
        has_active_runs: HasActiveRuns,
        simulator_url: str,
    ) -> None:
        self._pool = pool
        self._vault = vault
        self._client = client
        self._has_active_runs = has_active_runs
        self._simulator_url = simulator_url

    async def CreateModel(self, request: model_pb2.CreateModelRequest, context: Context) -> model_pb2.Model:
        require(Scope.MODELS)
        request_id = checked_request_id(request.request_id)
        wanted = checked_model(read_model(request.model), request.secret)
        sealed = self._vault.encrypt(wanted.name, request.secret) if request.secret else None
        async with self._pool.acquire() as conn:
            if await store.add_model(conn, request_id, wanted, sealed):
                made = await store.keep_model(conn, wanted.name)
            else:
                made = await self._made_before(conn, request_id, wanted, request.secret)
        return model_message(made)

    async def _made_before(self, conn: Conn, request_id: UUID, wanted: ModelRow, secret: str) -> ModelRow:
        """The model that the same request made before.

        :raises AlreadyExists: it was another request, or the name is another model's.
        """
        made = await store.model_of_request(conn, request_id)
        if made is None:
            raise AlreadyExists(
                f"there is a model `{wanted.name}` already; remove it first, or take another name"
            )
        sealed = await store.secret_of(conn, made.name)
        known = "" if sealed is None else self._vault.decrypt(made.name, sealed)
        same_secret = hmac.compare_digest(known.encode(), secret.encode())
        if not same_secret or replace(made, created_at=None) != wanted:
            raise AlreadyExists("this request_id was used to register something else")
        return made

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Context) -> model_pb2.Model:
        require(Scope.READ)
        if is_builtin(request.name):
            return builtin_message(request.name, parse_builtin(request.name), self._simulator_url)
        async with self._pool.acquire() as conn:
            return model_message(await self._found(conn, request.name))

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: Context
    ) -> model_pb2.ListModelsResponse:
        require(Scope.READ)
        page = Page.of(request.page_size, request.page_token, kinds=(str, str))
        size, after = page.size, page.after
        names = sorted(PREFIX + name for name in BUILTINS)
        if after is not None:
            names = [name for name in names if after[0] == _BUILTIN and name > after[1]]
        models = [builtin_message(name, parse_builtin(name), self._simulator_url) for name in names]
        last = after[1] if after is not None and after[0] == _REGISTERED else None
        async with self._pool.acquire() as conn:
            rows = await store.list_models(conn, last, size + 1)
        models = [*models, *(model_message(row) for row in rows)]
        token = ""
        if len(models) > size:
            last_shown = models[size - 1]
            token = next_token([_BUILTIN if last_shown.builtin else _REGISTERED, last_shown.name])
        return model_pb2.ListModelsResponse(models=models[:size], next_page_token=token)

    async def DeleteModel(
        self, request: model_pb2.DeleteModelRequest, context: Context
    ) -> model_pb2.DeleteModelResponse:
        require(Scope.MODELS)
        if is_builtin(request.name):
            raise FailedPrecondition("the models that come with the system cannot be removed")
        async with self._pool.acquire() as conn, conn.transaction():
            # The lock makes a run that is being created wait, or be seen.
            if not await store.lock_model(conn, request.name):
                raise await store.missing(conn, request.name)
            if await self._has_active_runs(conn, request.name):
                raise FailedPrecondition(
                    f"a run of `{request.name}` is under way; cancel it, or wait for its end"
                )
            await store.delete_model(conn, request.name)
        return model_pb2.DeleteModelResponse()

    async def TestModel(
        self, request: model_pb2.TestModelRequest, context: Context
    ) -> model_pb2.TestModelResponse:
        require(Scope.MODELS)
        if is_builtin(request.name):
            return await self._test_builtin(request.name)
        async with self._pool.acquire() as conn:
            row = await self._found(conn, request.name)
            sealed = await store.secret_of(conn, row.name)
        secret = None if sealed is None else self._vault.decrypt(row.name, sealed)
        return await probe.probe_endpoint(self._client, row.base_url, row.model_id, secret, row.generation)

    async def _test_builtin(self, name: str) -> model_pb2.TestModelResponse:
        builtin = parse_builtin(name)
        match builtin.spec.answered_by:
            case "scorer":
                return probe.loaded(builtin)
            case "runner":
                return await probe.probe_builtin(builtin)
            case "simulator":
                model = _builtin_subject(name, self._simulator_url)
                return await probe.probe_endpoint(
                    self._client, model.base_url, model.model_id, None, Generation()
                )

    async def _found(self, conn: Conn, name: str) -> ModelRow:
        row = await store.find_model(conn, name)
        if row is None:
            raise await store.missing(conn, name)
        return row
