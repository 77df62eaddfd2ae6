"""Errors of the HTTP API: one form for all, nothing inner shown, everything wrong said at once."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import grpc

from benchgen.eval.v1 import run_pb2, run_pb2_grpc
from services.gateway.http.documents import Problem
from services.local.credentials import Credentials
from services.local.ports import free_port
from tests.conftest import Database
from tests.integration.gateway.conftest import Gateway, bearer, running_gateway

RUN = {"environment": "a", "model": "m"}


async def problem(gateway: Gateway, method: str, path: str, **request: Any) -> Problem:
    """Make a request that fails, and hold the answer against what the API promises."""
    async with gateway.http.request(method, path, **request) as answer:
        assert answer.content_type == "application/problem+json"
        document = Problem.model_validate_json(await answer.read())
        assert document.status == answer.status
        assert document.type == "about:blank"
        return document


async def test_every_kind_of_error_has_one_form(gateway: Gateway) -> None:
    expected = [
        ("GET", "/nothing", 404, "NOT_FOUND"),
        ("GET", "/api/v1/nothing", 404, "NOT_FOUND"),
        ("GET", "/api/v1/runs/", 404, "NOT_FOUND"),
        ("PUT", "/api/v1/runs", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/v1/runs/missing", 404, "NOT_FOUND"),
        ("GET", "/api/v1/runs/missing/events", 404, "NOT_FOUND"),
        ("GET", "/api/v1/runs/broken", 500, "INTERNAL"),
        ("GET", "/api/v1/runs/r1/report", 409, "FAILED_PRECONDITION"),
        ("GET", "/api/v1/runs/long/results", 429, "EXHAUSTED"),
        ("GET", "/api/v1/runs?page_size=0", 400, "INVALID_INPUT"),
        ("GET", "/api/v1/runs?state=done", 400, "INVALID_INPUT"),
        ("GET", "/api/v1/runs/r1/results?filter=wrong", 400, "INVALID_INPUT"),
        ("POST", "/api/v1/runs", 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/api/v1/environments", 415, "UNSUPPORTED_MEDIA_TYPE"),
    ]
    for method, path, status, reason in expected:
        found = await problem(gateway, method, path)
        assert (found.status, found.reason) == (status, reason), path
        assert "inner workings" not in found.detail
    assert (await problem(gateway, "GET", "/api/v1/runs/missing")).metadata == {"run": "missing"}


async def test_everything_wrong_is_said_at_once(gateway: Gateway) -> None:
    body = RUN | {
        "limit": 0,
        "trials": "many",
        "generation": {"temperature": -1, "extra": []},
        "nonsense": True,
    }
    found = await problem(gateway, "POST", "/api/v1/runs", json=body)
    assert found.status == 400
    assert {error.field for error in found.errors} == {
        "limit",
        "trials",
        "generation.temperature",
        "generation.extra",
        "nonsense",
    }
    for wrong in (
        {"environment": "a"},
        RUN | {"predictions": {"digest": "0" * 64}},
        RUN | {"limit": 1, "sample": 1},
    ):
        found = await problem(gateway, "POST", "/api/v1/runs", json=wrong)
        assert found.detail.startswith("expected ")
    assert gateway.services.made == {}


async def test_what_is_no_json_is_said_to_be_none(gateway: Gateway) -> None:
    deep = b'{"environment": ' + b"[" * 100_000
    unicode = b'{"environment": "\\ud800", "model": "m"}'
    for data in (b"{", b"[]", b"\xff", b"null", b'{"seed": 1e400}', deep, unicode):
        found = await problem(
            gateway, "POST", "/api/v1/runs", data=data, headers={"Content-Type": "application/json"}
        )
        assert (found.status, found.reason) == (400, "INVALID_INPUT"), data
    large = RUN | {"generation": {"extra": {"a": 2**70, "b": [[[{}]]]}}}
    async with gateway.http.post("/api/v1/runs", json=large) as answer:
        assert answer.status == 201


async def test_a_secret_is_not_repeated(gateway: Gateway) -> None:
    model = {"name": "", "base_url": 7, "model": "m", "secret": ["sk-secret"], "max_concurrency": "sk-secret"}
    async with gateway.http.post("/api/v1/models", json=model) as answer:
        assert answer.status == 400
        assert "sk-secret" not in await answer.text()
    fine = {"name": "gpt", "base_url": "https://host/v1", "model": "m", "secret": "sk-secret"}
    async with gateway.http.post("/api/v1/models", json=fine, headers={"Idempotency-Key": "once"}) as answer:
        assert answer.status == 201
        assert answer.headers["Location"] == "/api/v1/models/gpt"
        assert "sk-secret" not in await answer.text()
    assert gateway.services.seen[-1].request.secret == "sk-secret"
    stored = await gateway.pool.fetchval("SELECT string_agg(i::text, '') FROM idempotency i")
    assert "sk-secret" not in stored
    assert b"sk-secret".hex() not in stored


async def test_bodies_are_bounded(gateway: Gateway) -> None:
    long = b'{"environment": "' + b"x" * (2 << 20) + b'"}'
    headers = {"Content-Type": "application/json"}
    assert (
        await problem(gateway, "POST", "/api/v1/runs", data=io.BytesIO(long), headers=headers)
    ).status == 413

    async def pieces() -> Any:
        for start in range(0, len(long), 65536):
            yield long[start : start + 65536]

    assert (await problem(gateway, "POST", "/api/v1/runs", data=pieces(), headers=headers)).status == 413
    # The connection is still good for the next request.
    async with gateway.http.get("/api/v1/runs") as answer:
        assert answer.status == 200


async def test_long_headers_are_refused(gateway: Gateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.api.rpartition(":")[2]))
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 200_000)
    await writer.drain()
    assert (await reader.readline()).startswith(b"HTTP/1.1 400")
    writer.close()


async def test_services_that_are_away_make_no_gateway_fall(
    database: Callable[..., Database], secrets_of_session: Credentials
) -> None:
    nobody = free_port()
    dsn = database().dsn("gateway")
    key = secrets_of_session.api_key
    async with (
        running_gateway(dsn, secrets_of_session, nobody) as (process, settings),
        aiohttp.ClientSession(
            f"http://{settings.api_listen}", headers={"Authorization": f"Bearer {key}"}
        ) as http,
        grpc.aio.insecure_channel(settings.grpc_listen) as channel,
    ):
        assert process.ready
        for path in ("/api/v1/runs", "/api/v1/runs/r1/report", "/api/v1/runs/r1/events"):
            started = time.monotonic()
            async with http.get(path) as answer:
                document = Problem.model_validate_json(await answer.read())
            assert (answer.status, document.reason) == (503, "UNAVAILABLE")
            assert answer.headers["Retry-After"] == "1"
            assert "cannot be reached" in document.detail
            assert str(nobody) not in document.detail
            assert time.monotonic() - started < 5
        call = run_pb2_grpc.RunServiceStub(channel).GetRun(
            run_pb2.GetRunRequest(name="r1"), metadata=bearer(key)
        )
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert "cannot be reached" in await call.details()
        assert str(nobody) not in await call.details()


async def test_a_fault_of_the_database_shows_nothing_inner(gateway: Gateway) -> None:
    await gateway.pool.execute("ALTER TABLE api_keys RENAME TO hidden_keys")
    async with gateway.http.get("/api/v1/runs", headers={"Authorization": "Bearer bg_new"}) as answer:
        assert answer.status == 500
        assert (await answer.json(content_type=None))["detail"] == "internal error; the server's log has it"
