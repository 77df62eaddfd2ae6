"""A hub that a test can steer, and a wire that a test can cut."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from pydantic import SecretStr

from benchgen.errors import BenchgenError, LeaseLost, NotFound, Unavailable
from benchgen.eval.v1 import lease_pb2, lease_pb2_grpc
from services.common import auth, rpc
from services.common.config import RpcSettings
from services.common.signing import Signer
from services.runner.keeper import HeldLease
from services.runner.lanes import Lane

Answer = lease_pb2.RenewLeaseResponse


def duration(seconds: float) -> Duration:
    """As it travels."""
    made = Duration()
    made.FromTimedelta(timedelta(seconds=seconds))
    return made


class Hub(lease_pb2_grpc.LeaseServiceServicer):
    """Answers a runner as a test wants it, and keeps what it was told."""

    def __init__(self, key: Signer, *, seconds: float = 0.6, permits: int = 8) -> None:
        self.key = key
        self.seconds = seconds
        self.permits = permits
        self.shards: dict[str, lease_pb2.LeaseClaims] = {}
        self.verdict: Answer.Verdict.ValueType = Answer.VERDICT_GO_ON
        self.error: BenchgenError | None = None
        """What every call is refused with, while set."""
        self.secret = ""
        self.secret_error: BenchgenError | None = None
        self.renewals: list[lease_pb2.RenewLeaseRequest] = []
        self.completed: list[lease_pb2.CompleteShardRequest] = []
        self.released: list[lease_pb2.ReleaseShardRequest] = []
        self.runners: set[str] = set()
        self.lost_leases = 0
        """How many answers to requests for a lease are still to be lost on their way."""
        self.lease_requests: list[str] = []
        self.says_what_stopped = True
        """Whether a runner that says that it is there hears which of its shards are stopped."""
        self._out: set[str] = set()
        self.changed = asyncio.Event()

    def _heard(self) -> None:
        self.changed.set()
        if self.error is not None:
            raise self.error

    async def LeaseShard(
        self, request: lease_pb2.LeaseShardRequest, context: Any
    ) -> lease_pb2.LeaseShardResponse:
        self._heard()
        claims = self.shards.get(request.shard)
        if claims is None:
            raise NotFound(f"there is no shard {request.shard}")
        self._out.add(request.shard)
        if request.request_id not in self.lease_requests:
            claims.attempt += 1
        self.lease_requests.append(request.request_id)
        claims.runner = request.runner
        if self.lost_leases:
            self.lost_leases -= 1
            raise Unavailable("the answer was lost")
        data = claims.SerializeToString()
        return lease_pb2.LeaseShardResponse(
            lease=lease_pb2.SignedLease(claims=data, signature=self.key.sign(data)),
            duration=duration(self.seconds),
            permits=self.permits,
        )

    async def RenewLease(self, request: lease_pb2.RenewLeaseRequest, context: Any) -> Answer:
        self.renewals.append(request)
        self._heard()
        return Answer(verdict=self.verdict, duration=duration(self.seconds), permits=self.permits)

    async def CompleteShard(
        self, request: lease_pb2.CompleteShardRequest, context: Any
    ) -> lease_pb2.CompleteShardResponse:
        self._heard()
        self.completed.append(request)
        self._out.discard(request.shard)
        return lease_pb2.CompleteShardResponse(permits=self.permits if self._out else 0)

    async def ReleaseShard(
        self, request: lease_pb2.ReleaseShardRequest, context: Any
    ) -> lease_pb2.ReleaseShardResponse:
        self._heard()
        self.released.append(request)
        self._out.discard(request.shard)
        return lease_pb2.ReleaseShardResponse()

    async def GetModelSecret(
        self, request: lease_pb2.GetModelSecretRequest, context: Any
    ) -> lease_pb2.GetModelSecretResponse:
        self._heard()
        if self.secret_error is not None:
            raise self.secret_error
        return lease_pb2.GetModelSecretResponse(secret=self.secret)

    async def KeepRunner(
        self, request: lease_pb2.KeepRunnerRequest, context: Any
    ) -> lease_pb2.KeepRunnerResponse:
        self.runners.add(request.runner)
        self._heard()
        stopped = self._out if self.verdict == Answer.VERDICT_STOP and self.says_what_stopped else ()
        return lease_pb2.KeepRunnerResponse(stopped_shards=stopped)

    async def RemoveRunner(
        self, request: lease_pb2.RemoveRunnerRequest, context: Any
    ) -> lease_pb2.RemoveRunnerResponse:
        self.runners.discard(request.runner)
        self._heard()
        return lease_pb2.RemoveRunnerResponse()

    async def until(self, holds: Callable[[], Any], seconds: float = 10) -> None:
        """Wait until something holds that depends on what this hub was told."""
        async with asyncio.timeout(seconds):
            while not holds():
                self.changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 0.02)


@asynccontextmanager
async def serving(hub: Hub, token: str) -> AsyncIterator[int]:
    """Serve a hub to whoever has the token; yields its port."""
    settings = RpcSettings(peer_tokens=f"runner={auth.hash_token(token)}")
    access = rpc.Access(settings, {"benchgen.eval.v1.LeaseService": frozenset({"runner"})})

    def register(server: grpc.aio.Server) -> None:
        lease_pb2_grpc.add_LeaseServiceServicer_to_server(hub, server)

    async with rpc.server("127.0.0.1:0", settings, access, register, grace=0.1) as port:
        yield port


@asynccontextmanager
async def reached(hub: Hub) -> AsyncIterator[lease_pb2_grpc.LeaseServiceAsyncStub]:
    """A hub, served, as a runner calls it."""
    token = secrets.token_urlsafe()
    async with (
        serving(hub, token) as port,
        rpc.channel(f"127.0.0.1:{port}", RpcSettings(service_token=SecretStr(token))) as channel,
    ):
        yield lease_pb2_grpc.LeaseServiceStub(channel)


def held(hub: Hub, lane: Lane, claims: lease_pb2.LeaseClaims) -> HeldLease:
    """A lease just given by a hub."""
    data = claims.SerializeToString()
    lane.set_permits(hub.permits)
    now = asyncio.get_running_loop().time()
    signed = lease_pb2.SignedLease(claims=data, signature=hub.key.sign(data))
    return HeldLease(claims, signed, lane, hub.seconds, now + hub.seconds)


LOST = LeaseLost("somebody else has it")


class Wire:
    """A TCP proxy in front of a port: it can cut what goes through it, swallow it, or be gone."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.swallowing = False
        """Whether what comes back is lost: it was sent, and never arrives."""
        self.opened = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Take connections, on the same port each time."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Take no connections, and cut those that there are."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.sleep(0)

    def cut(self) -> None:
        """Cut every connection, without a word."""
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self.opened += 1
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(
                self._pass(reader, far_writer, back=False), self._pass(far_reader, writer, back=True)
            )
        finally:
            self._writers -= {writer, far_writer}
            writer.transport.abort()
            far_writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if back and self.swallowing:
                    continue
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def wire_to(port: int) -> AsyncIterator[Wire]:
    """An open wire."""
    wire = Wire(port)
    await wire.open()
    try:
        yield wire
    finally:
        await wire.close()
        # The handlers of cut connections end in the next turns of the loop.
        await asyncio.sleep(0.05)


async def until(holds: Callable[[], Awaitable[bool] | bool], seconds: float = 10) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)
