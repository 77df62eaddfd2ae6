"""A scorer that a test of the hub can steer, on a gRPC server of its own."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

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
        self.load_error: tuple[grpc.StatusCode, str] | None = None

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
        self.loaded.append(claims)
        return result_pb2.LoadShardResponse(loaded=claims.count)

    async def GetProgress(
        self, request: result_pb2.GetProgressRequest, context: Any
    ) -> result_pb2.GetProgressResponse:
        return result_pb2.GetProgressResponse(
            progress={run: self.progress[run] for run in request.runs if run in self.progress}
        )

    def RecordResults(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        raise AssertionError("the hub records nothing")

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
