"""Real servers for the tests: started when a test first asks, on free ports, in a folder of their own.

``postgres``, ``nats_server`` and ``object_server`` live as long as the test session. ``database`` and
``object_store`` give a test a database and buckets that nobody else sees. ``stack`` is the whole local stack,
run by its supervisor in a process of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import pytest

from services.local import credentials
from services.local.children import Child, Command
from services.local.files import PROGRAM_ROOT, tail
from services.local.ports import Ports
from services.local.servers.nats import NatsServer
from services.local.servers.postgres import DATABASE, PostgresServer
from services.local.servers.seaweed import BUCKETS, PORT_NAMES, SeaweedServer, access_key

START_SECONDS = 40.0
# Prepared beforehand, because the object store reads who may do what when it starts.
BUCKET_PREFIXES = [f"test{number:03d}-" for number in range(256)]


class _Server(Protocol):
    name: str

    def prepare(self) -> None: ...
    def command(self) -> Command: ...
    def answers(self) -> bool: ...
    def clean_up(self) -> None: ...


@contextmanager
def running(server: _Server, folder: Path) -> Iterator[Child]:
    """Run one server until the block ends."""
    server.prepare()
    child = Child(server.name, server.command(), folder / f"{server.name}.log")
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.answers():
            if child.exit_code() is not None or time.monotonic() > deadline:
                pytest.fail(f"{server.name} did not start:\n{tail(child.log)}")
            time.sleep(0.02)
        yield child
    finally:
        child.stop()
        server.clean_up()


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's own files and settings out of reach of every test and of what it starts."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        for name in list(os.environ):
            if name.startswith(("BENCHGEN_", "XDG_")):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        yield


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's servers keep their data and logs."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def server_ports(server_folder: Path) -> Ports:
    """Free ports of the session's servers."""
    ports = Ports(server_folder / "ports.json")
    ports.claim(["postgres", "nats", *PORT_NAMES])
    return ports


@pytest.fixture(scope="session")
def secrets_of_session() -> credentials.Credentials:
    """Credentials of the session's servers."""
    return credentials.generate()


@pytest.fixture(scope="session")
def postgres(
    server_folder: Path, server_ports: Ports, secrets_of_session: credentials.Credentials
) -> Iterator[PostgresServer]:
    """A PostgreSQL with the database ``benchgen``: empty schemas of hub, scorer and gateway, a role each."""
    server = PostgresServer(server_folder / "postgres", server_ports["postgres"], secrets_of_session.postgres)
    with running(server, server_folder):
        server.provision()
        yield server


@dataclass(frozen=True, slots=True)
class Database:
    """A database of one test."""

    name: str
    server: PostgresServer

    def dsn(self, role: str) -> str:
        """Return its address for ``hub``, ``scorer``, ``gateway`` or the superuser ``benchgen``."""
        return self.server.dsn(role, self.name)


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[Callable[..., Database]]:
    """Make databases: ``database()`` copies the empty one, ``database(other.name)`` another with its content.

    The one that is copied must have no connection at that moment. They are dropped after the test.
    """
    made: list[str] = []

    def make(template: str = DATABASE) -> Database:
        name = f"test_{secrets.token_hex(6)}"
        _administer(postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
        made.append(name)
        return Database(name, postgres)

    yield make
    for name in reversed(made):
        _administer(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def _administer(server: PostgresServer, statement: str) -> None:
    """Execute a statement as the superuser, on a thread: the test that asks may run in an event loop."""

    async def execute() -> None:
        connection = await asyncpg.connect(server.dsn(credentials.POSTGRES_ADMIN, "postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    with ThreadPoolExecutor(max_workers=1) as executor:
        executor.submit(asyncio.run, execute()).result()


@pytest.fixture(scope="session")
def nats_server(
    server_folder: Path, server_ports: Ports, secrets_of_session: credentials.Credentials
) -> Iterator[NatsServer]:
    """A NATS server with JetStream, empty. Tests share it: name streams apart."""
    server = NatsServer(server_folder / "nats", server_ports["nats"], secrets_of_session.nats)
    with running(server, server_folder):
        yield server


@pytest.fixture(scope="session")
def nats_url(nats_server: NatsServer) -> str:
    """The address of the session's NATS, user and password included."""
    return nats_server.url


@pytest.fixture(scope="session")
def object_server(
    server_folder: Path, server_ports: Ports, secrets_of_session: credentials.Credentials
) -> Iterator[SeaweedServer]:
    """An S3 server whose identities have their rights under every prefix that `object_store` hands out."""
    server = SeaweedServer(
        server_folder / "seaweed",
        {name: server_ports[name] for name in PORT_NAMES},
        secrets_of_session.objects,
        BUCKET_PREFIXES,
    )
    with running(server, server_folder):
        yield server


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """Six empty buckets of one test, named ``prefix`` + bundles, inputs, targets, solutions, payloads, predictions."""

    server: SeaweedServer
    prefix: str

    @property
    def endpoint(self) -> str:
        """Return ``host:port`` of the S3 API (no TLS)."""
        return self.server.endpoint

    def access_key(self, identity: str) -> str:
        """Return the access key of ``hub``, ``runner``, ``scorer``, ``simulator`` or ``admin``."""
        return access_key(identity)

    def secret_key(self, identity: str) -> str:
        """Return the secret key of the same."""
        return self.server.secret_key(identity)


@pytest.fixture
def object_store(object_server: SeaweedServer) -> ObjectStore:
    """Buckets that only this test uses."""
    prefix = next(_prefixes)
    object_server.make_buckets([f"{prefix}{bucket}" for bucket in BUCKETS])
    return ObjectStore(object_server, prefix)


_prefixes = itertools.chain(BUCKET_PREFIXES)


@dataclass(frozen=True, slots=True)
class LocalStack:
    """A running `benchgen up`: what ``stack.json`` says, and its data directory."""

    data_dir: Path
    document: dict[str, Any]

    @property
    def api(self) -> str:
        """The gateway's HTTP address, a URL."""
        return str(self.document["api"])

    @property
    def grpc(self) -> str:
        """The gateway's gRPC address, ``host:port``."""
        return str(self.document["grpc"])

    @property
    def api_key(self) -> str:
        """The first API key."""
        return (self.data_dir / "api-key").read_text().strip()


def local(*arguments: str, data_dir: Path, timeout: float = 90) -> subprocess.CompletedProcess[str]:
    """Run ``python -m services.local`` with these arguments and wait for it."""
    return subprocess.run(
        [sys.executable, "-m", "services.local", *arguments, "--data-dir", str(data_dir)],
        cwd=PROGRAM_ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """The whole stack with two runners, through its real supervisor."""
    data_dir = tmp_path_factory.mktemp("stack")
    started = local("up", "--detach", "--runners", "2", data_dir=data_dir)
    try:
        if started.returncode != 0:
            pytest.fail(f"the stack did not start:\n{started.stdout}\n{started.stderr}")
        yield LocalStack(data_dir, json.loads((data_dir / "stack.json").read_text()))
    finally:
        local("down", data_dir=data_dir)
