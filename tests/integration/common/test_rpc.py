"""Errors over a real wire: what is raised at one end is raised at the other, and nothing else gets out."""

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


class Runs:
    """Three methods of the service, which raise what a test tells them to."""

    error: BaseException | None = None
    caller = ""

    async def get(self, request: run_pb2.GetRunRequest, context: Any) -> run_pb2.Run:
        self.caller = auth.caller.get()
        if self.error is not None:
            raise self.error
        return run_pb2.Run(name=request.name)

    async def watch(self, request: run_pb2.WatchRunRequest, context: Any) -> AsyncIterator[run_pb2.Run]:
        yield run_pb2.Run(name=request.name)
        if self.error is not None:
            raise self.error

    def register(self, server: grpc.aio.Server) -> None:
        """Serve them."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetRun": grpc.unary_unary_rpc_method_handler(
                self.get, run_pb2.GetRunRequest.FromString, run_pb2.Run.SerializeToString
            ),
            "CancelRun": grpc.unary_unary_rpc_method_handler(
                self.get, run_pb2.GetRunRequest.FromString, run_pb2.Run.SerializeToString
            ),
            "WatchRun": grpc.unary_stream_rpc_method_handler(
                self.watch, run_pb2.WatchRunRequest.FromString, run_pb2.Run.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))


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

    async with (
        rpc.server("127.0.0.1:0", settings, access, runs.register, grace=0) as port,
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
    "error",
    [ConnectionResetError("10.0.0.7"), asyncpg.InterfaceError("connection is closed"), TimeoutError()],
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
