"""Public gRPC: calls pass through as the bytes they are, after the key is checked.

What may pass is read from the descriptors of the public services. Nothing of a caller's metadata does, so nobody can
vouch for himself: the services behind see the gateway's credential and the principal that it signed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.rpc import code_pb2
from grpc_status import rpc_status

from benchgen.errors import BenchgenError, Unavailable
from benchgen.eval.v1 import environment_pb2, model_pb2, result_pb2, run_pb2
from services.common import tracing
from services.common.rpc import status_of
from services.common.telemetry import RPC_SECONDS
from services.gateway.backends import Backends, comes_from_service, failure_of
from services.gateway.keys import Keys

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[bytes, bytes]
Metadata = tuple[tuple[str, str | bytes], ...]

HUB_SERVICES: tuple[ServiceDescriptor, ...] = (
    environment_pb2.DESCRIPTOR.services_by_name["EnvironmentService"],
    model_pb2.DESCRIPTOR.services_by_name["ModelService"],
    run_pb2.DESCRIPTOR.services_by_name["RunService"],
)
SCORER_SERVICES: tuple[ServiceDescriptor, ...] = (result_pb2.DESCRIPTOR.services_by_name["ResultService"],)
PUBLIC_SERVICES = HUB_SERVICES + SCORER_SERVICES


class Passthrough(grpc.GenericRpcHandler):
    """Answers the public methods, and no other."""

    def __init__(self, keys: Keys, backends: Backends) -> None:
        streams = _Streams()
        self._streams = streams
        self._handlers = {
            f"/{service.full_name}/{method.name}": _handler(method, channel, keys, backends, streams)
            for channel, services in ((backends.hub, HUB_SERVICES), (backends.scorer, SCORER_SERVICES))
            for service in services
            for method in service.methods
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """The handler of a method; None, which is UNIMPLEMENTED to the caller, unless it is public."""
        return self._handlers.get(handler_call_details.method)

    def end_streams(self) -> None:
        """End the streams that would go on for as long as a run does; their callers ask another gateway."""
        self._streams.stopping = True
        for call in list(self._streams.open):
            call.cancel()


class _Streams:
    """The streams of answers that are open."""

    def __init__(self) -> None:
        self.open: set[Any] = set()
        self.stopping = False


def _handler(
    method: MethodDescriptor,
    channel: grpc.aio.Channel,
    keys: Keys,
    backends: Backends,
    streams: _Streams,
) -> grpc.RpcMethodHandler[bytes, bytes]:
    """The handler that passes one method on. Without serialisers, messages are bytes on both sides."""
    name = f"/{method.containing_service.full_name}/{method.name}"
    open_call, make = {
        (False, False): (channel.unary_unary, grpc.unary_unary_rpc_method_handler),
        (False, True): (channel.unary_stream, grpc.unary_stream_rpc_method_handler),
        (True, False): (channel.stream_unary, grpc.stream_unary_rpc_method_handler),
        (True, True): (channel.stream_stream, grpc.stream_stream_rpc_method_handler),
    }[method.client_streaming, method.server_streaming]
    forward = _Forward(name, open_call(name), method.client_streaming, keys, backends, streams)
    # grpc.aio takes coroutines and asynchronous generators where its types know blocking functions.
    behaviour: Any = forward.stream if method.server_streaming else forward.unary
    return make(behaviour)


_END_BELIEVED_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class _Forward:
    """Passes one method on."""

    name: str
    call: Any
    """Opens a call of the method on a channel: takes bytes, or an iterator of them."""
    takes_stream: bool
    keys: Keys
    backends: Backends
    streams: _Streams

    async def unary(self, request: Any, context: Context) -> bytes:
        """One answer."""
        async with self._passing(context) as metadata:
            call = self._open(request, metadata, context)
            try:
                answer: bytes = await call
                context.set_trailing_metadata(tuple(await call.trailing_metadata()))
            finally:
                call.cancel()
            return answer
        raise AssertionError("a call that fails is aborted")

    async def stream(self, request: Any, context: Context) -> AsyncIterator[bytes]:
        """A stream of answers."""
        async with self._passing(context) as metadata:
            call = self._open(request, metadata, context)
            self.streams.open.add(call)
            try:
                async for answer in call:
                    # A stream can outlive the key that it was opened with.
                    await self.keys.principal_of(_metadatum(context, "authorization"))
                    yield answer
                context.set_trailing_metadata(tuple(await call.trailing_metadata()))
            except asyncio.CancelledError:
                if self.streams.stopping:
                    raise Unavailable("this gateway is stopping; ask again") from None
                raise
            finally:
                self.streams.open.discard(call)
                call.cancel()

    def _open(self, request: Any, metadata: Metadata, context: Context) -> Any:
        messages = _whole(request) if self.takes_stream else request
        return self.call(messages, metadata=metadata, timeout=context.time_remaining())

    @asynccontextmanager
    async def _passing(self, context: Context) -> AsyncIterator[Metadata]:
        """Check the key, give the metadata to call with, pass failures on, count and log."""
        started = time.perf_counter()
        code, key = "OK", ""
        try:
            who = await self.keys.principal_of(_metadatum(context, "authorization"))
            key = who.key_id
            with tracing.span(self.name[1:], parent=_metadatum(context, tracing.HEADER) or "", root=True):
                yield self.backends.metadata(who)
        except grpc.aio.AioRpcError as failure:
            code = failure.code().name
            if comes_from_service(failure):
                await context.abort(
                    failure.code(), failure.details() or "", tuple(failure.trailing_metadata())
                )
            log.warning("passthrough.failed", method=self.name, code=code, error=failure.details())
            await _refuse(context, failure_of(failure))
        except BenchgenError as error:
            code = code_pb2.Code.Name(status_of(error).code)
            await _refuse(context, error)
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        finally:
            seconds = time.perf_counter() - started
            RPC_SECONDS.labels(self.name, code).observe(seconds)
            log.debug("passthrough", method=self.name, code=code, key=key, seconds=round(seconds, 4))


async def _whole(requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A caller's messages. To grpc.aio a caller who breaks off has first ended, and is cancelled a moment later: the
    end is believed after that moment, so that no service takes a part for the whole."""
    async for request in requests:
        yield request
    await asyncio.sleep(_END_BELIEVED_SECONDS)


async def _refuse(context: Context, error: BenchgenError) -> None:
    await context.abort_with_status(rpc_status.to_status(status_of(error)))


def _metadatum(context: Context, wanted: str) -> str | None:
    for name, value in context.invocation_metadata() or ():
        if name == wanted:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return None
