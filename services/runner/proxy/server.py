"""Serves the model proxy on a listening socket that comes out of a sandbox. Whoever connects is not trusted."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from socket import socket
from typing import Any

import orjson
import structlog
from aiohttp import web

from services.runner.proxy import wire
from services.runner.proxy.calls import TrialCalls
from services.runner.proxy.wire import MAX_BYTES, Asked, Refused

log = structlog.get_logger()

#: Connections that are held at once; programs that open more are hung up on.
_MOST_CONNECTIONS = 64
#: Bodies that are read and answered at once.
_MOST_REQUESTS = 32
_GOODBYE_S = 0.2

_ENDPOINTS = {"/v1/chat/completions": wire.CHAT, "/v1/completions": wire.COMPLETIONS}
_SERVED = "POST /v1/chat/completions, POST /v1/completions and GET /v1/models"

#: What OpenAI's own clients obey: tries are made here already.
_NO_RETRY = {"x-should-retry": "false"}


class ModelProxy:
    """Answers the programs of one sandbox.

    :param trials: whose keys are good.
    :param model: what the run's model is called.
    """

    def __init__(self, trials: Collection[TrialCalls], model: str) -> None:
        self._trials = trials
        self._model = model
        self._room = asyncio.Semaphore(_MOST_REQUESTS)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            return await self._answer(request)
        except Refused as refused:
            headers = _NO_RETRY if refused.status >= 429 else None
            return web.Response(
                body=refused.body(), status=refused.status, content_type="application/json", headers=headers
            )

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        trial = self._trial_of(request)
        path, method = request.path, request.method
        endpoint = _ENDPOINTS.get(path)
        if path == "/v1/models" or path.startswith("/v1/models/"):
            _expect("GET", method, path)
            return self._models(path.removeprefix("/v1/models").lstrip("/"))
        if endpoint is None:
            message = f"there is no {method} {path[:200]} here; this proxy serves {_SERVED}"
            raise Refused(404, message, "unknown_url")
        _expect("POST", method, path)
        async with self._room:
            asked = wire.read_request(endpoint, await _body(request))
            answer = await trial.answer(asked)
            try:
                return await _send(request, asked, answer)
            except ConnectionError:
                trial.hand_back(asked, answer)
                raise

    def _trial_of(self, request: web.BaseRequest) -> TrialCalls:
        """Whose key it is.

        :raises Refused: nobody's.
        """
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip().encode("utf-8", "surrogateescape")
        # All are compared, so that the time tells nothing.
        found = [trial for trial in self._trials if hmac.compare_digest(trial.token.encode(), given)]
        if scheme.lower() != "bearer" or not found:
            message = "expected `Authorization: Bearer` with the key from OPENAI_API_KEY"
            raise Refused(401, message, "invalid_api_key")
        return found[0]

    def _models(self, name: str) -> web.Response:
        if name and name != self._model:
            raise Refused(404, f"there is no model {name[:200]!r}; this is {self._model}", "model_not_found")
        document = wire.model_of(self._model) if name else wire.models_of(self._model)
        return _json(document)


def _expect(wanted: str, method: str, path: str) -> None:
    if method != wanted:
        raise Refused(405, f"{path}: expected {wanted}, found {method}", "method_not_allowed")


async def _body(request: web.BaseRequest) -> bytes:
    """The body, within its bound.

    :raises Refused: it is too large, or packed: what it would unpack to has no bound.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused(415, "expected a body without Content-Encoding", "unsupported_encoding")
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BYTES:
            raise Refused(413, f"expected a request of at most {MAX_BYTES} bytes", "request_too_large")
    return bytes(body)


async def _send(request: web.BaseRequest, asked: Asked, answer: Mapping[str, Any]) -> web.StreamResponse:
    if not asked.stream:
        response: web.StreamResponse = _json(answer)
        await response.prepare(request)
        await response.write_eof()
        return response
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    for event in wire.events(answer, include_usage=asked.include_usage):
        await response.write(event)
    await response.write_eof()
    return response


def _json(document: Mapping[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(document), content_type="application/json")


class _HangUp(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.abort()


@asynccontextmanager
async def serving(listener: socket, proxy: ModelProxy) -> AsyncIterator[None]:
    """Serve on a listening socket for as long as the block lasts; then the socket is closed."""
    # What a program does to its proxy is no news: errors of the protocol are not logged.
    quiet = logging.getLogger("benchgen.proxy")
    quiet.setLevel(logging.CRITICAL)
    handler = web.Server(proxy.handle, access_log=None, logger=quiet, auto_decompress=False)

    def connection() -> asyncio.BaseProtocol:
        return handler() if len(handler.connections) < _MOST_CONNECTIONS else _HangUp()

    listener.setblocking(False)
    server = await asyncio.get_running_loop().create_server(connection, sock=listener)
    try:
        yield
    finally:
        server.close()
        handler.pre_shutdown()
        await handler.shutdown(_GOODBYE_S)
