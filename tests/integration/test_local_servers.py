"""The servers that `benchgen up` starts: who may reach what, and what outlives a stop or a kill."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import grpc
import nats
import psutil
import pytest
from minio import Minio
from minio.error import S3Error
from nats.js.api import StorageType, StreamConfig

from services.local import credentials
from services.local.children import ProcessRecord, end_stale, record_of
from services.local.errors import LocalStackError
from services.local.ports import Ports, free_port, is_free
from services.local.servers.nats import NatsServer
from services.local.servers.postgres import PostgresServer
from services.local.servers.seaweed import BUCKETS, PORT_NAMES, RIGHTS, SeaweedServer
from tests.conftest import Database, ObjectStore, running

MakeDatabase = Callable[..., Database]


@contextmanager
def denied() -> Iterator[None]:
    """Expect that S3 refuses."""
    with pytest.raises(S3Error) as refused:
        yield
    assert refused.value.code == "AccessDenied"


def client(store: ObjectStore, identity: str) -> Minio:
    return Minio(
        store.endpoint,
        access_key=store.access_key(identity),
        secret_key=store.secret_key(identity),
        secure=False,
        region="us-east-1",
    )


def put(store: ObjectStore, identity: str, bucket: str, name: str = "x", data: bytes = b"content") -> None:
    client(store, identity).put_object(f"{store.prefix}{bucket}", name, io.BytesIO(data), len(data))


def get(store: ObjectStore, identity: str, bucket: str, name: str = "x") -> bytes:
    response = client(store, identity).get_object(f"{store.prefix}{bucket}", name)
    try:
        return response.read()
    finally:
        response.close()
        response.release_conn()


async def test_each_role_owns_its_schema_and_sees_no_other(database: MakeDatabase) -> None:
    made = database()
    hub = await asyncpg.connect(made.dsn("hub"))
    scorer = await asyncpg.connect(made.dsn("scorer"))
    try:
        await hub.execute("CREATE TABLE runs (id int)")
        assert await hub.fetchval("SELECT schemaname FROM pg_tables WHERE tablename = 'runs'") == "hub"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await scorer.fetch("SELECT * FROM hub.runs")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await scorer.execute("CREATE TABLE public.stray (id int)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await scorer.execute("CREATE TABLE hub.stray (id int)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await scorer.execute("CREATE SCHEMA stray")
    finally:
        await hub.close()
        await scorer.close()


async def test_a_database_is_a_copy_of_its_template(database: MakeDatabase) -> None:
    first = database()
    connection = await asyncpg.connect(first.dsn("hub"))
    await connection.execute("CREATE TABLE runs AS SELECT 7 AS id")
    await connection.close()
    connection = await asyncpg.connect(database(first.name).dsn("hub"))
    assert await connection.fetchval("SELECT id FROM runs") == 7
    await connection.close()


async def test_postgres_wants_the_right_password_and_keeps_its_promises(postgres: PostgresServer) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres.dsn("hub").replace("hub:", "hub:wrong"))
    connection = await asyncpg.connect(postgres.dsn("hub"))
    try:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await connection.fetchval(f"SHOW {setting}") == "on"
        assert await connection.fetchval("SHOW server_version_num") >= "180000"
    finally:
        await connection.close()


async def test_postgres_survives_a_kill_and_keeps_its_data(tmp_path: Path) -> None:
    ports = Ports(tmp_path / "ports.json")
    ports.claim(["postgres"])
    passwords = credentials.generate().postgres
    server = PostgresServer(tmp_path / "postgres", ports["postgres"], passwords)
    with running(server, tmp_path) as child:
        await server._make_database()
        connection = await asyncpg.connect(server.dsn("hub"))
        await connection.execute("CREATE TABLE runs AS SELECT 7 AS id")
        child.kill()
        await connection.close()
    with running(PostgresServer(tmp_path / "postgres", ports["postgres"], passwords), tmp_path):
        connection = await asyncpg.connect(server.dsn("hub"))
        assert await connection.fetchval("SELECT id FROM runs") == 7
        await connection.close()


def test_an_interrupted_creation_is_begun_again(tmp_path: Path) -> None:
    ports = Ports(tmp_path / "ports.json")
    ports.claim(["postgres"])
    server = PostgresServer(tmp_path / "postgres", ports["postgres"], credentials.generate().postgres)
    half_made = tmp_path / "postgres" / "data.unfinished" / "base"
    half_made.mkdir(parents=True)
    server.prepare()
    assert (tmp_path / "postgres" / "data" / "PG_VERSION").read_text().strip() == "18"
    assert not half_made.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else for PostgreSQL")
def test_root_without_namespaces_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.local.servers.postgres._namespaces_permitted", lambda: False)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = PostgresServer(closed / "data" / "postgres", 1, credentials.generate().postgres)
    with pytest.raises(LocalStackError, match="--data-dir"):
        server.prepare()


def test_a_folder_may_be_written_in_any_letters(tmp_path: Path) -> None:
    folder = tmp_path / "José's data \u2603"
    folder.mkdir()
    server = NatsServer(folder / "nats", free_port(), "secret")
    with running(server, folder):
        assert server.answers()


async def test_nats_keeps_a_stream_and_refuses_strangers(nats_server: NatsServer) -> None:
    connection = await nats.connect(nats_server.url)
    jetstream = connection.jetstream()
    await jetstream.add_stream(StreamConfig(name="KEPT", subjects=["kept.*"], storage=StorageType.FILE))
    assert (await jetstream.publish("kept.one", b"1")).seq == 1
    await connection.close()
    with socket.create_connection(("127.0.0.1", nats_server.port), timeout=5) as stranger:
        stranger.sendall(b"CONNECT {}\r\nPING\r\n")
        answers = b"".join(iter(lambda: stranger.recv(4096), b""))
    assert b"-ERR 'Authorization Violation'" in answers


def test_a_runner_reads_inputs_and_writes_payloads_and_nothing_else(object_store: ObjectStore) -> None:
    for bucket in ("bundles", "inputs", "targets", "solutions"):
        put(object_store, "hub", bucket)
    assert get(object_store, "runner", "inputs") == b"content"
    put(object_store, "runner", "payloads")
    for bucket in ("bundles", "targets", "solutions", "payloads"):
        with denied():
            get(object_store, "runner", bucket)
    for bucket in ("bundles", "inputs", "targets", "solutions", "predictions"):
        with denied():
            put(object_store, "runner", bucket, "y")
        with denied():
            list(client(object_store, "runner").list_objects(f"{object_store.prefix}{bucket}"))


@pytest.mark.parametrize("identity", sorted(RIGHTS))
def test_identities_have_exactly_their_rights(object_store: ObjectStore, identity: str) -> None:
    for bucket in BUCKETS:
        put(object_store, "admin", bucket)
        allowed = RIGHTS[identity].get(bucket, ())
        if "Read" in allowed:
            assert get(object_store, identity, bucket) == b"content"
        else:
            with denied():
                get(object_store, identity, bucket)
        if "Write" in allowed:
            put(object_store, identity, bucket, "y")
            client(object_store, identity).remove_object(f"{object_store.prefix}{bucket}", "y")
        else:
            with denied():
                put(object_store, identity, bucket, "y")
            with denied():
                client(object_store, identity).remove_object(f"{object_store.prefix}{bucket}", "x")


def test_no_back_door_of_the_object_store_is_open(object_store: ObjectStore, server_ports: Ports) -> None:
    put(object_store, "hub", "targets")
    paths = [f"/buckets/{object_store.prefix}targets/x", "/dir/assign", "/dir/lookup?fileId=1,02ab&read=yes"]
    for name in PORT_NAMES:
        if name.endswith("grpc"):
            with (
                grpc.insecure_channel(f"127.0.0.1:{server_ports[name]}") as channel,
                pytest.raises(grpc.FutureTimeoutError),
            ):
                grpc.channel_ready_future(channel).result(timeout=0.5)
            continue
        for path in paths:
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{server_ports[name]}{path}", timeout=5)
            with refused.value as answer:
                assert answer.code in (401, 403, 404), f"{name}{path}"


def test_the_object_store_keeps_its_objects_over_a_kill(tmp_path: Path) -> None:
    ports = Ports(tmp_path / "ports.json")
    ports.claim(list(PORT_NAMES))
    numbers = {name: ports[name] for name in PORT_NAMES}
    keys = credentials.generate().objects
    server = SeaweedServer(tmp_path / "seaweed", numbers, keys, ["kept-"])
    store = ObjectStore(server, "kept-")
    with running(server, tmp_path) as child:
        server.provision()
        put(store, "hub", "inputs", data=b"a" * 3_000_000)
        child.kill()
    with running(SeaweedServer(tmp_path / "seaweed", numbers, keys, ["kept-"]), tmp_path):
        assert get(store, "runner", "inputs") == b"a" * 3_000_000
    assert all(is_free(number) for number in numbers.values())


def test_secrets_are_readable_by_their_owner_only(
    postgres: PostgresServer, nats_server: NatsServer, object_server: SeaweedServer
) -> None:
    for server in (postgres, nats_server, object_server):
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
        for file in server.directory.glob("*"):
            if file.is_file():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_credentials_are_made_once(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    first = credentials.load_or_create(path)
    assert credentials.load_or_create(path) == first
    # One of them is newer than some directories.
    known = json.loads(path.read_text())
    del known["simulator_token"]
    path.write_text(json.dumps(known))
    later = credentials.load_or_create(path)
    assert replace(later, simulator_token=first.simulator_token) == first
    assert len(later.simulator_token) > 30
    assert credentials.load_or_create(path) == later
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first.api_key.startswith("bg_")
    assert len(first.api_key) == 43


def test_a_taken_port_is_chosen_again_and_a_free_one_kept(tmp_path: Path) -> None:
    ports = Ports(tmp_path / "ports.json")
    ports.claim(["one", "two"])
    one, two = ports["one"], ports["two"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", one))
        taken.listen()
        again = Ports(tmp_path / "ports.json")
        again.claim(["one", "two"])
        assert again["one"] != one
        assert again["two"] == two


def test_a_reused_pid_is_never_killed() -> None:
    own = record_of("me", os.getpid())
    assert own.find() is not None
    elsewhen = ProcessRecord("me", own.pid, own.started - 1000, own.argv, signal.SIGKILL)
    other = ProcessRecord("me", own.pid, own.started, ("another", "program"), signal.SIGKILL)
    assert end_stale([elsewhen, other], grace_seconds=0.1) == []
    assert psutil.pid_exists(own.pid)
    assert time.time() >= own.started
