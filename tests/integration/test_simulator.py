"""The simulator as a process of its own, with solutions in a real object store."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from services.common.auth import hash_token
from services.common.config import ObjectSettings
from services.common.models.client import ModelClient
from services.common.models.types import ChatRequest, Endpoint, Fault, FaultKind, Reply
from services.common.objects import Bucket, ObjectStore
from services.simulator.app import Simulator
from services.simulator.http import MAX_BODY_BYTES, MAX_HEAD_BYTES, HttpServer
from services.simulator.solutions import Solution, Solutions
from tests import conftest

ROOT = Path(__file__).resolve().parents[2]
CASES = 40
PART = 16
TOKEN = "the-runners-token"
MESSAGES = [{"role": "user", "content": "How many eggs?"}]


def settings_of(store: conftest.ObjectStore, identity: str) -> ObjectSettings:
    return ObjectSettings(
        s3_endpoint=store.endpoint,
        s3_access_key=store.access_key(identity),
        s3_secret_key=SecretStr(store.secret_key(identity)),
        bucket_prefix=store.prefix,
    )


def solution(position: int) -> str:
    return f"Some reasoning.\n#### {position + 100}"


async def upload(store: conftest.ObjectStore, *, kind: str = "solutions", damaged: bool = False) -> str:
    """Store the solutions of 40 cases in parts of 16; returns the digest of their index."""
    async with ObjectStore(settings_of(store, "hub")) as objects:
        parts = []
        for first in range(0, CASES, PART):
            count = min(PART, CASES - first)
            rows = [
                {"position": n, "id": f"q{n}", "solution": solution(n)} for n in range(first, first + count)
            ]
            data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
            digest = hashlib.sha256(data).hexdigest()
            stored = data.replace(b"reasoning", b"meddling!") if damaged else data
            await objects.put(Bucket.SOLUTIONS, f"parts/{digest}.jsonl", stored)
            parts.append({"bytes": len(data), "count": count, "first": first, "sha256": digest})
        index = orjson.dumps(
            {"cases": CASES, "kind": kind, "parts": parts, "schema": 1}, option=orjson.OPT_SORT_KEYS
        )
        digest = hashlib.sha256(index).hexdigest()
        await objects.put(Bucket.SOLUTIONS, f"index/{digest}.json", index)
    return digest


@contextmanager
def simulator(folder: Path, settings: ObjectSettings) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run the simulator; yields its address and the process."""
    environ = os.environ | {
        "BENCHGEN_HTTP_LISTEN": "127.0.0.1:0",
        "BENCHGEN_S3_ENDPOINT": settings.s3_endpoint,
        "BENCHGEN_S3_ACCESS_KEY": settings.s3_access_key,
        "BENCHGEN_S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
        "BENCHGEN_BUCKET_PREFIX": settings.bucket_prefix,
        "BENCHGEN_LOG_FORMAT": "json",
        "BENCHGEN_PEER_TOKENS": f"runner={hash_token(TOKEN)}",
    }
    log = folder / "simulator.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.simulator"], cwd=ROOT, env=environ, stderr=out
        )
    try:
        yield _address(process, log), process
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        lines = log.read_bytes().splitlines()
        if lines:
            line = orjson.loads(lines[0])
            assert line["event"] == "simulator.listening"
            return str(line["url"])
        time.sleep(0.02)
    pytest.fail(f"the simulator did not start: {log.read_text()}")


async def ask(
    client: ModelClient, endpoint: Endpoint, digest: str, position: int, trial: int = 0
) -> Reply | Fault:
    headers = {
        "x-benchgen-solutions": digest,
        "x-benchgen-case": str(position),
        "x-benchgen-trial": str(trial),
    }
    return await client.chat(endpoint, ChatRequest(MESSAGES, {"max_tokens": 9}, headers))


async def right_of(url: str, model: str, digest: str, trial: int = 0) -> list[bool]:
    """Ask every case at once; returns which were answered with the solution."""
    endpoint = Endpoint(url, model, TOKEN)
    async with ModelClient() as client:
        replies = await asyncio.gather(*(ask(client, endpoint, digest, n, trial) for n in range(CASES)))
    assert all(isinstance(reply, Reply) and reply.text for reply in replies), replies
    return [isinstance(reply, Reply) and reply.text == solution(n) for n, reply in enumerate(replies)]


async def test_solutions_are_for_services_only(object_store: conftest.ObjectStore, tmp_path: Path) -> None:
    digest = await upload(object_store)
    with simulator(tmp_path, settings_of(object_store, "simulator")) as (url, _):
        async with ModelClient() as client:
            for key in (None, "bg_somebody"):
                fault = await ask(client, Endpoint(url, "simulated?accuracy=1", key), digest, 0)
                assert isinstance(fault, Fault)
                assert fault.status == 401
                canned = await client.chat(Endpoint(url, "simulated", key), ChatRequest(MESSAGES))
                assert isinstance(canned, Reply)


async def test_it_is_right_as_often_as_asked(object_store: conftest.ObjectStore, tmp_path: Path) -> None:
    digest = await upload(object_store)
    with simulator(tmp_path, settings_of(object_store, "simulator")) as (url, _):
        assert await right_of(url, "simulated?accuracy=1", digest) == [True] * CASES
        assert await right_of(url, "simulated?accuracy=0", digest) == [False] * CASES
        half = await right_of(url, "simulated?accuracy=0.5", digest)
        assert 8 <= sum(half) <= 32
        assert await right_of(url, "builtin/simulated?accuracy=0.5", digest) == half
        assert await right_of(url, "simulated?accuracy=0.5", digest, trial=1) != half
        assert await right_of(url, "simulated?accuracy=0.5&seed=9", digest) != half


async def test_what_cannot_be_found_is_said(object_store: conftest.ObjectStore, tmp_path: Path) -> None:
    digest, other = await upload(object_store), await upload(object_store, kind="targets")
    with simulator(tmp_path, settings_of(object_store, "simulator")) as (url, _):
        async with ModelClient() as client:
            endpoint = Endpoint(url, "simulated?accuracy=1", TOKEN)
            for given, position, status, words in (
                (digest, CASES, 404, "no case at position 40"),
                ("0" * 64, 0, 404, "no such object"),
                (other, 0, 400, "expected an index of solutions"),
                ("nonsense", 0, 400, "64 hexadecimal digits"),
            ):
                fault = await ask(client, endpoint, given, position)
                assert isinstance(fault, Fault)
                assert fault.status == status
                assert words in fault.message


async def test_damaged_solutions_are_not_answered(object_store: conftest.ObjectStore, tmp_path: Path) -> None:
    digest = await upload(object_store, damaged=True)
    with simulator(tmp_path, settings_of(object_store, "simulator")) as (url, _):
        async with ModelClient() as client:
            fault = await ask(client, Endpoint(url, "simulated", TOKEN), digest, 0)
    assert isinstance(fault, Fault)
    assert (fault.status, fault.retryable) == (503, True)
    assert "does not have this digest" in fault.message


async def test_the_cache_is_bounded_and_fetches_once(object_store: conftest.ObjectStore) -> None:
    digest = await upload(object_store)
    async with ObjectStore(settings_of(object_store, "simulator")) as objects:
        solutions = Solutions(objects, cache_bytes=1)
        assert solutions.peek(digest, 0) is None
        found = await asyncio.gather(*(solutions.get(digest, 3) for _ in range(20)))
        assert found == [Solution("q3", solution(3))] * 20
        assert solutions.peek(digest, 4) == Solution("q4", solution(4))
        await solutions.get(digest, CASES - 1)
        assert solutions.peek(digest, CASES - 1) is not None
        assert solutions.peek(digest, 4) is None


# What follows needs no solutions: the server runs in the test's own loop, without a store behind it.

NO_STORE = ObjectSettings(
    s3_endpoint="127.0.0.1:1", s3_access_key="none", s3_secret_key=SecretStr("none-at-all")
)


@asynccontextmanager
async def served(*, receive_s: float = 30.0) -> AsyncIterator[tuple[HttpServer, int]]:
    async with ObjectStore(NO_STORE) as objects:
        app = Simulator(Solutions(objects), {hash_token(TOKEN): "runner"})
        app.ready = True
        server = HttpServer(app.handle, app.refuse, receive_s=receive_s)
        port = await server.start("127.0.0.1", 0)
        try:
            yield server, port
        finally:
            await server.stop(0.1)


async def send(port: int, data: bytes) -> bytes:
    """Send bytes and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


def post(body: bytes, *, close: bool = True) -> bytes:
    connection = b"Connection: close\r\n" if close else b""
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (
        connection,
        len(body),
        body,
    )


def asked(model: str = "simulated", **more: Any) -> bytes:
    return orjson.dumps({"model": model, "messages": MESSAGES} | more)


async def test_a_canned_reply_with_usage() -> None:
    async with served() as (_, port), ModelClient() as client:
        url = f"http://127.0.0.1:{port}/v1"
        reply = await client.chat(Endpoint(url, "simulated?latency_ms=80", TOKEN), ChatRequest(MESSAGES))
        counted = await client.chat(
            Endpoint(url, "simulated?in_tokens=7&out_tokens=3", TOKEN), ChatRequest(MESSAGES)
        )
    assert isinstance(reply, Reply)
    assert (reply.text, reply.usage.input, reply.usage.output) == ("simulated answer", 4, 5)
    assert reply.latency_ms >= 75
    assert isinstance(counted, Reply)
    assert (counted.usage.input, counted.usage.output) == (7, 3)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("simulated?error_rate=1", FaultKind.SERVER_ERROR),
        ("simulated?error_429=1&retry_after_s=2.5", FaultKind.RATE_LIMITED),
        ("simulated?drop_rate=1", FaultKind.DISCONNECTED),
        ("gpt-4", FaultKind.NOT_FOUND),
        ("simulated?accuracy=2", FaultKind.BAD_REQUEST),
    ],
)
async def test_faults_on_purpose(model: str, kind: FaultKind) -> None:
    async with served() as (_, port), ModelClient() as client:
        fault = await client.chat(Endpoint(f"http://127.0.0.1:{port}/v1", model), ChatRequest(MESSAGES))
    assert isinstance(fault, Fault)
    assert fault.kind is kind
    assert fault.retry_after_s == (2.5 if kind is FaultKind.RATE_LIMITED else None)


async def test_without_a_store_the_answer_is_503() -> None:
    async with served() as (_, port), ModelClient() as client:
        fault = await ask(client, Endpoint(f"http://127.0.0.1:{port}/v1", "simulated", TOKEN), "0" * 64, 0)
    assert isinstance(fault, Fault)
    assert fault.kind is FaultKind.OVERLOADED


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", b"not JSON"),
        (b"[]", b"expected a JSON object"),
        (b'{"messages": []}', b"model: expected a text"),
        (b'{"model": "simulated"}', b"messages: expected a list"),
        (b'{"model": "simulated", "messages": [1]}', b"messages: expected objects"),
        (asked(stream=True), b"does not stream"),
        (asked("simulated?x=1"), b"unknown parameter 'x'; allowed: accuracy"),
    ],
)
async def test_bad_requests_are_named(body: bytes, words: bytes) -> None:
    async with served() as (_, port):
        answer = await send(port, post(body))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert words in answer
    assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"PUT /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(200)) + b"\r\n", 431),
        (b"GET /" + b"a" * (MAX_HEAD_BYTES + 1), 431),
        (b"GET / HTTP/1.1\r\nX-Long: " + b"a" * (MAX_HEAD_BYTES + 1), 431),
        (post(b"a" * (MAX_BODY_BYTES + 1)), 413),
    ],
)
async def test_bad_http_is_refused_and_the_connection_closed(data: bytes, status: int) -> None:
    async with served() as (_, port):
        answer = await send(port, data)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
        assert (await send(port, post(asked()))).startswith(b"HTTP/1.1 200 OK")


async def test_health_models_and_metrics() -> None:
    async with served() as (_, port):
        await send(port, post(asked()))
        answers = {
            path: await send(port, b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path.encode())
            for path in ("/healthz", "/readyz", "/v1/models", "/metrics")
        }
    assert all(answer.startswith(b"HTTP/1.1 200 OK") for answer in answers.values())
    assert b'"id":"simulated"' in answers["/v1/models"]
    assert b'benchgen_simulator_answers_total{kind="canned"} 1.0' in answers["/metrics"]


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    models = ["simulated?latency_ms=60", *(f"simulated?seed={number}" for number in range(300))]
    data = b"".join(post(asked(model), close=False) for model in models)
    async with served() as (_, port):
        answer = await send(port, data + post(asked("simulated?seed=999")))
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert [orjson.loads(body)["model"] for body in bodies] == [*models, "simulated?seed=999"]


async def test_a_body_in_small_pieces_and_expect_continue() -> None:
    body = asked()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    async with served() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        for byte in body:
            writer.write(b"1\r\n%c\r\n" % byte)
        writer.write(b"0\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        writer.close()


async def test_slow_senders_are_cut_off_and_others_are_not() -> None:
    async with served(receive_s=0.2) as (_, port):
        slow, fast = (
            send(port, b"POST /v1/chat/completions HTTP/1.1\r\nContent-Le"),
            send(port, post(asked("simulated?latency_ms=600"))),
        )
        results = await asyncio.gather(slow, fast, return_exceptions=True)
    assert isinstance(results[0], ConnectionResetError) or results[0] == b""
    assert isinstance(results[1], bytes)
    assert results[1].startswith(b"HTTP/1.1 200 OK")


async def flood(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(post(asked(), close=False) * 100)
        await asyncio.wait_for(writer.drain(), 10)


async def test_replies_that_nobody_reads_do_not_pile_up() -> None:
    async with served(receive_s=0.4) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        try:
            with pytest.raises(ConnectionError):
                await flood(writer)
        finally:
            writer.close()
        assert not server.connections
        assert reader is not None


async def test_sigterm_lets_requests_end(object_store: conftest.ObjectStore, tmp_path: Path) -> None:
    with simulator(tmp_path, settings_of(object_store, "simulator")) as (url, process):
        async with ModelClient() as client:
            call = asyncio.create_task(
                client.chat(Endpoint(url, "simulated?latency_ms=700", TOKEN), ChatRequest(MESSAGES))
            )
            await asyncio.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            assert isinstance(await call, Reply)
            assert await asyncio.to_thread(process.wait, 5) == 0
            refused = await client.chat(Endpoint(url, "simulated", TOKEN), ChatRequest(MESSAGES))
    assert isinstance(refused, Fault)
    assert refused.kind is FaultKind.CONNECT


def test_bad_settings_are_named() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "services.simulator"],
        cwd=ROOT,
        env=os.environ | {"BENCHGEN_HTTP_LISTEN": "nowhere"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert "BENCHGEN_S3_ENDPOINT" in ended.stderr
    assert "BENCHGEN_HTTP_LISTEN" in ended.stderr
