"""Bodies that stream through the gateway to a service, piece by piece and never whole in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

import grpc
from fastapi import Request

from services.gateway.backends import failure_of
from services.gateway.http.caller import Caller
from services.gateway.http.problems import Refusal

Answer = TypeVar("Answer")
Part = TypeVar("Part")

#: The longest piece of an upload, bytes; what the contracts allow is twice as much.
_CHUNK_BYTES = 512 * 1024


def expect_type(request: Request, *accepted: str) -> None:
    """Check what a body says it is.

    :raises Refusal: it is something else; the message says what is expected.
    """
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found not in accepted:
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"expected `Content-Type: {accepted[0]}`, found {found or 'none'}",
            "UNSUPPORTED_MEDIA_TYPE",
        )


async def upload(
    request: Request,
    caller: Caller,
    method: grpc.aio.StreamUnaryMultiCallable[Any, Answer],
    header: Part,
    part: Callable[[bytes], Part],
) -> Answer:
    """Send a header and then the request's body to a service, as fast as it takes them.

    :param part: makes a message of some bytes of the body.
    :raises BenchgenError: what the service answered instead.
    :raises Refusal: the body is too long, or stood still.
    """
    call = method(metadata=caller.backends.metadata(caller.who))
    fault: Exception | None = None

    async def send() -> None:
        nonlocal fault
        try:
            await call.write(header)
            async for piece in request.stream():
                for start in range(0, len(piece), _CHUNK_BYTES):
                    await call.write(part(piece[start : start + _CHUNK_BYTES]))
            await call.done_writing()
        except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            pass  # the service answered before it had heard all
        except Exception as error:
            fault = error
            call.cancel()

    sending = asyncio.create_task(send())
    try:
        answer = await call
    except grpc.aio.AioRpcError as failure:
        raise failure_of(failure) from None
    except asyncio.CancelledError:
        if fault is None:
            raise
        raise fault from None
    finally:
        call.cancel()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    await request.state.body.rest(request.receive)
    return answer
