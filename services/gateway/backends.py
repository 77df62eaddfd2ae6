"""The services behind the gateway, called on behalf of the holder of an API key."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from benchgen.errors import BenchgenError, Exhausted, Unavailable
from benchgen.eval.v1 import environment_pb2_grpc, model_pb2_grpc, result_pb2_grpc, run_pb2_grpc
from benchgen.statuses import error_of
from services.common import rpc, tracing
from services.common.auth import PRINCIPAL_KEY, Principal, seal_principal
from services.common.config import RpcSettings
from services.common.signing import Signer

Answer = TypeVar("Answer")

#: How long one call of the HTTP API may take, seconds.
CALL_SECONDS = 60.0

_STATUS_DETAILS = "grpc-status-details-bin"


class Backends:
    """Hub and scorer.

    :param hub: a channel that presents nothing by itself; so is ``scorer``.
    :param signer: signs principals.
    :param now: tells until when they hold, by a clock that the services know too.
    """

    def __init__(
        self,
        hub: grpc.aio.Channel,
        scorer: grpc.aio.Channel,
        settings: RpcSettings,
        signer: Signer,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.hub = hub
        self.scorer = scorer
        self.environments = environment_pb2_grpc.EnvironmentServiceStub(hub)
        self.models = model_pb2_grpc.ModelServiceStub(hub)
        self.runs = run_pb2_grpc.RunServiceStub(hub)
        self.results = result_pb2_grpc.ResultServiceStub(scorer)
        self._credential = rpc.credentials_metadata(settings)
        self._signer = signer
        self._now = now

    def metadata(self, who: Principal) -> tuple[tuple[str, str | bytes], ...]:
        """What one call carries: the gateway's own credential, and on whose behalf it calls."""
        principal = (PRINCIPAL_KEY, seal_principal(who, self._signer, self._now))
        return (*self._credential, principal, *tracing.carried())

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, Answer],
        request: object,
        who: Principal,
        *,
        seconds: float = CALL_SECONDS,
    ) -> Answer:
        """Call a method that takes one request and gives one answer.

        :raises BenchgenError: what the service answered instead, or that it cannot be reached.
        """
        try:
            return await method(request, metadata=self.metadata(who), timeout=seconds)
        except grpc.aio.AioRpcError as failure:
            raise failure_of(failure) from None


def comes_from_service(failure: grpc.aio.AioRpcError) -> bool:
    """Whether a service answered, and not the transport in between. Services always send details."""
    return any(key == _STATUS_DETAILS for key, _ in failure.trailing_metadata() or ())


def failure_of(failure: grpc.aio.AioRpcError) -> BenchgenError:
    """The error behind a failed call. What the transport says names inner addresses, and is not shown."""
    if comes_from_service(failure):
        return error_of(failure)
    match failure.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unavailable("a service of this server did not answer in time; try again")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Exhausted(
                f"the answer is longer than {rpc.MAX_MESSAGE >> 20} MiB; ask for a smaller page_size"
            )
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return Unavailable("a service of this server cannot be reached at the moment; try again")
        case _:
            return BenchgenError("internal error; the server's log has it")
