"""The HTTP client of model endpoints: one call is one HTTP request, and its end is a value, never an
exception.

Measured: the library's own cost dominates, so nothing is built per request that an endpoint can hold once.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter, time
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
import orjson
import structlog
from multidict import CIMultiDict
from yarl import URL

from services.common.models.faults import fault_of_error, fault_of_status, request_id_of, scrub
from services.common.models.rates import used_up
from services.common.models.replies import ErrorBody, Timing, Unreadable, parse_reply, read_json
from services.common.models.streams import completion_of, is_stream
from services.common.models.types import ChatRequest, Endpoint, Fault, FaultKind, Reply

log = structlog.get_logger()

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_ERROR_BYTES = 256 * 1024
_KEPT_ENDPOINTS = 256
#: Bodies that are larger than this are read a few at a time: memory is bounded also when every reply is enormous.
_LARGE_BYTES = 512 * 1024
_LARGE_AT_ONCE = 8
#: A peer that does not even acknowledge is gone after so long: a machine or a link that died without a word. One that
#: acknowledges and thinks has its own time.
_GONE_S = 30
_PROBE_S = 10


class _Prepared(NamedTuple):
    """What every request to one endpoint has in common. ``more_s`` is added for the body."""

    url: URL
    headers: CIMultiDict[str]
    timeout: aiohttp.ClientTimeout
    first_byte_s: float
    more_s: float


class ModelClient:
    """Calls chat completions over one pool of connections, for any number of endpoints.

    Use it as an async context manager. The number of calls at once is the caller's to bound: the pool has no
    limit, so that waiting for a connection never counts as the endpoint's latency. Redirects are not
    followed, since the credential would travel; cookies and proxy settings of the environment are ignored.
    ``ssl_context`` replaces the system's certificate authorities.
    """

    def __init__(
        self, *, max_body_bytes: int = MAX_BODY_BYTES, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._ssl_context = ssl_context
        self._prepared: dict[Endpoint, _Prepared] = {}
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=30,
            ttl_dns_cache=60,
            ssl=self._ssl_context if self._ssl_context is not None else True,
            socket_factory=watched_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def chat(self, endpoint: Endpoint, request: ChatRequest) -> Reply | Fault:
        """Make exactly one HTTP try. Raises RuntimeError for a client that is not open, and nothing else."""
        session = self._session
        if session is None:
            raise RuntimeError("ModelClient is used outside of its context")
        prepared = self._prepared.get(endpoint) or self._prepare(endpoint)
        headers = prepared.headers
        if request.extra_headers:
            headers = headers.copy()
            headers.update(request.extra_headers)
        try:
            body = _request_body(endpoint, request)
        except TypeError as error:
            message = f"the request cannot be written as JSON: {error}"
            return Fault(FaultKind.BAD_REQUEST, message, no_cost=True)
        start = perf_counter()
        started: float | None = None
        try:
            async with asyncio.timeout(prepared.first_byte_s) as limit:
                response = await session.post(
                    prepared.url, data=body, headers=headers, allow_redirects=False, timeout=prepared.timeout
                )
                started = perf_counter()
                try:
                    if not response.content.is_eof():
                        limit.reschedule((limit.when() or 0.0) + prepared.more_s)
                    return await self._read(endpoint, response, start, started)
                finally:
                    # Closes the connection where the body was not read to its end, and otherwise costs
                    # nothing.
                    response.release()
        except (aiohttp.ClientError, OSError) as error:
            return _network_fault(endpoint, error, start, started)
        except Exception as error:
            # The request was sent and paid for, whatever the reply does to those who read it.
            log.exception("client.broke", host=prepared.url.host)
            message = scrub(endpoint, f"the reply cannot be read: {type(error).__name__}: {error}")
            return Fault(FaultKind.BAD_REPLY, message, latency_ms=(perf_counter() - start) * 1_000)

    async def _read(
        self, endpoint: Endpoint, response: aiohttp.ClientResponse, start: float, started: float
    ) -> Reply | Fault:
        """Read the body within its bound and turn it into a reply or a fault."""
        status, headers = response.status, response.headers
        limit = self._max_body_bytes if status == 200 else MAX_ERROR_BYTES
        body = await self._bounded(response.content, limit)
        timing = Timing((started - start) * 1_000, (perf_counter() - start) * 1_000)
        if status != 200:
            return fault_of_status(endpoint, status, headers, body[:limit], timing)
        if len(body) > limit:
            message = f"the reply is larger than {limit} bytes"
            return Fault(FaultKind.TOO_LARGE, message, status=status, latency_ms=timing.latency_ms)
        return _understand(endpoint, headers, body, timing)

    async def _bounded(self, content: aiohttp.StreamReader, limit: int) -> bytes:
        """Read a body, and at most a little more than ``limit`` bytes of it. Nearly all arrive in one piece."""
        chunk = await content.readany()
        if content.at_eof():
            return chunk
        chunks, size = [chunk], len(chunk)
        while size <= min(limit, _LARGE_BYTES) and (chunk := await content.readany()):
            chunks.append(chunk)
            size += len(chunk)
        if chunk and size <= limit:
            async with self._large:
                while size <= limit and (chunk := await content.readany()):
                    chunks.append(chunk)
                    size += len(chunk)
        return b"".join(chunks)

    def _prepare(self, endpoint: Endpoint) -> _Prepared:
        """Build and keep what all requests of an endpoint share. Old endpoints are forgotten together."""
        url = URL(endpoint.base_url)
        # All automatic headers are given here: the library then adds none, which is its fast path.
        headers = CIMultiDict(
            {
                "Accept": "application/json",
                "Accept-Encoding": "gzip, deflate",
                "User-Agent": "benchgen-eval",
                "Content-Type": "application/json",
            }
        )
        if endpoint.api_key:
            headers["Authorization"] = f"Bearer {endpoint.api_key}"
        limits = endpoint.timeouts
        prepared = _Prepared(
            url=url.with_path(url.path.rstrip("/") + "/chat/completions", keep_query=True),
            headers=headers,
            timeout=aiohttp.ClientTimeout(connect=limits.connect_s),
            first_byte_s=min(limits.first_byte_s, limits.total_s),
            more_s=max(0.0, limits.total_s - limits.first_byte_s),
        )
        if len(self._prepared) >= _KEPT_ENDPOINTS:
            self._prepared.clear()
        self._prepared[endpoint] = prepared
        return prepared


def watched_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that notices when the other side is gone without having said so."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_S * 1_000)
    return made


def _request_body(endpoint: Endpoint, request: ChatRequest) -> bytes:
    """Write the JSON body. Raises TypeError for what JSON cannot hold."""
    payload: dict[str, Any] = {"model": endpoint.model, "messages": request.messages}
    for name, value in request.params.items():
        if value is not None:
            payload[name] = value
    return orjson.dumps(payload)


def _understand(endpoint: Endpoint, headers: Mapping[str, str], body: bytes, timing: Timing) -> Reply | Fault:
    """Turn the body of a reply with status 200 into a reply, or say what it is instead."""
    request_id = request_id_of(headers)
    content_type = headers.get("Content-Type", "no content type")
    try:
        data = completion_of(body) if is_stream(content_type, body) else read_json(body)
        found = data if isinstance(data, Unreadable) else parse_reply(data, request_id, timing)
    except ValueError as error:
        is_json = "json" in content_type.lower()
        start = body[:200].decode("utf-8", "replace")
        what = (
            f"the reply is not JSON ({error})"
            if is_json
            else f"expected application/json, found {content_type}"
        )
        # A page instead of JSON means that the address is wrong; broken JSON may be whole the next time.
        return Fault(
            FaultKind.BAD_REPLY,
            scrub(endpoint, f"{what}: {start}"),
            status=200,
            retryable=is_json,
            request_id=request_id,
            latency_ms=timing.latency_ms,
        )
    if isinstance(found, Reply):
        rest_s = used_up(headers, time())
        return found if rest_s is None else replace(found, rest_s=rest_s)
    if isinstance(found, ErrorBody):
        return fault_of_error(endpoint, headers, found, timing)
    return Fault(
        FaultKind.BAD_REPLY,
        f"the reply is no chat completion: {found.message}",
        status=200,
        retryable=True,
        request_id=request_id,
        latency_ms=timing.latency_ms,
        usage=found.usage,
    )


def _network_fault(endpoint: Endpoint, error: Exception, start: float, started: float | None) -> Fault:
    """Name what happened to the connection."""
    latency_ms = (perf_counter() - start) * 1_000
    kind, message = _network_kind(endpoint, error, answered=started is not None)
    certificate = isinstance(error, aiohttp.ClientConnectorCertificateError)
    return Fault(
        kind,
        scrub(endpoint, message),
        retryable=not certificate,
        permanent_for_run=certificate,
        latency_ms=latency_ms,
        no_cost=kind in _NOT_SENT,
    )


_NOT_SENT = frozenset({FaultKind.DNS, FaultKind.CONNECT, FaultKind.TLS, FaultKind.CONNECT_TIMEOUT})


def _network_kind(endpoint: Endpoint, error: Exception, *, answered: bool) -> tuple[FaultKind, str]:
    limits = endpoint.timeouts
    words = str(error) or type(error).__name__
    match error:
        case aiohttp.ConnectionTimeoutError():
            return FaultKind.CONNECT_TIMEOUT, f"no connection within {limits.connect_s:g} s"
        case TimeoutError() if answered or limits.total_s <= limits.first_byte_s:
            return FaultKind.TOTAL_TIMEOUT, f"the reply was not complete within {limits.total_s:g} s"
        case TimeoutError():
            return FaultKind.FIRST_BYTE_TIMEOUT, f"no answer began within {limits.first_byte_s:g} s"
        case aiohttp.ClientConnectorDNSError():
            return FaultKind.DNS, f"the host name cannot be resolved: {words}"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return FaultKind.TLS, f"no secure connection: {words}"
        case aiohttp.ClientConnectorError():
            return FaultKind.CONNECT, f"no connection: {words}"
        case aiohttp.ClientPayloadError():
            return FaultKind.DISCONNECTED, f"the reply was cut off: {words}"
        case aiohttp.ClientResponseError():
            return FaultKind.BAD_REPLY, f"the reply is not valid HTTP: {words}"
    return FaultKind.DISCONNECTED, f"the connection was lost: {words}"
