"""Two hubs, two scorers, runners and a gateway on real servers, all of which a test kills, freezes and cuts apart.

Nobody restarts what a test ends: it does so itself, when it wants to. Between any two kinds of processes there is an
`Edge`: ``hub>postgres``, ``runner>scorer``, ``hub>scorer`` and so on.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import psutil

from benchgen.eval.v1 import (
    environment_pb2,
    environment_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
)
from services.common import auth
from services.common.auth import Principal, Scope
from services.common.signing import Signer
from services.local import credentials
from services.local.children import Child, Command
from services.local.files import private_folder, tail
from services.local.ports import LOOPBACK, Ports, free_port
from services.local.servers.seaweed import PORT_NAMES
from services.local.settings import StackSettings
from services.local.units import ServiceUnit, Unit
from tests.integration.hub.support import bundle, manifest, upload_messages, zipped
from tests.resilience.model_server import ModelServer
from tests.resilience.network import Background, Edge
from tests.transitions import GUARD

LEASE_SECONDS = 2.0
RING_SECONDS = 1.0
#: Within this time a run must be over when all faults have ended: two leases, and slow machines.
SOON = 40.0
CASES = 1000
ENVIRONMENT = "counted"
MODEL = "counted"
#: How many calls the model allows.
CAP = 24

ENDS = (run_pb2.Run.STATE_SUCCEEDED, run_pb2.Run.STATE_FAILED, run_pb2.Run.STATE_CANCELLED)
POSTGRES_AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

_START_SECONDS = 60.0
_SERVERS = ("postgres", "nats", "seaweed")
_CALLS = {
    "hub": ("postgres", "nats", "seaweed", "scorer"),
    "scorer": ("postgres", "nats", "seaweed"),
    "runner": ("nats", "seaweed", "hub", "scorer"),
    "gateway": ("postgres", "nats", "hub", "scorer"),
}
#: Makes the wall clock of a process wrong that has it on its path.
WRONG_CLOCK = Path(__file__).with_name("wrong_clock")
#: The port of each that others call.
_PORT = {
    "postgres": "postgres",
    "nats": "nats",
    "seaweed": "seaweed.s3",
    "hub": "hub.grpc",
    "scorer": "scorer.grpc",
}


class _PortsSeenBy(Ports):
    """The ports as one process is told them: those of others are of the edges to them."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._told = numbers

    def __getitem__(self, name: str) -> int:
        return self._told[name]


class Node:
    """One process of a cluster, started and ended by tests."""

    def __init__(self, name: str, unit: Unit, folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.kind = name.partition("-")[0]
        self.log = folder / f"{name}.log"
        self.unit = unit
        self.clock = 0.0
        """How far its wall clock is ahead when it starts next, seconds."""
        self._environment = environment
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._child is not None
        return self._child.pid

    @property
    def runs(self) -> bool:
        """Whether there is a process, frozen ones included."""
        return self._child is not None and self._child.exit_code() is None

    def start(self) -> None:
        """Start it, without waiting for it."""
        self.unit.prepare()
        command = self.unit.command()
        environment = {**command.env, **self._environment}
        if self.clock:
            environment["PYTHONPATH"] = f"{WRONG_CLOCK}:{environment['PYTHONPATH']}"
            environment["WRONG_CLOCK_SECONDS"] = str(self.clock)
        self._child = Child(
            self.name,
            Command(
                argv=command.argv,
                env=environment,
                cwd=command.cwd,
                enter=command.enter,
                user=command.user,
                stop_signal=command.stop_signal,
                grace_seconds=command.grace_seconds,
                death_signal=signal.SIGKILL,
            ),
            self.log,
        )

    def wait_ready(self) -> None:
        """Wait until it does its work."""
        deadline = time.monotonic() + _START_SECONDS
        while not self.unit.answers():
            if time.monotonic() > deadline or not (self.runs or self.kind in _SERVERS):
                raise AssertionError(f"{self.name} did not start:\n{tail(self.log)}")
            if not self.runs:
                # PostgreSQL refuses to start beside what is left for a moment of one that was killed.
                time.sleep(0.2)
                self.start()
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as the kernel does when memory is short."""
        assert self._child is not None
        self._child.kill()
        self._child.stop()
        self.unit.clean_up()

    def stop(self) -> None:
        """Ask it to end."""
        assert self._child is not None
        self.send(signal.SIGCONT)
        self._child.stop()
        self.unit.clean_up()

    def freeze(self) -> None:
        """Stop it where it stands."""
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on as if nothing had been."""
        self.send(signal.SIGCONT)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.runs:
            os.kill(self.pid, number)

    def ports(self) -> set[int]:
        """The local ports of its connections."""
        return {c.laddr.port for c in psutil.Process(self.pid).net_connections("tcp4") if c.laddr}


class Cluster:
    """All processes, the edges between them, and what a client does."""

    def __init__(
        self,
        folder: Path,
        *,
        runners: int = 2,
        hubs: int = 2,
        scorers: int = 2,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.folder = folder
        self._lease_seconds = lease_seconds
        self.background = Background()
        self.model = ModelServer(self.background)
        self.edges: dict[str, Edge] = {}
        self._credentials = credentials.generate()
        self._signer = Signer(self._credentials.principal_seed)
        names = {
            "hub": [f"hub-{n}" for n in range(1, hubs + 1)],
            "scorer": [f"scorer-{n}" for n in range(1, scorers + 1)],
            "runner": [f"runner-{n}" for n in range(1, runners + 1)],
            "gateway": ["gateway"],
        }
        self._own = self._choose_ports(names)
        for caller, others in (*_CALLS.items(), ("test", ("hub",))):
            for other in others:
                upstreams = [self._own[node][_PORT[other]] for node in names.get(other, [other])]
                name = f"{caller}>{other}"
                self.edges[name] = Edge(name, self.background, upstreams)
        self.nodes: dict[str, Node] = {}
        for name in _SERVERS:
            self.nodes[name] = self._server(name)
        for kind, members in names.items():
            for index, name in enumerate(members, start=1):
                self.nodes[name] = self._service(kind, name, index)

    @staticmethod
    def _choose_ports(names: Mapping[str, list[str]]) -> dict[str, dict[str, int]]:
        taken: set[int] = set()

        def another() -> int:
            taken.add(port := free_port(taken))
            return port

        own = {
            "postgres": {"postgres": another()},
            "nats": {"nats": another()},
            "seaweed": {name: another() for name in PORT_NAMES},
        }
        for kind, members in names.items():
            for name in members:
                own[name] = {f"{kind}.grpc": another(), f"{kind}.http": another()}
        own["gateway"]["gateway.api"] = another()
        return own

    def _server(self, name: str) -> Node:
        settings = StackSettings(self.folder, self._credentials, _PortsSeenBy(self._own[name]))
        unit: Unit = getattr(settings, name)()
        return Node(name, unit, self.folder, {})

    def _service(self, kind: str, name: str, index: int) -> Node:
        told = {_PORT[other]: self.edges[f"{kind}>{other}"].port for other in _CALLS[kind]}
        told |= self._own[name]
        # The n-th runner's port has its number; nobody simulates, and no scorer calls a hub.
        told[f"{name}.http"] = self._own[name][f"{kind}.http"]
        for nowhere in ("simulator.http", "hub.grpc"):
            told.setdefault(nowhere, 1)
        settings = StackSettings(self.folder, self._credentials, _PortsSeenBy(told))
        cache = self.folder / "cache" / name
        private_folder(cache)
        temporary = self.folder / "tmp" / name
        private_folder(temporary)
        environment = {
            "TMPDIR": str(temporary),
            "BENCHGEN_CACHE_DIR": str(cache),
            "BENCHGEN_LEASE_SECONDS": str(self._lease_seconds),
            "BENCHGEN_RING_SECONDS": str(RING_SECONDS),
            "BENCHGEN_RUNNER_SHARDS": "8",
        }
        return Node(name, ServiceUnit(settings, kind, index), self.folder, environment)

    def of_kind(self, *kinds: str) -> list[Node]:
        """The processes of these kinds, ``runner`` and so on."""
        return [node for node in self.nodes.values() if node.kind in kinds]

    def start(self) -> None:
        """Start everything, publish the environment and register the model."""
        for name in _SERVERS:
            self.nodes[name].start()
        for name in _SERVERS:
            self.nodes[name].wait_ready()
            self.nodes[name].unit.provision()
        services = self.of_kind("hub", "scorer", "runner", "gateway")
        for node in services:
            node.start()
        for node in services:
            node.wait_ready()
        asyncio.run(self._guard_states())
        self._publish()
        self.register_model(MODEL, self.model.url)

    def restore(self) -> None:
        """Heal every edge, thaw what is frozen, start what is dead, and wait until all of it works."""
        for edge in self.edges.values():
            edge.heal()
        for node in self.nodes.values():
            node.thaw()
        dead = [node for node in self.nodes.values() if not node.runs]
        for node in dead:
            node.start()
        for node in self.nodes.values():
            node.wait_ready()

    def close(self) -> None:
        """End everything, first who takes work in, last who keeps the data."""
        for kind in ("gateway", "runner", "hub", "scorer", "nats", "seaweed", "postgres"):
            for node in self.of_kind(kind):
                if node.runs:
                    node.stop()
        for edge in self.edges.values():
            edge.close()
        self.model.close()
        self.background.close()

    def lose_nats_data(self) -> None:
        """Let NATS come back as if it had never been there."""
        nats = self.nodes["nats"]
        nats.kill()
        shutil.rmtree(self.folder / "nats" / "store")
        nats.start()
        nats.wait_ready()

    def forget_cached(self) -> None:
        """Remove what runners and scorers keep on disk of the object store; what is in their memory stays."""
        for node in self.of_kind("runner", "scorer"):
            for folder in (self.folder / "cache" / node.name).iterdir():
                shutil.rmtree(folder)

    # What a client does.

    def create(
        self,
        cases: int,
        *,
        trials: int = 1,
        seed: int = 7,
        model: str = MODEL,
        priority: int = 0,
        use_cache: bool = False,
        environment: str = ENVIRONMENT,
    ) -> str:
        """Start a run of the first so many cases; returns its id. Repeats the request until it is answered."""
        request = run_pb2.CreateRunRequest(
            request_id=str(uuid.uuid4()),
            environment=environment,
            model=model,
            trials=trials,
            seed=seed,
            priority=priority,
            selection=run_pb2.Selection(limit=cases),
            use_cache=use_cache,
        )
        run: run_pb2.Run = self.call(lambda channel: run_pb2_grpc.RunServiceStub(channel).CreateRun, request)
        return run.name

    def get(self, run: str) -> run_pb2.Run:
        """A run as it is now."""
        found: run_pb2.Run = self.call(
            lambda channel: run_pb2_grpc.RunServiceStub(channel).GetRun, run_pb2.GetRunRequest(name=run)
        )
        return found

    def cancel(self, run: str) -> None:
        """Stop a run for good, and wait for its end."""
        request = run_pb2.CancelRunRequest(name=run)
        self.call(lambda channel: run_pb2_grpc.RunServiceStub(channel).CancelRun, request)
        self.until_ended(run)

    def until_recorded(self, run: str, results: int, *, within: float = 60.0) -> None:
        """Wait until so many results of a run are stored."""
        self.until(lambda: self.recorded(run) >= results, f"{results} results of {run}", within=within)

    def until_ended(self, run: str, *, within: float = SOON) -> run_pb2.Run:
        """Wait for the end of a run; so long from the last result on, where a slow machine makes it take long."""
        deadline, seen = time.monotonic() + within, -1
        while (now := self.get(run)).state not in ENDS:
            if (recorded := self.recorded(run)) > seen:
                deadline, seen = time.monotonic() + within, recorded
            if time.monotonic() > deadline:
                shards = self.query("SELECT * FROM hub.shards WHERE run_id = $1 AND ended_at IS NULL", run)
                raise AssertionError(
                    f"after {within:.0f} s without a result still waiting for {now}: {shards}"
                )
            time.sleep(0.05)
        return now

    def until(self, check: Callable[[], bool], what: str, *, within: float = 20.0) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + within
        while not check():
            if time.monotonic() > deadline:
                raise AssertionError(f"after {within:.0f} s still waiting for {what}")
            time.sleep(0.05)

    def recorded(self, run: str) -> int:
        """How many results are stored, straight from the table; 0 while PostgreSQL is away."""
        try:
            rows = self.query("SELECT recorded FROM scorer.run_progress WHERE run_id = $1", run)
        except POSTGRES_AWAY:
            return 0
        return rows[0]["recorded"] if rows else 0

    def query(self, statement: str, *values: object) -> list[asyncpg.Record]:
        """Ask PostgreSQL, past all edges."""
        return asyncio.run(self._query(statement, *values))

    async def _guard_states(self) -> None:
        """Let no run or shard change its state but as the hub's domain says."""
        connection = await self._connect()
        try:
            await connection.execute(f"SET search_path TO hub; {GUARD}")
        finally:
            await connection.close()

    async def _query(self, statement: str, *values: object) -> list[asyncpg.Record]:
        connection = await self._connect()
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()

    async def _connect(self) -> asyncpg.Connection:
        dsn = (
            StackSettings(self.folder, self._credentials, _PortsSeenBy(self._own["postgres"]))
            .postgres()
            .dsn("benchgen")
        )
        return await asyncpg.connect(dsn, timeout=5)

    @property
    def nats_url(self) -> str:
        """NATS, past all edges."""
        seen = _PortsSeenBy(self._own["nats"])
        return StackSettings(self.folder, self._credentials, seen).nats().url

    def service_token(self, identity: str) -> str:
        """What a service presents to others."""
        return self._credentials.service_tokens[identity]

    @property
    def api_url(self) -> str:
        """Where the gateway's HTTP API is."""
        return f"http://{LOOPBACK}:{self._own['gateway']['gateway.api']}/api/v1"

    @property
    def grpc_address(self) -> str:
        """Where the gateway's public gRPC is."""
        return f"{LOOPBACK}:{self._own['gateway']['gateway.grpc']}"

    @property
    def api_key(self) -> str:
        """A key with every scope."""
        return self._credentials.api_key

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """A channel to one of the hubs."""
        with grpc.insecure_channel(f"{LOOPBACK}:{self.edges['test>hub'].port}") as channel:
            yield channel

    def call(self, method: Callable[[grpc.Channel], Any], request: Any, *, within: float = SOON) -> Any:
        """Call a hub as the gateway does, again until it answers."""
        deadline = time.monotonic() + within
        while True:
            try:
                with self.channel() as channel:
                    return method(channel)(request, timeout=5, metadata=self._metadata())
            except grpc.RpcError as failure:
                passing = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                if failure.code() not in passing or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        who = Principal("resilience", frozenset(Scope))
        return (
            (auth.TOKEN_KEY, self.service_token("gateway")),
            (auth.PRINCIPAL_KEY, auth.seal_principal(who, self._signer)),
        )

    def _publish(self) -> None:
        rows = [
            {"id": f"c-{n}", "question": f"Case c-{n}: what is {n} + {n}?", "answer": str(2 * n)}
            for n in range(CASES)
        ]
        self.publish(bundle(manifest(ENVIRONMENT), rows=rows))

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Publish an environment, made of these files."""
        zip_file = zipped(files, self.folder / "bundle.zip")
        with self.channel() as channel:
            stub = environment_pb2_grpc.EnvironmentServiceStub(channel)
            made = stub.UploadBundle(upload_messages(zip_file), timeout=30, metadata=self._metadata())

        def published() -> bool:
            now: environment_pb2.Publication = self.call(
                lambda channel: environment_pb2_grpc.EnvironmentServiceStub(channel).GetPublication,
                environment_pb2.GetPublicationRequest(name=made.name),
            )
            assert now.state != environment_pb2.Publication.STATE_REJECTED, now
            return now.state == environment_pb2.Publication.STATE_READY

        self.until(published, "the environment", within=60)

    def register_model(self, name: str, url: str, *, cap: int = CAP) -> None:
        """Register an endpoint that may get so many calls at once."""
        model = model_pb2.Model(
            name=name,
            base_url=url,
            model_id="counted",
            api=model_pb2.Model.API_OPENAI_CHAT,
            max_concurrency=cap,
            price=model_pb2.Price(input_usd_per_mtok="1", output_usd_per_mtok="2"),
        )
        request = model_pb2.CreateModelRequest(request_id=str(uuid.uuid4()), model=model)
        self.call(lambda channel: model_pb2_grpc.ModelServiceStub(channel).CreateModel, request)

    def logs(self, lines: int = 40) -> str:
        """The last lines of every process."""
        return "\n".join(f"--- {node.name}\n{tail(node.log, lines)}" for node in self.nodes.values())
