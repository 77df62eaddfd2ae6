"""Real HTTP servers that answer, or misbehave, as a test says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
from aiohttp import web

from services.common.models.types import ChatRequest

KEY = "sk-integration-0123456789"
QUESTION = ChatRequest(
    [{"role": "user", "content": "6 * 7?"}], {"temperature": 0, "max_tokens": 16, "seed": None}
)
ANSWER = orjson.dumps(
    {
        "id": "c1",
        "model": "m-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "42"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1},
    }
)

Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]
Headers = dict[str, str] | None
Speaking = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def http_server(answer: Answering, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve chat completions by ``answer``; yields the base URL."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_server(speak: Speaking) -> AsyncIterator[str]:
    """Serve bytes by ``speak`` after each request was read; yields the base URL."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        await speak(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for writer in writers:
            writer.close()


def says(
    body: bytes, status: int = 200, content_type: str = "application/json", headers: Headers = None
) -> Answering:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, status=status, content_type=content_type, headers=headers)

    return answer


def writes(data: bytes, then_wait_s: float = 0) -> Speaking:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(then_wait_s)

    return speak
