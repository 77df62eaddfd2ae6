"""Errors over a real wire: what is raised at one end is raised at the other, and nothing else gets out."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest
from pydantic import SecretStr

from benchgen import errors
from benchgen.eval.v1 import run_pb2, run_pb2_grpc
from benchgen.statuses import error_of
from services.common import auth, rpc
from services.common.config import RpcSettings

SERVICE = "benchgen.eval.v1.RunService"


class Runs(run_pb2_grpc.RunServiceServicer):
    """Raises what a test tells it to."""

    error: BaseException | None = None
    caller = ""

    async def GetRun(self, request: run_pb2.GetRunRequest, context: Any) -> run_pb2.Run:
        self.caller = auth.caller.get()
        if self.error is not None:
            raise self.error
        return run_pb2.Run(name=request.name)

    async def WatchRun(self, request: run_pb2.WatchRunRequest, context: Any) -> AsyncIterator[run_pb2.Run]:
        yield run_pb2.Run(name=request.name)
        if self.error is not None:
            raise self.error

    async def CreateRun(self, request: run_pb2.CreateRunRequest, context: Any) -> run_pb2.Run:
        raise NotImplementedError

    async def ListRuns(self, request: run_pb2.ListRunsRequest, context: Any) -> run_pb2.ListRunsResponse:
        raise NotImplementedError

    async def CancelRun(self, request: run_pb2.CancelRunRequest, context: Any) -> run_pb2.Run:
        raise NotImplementedError


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
async def stub(runs: Runs) -> AsyncIterator[run_pb2_grpc.RunServiceAsyncStub]:
    tokens = {name: secrets.token_urlsafe() for name in ("hub", "runner")}
    settings = RpcSettings(peer_tokens=",".join(f"{n}={auth.hash_token(t)}" for n, t in tokens.items()))
    # A method of its own wins over its service.
    access = rpc.Access(
        settings, {SERVICE: frozenset({"hub"}), f"/{SERVICE}/CancelRun": frozenset({"runner"})}
    )

    def register(server: grpc.aio.Server) -> None:
        run_pb2_grpc.add_RunServiceServicer_to_server(runs, server)

    async with (
        rpc.server("127.0.0.1:0", settings, access, register, grace=0) as port,
        rpc.channel(f"127.0.0.1:{port}", RpcSettings(service_token=SecretStr(tokens["hub"]))) as channel,
    ):
        yield run_pb2_grpc.RunServiceStub(channel)


async def told(stub: run_pb2_grpc.RunServiceAsyncStub) -> errors.BenchgenError:
    """What the caller of a failing method learns."""
    with pytest.raises(grpc.RpcError) as caught:
        await stub.GetRun(run_pb2.GetRunRequest(name="r1"))
    return error_of(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidInput("no such field", field="a"),
        errors.NotFound("nobody"),
        errors.AlreadyExists("taken"),
        errors.FailedPrecondition("not now"),
        errors.LeaseLost("gone", shard="s1"),
        errors.PermissionDenied("no"),
        errors.Unauthenticated("who?"),
        errors.Exhausted("enough"),
        errors.Unavailable("later"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_errors_arrive_as_they_were_raised(
    runs: Runs, stub: run_pb2_grpc.RunServiceAsyncStub, error: errors.BenchgenError
) -> None:
    runs.error = error
    arrived = await told(stub)
    assert type(arrived) is type(error)
    assert (arrived.message, arrived.metadata) == (error.message, error.metadata)
    call = aiter(stub.WatchRun(run_pb2.WatchRunRequest(name="r1")))
    assert (await anext(call)).name == "r1"
    with pytest.raises(grpc.RpcError) as caught:
        await anext(call)
    assert type(error_of(caught.value)) is type(error)


@pytest.mark.parametrize(
    "error", [ConnectionResetError("10.0.0.7"), asyncpg.InterfaceError("x"), TimeoutError()]
)
async def test_servers_that_are_away_are_unavailable(
    runs: Runs, stub: run_pb2_grpc.RunServiceAsyncStub, error: Exception
) -> None:
    runs.error = error
    arrived = await told(stub)
    assert isinstance(arrived, errors.Unavailable)
    assert "10.0.0.7" not in arrived.message


async def test_a_bug_is_not_told_to_the_world(runs: Runs, stub: run_pb2_grpc.RunServiceAsyncStub) -> None:
    runs.error = KeyError("sk-secret")
    arrived = await told(stub)
    assert arrived.reason == "INTERNAL"
    assert "sk-secret" not in arrived.message


async def test_who_calls_is_known_to_the_handler(runs: Runs, stub: run_pb2_grpc.RunServiceAsyncStub) -> None:
    assert (await stub.GetRun(run_pb2.GetRunRequest(name="r1"))).name == "r1"
    assert runs.caller == "hub"


async def test_a_method_may_be_for_others_than_its_service(stub: run_pb2_grpc.RunServiceAsyncStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await stub.CancelRun(run_pb2.CancelRunRequest(name="r1"))
    assert isinstance(error_of(caught.value), errors.PermissionDenied)
