"""The model client against real servers that misbehave."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import tracemalloc
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.common.models.client import ModelClient, watched_socket
from services.common.models.types import ChatRequest, Endpoint, Fault, FaultKind, Reply, Timeouts, Usage
from tests.integration.model_servers import (
    ANSWER,
    KEY,
    QUESTION,
    http_server,
    raw_server,
    says,
    writes,
)


async def ask(url: str, timeouts: Timeouts | None = None, *, max_body_bytes: int = 1 << 20) -> Reply | Fault:
    endpoint = Endpoint(url, "m", api_key=KEY, timeouts=timeouts or Timeouts())
    async with ModelClient(max_body_bytes=max_body_bytes) as client:
        return await client.chat(endpoint, QUESTION)


async def fault_of(url: str, timeouts: Timeouts | None = None, *, max_body_bytes: int = 1 << 20) -> Fault:
    found = await ask(url, timeouts, max_body_bytes=max_body_bytes)
    assert isinstance(found, Fault), found
    return found


async def test_a_good_reply_and_what_was_sent() -> None:
    seen: list[tuple[bytes, dict[str, str]]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((await request.read(), dict(request.headers)))
        return web.Response(body=ANSWER, content_type="application/json", headers={"X-Request-Id": "r-7"})

    async with http_server(answer) as url, ModelClient() as client:
        endpoint = Endpoint(url + "/", "m", api_key=KEY)
        request = ChatRequest(QUESTION.messages, QUESTION.params, {"x-benchgen-case": "5"})
        reply = await client.chat(endpoint, request)
    assert isinstance(reply, Reply)
    assert (reply.text, reply.model, reply.request_id, reply.usage) == ("42", "m-1", "r-7", Usage(9, 1))
    assert 0 < reply.first_byte_ms <= reply.latency_ms < 5_000
    body, headers = seen[0]
    assert orjson.loads(body) == {
        "model": "m",
        "messages": QUESTION.messages,
        "temperature": 0,
        "max_tokens": 16,
    }
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["x-benchgen-case"] == "5"


async def test_extra_headers_stay_with_their_request() -> None:
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("x-benchgen-case"))
        return web.Response(body=ANSWER, content_type="application/json")

    async with http_server(answer) as url, ModelClient() as client:
        endpoint = Endpoint(url, "m")
        await client.chat(endpoint, ChatRequest(QUESTION.messages, {}, {"x-benchgen-case": "5"}))
        await client.chat(endpoint, QUESTION)
    assert seen == ["5", None]


async def test_connections_are_kept_and_cookies_are_not() -> None:
    peers: set[object] = set()
    cookies: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        cookies.append(request.headers.get("Cookie"))
        return web.Response(body=ANSWER, content_type="application/json", headers={"Set-Cookie": "a=b"})

    async with http_server(answer) as url, ModelClient() as client:
        endpoint = Endpoint(url, "m")
        for _ in range(5):
            assert isinstance(await client.chat(endpoint, QUESTION), Reply)
    assert len(peers) == 1
    assert cookies == [None] * 5


async def test_a_compressed_reply() -> None:
    async with http_server(says(gzip.compress(ANSWER), headers={"Content-Encoding": "gzip"})) as url:
        assert isinstance(await ask(url), Reply)


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_reply_that_is_too_large(compressed: bool) -> None:
    body = b" " * (64 << 20)
    answer = says(gzip.compress(body), headers={"Content-Encoding": "gzip"}) if compressed else says(body)
    async with http_server(answer) as url:
        fault = await fault_of(url, max_body_bytes=100_000)
    assert (fault.kind, fault.retryable, fault.no_cost) == (FaultKind.TOO_LARGE, False, False)
    assert "100000 bytes" in fault.message


@pytest.mark.parametrize("status", [200, 500])
async def test_a_reply_that_unpacks_to_a_gigabyte_takes_no_memory(status: int) -> None:
    """Whatever was asked for, a server may pack its reply: only so much of it is unpacked at a time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    blank = bytes(1 << 20)
    bomb = b"".join([packer.compress(blank) for _ in range(1 << 10)] + [packer.flush()])
    async with http_server(says(bomb, status, headers={"Content-Encoding": "gzip"})) as url:
        tracemalloc.start()
        try:
            fault = await fault_of(url, max_body_bytes=1 << 20)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert fault.kind is (FaultKind.TOO_LARGE if status == 200 else FaultKind.SERVER_ERROR)
    assert peak < 16 << 20


async def test_a_redirect_is_not_followed() -> None:
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Authorization", ""))
        return web.Response(body=ANSWER, content_type="application/json")

    async with http_server(elsewhere) as other:
        target = other + "/chat/completions"
        async with http_server(says(b"", 307, headers={"Location": target})) as url:
            fault = await fault_of(url)
    assert (fault.kind, fault.status, fault.permanent_for_run) == (FaultKind.REDIRECT, 307, True)
    assert asked == []


@pytest.mark.parametrize(
    ("body", "content_type", "words", "retryable"),
    [
        (b'{"choices": [', "application/json", "is not JSON", True),
        (b"", "application/json", "is not JSON", True),
        (b"<html>hello</html>", "text/html", "expected application/json, found text/html", False),
        (b"{}", "application/json", "choices", True),
        (b"[]", "application/json", "expected a JSON object", True),
    ],
)
async def test_bodies_that_are_no_completion(
    body: bytes, content_type: str, words: str, retryable: bool
) -> None:
    async with http_server(says(body, content_type=content_type)) as url:
        fault = await fault_of(url)
    assert (fault.kind, fault.retryable, fault.status) == (FaultKind.BAD_REPLY, retryable, 200)
    assert not fault.no_cost
    assert words in fault.message


async def test_the_right_json_under_another_content_type_is_taken() -> None:
    async with http_server(says(ANSWER, content_type="text/plain")) as url:
        assert isinstance(await ask(url), Reply)


async def test_an_error_is_in_the_providers_words_without_the_key() -> None:
    body = orjson.dumps({"error": {"message": f"Incorrect API key: {KEY}", "code": "invalid_api_key"}})
    async with http_server(says(body, 401)) as url:
        fault = await fault_of(url)
    assert (fault.kind, fault.permanent_for_run) == (FaultKind.AUTHENTICATION, True)
    assert fault.message == "Incorrect API key: [secret]"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", FaultKind.DISCONNECTED),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", FaultKind.DISCONNECTED),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", FaultKind.DISCONNECTED),
        (b"HTTP/1.1 200 OK\r\nContent-Le", FaultKind.DISCONNECTED),
        (b"SSH-2.0-OpenSSH_9.2\r\n", FaultKind.BAD_REPLY),
    ],
)
async def test_connections_that_break(data: bytes, kind: FaultKind) -> None:
    async with raw_server(writes(data)) as url:
        fault = await fault_of(url)
    # It was sent: what became of it there, and what it cost, nobody knows.
    assert (fault.kind, fault.retryable, fault.no_cost) == (kind, True, False)
    assert fault.message


async def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        fault = await fault_of(f"http://127.0.0.1:{held.getsockname()[1]}/v1")
    assert (fault.kind, fault.retryable, fault.permanent_for_run) == (FaultKind.CONNECT, True, False)
    assert fault.no_cost


async def test_a_name_that_does_not_exist() -> None:
    fault = await fault_of("http://nowhere.invalid/v1")
    assert (fault.kind, fault.retryable, fault.no_cost) == (FaultKind.DNS, True, True)
    assert "nowhere.invalid" in fault.message


async def test_no_connection_in_time() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # A full backlog: the kernel drops further attempts without a word.
        held = [socket.socket() for _ in range(4)]
        for one in held:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        try:
            fault = await fault_of(f"http://127.0.0.1:{full.getsockname()[1]}/v1", Timeouts(connect_s=0.3))
        finally:
            for one in held:
                one.close()
    assert (fault.kind, fault.kind.timeout, fault.no_cost) == (FaultKind.CONNECT_TIMEOUT, True, True)
    assert 250 < fault.latency_ms < 3_000


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "timeouts", "kind"),
    [
        (b"", Timeouts(first_byte_s=0.2), FaultKind.FIRST_BYTE_TIMEOUT),
        (b"HTTP/1.1 200 OK\r\n", Timeouts(first_byte_s=0.2), FaultKind.FIRST_BYTE_TIMEOUT),
        (b"", Timeouts(total_s=0.2), FaultKind.TOTAL_TIMEOUT),
        (HEAD, Timeouts(first_byte_s=0.1, total_s=0.3), FaultKind.TOTAL_TIMEOUT),
    ],
)
async def test_answers_that_do_not_come_in_time(data: bytes, timeouts: Timeouts, kind: FaultKind) -> None:
    async with raw_server(writes(data, then_wait_s=1.5)) as url:
        fault = await fault_of(url, timeouts)
    assert (fault.kind, fault.retryable, fault.kind.timeout, fault.no_cost) == (kind, True, True, False)
    assert fault.latency_ms < 1_000


async def test_a_trickle_does_not_outlast_the_total() -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for _turn in range(40):
            writer.write(b" ")
            await asyncio.sleep(0.05)

    async with raw_server(speak) as url:
        fault = await fault_of(url, Timeouts(total_s=0.3))
    assert fault.kind is FaultKind.TOTAL_TIMEOUT


async def test_the_body_has_the_total_time_and_not_that_of_the_first_byte() -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(ANSWER))
        await asyncio.sleep(0.4)
        writer.write(ANSWER)
        await writer.drain()

    async with raw_server(speak) as url:
        assert isinstance(await ask(url, Timeouts(first_byte_s=0.2, total_s=5)), Reply)


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's TLS with a certificate for 127.0.0.1 that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    async with http_server(says(ANSWER), certificate(tmp_path)) as url:
        fault = await fault_of(url)
    assert (fault.kind, fault.retryable, fault.permanent_for_run) == (FaultKind.TLS, False, True)
    assert fault.no_cost


async def test_tls_asked_of_a_server_without(tmp_path: Path) -> None:
    async with http_server(says(ANSWER)) as url:
        fault = await fault_of(url.replace("http:", "https:"))
    assert fault.kind is FaultKind.TLS


async def test_what_json_cannot_hold_is_a_fault_of_the_request() -> None:
    async with ModelClient() as client:
        request = ChatRequest([{"role": "user", "content": "half \ud83d"}])
        fault = await client.chat(Endpoint("http://127.0.0.1:1/v1", "m"), request)
    assert isinstance(fault, Fault)
    assert fault.kind is FaultKind.BAD_REQUEST


def test_a_peer_that_vanished_is_noticed() -> None:
    """Nothing on one machine vanishes without a word: that the kernel is told to watch has to do."""
    with watched_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))) as made:
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 30
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000


async def test_a_stream_that_nobody_asked_for() -> None:
    chunk = orjson.dumps({"model": "m-1", "choices": [{"delta": {"content": "42"}, "finish_reason": "stop"}]})
    async with http_server(says(b"data: " + chunk + b"\n\n", content_type="text/event-stream")) as url:
        reply = await ask(url)
    assert isinstance(reply, Reply)
    assert reply.text == "42"


async def test_a_reply_with_which_a_rate_limit_is_used_up() -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "3s"}
    async with http_server(says(ANSWER, headers=headers)) as url:
        reply = await ask(url)
    assert isinstance(reply, Reply)
    assert reply.rest_s == 3


async def test_a_closed_client_says_so() -> None:
    client = ModelClient()
    with pytest.raises(RuntimeError):
        await client.chat(Endpoint("http://127.0.0.1:1/v1", "m"), QUESTION)
