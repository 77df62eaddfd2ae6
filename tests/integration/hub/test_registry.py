"""The registry of models against PostgreSQL, with endpoints that are real HTTP servers."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import grpc
import pytest
from aiohttp import web
from pydantic import SecretStr

from benchgen.errors import FailedPrecondition, InvalidInput, NotFound
from benchgen.eval.v1 import environment_pb2, model_pb2, model_pb2_grpc
from services.common import db
from services.common.auth import Scope
from services.common.models.client import ModelClient
from services.hub.registry import store
from services.hub.registry.secrets import Vault
from services.hub.registry.service import ModelService, resolve_subject_model
from services.hub.registry.store import Conn
from tests import conftest
from tests.integration.hub.support import MIGRATIONS, Called, seed, served

SECRET = "sk-very-secret-0123456789"
SIMULATOR = "http://127.0.0.1:9"


@dataclass
class Registry:
    """A running registry."""

    pool: asyncpg.Pool
    vault: Vault
    called: Called
    stub: model_pb2_grpc.ModelServiceAsyncStub
    busy: set[str] = field(default_factory=set)

    async def add(self, model: model_pb2.Model, *, secret: str = "", request_id: str = "") -> model_pb2.Model:
        request = model_pb2.CreateModelRequest(
            request_id=request_id or str(uuid.uuid4()), model=model, secret=secret
        )
        return await self.stub.CreateModel(request, metadata=self.called.as_(Scope.MODELS))

    async def get(self, name: str) -> model_pb2.Model:
        return await self.stub.GetModel(
            model_pb2.GetModelRequest(name=name), metadata=self.called.as_(Scope.READ)
        )

    async def remove(self, name: str) -> None:
        request = model_pb2.DeleteModelRequest(name=name)
        await self.stub.DeleteModel(request, metadata=self.called.as_(Scope.MODELS))

    async def test(self, name: str) -> model_pb2.TestModelResponse:
        request = model_pb2.TestModelRequest(name=name)
        return await self.stub.TestModel(request, metadata=self.called.as_(Scope.MODELS))


@pytest.fixture
async def registry(database: Callable[[], conftest.Database]) -> AsyncIterator[Registry]:
    busy: set[str] = set()

    async def has_active_runs(conn: Conn, model: str) -> bool:
        return model in busy

    vault = Vault(SecretStr(seed()))
    async with db.pool(database().dsn("hub"), MIGRATIONS, size=2) as pool, ModelClient() as client:
        service = ModelService(pool, vault, client, has_active_runs, SIMULATOR)

        def register(server: grpc.aio.Server) -> None:
            model_pb2_grpc.add_ModelServiceServicer_to_server(service, server)

        async with served("ModelService", register) as called:
            yield Registry(pool, vault, called, model_pb2_grpc.ModelServiceStub(called.channel), busy)


def endpoint(name: str = "gpt", base_url: str = "https://example.org/v1") -> model_pb2.Model:
    return model_pb2.Model(
        name=name,
        base_url=base_url,
        model_id="gpt-x",
        price=model_pb2.Price(input_usd_per_mtok="0.15", output_usd_per_mtok="0.60"),
        generation=environment_pb2.Generation(temperature=0.5, stop=["END"], extra_json='{"top_k": 3}'),
        description="A model.",
    )


@asynccontextmanager
async def refused(code: grpc.StatusCode, *words: str) -> AsyncIterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code
    message = caught.value.details() or ""
    assert all(word in message for word in words), message
    assert SECRET not in message


async def test_a_model_is_registered_and_its_secret_stays_sealed(registry: Registry) -> None:
    made = await registry.add(endpoint(base_url="https://example.org/v1/"), secret=SECRET)
    assert made == await registry.get("gpt")
    assert made.base_url == "https://example.org/v1"
    assert (made.max_concurrency, made.has_secret, made.builtin) == (64, True, False)
    assert made.api == model_pb2.Model.API_OPENAI_CHAT
    assert (made.price.input_usd_per_mtok, made.price.cached_usd_per_mtok) == ("0.15", "")
    assert made.generation.temperature == 0.5
    assert not made.generation.HasField("top_p")
    assert made.generation.extra_json == '{"top_k":3}'
    assert SECRET not in str(made)
    for table in ("models", "model_secrets"):
        assert SECRET not in str(await registry.pool.fetch(f"SELECT * FROM {table}"))
    async with registry.pool.acquire() as conn:
        sealed = await store.secret_of(conn, "gpt")
    assert sealed is not None
    assert SECRET.encode() not in sealed
    assert registry.vault.decrypt("gpt", sealed) == SECRET


async def test_the_same_request_makes_one_model(registry: Registry) -> None:
    ident = str(uuid.uuid4())
    made = await registry.add(endpoint(), secret=SECRET, request_id=ident)
    assert await registry.add(endpoint(), secret=SECRET, request_id=ident) == made
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "this request_id was used"):
        await registry.add(endpoint(), secret=SECRET + "x", request_id=ident)
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "this request_id was used"):
        await registry.add(endpoint("other"), secret=SECRET, request_id=ident)
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "a model `gpt` already"):
        await registry.add(endpoint(), secret=SECRET)


async def test_everything_that_is_wrong_is_said_at_once(registry: Registry) -> None:
    wrong = model_pb2.Model(
        name="GPT",
        base_url="https://example.org/v1/chat/completions#x",
        max_concurrency=100_001,
        price=model_pb2.Price(input_usd_per_mtok="-1", output_usd_per_mtok="cheap"),
        generation=environment_pb2.Generation(top_p=2, stop=["\0"], extra_json='{"model": "x"}'),
        description="two\nlines",
    )
    async with refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        "name: expected",
        "before /chat/completions: end it at '/v1'",
        "after '#'",
        "model_id: expected",
        "max_concurrency: expected 1 to 100,000, found 100001",
        "price.input_usd_per_mtok",
        "price.output_usd_per_mtok",
        "generation.top_p",
        "generation: expected text without NUL",
        "description: expected one line",
        "generation.extra_json: expected no field that is set elsewhere, found model",
        "secret: expected",
    ):
        await registry.add(wrong, secret=f"{SECRET}\nX-Other: header")
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "expected a UUID"):
        await registry.add(endpoint(), request_id="1")
    assert await registry.pool.fetchval("SELECT count(*) FROM models") == 0


async def test_models_are_listed_in_pages_the_built_in_ones_first(registry: Registry) -> None:
    for name in ("b", "a", "c.1"):
        await registry.add(endpoint(name))
    names: list[str] = []
    request = model_pb2.ListModelsRequest(page_size=4)
    while True:
        page = await registry.stub.ListModels(request, metadata=registry.called.as_(Scope.READ))
        names += [model.name for model in page.models]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    builtins = [name for name in names if name.startswith("builtin/")]
    assert len(builtins) == 6
    assert names == [*sorted(builtins), "a", "b", "c.1"]
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "page_size"):
        await registry.stub.ListModels(
            model_pb2.ListModelsRequest(page_size=1001), metadata=registry.called.as_(Scope.READ)
        )


async def test_a_model_in_use_stays_and_a_removed_one_leaves_no_secret(registry: Registry) -> None:
    await registry.add(endpoint(), secret=SECRET)
    registry.busy.add("gpt")
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "a run of `gpt` is under way"):
        await registry.remove("gpt")
    registry.busy.clear()
    await registry.remove("gpt")
    assert await registry.pool.fetchval("SELECT count(*) FROM model_secrets") == 0
    async with refused(grpc.StatusCode.NOT_FOUND, "no model `gpt`"):
        await registry.remove("gpt")
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "cannot be removed"):
        await registry.remove("builtin/echo")
    await registry.add(endpoint())
    assert not (await registry.get("gpt")).has_secret


async def test_scopes(registry: Registry) -> None:
    reader = registry.called.as_(Scope.READ)
    denied = grpc.StatusCode.PERMISSION_DENIED
    async with refused(denied, "`models`"):
        await registry.stub.CreateModel(model_pb2.CreateModelRequest(model=endpoint()), metadata=reader)
    async with refused(denied, "`models`"):
        await registry.stub.DeleteModel(model_pb2.DeleteModelRequest(name="gpt"), metadata=reader)
    async with refused(denied, "`models`"):
        await registry.stub.TestModel(model_pb2.TestModelRequest(name="gpt"), metadata=reader)
    async with refused(denied, "`read`"):
        await registry.stub.GetModel(
            model_pb2.GetModelRequest(name="gpt"), metadata=registry.called.as_(Scope.RUN)
        )


@asynccontextmanager
async def listening(status: int, answer: dict[str, Any]) -> AsyncIterator[tuple[str, list[Any]]]:
    """An endpoint that answers every request alike; yields its address and the requests it got."""
    asked: list[Any] = []

    async def chat(request: web.Request) -> web.Response:
        asked.append((request.headers.get("Authorization"), await request.json()))
        return web.json_response(answer, status=status)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/v1", asked
    finally:
        await runner.cleanup()


async def test_one_tiny_call(registry: Registry) -> None:
    answer = {
        "model": "gpt-x-2026",
        "choices": [{"message": {"role": "assistant", "content": "OK"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1},
    }
    async with listening(200, answer) as (address, asked):
        await registry.add(endpoint(base_url=address), secret=SECRET)
        said = await registry.test("gpt")
    assert (said.ok, said.response, said.http_status) == (True, "OK", 200)
    assert (said.reported_model, said.input_tokens, said.output_tokens) == ("gpt-x-2026", 9, 1)
    assert said.latency_ms > 0
    ((authorization, body),) = asked
    assert authorization == f"Bearer {SECRET}"
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_k"]) == ("gpt-x", 16, 0.5, 3)


async def test_a_failed_call_says_why_in_the_providers_words(registry: Registry) -> None:
    answer = {"error": {"message": f"Incorrect API key provided: {SECRET}.", "type": "invalid_request_error"}}
    async with listening(401, answer) as (address, _):
        await registry.add(endpoint(base_url=address), secret=SECRET)
        said = await registry.test("gpt")
    assert (said.ok, said.http_status) == (False, 401)
    assert "Incorrect API key provided" in said.error
    assert SECRET not in str(said)
    gone = await registry.test("gpt")
    assert (gone.ok, gone.http_status) == (False, 0)
    assert gone.error.startswith("connect")


async def test_built_in_models_can_be_tested_too(registry: Registry) -> None:
    assert (await registry.test("builtin/constant?text=hello")).response == "hello"
    assert "OK" in (await registry.test("builtin/echo")).response
    assert (await registry.test("builtin/random-choice?choices=X")).response == "X"
    assert "nothing is called" in (await registry.test("builtin/oracle")).response
    assert not (await registry.test("builtin/simulated")).ok
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "no built-in model"):
        await registry.test("builtin/other")


async def test_what_a_run_means_by_a_model(registry: Registry) -> None:
    made = await registry.add(endpoint())
    async with registry.pool.acquire() as conn:
        assert await resolve_subject_model(conn, "gpt", SIMULATOR) == made
        with pytest.raises(NotFound, match="no model `gtp`; did you mean `gpt`"):
            await resolve_subject_model(conn, "gtp", SIMULATOR)

        simulated = await resolve_subject_model(conn, "builtin/simulated?accuracy=0.9", SIMULATOR)
        assert simulated.name == "builtin/simulated?accuracy=0.9"
        assert (simulated.base_url, simulated.model_id) == (f"{SIMULATOR}/v1", "simulated?accuracy=0.9")
        assert (simulated.api, simulated.builtin) == (model_pb2.Model.API_OPENAI_CHAT, True)
        with pytest.raises(FailedPrecondition, match="needs a simulator"):
            await resolve_subject_model(conn, "builtin/simulated", "")

        echo = await resolve_subject_model(conn, "builtin/echo", "")
        assert (echo.api, echo.base_url, echo.max_concurrency) == (model_pb2.Model.API_BUILTIN, "", 256)
        with pytest.raises(InvalidInput, match="accuracy"):
            await resolve_subject_model(conn, "builtin/simulated?accuracy=2", SIMULATOR)


async def test_a_model_that_a_new_run_uses_cannot_be_removed_meanwhile(registry: Registry) -> None:
    await registry.add(endpoint())
    async with registry.pool.acquire() as conn, conn.transaction():
        await resolve_subject_model(conn, "gpt", SIMULATOR)
        request = model_pb2.DeleteModelRequest(name="gpt")
        call = registry.stub.DeleteModel(request, metadata=registry.called.as_(Scope.MODELS), timeout=0.5)
        async with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
            await call
    assert (await registry.get("gpt")).name == "gpt"
