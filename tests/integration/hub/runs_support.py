"""A hub's runs on real servers: PostgreSQL, NATS, a gRPC server of its own, and a scorer that a test can steer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import asyncpg
import grpc
import nats
import orjson
from nats.js.errors import NotFoundError
from pydantic import SecretStr

from benchgen.errors import BenchgenError, Unavailable
from benchgen.eval.v1 import (
    lease_pb2,
    lease_pb2_grpc,
    result_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
)
from benchgen.statuses import error_of
from services.common import auth, bus, db, rpc
from services.common.auth import NO_LIMITS, DailyLimits, Principal, Scope
from services.common.config import RpcSettings
from services.common.signing import Signer, Verifier
from services.hub.runs.auditor import Auditor
from services.hub.runs.creation import Creator
from services.hub.runs.dispatcher import Dispatcher
from services.hub.runs.estimates import Estimator
from services.hub.runs.lease_service import LeaseService
from services.hub.runs.leases import Leases
from services.hub.runs.loader import Loader
from services.hub.runs.locks import PoolLocks
from services.hub.runs.outbox import Outbox
from services.hub.runs.plans import Plans
from services.hub.runs.reaper import Reaper
from services.hub.runs.removal import Removals
from services.hub.runs.resuming import Resumes
from services.hub.runs.sealer import Sealer
from services.hub.runs.service import RunService
from services.hub.runs.stops import Stops
from services.hub.runs.wakes import Wakes
from tests.integration.hub.scorer_support import Scorer, scorer_served
from tests.integration.hub.support import MIGRATIONS, seed
from tests.transitions import GUARD

LEASE_SECONDS = 2.0
SECRET = "sk-of-the-model"
DIGEST = "d" * 64

#: Who may call what, as in the hub's own composition.
SERVICES: Mapping[str, frozenset[str]] = {
    "benchgen.eval.v1.LeaseService": frozenset({"runner"}),
    "benchgen.eval.v1.RunService": frozenset({"gateway"}),
}


@dataclass(slots=True)
class Hub:
    """One hub process's worth of runs; two of them may share their servers."""

    db: asyncpg.Pool
    bus: bus.Bus
    wakes: Wakes
    locks: PoolLocks
    leases: Leases
    dispatcher: Dispatcher
    reaper: Reaper
    sealer: Sealer
    loader: Loader
    outbox: Outbox
    removals: Removals
    auditor: Auditor
    verifier: Verifier
    runs: run_pb2_grpc.RunServiceAsyncStub
    runner: lease_pb2_grpc.LeaseServiceAsyncStub
    runner_as_gateway: lease_pb2_grpc.LeaseServiceAsyncStub
    principals: Signer
    stopping: asyncio.Event
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def as_(
        self, *scopes: Scope, key: str = "key-1", daily: DailyLimits = NO_LIMITS
    ) -> tuple[tuple[str, str | bytes], ...]:
        """The metadata of a caller with these scopes; all when none is given."""
        who = Principal(key, frozenset(scopes or Scope), daily)
        return ((auth.PRINCIPAL_KEY, auth.seal_principal(who, self.principals)),)

    async def create(self, cases: int = 100, **fields: Any) -> run_pb2.Run:
        """Create a run of the environment with so many cases."""
        request = run_request(cases, **fields)
        return await self.runs.CreateRun(request, metadata=self.as_())

    async def get(self, run: str) -> run_pb2.Run:
        """A run as it is now."""
        return await self.runs.GetRun(run_pb2.GetRunRequest(name=run), metadata=self.as_())

    async def keep(self, runner: str, shards: int = 4, calls: int = 0) -> None:
        """Say that a runner is there."""
        await self.runner.KeepRunner(lease_pb2.KeepRunnerRequest(runner=runner, shards=shards, calls=calls))

    async def lease(self, shard: str, runner: str = "a", request_id: str = "") -> Held:
        """Lease a shard, and check the lease as a scorer would."""
        answer = await self.runner.LeaseShard(
            lease_pb2.LeaseShardRequest(
                shard=shard, runner=runner, request_id=request_id or str(uuid.uuid4())
            )
        )
        self.verifier.verify(answer.lease.claims, answer.lease.signature, what="lease")
        claims = lease_pb2.LeaseClaims.FromString(answer.lease.claims)
        grant = answer.grant if answer.HasField("grant") else None
        return Held(
            answer.lease, claims, answer.permits, answer.duration.ToTimedelta().total_seconds(), grant
        )

    async def renew(
        self, held: Held, in_use: int = 0, *, says: lease_pb2.Spending | None = None
    ) -> lease_pb2.RenewLeaseResponse:
        """Renew a lease."""
        claims = held.claims
        return await self.runner.RenewLease(
            lease_pb2.RenewLeaseRequest(
                shard=claims.shard,
                attempt=claims.attempt,
                runner=claims.runner,
                permits_in_use=in_use,
                spending=says,
            )
        )

    async def complete(self, held: Held, in_use: int = 0, *, says: lease_pb2.Spending | None = None) -> int:
        """Complete a shard."""
        claims = held.claims
        answer = await self.runner.CompleteShard(
            lease_pb2.CompleteShardRequest(
                shard=claims.shard,
                attempt=claims.attempt,
                runner=claims.runner,
                permits_in_use=in_use,
                spending=says,
            )
        )
        return answer.permits

    async def release(
        self,
        held: Held,
        reason: lease_pb2.ReleaseShardRequest.Reason.ValueType,
        message: str = "",
        *,
        says: lease_pb2.Spending | None = None,
    ) -> None:
        """Hand a shard back."""
        claims = held.claims
        await self.runner.ReleaseShard(
            lease_pb2.ReleaseShardRequest(
                shard=claims.shard,
                attempt=claims.attempt,
                runner=claims.runner,
                reason=reason,
                message=message,
                spending=says,
            )
        )

    async def shards(self, run: str) -> list[asyncpg.Record]:
        """A run's shards as they are stored."""
        return await self.db.fetch("SELECT * FROM shards WHERE run_id = $1 ORDER BY number", run)

    def loop(self, step: Callable[[], Awaitable[None]], every: float, wake: asyncio.Event) -> None:
        """Repeat a step as the process does."""

        async def repeat() -> None:
            while True:
                wake.clear()
                try:
                    await step()
                except (Unavailable, *db.TRANSIENT):
                    await asyncio.sleep(0.05)
                    continue
                try:
                    await asyncio.wait_for(wake.wait(), every)
                except TimeoutError:
                    continue

        self._tasks.append(asyncio.create_task(repeat()))

    def start(self) -> None:
        """Start all loops."""
        self.loop(self.dispatcher.step, 1.0, self.wakes.dispatch)
        self.loop(self.reaper.step, 0.5, asyncio.Event())
        self.loop(self.sealer.step, 0.5, self.wakes.seal)
        self.loop(self.loader.step, 1.0, self.wakes.load)
        self.loop(self.outbox.step, 1.0, self.wakes.outbox)

    async def stop(self) -> None:
        """Stop all loops; whatever ended one of them is raised."""
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that a runner of a test got."""

    lease: lease_pb2.SignedLease
    claims: lease_pb2.LeaseClaims
    permits: int
    seconds: float
    grant: lease_pb2.Grant | None = None


def run_request(cases: int = 100, **fields: Any) -> run_pb2.CreateRunRequest:
    """A request for a run of the environment with so many cases; of a registered model unless told otherwise."""
    fields.setdefault("request_id", str(uuid.uuid4()))
    fields.setdefault("environment", f"cases-{cases}")
    if "predictions" not in fields:
        fields.setdefault("model", "gpt")
    return run_pb2.CreateRunRequest(**fields)


async def cancel(hub: Hub, run: run_pb2.Run) -> run_pb2.Run:
    """Cancel a run."""
    return await hub.runs.CancelRun(run_pb2.CancelRunRequest(name=run.name), metadata=hub.as_())


async def finish(hub: Hub, run: run_pb2.Run, runner: str = "a") -> None:
    """Do all the work of a run."""
    for number in range(run.progress.shards):
        await hub.complete(await hub.lease(shard(run, number), runner))


async def ended(hub: Hub, run: run_pb2.Run) -> run_pb2.Run:
    """Follow a run to its end."""
    async with asyncio.timeout(15):
        watch = hub.runs.WatchRun(run_pb2.WatchRunRequest(name=run.name), metadata=hub.as_())
        return [now async for now in watch][-1]


def shard(run: run_pb2.Run, number: int = 0) -> str:
    """The id of a run's shard."""
    return f"{run.name}-{number:06d}"


@contextmanager
def refused(kind: type[BenchgenError]) -> Iterator[list[BenchgenError]]:
    """Expect that a call is refused with an error of this kind, which the list holds afterwards."""
    caught: list[BenchgenError] = []
    try:
        yield caught
    except grpc.RpcError as failure:
        error = error_of(failure)
        assert type(error) is kind, error
        caught.append(error)
    else:
        raise AssertionError(f"expected {kind.__name__}")


@asynccontextmanager
async def _guarded(pool: asyncpg.Pool) -> AsyncIterator[None]:
    """No run or shard changes its state but as the domain says."""
    async with pool.acquire() as connection:
        await connection.execute(GUARD)
    yield


@asynccontextmanager
async def hub_served(
    dsn: str, nats_url: str, scorer_address: str, scorer_token: str, key: str, *, lease: float = LEASE_SECONDS
) -> AsyncIterator[Hub]:
    """A hub's runs, served; its loops are not started.

    :param key: the seed that leases are signed with; hubs that run at once share it.
    """
    tokens = {"runner": seed(), "gateway": seed()}
    principals, signer, wakes, stopping = Signer(seed()), Signer(key), Wakes(), asyncio.Event()
    peers = ",".join(f"{identity}={auth.hash_token(token)}" for identity, token in tokens.items())
    settings = RpcSettings(peer_tokens=peers, service_token=SecretStr(scorer_token))
    access = rpc.Access(
        settings,
        SERVICES,
        public=["benchgen.eval.v1.RunService"],
        principals=Verifier(principals.public_key),
    )
    async with (
        db.pool(dsn, MIGRATIONS) as pool,
        _guarded(pool),
        bus.connect(nats_url, "hub") as connected,
        rpc.channel(scorer_address, settings) as to_scorer,
    ):
        await connected.listen(f"{bus.RUNS_CHANGED}.*", wakes.heard_run_changed)
        stub = result_pb2_grpc.RecordServiceStub(to_scorer)
        locks, plans = PoolLocks(pool), Plans(pool)
        leases = Leases(locks, connected, wakes, timedelta(seconds=lease))
        stops = Stops(locks, leases)
        resumes, removals = Resumes(pool, locks, leases, stub), Removals(pool, locks, stub, wakes)

        async def read_secret(model: str) -> str:
            return f"{SECRET}-{model}"

        def register(server: grpc.aio.Server) -> None:
            lease_service = LeaseService(pool, leases, plans, signer, wakes, read_secret)
            lease_pb2_grpc.add_LeaseServiceServicer_to_server(lease_service, server)
            creator = Creator(pool, "http://127.0.0.1:9")
            estimator = Estimator(Prompts())  # type: ignore[arg-type]
            run_service = RunService(
                pool, creator, estimator, stops, resumes, removals, plans, stub, wakes, stopping
            )
            run_pb2_grpc.add_RunServiceServicer_to_server(run_service, server)

        def credentials(identity: str) -> RpcSettings:
            return RpcSettings(service_token=SecretStr(tokens[identity]))

        async with (
            rpc.server("127.0.0.1:0", settings, access, register, grace=0.5) as port,
            rpc.channel(f"127.0.0.1:{port}", credentials("gateway")) as from_gateway,
            rpc.channel(f"127.0.0.1:{port}", credentials("runner")) as from_runner,
        ):
            hub = Hub(
                pool,
                connected,
                wakes,
                locks,
                leases,
                Dispatcher(pool, locks, connected, plans),
                Reaper(pool, locks, leases, grace=0.0),
                Sealer(pool, locks, stub, wakes),
                Loader(pool, leases, plans, signer, stub, stops),
                Outbox(pool, connected),
                removals,
                Auditor(pool, locks, stops, stub, timedelta(0)),
                Verifier(signer.public_key),
                run_pb2_grpc.RunServiceStub(from_gateway),
                lease_pb2_grpc.LeaseServiceStub(from_runner),
                lease_pb2_grpc.LeaseServiceStub(from_gateway),
                principals,
                stopping,
            )
            try:
                yield hub
            finally:
                stopping.set()
                await hub.stop()


class Prompts:
    """Reads cases: that of position n asks with n letters."""

    async def rows(self, digest: str, positions: Sequence[int]) -> list[dict[str, Any]]:
        return [{"messages": [{"role": "user", "content": "x" * position}]} for position in positions]


async def publish(
    db: asyncpg.Pool, cases: int, *, oracle: bool = True, max_tokens: int | None = 64, harness: str = ""
) -> None:
    """Enter the version ``cases-<n>@1.0.0`` (``plain-<n>`` without an oracle) as a publication would."""
    name = f"{'cases' if oracle else 'plain'}-{cases}"
    async with db.acquire() as conn, conn.transaction():
        await conn.execute("INSERT INTO environments (name, latest_version) VALUES ($1, '1.0.0')", name)
        await conn.execute(
            "INSERT INTO versions (digest, environment, version, precedence, inputs_digest, targets_digest,"
            " solutions_digest, scoring_digest, scoring_json, materialiser, cases, primary_rule, split, title,"
            " description, category, tags, license, generation, verification, manifest_yaml, harness_json) VALUES"
            " ($1, $2, '1.0.0', '011010', $3, $3, $4, $3, '[]', '1', $5, 'correct', 'test', 'T', 'D',"
            " 'reasoning', '{}', 'MIT', $6, $7, 'schema: 1', $8)",
            name.encode().hex().ljust(64, "0"),
            name,
            DIGEST,
            DIGEST if oracle else "",
            cases,
            orjson.dumps(
                {
                    "temperature": 0.5,
                    "top_p": None,
                    "max_tokens": max_tokens,
                    "stop": ["END"],
                    "extra": {"top_k": 5},
                }
            ).decode(),
            orjson.dumps(
                {"verdict": "VERIFIED", "cases": 1, "oracle_mean": 1.0, "empty_mean": 0.0, "message": ""}
            ).decode(),
            harness,
        )


async def register_model(
    db: asyncpg.Pool, name: str = "gpt", *, cap: int = 64, secret: bool = False, price: str | None = None
) -> None:
    """Enter a model as its registration would."""
    generation: dict[str, object] = {
        "temperature": 1.0,
        "top_p": 0.9,
        "max_tokens": None,
        "stop": [],
        "extra": {"top_k": 1, "n": 1},
    }
    async with db.acquire() as conn:
        await conn.execute(
            "INSERT INTO models (name, request_id, base_url, model_id, max_concurrency, generation, description,"
            " input_usd_per_mtok, output_usd_per_mtok)"
            " VALUES ($1, gen_random_uuid(), 'http://127.0.0.1:9/v1', 'gpt-1', $2, $3, '', $4, $4)",
            name,
            cap,
            orjson.dumps(generation).decode(),
            price,
        )
        if secret:
            await conn.execute("INSERT INTO model_secrets (model, sealed) VALUES ($1, 'sealed')", name)


async def empty_streams(url: str) -> None:
    """Let NATS lose every message: of other tests, or of this one."""
    client = await nats.connect(url)
    try:
        for name in (bus.SHARDS_STREAM, bus.RUNS_STREAM):
            try:
                await client.jetstream().purge_stream(name)
            except NotFoundError:
                continue
    finally:
        await client.close()


async def eventually(check: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.02)


@dataclass(frozen=True, slots=True)
class World:
    """Everything that hubs of one test share, and a first hub."""

    hub: Hub
    scorer: Scorer
    another_hub: Callable[[], AbstractAsyncContextManager[Hub]]
    scorer_away: Callable[[], Awaitable[None]]


@asynccontextmanager
async def world(dsn: str, nats_url: str, *, lease: float = LEASE_SECONDS) -> AsyncIterator[World]:
    """A hub with a registered model `gpt` and environments of 10, 100 and 1,000 cases."""
    await empty_streams(nats_url)
    key = seed()
    async with AsyncExitStack() as scorers:
        scorer, address, token = await scorers.enter_async_context(scorer_served())

        def another_hub() -> AbstractAsyncContextManager[Hub]:
            return hub_served(dsn, nats_url, address, token, key, lease=lease)

        async with another_hub() as hub:
            for cases in (10, 100, 1000):
                await publish(hub.db, cases)
            await register_model(hub.db)
            yield World(hub, scorer, another_hub, scorers.aclose)
