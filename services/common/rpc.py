"""gRPC as this house speaks it: service credentials, principals, errors as statuses, one line a call."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from benchgen import errors
from services.common import auth, db, tracing
from services.common.config import RpcSettings
from services.common.signing import Verifier
from services.common.telemetry import RPC_SECONDS

log = structlog.get_logger()

DOMAIN = "eval.benchgen"

#: The longest message either side takes: a page of results with long answers fits.
MAX_MESSAGE = 16 * 1024 * 1024

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    # A neighbour that restarts is back within a second or two: look again soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Two replicas of a service must not share a port by accident.
    ("grpc.so_reuseport", 0),
]

#: The one table from errors to codes; subclasses count as their nearest listed parent.
CODES: Mapping[type[errors.BenchgenError], int] = {
    errors.InvalidInput: code_pb2.INVALID_ARGUMENT,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.AlreadyExists: code_pb2.ALREADY_EXISTS,
    errors.FailedPrecondition: code_pb2.FAILED_PRECONDITION,
    errors.PermissionDenied: code_pb2.PERMISSION_DENIED,
    errors.Unauthenticated: code_pb2.UNAUTHENTICATED,
    errors.Exhausted: code_pb2.RESOURCE_EXHAUSTED,
    errors.Unavailable: code_pb2.UNAVAILABLE,
    errors.BenchgenError: code_pb2.INTERNAL,
}


def status_of(error: BaseException) -> status_pb2.Status:
    """What the caller is told of an error. Unexpected ones tell nothing but that they happened."""
    if db.is_transient(error) or isinstance(error, TimeoutError):
        error = errors.Unavailable("a server that this one needs is not there; try again")
    if isinstance(error, asyncpg.DataError):
        error = errors.InvalidInput(
            "a value cannot be looked up or stored: it is out of range, or has a NUL in it"
        )
    if not isinstance(error, errors.BenchgenError):
        error = errors.BenchgenError("internal error; the server's log has it")
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    return status_pb2.Status(code=code, message=error.message, details=[detail])


class Access:
    """Which identities may call what, and whether a principal is needed.

    :param services: full service names (``pkg.Service``), or single methods (``/pkg.Service/Method``, which win),
        to the identities that may call them.
    :param public: the services among them that need a principal when the gateway calls.
    """

    def __init__(
        self,
        settings: RpcSettings,
        services: Mapping[str, frozenset[str]],
        *,
        public: Iterable[str] = (),
        principals: Verifier | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._peers = settings.peers()
        self._services = services
        self._public = frozenset(public)
        self._principals = principals
        self._now = now

    def check(
        self, method: str, metadata: Mapping[str, str | bytes], peer_names: Iterable[str] | None
    ) -> None:
        """Establish who calls, for the duration of the call.

        :param peer_names: the names in the peer's certificate; None without TLS.
        :raises Unauthenticated: no valid credential.
        :raises PermissionDenied: this identity may not call this service.
        """
        identity = auth.identify(str(metadata.get(auth.TOKEN_KEY, "")), self._peers)
        if peer_names is not None and identity not in peer_names:
            raise errors.Unauthenticated(f"the certificate is not one of `{identity}`")
        service = method.split("/")[1]
        allowed = self._services.get(method) or self._services.get(service) or frozenset()
        if identity not in allowed:
            raise errors.PermissionDenied(f"`{identity}` may not call {method}")
        auth.caller.set(identity)
        if service in self._public and identity == "gateway":
            sealed = metadata.get(auth.PRINCIPAL_KEY)
            if not isinstance(sealed, bytes) or self._principals is None:
                raise errors.Unauthenticated("the gateway sent no principal")
            auth.principal.set(auth.open_principal(sealed, self._principals, self._now))


class _Guard(grpc.aio.ServerInterceptor):
    """Checks every call, turns errors into statuses, writes one line and one observation per call."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self, continuation: Callable[..., Any], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: grpc.RpcMethodHandler[Any, Any] | None = await continuation(details)
        if handler is None or details.method.startswith("/grpc.health."):
            return handler
        return _guarded(handler, details.method, self._access)


def _guarded(handler: Any, method: str, access: Access) -> grpc.RpcMethodHandler[Any, Any]:
    """The same handler behind the checks. Streams of answers need a wrapper of their own."""

    async def unary(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        async with _observed(method, access, context):
            return await (handler.unary_unary or handler.stream_unary)(request, context)

    async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        async with _observed(method, access, context):
            async for answer in (handler.unary_stream or handler.stream_stream)(request, context):
                yield answer

    if handler.response_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(stream, handler.request_deserializer, handler.response_serializer)
    make_unary = (
        grpc.stream_unary_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    return make_unary(unary, handler.request_deserializer, handler.response_serializer)


@asynccontextmanager
async def _observed(
    method: str, access: Access, context: grpc.aio.ServicerContext[Any, Any]
) -> AsyncIterator[None]:
    started = time.perf_counter()
    code = "OK"
    metadata = dict(context.invocation_metadata() or ())
    try:
        with tracing.span(method[1:], parent=str(metadata.get(tracing.HEADER, ""))):
            access.check(method, metadata, _names_of(context))
            yield
    except (errors.BenchgenError, asyncpg.DataError, *db.TRANSIENT, TimeoutError) as error:
        status = status_of(error)
        if status.code == code_pb2.INTERNAL and not isinstance(error, errors.BenchgenError):
            log.exception("rpc.failed", method=method)
        code = code_pb2.Code.Name(status.code)
        log.info("rpc.refused", method=method, code=code, message=status.message)
        await context.abort_with_status(rpc_status.to_status(status))
    except Exception as error:
        if isinstance(error, grpc.aio.AbortError):
            raise
        code = "INTERNAL"
        log.exception("rpc.failed", method=method)
        await context.abort_with_status(rpc_status.to_status(status_of(error)))
    finally:
        seconds = time.perf_counter() - started
        RPC_SECONDS.labels(method, code).observe(seconds)
        log.debug("rpc", method=method, code=code, caller=auth.caller.get("?"), seconds=round(seconds, 4))


def _names_of(context: grpc.aio.ServicerContext[Any, Any]) -> list[str] | None:
    """The common names in the peer's certificate, none if it has none; None without TLS."""
    peer = context.auth_context()
    if b"ssl" not in peer.get("transport_security_type", ()):
        return None
    return [name.decode() for name in peer.get("x509_common_name", ())]


def _credentials(settings: RpcSettings) -> tuple[bytes, bytes, bytes] | None:
    paths: tuple[Path | None, ...] = (settings.tls_key, settings.tls_cert, settings.tls_ca)
    given = [path for path in paths if path is not None]
    if not given:
        return None
    if len(given) != len(paths):
        raise errors.InvalidInput("mutual TLS needs BENCHGEN_TLS_CERT, BENCHGEN_TLS_KEY and BENCHGEN_TLS_CA")
    key, cert, ca = (path.read_bytes() for path in given)
    return key, cert, ca


@asynccontextmanager
async def server(
    listen: str,
    settings: RpcSettings,
    access: Access,
    register: Callable[[grpc.aio.Server], None],
    *,
    grace: float = 5.0,
) -> AsyncIterator[int]:
    """A running server; yields its port. On exit it takes no new calls and waits for those under way.

    :param register: adds the servicers.
    :param grace: how long calls under way may take to end, seconds.
    """
    running = grpc.aio.server(interceptors=[_Guard(access)], options=_OPTIONS)
    register(running)
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, running)
    tls = _credentials(settings)
    if tls is None:
        port = running.add_insecure_port(listen)
    else:
        key, cert, ca = tls
        port = running.add_secure_port(
            listen, grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
        )
    await running.start()
    await status.set("", health_pb2.HealthCheckResponse.SERVING)
    try:
        yield port
    finally:
        await status.enter_graceful_shutdown()
        await running.stop(grace)


def credentials_metadata(settings: RpcSettings) -> tuple[tuple[str, str], ...]:
    """The metadata that presents this process's own credential."""
    return ((auth.TOKEN_KEY, settings.service_token.get_secret_value()),)


@asynccontextmanager
async def channel(
    address: str, settings: RpcSettings, *, presenting: bool = True
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to another service that presents this process's credential on every call.

    :param presenting: False where the caller puts the credential into each call's metadata by itself.
    """
    interceptors = _present(credentials_metadata(settings)) if presenting else []
    tls = _credentials(settings)
    if tls is None:
        opened = grpc.aio.insecure_channel(address, options=_OPTIONS, interceptors=interceptors)
    else:
        key, cert, ca = tls
        opened = grpc.aio.secure_channel(
            address, grpc.ssl_channel_credentials(ca, key, cert), options=_OPTIONS, interceptors=interceptors
        )
    async with opened:
        yield opened


def _present(metadata: tuple[tuple[str, str], ...]) -> list[grpc.aio.ClientInterceptor]:
    """One interceptor for each kind of call: grpc.aio takes an object for one kind only."""

    def with_metadata(details: Any) -> Any:
        # A named tuple at run time, which its types do not say.
        combined = grpc.aio.Metadata(*(details.metadata or ()), *metadata, *tracing.carried())
        return details._replace(metadata=combined)

    class UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            return await continuation(with_metadata(details), request)

    class UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
            return await continuation(with_metadata(details), request)

    class StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
        async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
            return await continuation(with_metadata(details), requests)

    class StreamStream(grpc.aio.StreamStreamClientInterceptor):
        async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
            return await continuation(with_metadata(details), requests)

    return [UnaryUnary(), UnaryStream(), StreamUnary(), StreamStream()]
