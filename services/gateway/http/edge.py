"""What happens to every HTTP request before and after a route has it, as plain ASGI.

In the order in which a request meets them: one line, one observation and safe headers (:class:`Edge`); a bounded body
(:class:`Bodies`); the API key (:class:`Bearer`). They stand before the application, so no route can forget them.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from http import HTTPStatus

import structlog
from prometheus_client import Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchgen.errors import BenchgenError
from services.common import tracing
from services.gateway.http.problems import Refusal, problem, problem_of
from services.gateway.keys import Keys

log = structlog.get_logger()

HTTP_SECONDS = Histogram(
    "benchgen_http_seconds",
    "How long HTTP requests took, by route, method and status; event streams count until they end.",
    ["route", "method", "status"],
    buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60),
)

#: Everything under it needs a key.
API_PREFIX = "/api/"

#: The longest body of a request that is not an upload.
MAX_BODY_BYTES = 1 << 20

#: A body that stands still for so long is given up, seconds.
_BODY_IDLE_SECONDS = 30.0

#: A refused caller may still be sending, and many read the answer only afterwards: so much and so long is swallowed.
_SWALLOWED_BYTES = 16 << 20
_SWALLOWED_SECONDS = 2.0

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: What is counted by name; a client can make up others without end.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NO_CONTENT = "default-src 'none'; frame-ancestors 'none'"


class Edge:
    """Adds headers that keep browsers from doing more than was meant; logs and counts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Content-Security-Policy", _NO_CONTENT)
                if scope["path"].startswith(API_PREFIX):
                    # Answers differ from key to key.
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        method = scope["method"] if scope["method"] in _METHODS else "other"
        parent = Headers(scope=scope).get(tracing.HEADER, "")
        try:
            with tracing.span(method, parent=parent, root=True) as span:
                await self._app(scope, receive, guarded_send)
                if span is not None:
                    span.update_name(f"{method} {_route(scope)}")
        except Exception:
            # What was answered with 500 was logged then, and Starlette raises it once more for its server to log.
            if status != HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
        finally:
            seconds = time.perf_counter() - started
            HTTP_SECONDS.labels(_route(scope), method, str(status)).observe(seconds)
            log.debug(
                "http",
                method=scope["method"],
                path=scope["path"],
                status=status,
                key=scope.get("state", {}).get("key_id", ""),
                seconds=round(seconds, 4),
            )


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "none"))


class Body:
    """What is known of a request's body so far; found in the request's state as ``body``."""

    def __init__(self, most: int, *, empty: bool) -> None:
        self.most = most
        self.received = 0
        self.ended = empty
        self._hash = hashlib.sha256()

    def add(self, message: Message) -> None:
        """Take note of a piece.

        :raises Refusal: it is too much.
        """
        self.ended = not message.get("more_body", False)
        self.received += len(message.get("body", b""))
        self._hash.update(message.get("body", b""))
        if self.received > self.most:
            raise too_long(self.most)

    async def rest(self, receive: Receive) -> None:
        """Read what nobody wanted, so that the client hears the answer and the hash is of the whole body."""
        while not self.ended:
            await receive()

    def sha256(self) -> str:
        """Of what was received, in hex."""
        return self._hash.hexdigest()


def too_long(most: int) -> Refusal:
    """The refusal of a body of more bytes than this."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {most:,} bytes, found more", "BODY_TOO_LONG"
    )


class Bodies:
    """Bounds bodies in size and patience, and hashes them on their way.

    :param most_bytes: of the paths that take uploads; all others take a mebibyte.
    """

    def __init__(self, app: ASGIApp, most_bytes: Mapping[str, int]) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        body = Body(
            self._most_bytes.get(scope["path"], MAX_BODY_BYTES),
            empty=length == "0" and "transfer-encoding" not in headers,
        )
        scope.setdefault("state", {})["body"] = body

        async def bounded_receive() -> Message:
            if body.ended:
                return await receive()
            try:
                async with asyncio.timeout(_BODY_IDLE_SECONDS):
                    message = await receive()
            except TimeoutError:
                detail = f"the body stood still for {_BODY_IDLE_SECONDS:.0f} s"
                raise Refusal(HTTPStatus.REQUEST_TIMEOUT, detail, "BODY_TIMEOUT") from None
            if message["type"] == "http.request":
                body.add(message)
            else:
                body.ended = True
            return message

        async def polite_send(message: Message) -> None:
            is_early = message["type"] == "http.response.start" and not body.ended
            if is_early and not await _swallowed(receive, body):
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        if length.isdigit() and int(length) > body.most:
            refusal = too_long(body.most)
            answer = problem(HTTPStatus(refusal.status_code), refusal.detail, refusal.reason)
            await answer(scope, receive, polite_send)
            return
        await self._app(scope, bounded_receive, polite_send)


async def _swallowed(receive: Receive, body: Body) -> bool:
    """Read a body that nobody wants, within bounds; says whether its end came."""
    left = _SWALLOWED_BYTES
    try:
        async with asyncio.timeout(_SWALLOWED_SECONDS):
            while left > 0:
                message = await receive()
                if message["type"] != "http.request":
                    return False
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    body.ended = True
                    return True
    except TimeoutError:
        pass
    return False


class Bearer:
    """Lets nobody without a good API key near the API; puts the principal into the request's state."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API_PREFIX):
            await self._app(scope, receive, send)
            return
        authorization = Headers(scope=scope).get("authorization")
        try:
            who = await self._keys.principal_of(authorization)
        except BenchgenError as error:
            await problem_of(error)(scope, receive, send)
            return
        scope.setdefault("state", {}).update(principal=who, key_id=who.key_id)
        await self._app(scope, receive, send)
