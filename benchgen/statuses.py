"""From a gRPC status back to the error that it was made of."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from benchgen import errors

_BY_CODE: dict[grpc.StatusCode, type[errors.BenchgenError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidInput,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Exhausted,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unavailable,
}


def error_of(failure: grpc.RpcError) -> errors.BenchgenError:
    """The error behind a failed call, with the reason and metadata that the server gave.

    Works for blocking and for asyncio calls alike.
    """
    code: grpc.StatusCode = failure.code()
    kind = _BY_CODE.get(code, errors.BenchgenError)
    info = error_details_pb2.ErrorInfo()
    # Blocking and asyncio failures carry the same trailing metadata, under types that know nothing of each other.
    call: Any = failure
    status = rpc_status.from_call(call)
    if status is not None:
        for detail in status.details:
            detail.Unpack(info)
    if info.reason == errors.LeaseLost.reason:
        kind = errors.LeaseLost
    message = failure.details() or code.name
    return kind(message, **dict(info.metadata))
