"""An endpoint that misbehaves in a way of its own for each case, on a port of its own."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from email.utils import formatdate

from aiohttp import web

from services.local.ports import LOOPBACK
from tests.resilience.network import Background

_QUESTION = re.compile(r"Case c-(\d+): what is (\d+) \+")

#: What to do about a case; says nothing where it answers as it should.
Oddity = Callable[[web.Request, int], Awaitable[web.StreamResponse | None]]


class OddModel:
    """Always right, once it answers. ``oddity`` is asked first, with the request and which try of the case it is."""

    def __init__(self, background: Background) -> None:
        self.oddity: Callable[[int], Oddity] | None = None
        """Which oddity a case gets."""
        self.tries: Counter[int] = Counter()
        self._background = background
        self._runner = background.call(self._start())
        self.url = f"http://{LOOPBACK}:{self._runner.addresses[0][1]}/v1"

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, LOOPBACK, 0).start()
        return runner

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        found = _QUESTION.search(json.loads(await request.read())["messages"][-1]["content"])
        assert found is not None
        number = int(found[1])
        self.tries[number] += 1
        if self.oddity is not None:
            odd = await self.oddity(number)(request, self.tries[number])
            if odd is not None:
                return odd
        return web.json_response(completion(str(2 * number)))

    def close(self) -> None:
        """Stop."""
        self._background.call(self._runner.cleanup())


def completion(text: str) -> dict[str, object]:
    """Ten tokens in, five out."""
    return {
        "model": "odd",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }


def says(status: int, body: object, **headers: str) -> Oddity:
    """Always the same, as JSON."""

    async def odd(_: web.Request, tries: int) -> web.StreamResponse:
        return web.json_response(
            body, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    return odd


def error(status: int, message: str, **headers: str) -> Oddity:
    """Always the same error."""
    return says(status, {"error": {"message": message}}, **headers)


def once(odd: Oddity) -> Oddity:
    """Odd at the first try, and then as it should be."""

    async def first(request: web.Request, tries: int) -> web.StreamResponse | None:
        return await odd(request, tries) if tries == 1 else None

    return first


async def fine(_: web.Request, tries: int) -> None:
    """Nothing odd."""


async def says_when(_: web.Request, tries: int) -> web.StreamResponse:
    """Come back at a time."""
    when = formatdate(time.time() + 2, usegmt=True)
    return web.json_response({}, status=429, headers={"Retry-After": when})


async def drops(request: web.Request, tries: int) -> web.StreamResponse:
    """Closes without a word."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def breaks_off(request: web.Request, tries: int) -> web.StreamResponse:
    """Half of a reply."""
    response = web.StreamResponse(headers={"Content-Length": "5000", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"choices": [{"message": {"content": "1')
    return await drops(request, tries)


async def drips(request: web.Request, tries: int) -> web.StreamResponse:
    """A good reply, a few bytes at a time."""
    body = json.dumps(completion("drip")).encode()
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    for start in range(0, len(body), 20):
        await response.write(body[start : start + 20])
        await asyncio.sleep(0.02)
    return response


async def huge(request: web.Request, tries: int) -> web.StreamResponse:
    """A hundred megabytes of text."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"choices": [{"message": {"content": "')
    for _ in range(100):
        await response.write(b"x" * (1 << 20))
    return response


_BOMB = gzip.compress(bytes(200 << 20), 9)


async def bomb(_: web.Request, tries: int) -> web.StreamResponse:
    """Two hundred megabytes, well packed."""
    return web.Response(body=_BOMB, content_type="application/json", headers={"Content-Encoding": "gzip"})


def text(body: bytes, content_type: str = "application/json") -> Oddity:
    """Always these bytes with status 200."""

    async def odd(_: web.Request, tries: int) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type)

    return odd


def stream(text: str, *, whole: bool) -> Oddity:
    """An answer as a stream of events that nobody asked for."""
    chunks = [{"model": "odd", "choices": [{"index": 0, "delta": {"content": part}}]} for part in text]
    ends = [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}},
    ]
    body = b"".join(
        b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks + (ends if whole else [])
    )

    async def odd(_: web.Request, tries: int) -> web.StreamResponse:
        return web.Response(body=body, content_type="text/event-stream")

    return odd
