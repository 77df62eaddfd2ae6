"""A scorer that a test of the hub can steer, on a gRPC server of its own."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from benchgen.eval.v1 import environment_pb2, lease_pb2, result_pb2, result_pb2_grpc, run_pb2
from services.common import auth, rpc
from services.common.config import RpcSettings
from tests.integration.hub.support import seed


class Scorer(result_pb2_grpc.RecordServiceServicer):
    """Answers the hub as a test wants it."""

    def __init__(self) -> None:
        self.sealed: list[result_pb2.SealRunRequest] = []
        self.loaded: list[lease_pb2.LeaseClaims] = []
        self.progress: dict[str, run_pb2.RunProgress] = {}
        self.answers_before_reported = 0
        self.charges: dict[tuple[str, int], tuple[int, int]] = {}
        """What was recorded under leases: money and tokens, by shard and attempt."""
        self.missing: dict[str, int] = {}
        """Of runs, the first so many ranges that miss results."""
        self.asked: list[result_pb2.FindMissingRequest] = []
        self.removed: list[str] = []
        self.away = False
        self.predictions: set[tuple[str, str]] = set()
        self.load_error: tuple[grpc.StatusCode, str] | None = None
        self.load_seconds = 0.0
        self.loads_broken_off = 0

    async def SealRun(self, request: result_pb2.SealRunRequest, context: Any) -> result_pb2.SealRunResponse:
        self.sealed.append(request)
        if len(self.sealed) <= self.answers_before_reported:
            return result_pb2.SealRunResponse(
                state=result_pb2.SealRunResponse.STATE_REPORTING, pending_scores=1
            )
        return result_pb2.SealRunResponse(state=result_pb2.SealRunResponse.STATE_REPORTED)

    async def LoadShard(
        self, request: result_pb2.LoadShardRequest, context: Any
    ) -> result_pb2.LoadShardResponse:
        if self.load_error is not None:
            await context.abort(*self.load_error)
        claims = lease_pb2.LeaseClaims.FromString(request.lease.claims)
        try:
            await asyncio.sleep(self.load_seconds)
        except asyncio.CancelledError:
            self.loads_broken_off += 1
            raise
        self.loaded.append(claims)
        return result_pb2.LoadShardResponse(loaded=claims.count)

    async def GetProgress(
        self, request: result_pb2.GetProgressRequest, context: Any
    ) -> result_pb2.GetProgressResponse:
        return result_pb2.GetProgressResponse(
            progress={run: self.progress[run] for run in request.runs if run in self.progress}
        )

    async def FindMissing(
        self, request: result_pb2.FindMissingRequest, context: Any
    ) -> result_pb2.FindMissingResponse:
        await self._reached(context)
        self.asked.append(request)
        missing = min(self.missing.get(request.run, 0), len(request.ranges))
        return result_pb2.FindMissingResponse(incomplete=range(missing))

    async def GetCharges(
        self, request: result_pb2.GetChargesRequest, context: Any
    ) -> result_pb2.GetChargesResponse:
        await self._reached(context)
        found = [self.charges.get((lease.shard, lease.attempt), (0, 0)) for lease in request.leases]
        return result_pb2.GetChargesResponse(
            charges=[result_pb2.Charge(picousd=picousd, tokens=tokens) for picousd, tokens in found]
        )

    async def DeleteResults(
        self, request: result_pb2.DeleteResultsRequest, context: Any
    ) -> result_pb2.DeleteResultsResponse:
        await self._reached(context)
        self.removed.append(request.run)
        # The first call leaves something to do.
        return result_pb2.DeleteResultsResponse(done=self.removed.count(request.run) > 1)

    async def ListPredictions(
        self, request: result_pb2.ListPredictionsRequest, context: Any
    ) -> result_pb2.ListPredictionsResponse:
        await self._reached(context)
        stored = [result_pb2.StoredPredictions(targets_digest=t, digest=d) for t, d in self.predictions]
        return result_pb2.ListPredictionsResponse(predictions=stored)

    async def DeletePredictions(
        self, request: result_pb2.DeletePredictionsRequest, context: Any
    ) -> result_pb2.DeletePredictionsResponse:
        await self._reached(context)
        self.predictions.discard((request.predictions.targets_digest, request.predictions.digest))
        return result_pb2.DeletePredictionsResponse()

    async def _reached(self, context: Any) -> None:
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the scorer is away")

    def RecordResults(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        raise AssertionError("the hub records nothing")

    async def RecordCall(self, request: Any, context: Any) -> result_pb2.RecordCallResponse:
        raise AssertionError("the hub records nothing")

    def ReplayCalls(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise AssertionError("the hub runs nothing")

    async def LoadCached(self, request: Any, context: Any) -> result_pb2.LoadCachedResponse:
        raise AssertionError("the hub runs nothing")

    async def VerifyVersion(self, request: Any, context: Any) -> environment_pb2.Verification:
        raise AssertionError("runs verify nothing")


@asynccontextmanager
async def scorer_served() -> AsyncIterator[tuple[Scorer, str, str]]:
    """A scorer of a test, its address, and the token that it takes from the hub."""
    scorer, token = Scorer(), seed()
    settings = RpcSettings(peer_tokens=f"hub={auth.hash_token(token)}")

    def register(server: grpc.aio.Server) -> None:
        result_pb2_grpc.add_RecordServiceServicer_to_server(scorer, server)

    access = rpc.Access(settings, {"benchgen.eval.v1.RecordService": frozenset({"hub"})})
    async with rpc.server("127.0.0.1:0", settings, access, register, grace=0.2) as port:
        yield scorer, f"127.0.0.1:{port}", token
