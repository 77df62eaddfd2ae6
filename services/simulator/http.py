"""A small HTTP/1.1 server on asyncio protocols: what the simulator needs, and fast.

Everything a peer can make grow is bounded: heads, bodies, the time to send them, requests sent ahead,
replies not read, connections.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from http import HTTPStatus
from typing import Any, cast

import httptools

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_CONNECTIONS = 8_192
RECEIVE_S = 30.0
IDLE_S = 300.0
_SWEEP_S = 2.0
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class Request:
    """One request. Header names are in lower case; only the path is kept of the target."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path")

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.keep_alive = False


class Response:
    """One response, sent after ``delay_s`` seconds. Without a status the connection is closed instead."""

    __slots__ = ("body", "content_type", "delay_s", "headers", "status")

    def __init__(
        self,
        status: int | None,
        body: bytes = b"",
        *,
        content_type: bytes = b"application/json",
        headers: bytes = b"",
        delay_s: float = 0.0,
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers  # whole lines, each ended by CR LF
        self.delay_s = delay_s


Handler = Callable[[Request], Response | Coroutine[Any, Any, Response]]
Refusal = Callable[[int, str], Response]


class HttpServer:
    """Listens, keeps the connections, and stops in order.

    ``handler`` answers a request, at once or as a coroutine; it must not raise. ``refusal`` makes the
    response for a request that never reaches it.
    """

    def __init__(self, handler: Handler, refusal: Refusal, *, receive_s: float = RECEIVE_S) -> None:
        self.handler = handler
        self.refusal = refusal
        self.closing = False
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._receive_s = receive_s
        self._all_gone = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port, which the system chooses where 0 is given."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Connection(self, loop), host, port, backlog=4_096)
        self._sweeper = loop.create_task(self._sweep(loop))
        address: tuple[Any, ...] = self._listener.sockets[0].getsockname()
        return cast(int, address[1])

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, let those in hand end within ``grace_s`` seconds, then close everything."""
        self.closing = True
        if self._listener is not None:
            self._listener.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.close_if_idle()
        if self.connections:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_gone.wait(), grace_s)
        for connection in list(self.connections):
            connection.abort()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        if self.closing and not self.connections:
            self._all_gone.set()

    async def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections of slow peers; one timer for all is cheaper than one for each."""
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._receive_s / 4))
            now = loop.time()
            for connection in list(self.connections):
                connection.close_if_slow(now, self._receive_s)


class Connection(asyncio.Protocol):
    """One connection: requests are answered one after the other, in order."""

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._request = Request()
        self._target = b""
        self._body: list[bytes] = []
        self._size = 0
        self._raw_bytes = 0
        self._in_body = False
        self._receiving = False
        self._refused = False
        self._busy = False
        self._pending: deque[Request] = deque()
        self._since = loop.time()
        self._paused_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        server = self._server
        if server.closing or len(server.connections) >= MAX_CONNECTIONS:
            self._transport.abort()
            return
        server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.forget(self)
        self._pending.clear()
        self._refused = True
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        self._paused_at = self._loop.time()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused_at = None
        self._read_on()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            refusal = error.__context__
            if not isinstance(refusal, _RefusedError):
                raise
            self._refuse(refusal.status, refusal.message)
        except httptools.HttpParserError as error:
            self._refuse(400, f"malformed HTTP: {error}")
        else:
            # Counted after: a message that begins in these bytes starts from zero.
            self._raw_bytes += len(data)
            if self._receiving:
                self._check_size()

    # --- the parser

    def on_message_begin(self) -> None:
        self._request = Request()
        self._target = b""
        self._body = []
        self._size = 0
        self._raw_bytes = 0
        self._in_body = False
        self._receiving = True
        self._since = self._loop.time()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self._request.headers
        if len(headers) >= MAX_HEADERS:
            raise _RefusedError(431, f"expected at most {MAX_HEADERS} headers")
        headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._in_body = True
        if self._parser.should_upgrade():
            raise _RefusedError(400, "upgrades are not supported")
        if self._request.headers.get(b"expect", b"").lower() == b"100-continue" and not self._busy:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > MAX_BODY_BYTES:
            raise _RefusedError(413, f"expected a body of at most {MAX_BODY_BYTES} bytes")
        self._body.append(chunk)

    def on_message_complete(self) -> None:
        request, body = self._request, self._body
        request.method = self._parser.get_method()
        request.path = self._target.partition(b"?")[0]
        request.body = body[0] if len(body) == 1 else b"".join(body)
        request.keep_alive = self._parser.should_keep_alive()
        self._body = []
        self._receiving = False
        if self._busy:
            # Sent ahead: answered in turn, and no more is read until then.
            self._pending.append(request)
            self._transport.pause_reading()
        else:
            self._start(request)

    # --- answering

    def _start(self, request: Request) -> None:
        self._busy = True
        answer = self._server.handler(request)
        if isinstance(answer, Response):
            self._finish(request, answer)
        else:
            task = self._loop.create_task(self._wait(request, answer))
            self._server.tasks.add(task)
            task.add_done_callback(self._server.tasks.discard)

    async def _wait(self, request: Request, answer: Coroutine[Any, Any, Response]) -> None:
        self._finish(request, await answer)

    def _finish(self, request: Request, response: Response) -> None:
        if response.delay_s > 0:
            self._timer = self._loop.call_later(response.delay_s, self._send, request, response)
        else:
            self._send(request, response)

    def _send(self, request: Request, response: Response) -> None:
        self._timer = None
        transport = self._transport
        if transport.is_closing():
            return
        keep = request.keep_alive and not self._server.closing
        if response.status is not None:
            transport.write(_encode(response, keep))
        if response.status is None or not keep:
            self._refused = True
            transport.close()
            return
        self._busy = False
        self._since = self._loop.time()
        if self._pending:
            # By way of the loop: a chain of requests sent ahead must not nest.
            self._busy = True
            self._loop.call_soon(self._start, self._pending.popleft())
        else:
            self._read_on()

    def _refuse(self, status: int, message: str) -> None:
        """Answer a request that cannot be read, and close: what follows on the wire has no meaning."""
        self._refused = True
        self._receiving = False
        if not self._busy:
            self._transport.write(_encode(self._server.refusal(status, message), keep=False))
        self._transport.close()

    # --- bounds

    def _check_size(self) -> None:
        if not self._in_body and self._raw_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"expected a head of at most {MAX_HEAD_BYTES} bytes")
        elif self._raw_bytes > 2 * MAX_BODY_BYTES:
            # Tiny chunks and endless trailers cost more bytes than the body they carry.
            self._refuse(413, f"expected a body of at most {MAX_BODY_BYTES} bytes")

    def _read_on(self) -> None:
        if not self._pending and self._paused_at is None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close_if_idle(self) -> None:
        """Close, unless a request is in hand."""
        if not self._busy and not self._pending:
            self._transport.close()

    def close_if_slow(self, now: float, receive_s: float) -> None:
        """Close when a request takes too long to arrive, a reply to be read, or nothing is asked for long."""
        stuck = self._paused_at is not None and now - self._paused_at > receive_s
        slow = self._receiving and now - self._since > receive_s
        idle = not self._receiving and not self._busy and now - self._since > IDLE_S
        if stuck or slow or idle:
            self._transport.abort()

    def abort(self) -> None:
        """Close without sending what is left."""
        self._transport.abort()


class _RefusedError(Exception):
    """A request goes over a bound; carries the status and message to refuse it with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def _encode(response: Response, keep: bool) -> bytes:
    status = response.status or 500
    return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n%b" % (
        status,
        _REASONS.get(status, b""),
        response.content_type,
        len(response.body),
        response.headers,
        b"" if keep else b"Connection: close\r\n",
        response.body,
    )
