"""The routes: what they ask of the services, and what they answer."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
from typing import Any

from google.protobuf.duration_pb2 import Duration

from benchgen.eval.v1 import environment_pb2, model_pb2, result_pb2, run_pb2
from services.gateway.http import documents
from tests.integration.gateway.conftest import Gateway
from tests.integration.gateway.test_problems import problem


async def get(gateway: Gateway, path: str, shape: type[documents.Shape]) -> Any:
    async with gateway.http.get(path) as answer:
        assert answer.status == 200, await answer.text()
        text = await answer.text()
    shape.model_validate_json(text)
    return json.loads(text)


async def test_lists_are_read_page_by_page(gateway: Gateway) -> None:
    page = documents.EnvironmentPage
    first = await get(gateway, "/api/v1/environments", page)
    assert (first["items"][0]["name"], first["next_page_token"]) == ("a", "more")
    last = await get(gateway, "/api/v1/environments?page_size=7&page_token=more", page)
    assert (last["items"][0]["name"], last["next_page_token"]) == ("b", None)
    assert [seen.request.page_size for seen in gateway.services.seen] == [50, 7]


async def test_names_may_have_an_organisation(gateway: Gateway) -> None:
    for path, method, name in [
        ("a", "GetEnvironment", "a"),
        ("org/a", "GetEnvironment", "org/a"),
        ("org%2Fa", "GetEnvironment", "org/a"),
        ("a/versions/1.0.0", "GetEnvironmentVersion", "a@1.0.0"),
        ("org/a/versions/1.0.0", "GetEnvironmentVersion", "org/a@1.0.0"),
        ("org/a/versions/latest", "GetEnvironmentVersion", "org/a"),
        ("versions/versions/latest", "GetEnvironmentVersion", "versions"),
    ]:
        async with gateway.http.get(f"/api/v1/environments/{path}") as answer:
            assert answer.status == 200
        seen = gateway.services.seen[-1]
        assert (seen.method, seen.request.name) == (method, name), path
    for path, name in [("a/versions", "a"), ("org/a/versions", "org/a")]:
        async with gateway.http.get(f"/api/v1/environments/{path}") as answer:
            assert answer.status == 200
        request = gateway.services.seen[-1].request
        assert isinstance(request, environment_pb2.ListEnvironmentVersionsRequest)
        assert request.environment == name


async def test_models(gateway: Gateway) -> None:
    body = {
        "name": "gpt",
        "base_url": "https://host/v1",
        "model": "gpt-4",
        "price_usd_per_mtok": {"input": "0.15", "output": 0.6},
        "generation": {"temperature": 0, "stop": ["\n"], "extra": {"top_k": 5}},
    }
    async with gateway.http.post("/api/v1/models", json=body) as answer:
        made = documents.Model.model_validate_json(await answer.read())
    assert (made.price_usd_per_mtok.input, made.price_usd_per_mtok.output) == ("0.15", "0.6")
    assert (made.generation.temperature, made.generation.extra) == (0.0, {"top_k": 5})
    assert made.generation.top_p is None
    await get(gateway, "/api/v1/models", documents.ModelPage)
    name = "builtin/simulated%3Faccuracy=0.9"
    assert (await get(gateway, f"/api/v1/models/{name}", documents.Model))["name"].endswith("?accuracy=0.9")
    async with gateway.http.post(f"/api/v1/models/{name}:test") as answer:
        assert documents.ModelTest.model_validate_json(await answer.read()).ok
    assert gateway.services.seen[-1].request.name == "builtin/simulated?accuracy=0.9"
    async with gateway.http.post("/api/v1/models/gpt:clearCache") as answer:
        assert documents.CacheCleared.model_validate_json(await answer.read()).removed == 7
    assert gateway.services.seen[-1].request == result_pb2.ClearCacheRequest(
        base_url="https://host/v1", model_id="m-8b", api=model_pb2.Model.API_OPENAI_CHAT
    )
    async with gateway.http.delete("/api/v1/models/gpt") as answer:
        assert (answer.status, await answer.read()) == (204, b"")


async def test_runs(gateway: Gateway) -> None:
    body = {
        "environment": "a@1.0.0",
        "model": "m",
        "sample": 7,
        "trials": 3,
        "seed": 2**64 - 1,
        "priority": -5,
        "generation": {"max_tokens": 9},
        "cache": True,
    }
    body["budget"] = {"cost_usd": "1.234567890123", "tokens": 5, "seconds": 90, "errors": 0}
    async with gateway.http.post("/api/v1/runs", json=body) as answer:
        assert answer.status == 201
        documents.Run.model_validate_json(await answer.read())
    request = gateway.services.seen[-1].request
    assert request == run_pb2.CreateRunRequest(
        request_id=request.request_id,
        environment="a@1.0.0",
        model="m",
        selection=run_pb2.Selection(sample=7),
        trials=3,
        seed=2**64 - 1,
        priority=-5,
        generation=environment_pb2.Generation(max_tokens=9),
        use_cache=True,
        budget=run_pb2.Budget(cost_picousd=1_234_567_890_123, tokens=5, errors=0, time=Duration(seconds=90)),
    )
    async with gateway.http.post("/api/v1/runs:estimate", json=body) as answer:
        assert documents.Estimate.model_validate_json(await answer.read()).most_cost_usd is None
    request.request_id = ""
    assert gateway.services.seen[-1].request == run_pb2.EstimateRunRequest(run=request)
    await get(gateway, "/api/v1/runs?environment=a&model=m&state=paused", documents.RunPage)
    listed = gateway.services.seen[-1].request
    assert (listed.environment, listed.model, listed.state) == ("a", "m", run_pb2.Run.STATE_PAUSED)
    assert (await get(gateway, "/api/v1/runs/r1", documents.Run))["run"] == "r1"
    async with gateway.http.post("/api/v1/runs/r1:cancel") as answer:
        assert documents.Run.model_validate_json(await answer.read()).state == "cancelling"
    for verb, state in (("pause", "paused"), ("resume", "running")):
        async with gateway.http.post(f"/api/v1/runs/r1:{verb}") as answer:
            shown = documents.Run.model_validate_json(await answer.read())
        assert (shown.run, shown.state) == ("r1", state)
    assert shown.actions == ["pause", "cancel"]
    async with gateway.http.post("/api/v1/runs/r1:resume", json={"budget": {"cost_usd": 5}}) as answer:
        assert answer.status == 200
    resumed = run_pb2.ResumeRunRequest(name="r1", budget=run_pb2.Budget(cost_picousd=5 * 10**12))
    assert gateway.services.seen[-1].request == resumed
    async with gateway.http.delete("/api/v1/runs/r1") as answer:
        assert (answer.status, await answer.read()) == (204, b"")
    assert gateway.services.seen[-1].request == run_pb2.DeleteRunRequest(name="r1")
    async with gateway.http.delete("/api/v1/runs/running") as answer:
        assert answer.status == 409
    await get(gateway, "/api/v1/runs/r1/calls?case_id=c&trial=2", documents.CallPage)
    wanted = result_pb2.ListCallsRequest(run="r1", case_id="c", trial=2, page_size=50)
    assert gateway.services.seen[-1].request == wanted
    await get(gateway, "/api/v1/runs/r1/results?filter=failed&page_size=9", documents.ResultPage)
    asked = gateway.services.seen[-1].request
    failed = result_pb2.ListResultsRequest.FILTER_FAILED
    assert (asked.run, asked.filter, asked.page_size) == ("r1", failed, 9)


async def test_recorded_answers_can_be_run_as_they_come_back(gateway: Gateway) -> None:
    lines = b'{"case_id": "1", "response": "x"}\n' * 3
    path = "/api/v1/predictions?environment=a@1.0.0&label=mine"
    headers = {"Content-Type": "application/x-ndjson"}
    async with gateway.http.post(path, data=lines, headers=headers) as answer:
        assert answer.status == 201
        stored = documents.StoredPredictions.model_validate_json(await answer.read())
    assert stored.predictions.rows == 3
    assert gateway.services.seen[-1].request.targets_digest == "t" * 64
    async with gateway.http.post("/api/v1/runs", json=stored.model_dump()) as answer:
        assert answer.status == 201
    request = gateway.services.seen[-1].request
    assert (request.predictions.digest, request.predictions.label) == (
        hashlib.sha256(lines).hexdigest(),
        "mine",
    )


async def test_uploads_stream_through(gateway: Gateway) -> None:
    piece = b"z" * 100_000

    async def pieces() -> Any:
        for _ in range(300):
            yield piece

    headers = {"Content-Type": "application/zip"}
    async with gateway.http.post("/api/v1/environments", data=pieces(), headers=headers) as answer:
        assert answer.status == 202
        publication = documents.Publication.model_validate_json(await answer.read())
        assert answer.headers["Location"] == "/api/v1/publications/p1"
    assert publication.digest == hashlib.sha256(piece * 300).hexdigest()
    found = await get(gateway, "/api/v1/publications/p1", documents.Publication)
    assert found["problems"][0]["line"] == 3
    gateway.services.answers_uploads_early = True
    async with gateway.http.post(
        "/api/v1/environments", data=io.BytesIO(piece * 300), headers=headers
    ) as answer:
        assert (await answer.json())["already_published"] is True


async def test_an_upload_that_is_refused_early_is_told_why(gateway: Gateway) -> None:
    key = await gateway.new_key()
    headers = {"Content-Type": "application/zip", "Authorization": f"Bearer {key}"}
    found = await problem(
        gateway, "POST", "/api/v1/environments", data=io.BytesIO(b"z" * 5_000_000), headers=headers
    )
    assert found.status == 403
    headers["Authorization"] = "Bearer bg_wrong"
    found = await problem(
        gateway, "POST", "/api/v1/environments", data=io.BytesIO(b"z" * 5_000_000), headers=headers
    )
    assert found.status == 401
    declared = {"Content-Type": "application/zip", "Content-Length": str(600 << 20)}
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.api.rpartition(":")[2]))
    lines = [f"{name}: {value}" for name, value in declared.items()]
    lines += ["Host: a", f"Authorization: Bearer {gateway.key}"]
    writer.write(("POST /api/v1/environments HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
    assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 413")
    writer.close()
    assert gateway.services.arrived == 0


async def test_a_client_who_leaves_in_an_upload_leaves_nothing(gateway: Gateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.api.rpartition(":")[2]))
    writer.write(
        b"POST /api/v1/environments HTTP/1.1\r\nHost: a\r\nContent-Type: application/zip\r\n"
        b"Content-Length: 1000000\r\nIdempotency-Key: a\r\n"
        b"Authorization: Bearer " + gateway.key.encode() + b"\r\n\r\n" + b"z" * 500_000
    )
    await writer.drain()
    while gateway.services.arrived < 400_000:
        await asyncio.sleep(0.01)
    writer.close()
    await asyncio.wait_for(gateway.services.cancelled.wait(), 5)
    while await gateway.pool.fetchval("SELECT count(*) FROM idempotency"):
        await asyncio.sleep(0.02)
    assert reader is not None


async def test_the_documents_need_no_key_and_nothing_from_elsewhere(gateway: Gateway) -> None:
    gateway.http.headers.popall("Authorization")
    for path in ("/", "/docs"):
        async with gateway.http.get(path) as answer:
            page = await answer.text()
            assert answer.status == 200
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert not re.search(r"<script|<link|src=|@import|url\(", page)
        assert "http" not in page.replace(gateway.api, "").replace("HTTP", "")
    async with gateway.http.get("/openapi.json") as answer:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        document = json.loads(await answer.text())
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert len(operations) == 34
    for name, operation in operations.items():
        assert operation["security"] == [{"HTTPBearer": []}], name
        assert operation["summary"], name
        assert operation["description"], name
        assert "422" not in operation["responses"]
        assert "default" in operation["responses"]
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (name, parameter)
    known = document["components"]["schemas"]
    for ref in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)):
        assert ref in known, ref
    assert {"Run", "RunBody", "RunPage", "Report", "Problem"} <= set(known)
