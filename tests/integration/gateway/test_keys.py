"""Who gets in: API keys over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from benchgen.eval.v1 import result_pb2, result_pb2_grpc, run_pb2, run_pb2_grpc
from services.common.auth import Scope
from services.gateway import store
from services.gateway.keys import REMEMBERED_SECONDS, ensure_first_key
from tests.integration.gateway.conftest import Gateway, bearer


async def over_http(gateway: Gateway, authorization: str | None) -> tuple[int, dict[str, object]]:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with gateway.http.get("/api/v1/runs/r1", headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def over_grpc(gateway: Gateway, authorization: str | None) -> grpc.aio.AioRpcError | run_pb2.Run:
    runs = run_pb2_grpc.RunServiceStub(gateway.channel)
    metadata = () if authorization is None else (("authorization", authorization),)
    try:
        return await runs.GetRun(run_pb2.GetRunRequest(name="r1"), metadata=metadata)
    except grpc.aio.AioRpcError as failure:
        return failure


async def test_without_a_good_key_nobody_gets_in(gateway: Gateway) -> None:
    gateway.http.headers.popall("Authorization")
    wrong = [None, "", "Bearer", "Bearer ", "Bearer bg_wrong", "Basic Ymc6Ymc=", "bg_naked", "Bearer \xff"]
    for authorization in wrong:
        status, document = await over_http(gateway, authorization)
        assert status == 401, authorization
        assert document["reason"] == "UNAUTHENTICATED"
        assert "Authorization: Bearer bg_..." in str(document["detail"])
    for authorization in wrong[:-1]:
        failure = await over_grpc(gateway, authorization)
        assert isinstance(failure, grpc.aio.AioRpcError)
        assert failure.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "`authorization`" in (failure.details() or "")
    assert gateway.services.seen == []


async def test_everything_under_api_needs_a_key(gateway: Gateway) -> None:
    gateway.http.headers.popall("Authorization")
    for path in ("/api/v1/runs", "/api/v1/nothing", "/api/"):
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            async with gateway.http.request(method, path) as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_the_first_key_has_every_scope(gateway: Gateway) -> None:
    assert (await over_http(gateway, f"bearer {gateway.key}"))[0] == 200
    assert isinstance(await over_grpc(gateway, f"Bearer {gateway.key}"), run_pb2.Run)
    assert {seen.who.scopes for seen in gateway.services.seen} == {frozenset(Scope)}
    used = await gateway.pool.fetchval("SELECT last_used_at FROM api_keys")
    assert used is not None


async def test_a_revoked_key_works_for_a_moment_at_most(gateway: Gateway) -> None:
    key = await gateway.new_key(Scope.READ)
    assert (await over_http(gateway, f"Bearer {key}"))[0] == 200
    watch = run_pb2_grpc.RunServiceStub(gateway.channel).WatchRun(
        run_pb2.WatchRunRequest(name="endless"), metadata=bearer(key)
    )
    assert (await anext(aiter(watch))).name
    started = time.monotonic()
    assert await store.revoke_key(gateway.pool, "k1")
    while (await over_http(gateway, f"Bearer {key}"))[0] == 200:
        await asyncio.sleep(0.05)
    assert time.monotonic() - started < REMEMBERED_SECONDS + 1
    failure = await over_grpc(gateway, f"Bearer {key}")
    assert isinstance(failure, grpc.aio.AioRpcError)
    assert failure.details() == "this API key was revoked"
    # What was opened with it ends as well.
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in watch:
            pass
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
    await asyncio.wait_for(gateway.services.cancelled.wait(), 5)


async def test_a_key_expires(gateway: Gateway) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=0.5)
    key = await gateway.new_key(Scope.READ, expires_at=soon)
    assert (await over_http(gateway, f"Bearer {key}"))[0] == 200
    await asyncio.sleep(0.6)
    status, document = await over_http(gateway, f"Bearer {key}")
    assert (status, document["detail"]) == (401, "this API key has expired")


async def test_a_first_key_that_was_revoked_stays_revoked(gateway: Gateway) -> None:
    row = await gateway.pool.fetchrow("SELECT id, hash FROM api_keys")
    assert row is not None
    assert await store.revoke_key(gateway.pool, row["id"])
    await ensure_first_key(gateway.pool, row["hash"])
    assert await gateway.pool.fetchval("SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL") == 1
    assert await gateway.pool.fetchval("SELECT count(*) FROM api_keys") == 1


async def test_answers_are_for_keys_with_the_scope(gateway: Gateway) -> None:
    key = await gateway.new_key(Scope.READ)
    results = result_pb2_grpc.ResultServiceStub(gateway.channel)
    request = result_pb2.ListResultsRequest(run="r1")
    for authorized, target_json, target in ((gateway.key, '"42"', "42"), (key, "", None)):
        page = await results.ListResults(request, metadata=bearer(authorized))
        assert page.results[0].target_json == target_json
        async with gateway.http.get(
            "/api/v1/runs/r1/results", headers={"Authorization": f"Bearer {authorized}"}
        ) as answer:
            assert (await answer.json())["items"][0]["target"] == target


async def test_a_scope_that_is_missing_is_named(gateway: Gateway) -> None:
    key = await gateway.new_key(Scope.READ)
    async with gateway.http.post(
        "/api/v1/runs",
        json={"environment": "a", "model": "m"},
        headers={"Authorization": f"Bearer {key}"},
    ) as answer:
        document = await answer.json(content_type=None)
    assert (answer.status, document["reason"]) == (403, "PERMISSION_DENIED")
    assert document["metadata"] == {"scope": "run"}
    assert gateway.services.made == {}
