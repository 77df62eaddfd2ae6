"""Stored calls of one lease: at the scorer, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from benchgen.eval.v1 import lease_pb2, result_pb2, result_pb2_grpc
from benchgen.statuses import error_of
from services.runner.patience import until_available

_RPC_SECONDS = 30.0


class CallStore:
    """Stores calls under a lease, and reads what earlier attempts stored.

    :param wanted: a scorer that is away is waited for as long as this holds.
    """

    def __init__(
        self,
        records: result_pb2_grpc.RecordServiceAsyncStub,
        lease: lease_pb2.SignedLease,
        wanted: Callable[[], bool],
    ) -> None:
        self._records = records
        self._lease = lease
        self._wanted = wanted

    async def record(self, call: result_pb2.ModelCall) -> result_pb2.RecordCallResponse:
        """Store a call; sent again until it is answered.

        :raises BenchgenError: the scorer takes no more calls under this lease, or is away and not waited for.
        """
        request = result_pb2.RecordCallRequest(lease=self._lease, call=call)

        async def send() -> result_pb2.RecordCallResponse:
            try:
                return await self._records.RecordCall(request, timeout=_RPC_SECONDS)
            except grpc.RpcError as failure:
                raise error_of(failure) from None

        return await until_available(send, self._wanted)

    async def answers(self, position: int, trial: int) -> list[result_pb2.ModelCall]:
        """The stored answers of a trial, in order.

        :raises BenchgenError: as above.
        """
        request = result_pb2.ReplayCallsRequest(lease=self._lease, position=position, trial=trial)

        async def read() -> list[result_pb2.ModelCall]:
            try:
                stream = self._records.ReplayCalls(request, timeout=_RPC_SECONDS)
                return [call async for message in stream for call in message.calls]
            except grpc.RpcError as failure:
                raise error_of(failure) from None

        return await until_available(read, self._wanted)
