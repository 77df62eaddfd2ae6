"""gRPC in between that loses chosen answers: the server has done what it was asked, and the caller hears of a fault."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc

from services.common import rpc
from services.local.ports import LOOPBACK
from tests.resilience.network import Background

Context = grpc.aio.ServicerContext[bytes, bytes]

_STREAMED = "RecordResults"


class Lossy(grpc.GenericRpcHandler):
    """Passes every call on to one server.

    ``every`` tells of which method (by its last name) each n-th answer is lost; ``lost`` counts those that were.
    """

    def __init__(self, background: Background, upstream: int) -> None:
        self.every: dict[str, int] = {}
        self.lost: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()
        self._background = background
        self.port = background.call(self._start(upstream))

    async def _start(self, upstream: int) -> int:
        options = [
            ("grpc.max_receive_message_length", rpc.MAX_MESSAGE),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ]
        self._channel = grpc.aio.insecure_channel(f"{LOOPBACK}:{upstream}", options=options)
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((self,))
        port = self._server.add_insecure_port(f"{LOOPBACK}:0")
        await self._server.start()
        return port

    def close(self) -> None:
        """Serve nobody any more."""
        self._background.call(self._close())

    async def _close(self) -> None:
        await self._server.stop(0)
        await self._channel.close()

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """The handler of a method."""
        method = handler_call_details.method
        if method.endswith(f"/{_STREAMED}"):
            return grpc.stream_stream_rpc_method_handler(self._stream(method))
        return grpc.unary_unary_rpc_method_handler(self._unary(method))

    def _unary(self, method: str) -> Any:
        async def call(request: bytes, context: Context) -> bytes:
            passed_on: Any = self._channel.unary_unary(method)
            metadata = grpc.aio.Metadata(*(context.invocation_metadata() or ()))
            try:
                answer: bytes = await passed_on(request, metadata=metadata, timeout=context.time_remaining())
            except grpc.aio.AioRpcError as failure:
                await self._fail(context, failure)
                raise
            await self._lose(method, context)
            return answer

        return call

    def _stream(self, method: str) -> Any:
        async def call(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            metadata = grpc.aio.Metadata(*(context.invocation_metadata() or ()))
            passed_on: Any = self._channel.stream_stream(method)(metadata=metadata)

            async def carry_up() -> None:
                with suppress(grpc.RpcError, asyncio.InvalidStateError):
                    async for request in requests:
                        await passed_on.write(request)
                    await passed_on.done_writing()

            upwards = asyncio.ensure_future(carry_up())
            try:
                async for answer in passed_on:
                    await self._lose(method, context)
                    yield answer
            except grpc.aio.AioRpcError as failure:
                await self._fail(context, failure)
            finally:
                upwards.cancel()
                passed_on.cancel()

        return call

    async def _lose(self, method: str, context: Context) -> None:
        name = method.rpartition("/")[2]
        every = self.every.get(name)
        if every is None:
            return
        self._answers[name] += 1
        if self._answers[name] % every == 0:
            self.lost[name] += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")

    @staticmethod
    async def _fail(context: Context, failure: grpc.aio.AioRpcError) -> None:
        context.set_trailing_metadata(tuple(failure.trailing_metadata() or ()))
        await context.abort(failure.code(), failure.details() or "")
