"""Keys that holders of `admin` make, limit and revoke, over HTTP and gRPC."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from benchgen.eval.v1 import key_pb2, key_pb2_grpc
from services.common.auth import DailyLimits, Scope, hash_token
from services.gateway.http import documents
from tests.integration.gateway.conftest import Gateway, bearer
from tests.integration.gateway.test_problems import problem


async def made(gateway: Gateway, **body: Any) -> documents.NewKey:
    async with gateway.http.post("/api/v1/keys", json=body) as answer:
        assert answer.status == 201, await answer.text()
        return documents.NewKey.model_validate_json(await answer.read())


async def get(gateway: Gateway, path: str, key: str = "") -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with gateway.http.get(path, headers=headers) as answer:
        return answer.status


async def listed(gateway: Gateway) -> list[documents.Key]:
    async with gateway.http.get("/api/v1/keys") as answer:
        return documents.KeyPage.model_validate_json(await answer.read()).items


async def test_a_key_is_made_limited_and_revoked(gateway: Gateway) -> None:
    daily = {"cost_usd": "2.5", "tokens": 1000}
    new = await made(gateway, name="ci", scopes=["run", "read"], daily_budget=daily)
    assert (new.name, new.scopes, new.daily_budget.cost_usd) == ("ci", ["read", "run"], 2.5)
    stored = await gateway.pool.fetchrow("SELECT * FROM api_keys WHERE id = $1", new.key)
    assert stored is not None
    assert stored["hash"] == hash_token(new.secret)
    assert new.secret not in str(dict(stored))
    assert await get(gateway, "/api/v1/runs/r1", new.secret) == 200
    who = gateway.services.seen[-1].who
    assert (who.key_id, who.daily) == (new.key, DailyLimits(25 * 10**11, 1000, 1))
    first, second = await listed(gateway)
    assert (first.name, first.daily_budget.cost_usd) == ("first key", None)
    assert (second.key, second.revoked_at) == (new.key, None)
    # The hub hears at once what a key may spend from now on: its runs are under way.
    async with gateway.http.put(f"/api/v1/keys/{new.key}/budget", json={"tokens": 7}) as answer:
        assert documents.Key.model_validate_json(await answer.read()).daily_budget.tokens == 7
    who = gateway.services.seen[-1].who
    assert (who.key_id, who.daily) == (new.key, DailyLimits(None, 7, 2))
    for _ in range(2):
        async with gateway.http.delete(f"/api/v1/keys/{new.key}") as answer:
            assert answer.status == 204
    assert await get(gateway, "/api/v1/runs/r1", new.secret) == 401
    assert (await listed(gateway))[1].revoked_at is not None


async def test_what_is_refused(gateway: Gateway) -> None:
    plain = await gateway.new_key(*(set(Scope) - {Scope.ADMIN}), key_id="plain")
    assert await get(gateway, "/api/v1/keys", plain) == 403
    assert await get(gateway, "/api/v1/keys", "bg_nobody") == 401
    body = {"name": "a\nb", "scopes": ["fly"], "expires_at": "2001-01-01T00:00:00Z"}
    wrong = (await problem(gateway, "POST", "/api/v1/keys", json=body)).detail
    for part in ("display_name: expected one line", "scopes: expected some of", "found fly", "in the future"):
        assert part in wrong
    own = (await listed(gateway))[0].key
    assert (await problem(gateway, "DELETE", f"/api/v1/keys/{own}")).status == 409
    assert (await problem(gateway, "DELETE", "/api/v1/keys/k0")).status == 404
    assert (await problem(gateway, "PUT", "/api/v1/keys/k0/budget", json={})).status == 404


async def test_the_same_over_grpc(gateway: Gateway) -> None:
    keys = key_pb2_grpc.KeyServiceStub(gateway.channel)
    request = key_pb2.CreateKeyRequest(display_name="grpc", scopes=["read"])
    answer = await keys.CreateKey(request, metadata=gateway.metadata)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await keys.ListKeys(key_pb2.ListKeysRequest(), metadata=bearer(answer.secret))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await keys.ListKeys(key_pb2.ListKeysRequest())
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    limited = key_pb2.SetKeyBudgetRequest(
        name=answer.key.name, daily_budget=key_pb2.KeyBudget(cost_picousd=5)
    )
    assert (await keys.SetKeyBudget(limited, metadata=gateway.metadata)).daily_budget.cost_picousd == 5
    revoked = await keys.RevokeKey(key_pb2.RevokeKeyRequest(name=answer.key.name), metadata=gateway.metadata)
    assert revoked.HasField("revoke_time")
    found = await keys.ListKeys(key_pb2.ListKeysRequest(), metadata=gateway.metadata)
    assert [key.display_name for key in found.keys] == ["first key", "grpc"]
