"""`Idempotency-Key`: once is enough, whatever happens in between."""

from __future__ import annotations

import asyncio
import io
from typing import Any

from services.common.auth import Scope
from tests.integration.gateway.conftest import Gateway
from tests.integration.gateway.test_problems import RUN, problem


async def create(gateway: Gateway, key: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
    async with gateway.http.post(
        "/api/v1/runs", json=body or RUN, headers={"Idempotency-Key": key} | headers
    ) as answer:
        return answer.status, answer.headers, await answer.json(content_type=None)


async def test_the_same_request_again_gets_the_same_answer(gateway: Gateway) -> None:
    status, headers, run = await create(gateway, "a")
    assert (status, headers["Location"]) == (201, "/api/v1/runs/r1")
    assert "Idempotent-Replayed" not in headers
    again = await create(gateway, "a")
    assert (again[0], again[2]) == (201, run)
    assert (again[1]["Location"], again[1]["Idempotent-Replayed"]) == ("/api/v1/runs/r1", "true")
    assert again[1]["Content-Type"] == "application/json"
    assert len(gateway.services.seen) == 1
    # Without a key, and with another, a request is another one.
    assert (await create(gateway, "b"))[2]["run"] == "r2"
    async with gateway.http.post("/api/v1/runs", json=RUN) as answer:
        assert (await answer.json())["run"] == "r3"


async def test_a_key_belongs_to_one_request(gateway: Gateway) -> None:
    await create(gateway, "a")
    status, _, document = await create(gateway, "a", RUN | {"seed": 7})
    assert (status, document["reason"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    for path in ("/api/v1/runs/r1:cancel", "/api/v1/runs?other=1"):
        found = await problem(gateway, "POST", path, json=RUN, headers={"Idempotency-Key": "a"})
        assert (found.status, found.reason) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert len(gateway.services.seen) == 1
    async with gateway.http.post("/api/v1/runs/a%00b:cancel", headers={"Idempotency-Key": "b"}) as answer:
        assert answer.status == 200
    found = await problem(gateway, "POST", "/api/v1/runs/a%01b:cancel", headers={"Idempotency-Key": "b"})
    assert found.detail == "this Idempotency-Key was used for POST /api/v1/runs/a%00b:cancel"


async def test_callers_do_not_share_keys(gateway: Gateway) -> None:
    other = await gateway.new_key(Scope.RUN)
    mine = await create(gateway, "a")
    others = await create(gateway, "a", Authorization=f"Bearer {other}")
    assert (mine[2]["run"], others[2]["run"]) == ("r1", "r2")
    ids = [seen.request.request_id for seen in gateway.services.seen]
    assert len(set(ids)) == 2


async def test_of_two_at_once_one_executes(gateway: Gateway) -> None:
    gateway.services.gate.clear()
    first = asyncio.create_task(create(gateway, "a"))
    while not gateway.services.seen:
        await asyncio.sleep(0.01)
    status, headers, document = await create(gateway, "a")
    assert (status, document["reason"]) == (409, "IDEMPOTENT_REQUEST_IN_PROGRESS")
    assert headers["Retry-After"] == "1"
    gateway.services.gate.set()
    assert (await first)[0] == 201
    assert (await create(gateway, "a"))[1]["Idempotent-Replayed"] == "true"
    assert len(gateway.services.seen) == 1


async def test_many_at_once_make_one_run(gateway: Gateway) -> None:
    answers = await asyncio.gather(*(create(gateway, "a") for _ in range(20)))
    assert {status for status, _, _ in answers} <= {201, 409}
    assert len(gateway.services.made) == 1


async def test_a_request_that_was_refused_may_be_made_again(gateway: Gateway) -> None:
    for _ in range(2):
        status, _, _ = await create(gateway, "a", {"environment": "missing", "model": "m"})
        assert status == 404
    assert (await create(gateway, "a"))[0] == 201


async def test_after_a_crash_the_same_is_executed_again(gateway: Gateway) -> None:
    """What a gateway leaves that died between the service's answer and its own: a claim, and no answer."""
    await create(gateway, "a")
    await gateway.pool.execute(
        "UPDATE idempotency SET status = NULL, request_hash = NULL, body = NULL,"
        " claimed_until = now() + interval '1 second'"
    )
    assert (await create(gateway, "a"))[0] == 409
    await asyncio.sleep(1.1)
    status, headers, run = await create(gateway, "a")
    assert (status, run["run"]) == (201, "r1")
    assert "Idempotent-Replayed" not in headers
    first, second = gateway.services.seen
    assert first.request.request_id == second.request.request_id
    assert (await create(gateway, "a"))[1]["Idempotent-Replayed"] == "true"


async def test_uploads_are_repeated_without_a_second_upload(gateway: Gateway) -> None:
    async def upload(body: bytes) -> tuple[int, Any]:
        headers = {"Idempotency-Key": "a", "Content-Type": "application/zip"}
        async with gateway.http.post(
            "/api/v1/environments", data=io.BytesIO(body), headers=headers
        ) as answer:
            return answer.status, await answer.json(content_type=None)

    first = await upload(b"x" * 3_000_000)
    assert first[0] == 202
    assert await upload(b"x" * 3_000_000) == first
    assert (await upload(b"x" * 2_999_999 + b"y"))[0] == 422
    assert gateway.services.arrived == 3_000_000


async def test_a_key_must_be_one(gateway: Gateway) -> None:
    for key in ("", "x" * 201, "naïve"):
        found = await problem(gateway, "POST", "/api/v1/runs", json=RUN, headers={"Idempotency-Key": key})
        assert (found.status, found.reason) == (400, "INVALID_INPUT")
