"""`benchgen up` from outside: one stack a directory, restarts, clean stops, nothing left after a kill."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from services.local.files import PROGRAM_ROOT
from services.local.ports import free_port
from services.local.settings import port_names
from services.local.state import DataDir
from tests.conftest import LocalStack, local

SERVERS = {"postgres", "nats", "seaweed"}


def processes_in(folder: Path) -> list[psutil.Process]:
    """Every process that works in this folder or below: servers, their children, services."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def status(data_dir: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(local("status", "--json", data_dir=data_dir).stdout)
    return document


def services_of(data_dir: Path) -> dict[str, dict[str, Any]]:
    return {service["name"]: service for service in status(data_dir).get("services", [])}


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory, stopped whatever the test does."""
    folder = tmp_path / "data, with a comma"
    yield folder
    local("down", data_dir=folder)
    assert processes_in(folder) == []


def start_servers(data_dir: Path) -> str:
    started = local("up", "--servers-only", "--detach", data_dir=data_dir)
    assert started.returncode == 0, started.stdout + started.stderr
    return started.stdout


def test_one_stack_a_directory_that_keeps_its_ports_and_data(data_dir: Path) -> None:
    assert "ready in" in start_servers(data_dir)
    first = services_of(data_dir)
    assert set(first) == SERVERS
    assert {service["health"] for service in first.values()} == {"ready"}

    again = local("up", "--servers-only", data_dir=data_dir)
    assert again.returncode == 0
    assert "it runs already" in again.stdout

    stopped = local("down", data_dir=data_dir)
    assert stopped.returncode == 0
    assert processes_in(data_dir) == []
    assert not (data_dir / "stack.json").exists()

    secrets = (data_dir / "secrets.json").read_text()
    start_servers(data_dir)
    assert {name: service["port"] for name, service in services_of(data_dir).items()} == {
        name: service["port"] for name, service in first.items()
    }
    assert (data_dir / "secrets.json").read_text() == secrets


def test_nothing_in_the_directory_is_for_others(data_dir: Path) -> None:
    start_servers(data_dir)
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    for name in ("secrets.json", "stack.json", "processes.json", "ports.json", "api-key", "lock"):
        assert stat.S_IMODE((data_dir / name).stat().st_mode) == 0o600, name
    addresses = {
        connection.laddr.ip
        for process in processes_in(data_dir)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_with_nothing_running(data_dir: Path) -> None:
    assert local("status", data_dir=data_dir).returncode == 4
    assert status(data_dir)["state"] == "stopped"
    stopped = local("down", data_dir=data_dir)
    assert (stopped.returncode, stopped.stdout.strip()) == (0, "not running")
    assert local("up", "--runners", "0", data_dir=data_dir).returncode == 2


async def test_a_killed_server_is_started_again_with_its_data(data_dir: Path) -> None:
    start_servers(data_dir)
    dsn = DataDir(data_dir).settings().postgres().dsn("hub")
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE kept AS SELECT 7 AS id")
    await connection.close()
    for name in sorted(SERVERS):
        os.kill(services_of(data_dir)[name]["pid"], signal.SIGKILL)

    def healed() -> bool:
        services = services_of(data_dir)
        return all(service["health"] == "ready" and service["restarts"] for service in services.values())

    eventually(healed)
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("SELECT id FROM kept") == 7
    await connection.close()
    assert "died (SIGKILL)" in (data_dir / "logs" / "supervisor.log").read_text()


async def test_a_database_that_is_told_to_stop_while_it_is_used_does_not_linger(data_dir: Path) -> None:
    start_servers(data_dir)
    dsn = DataDir(data_dir).settings().postgres().dsn("hub")
    # On SIGTERM it takes no new client, and waits for the old ones. Those of services never leave.
    client = await asyncpg.connect(dsn)
    os.kill(services_of(data_dir)["postgres"]["pid"], signal.SIGTERM)

    def healed() -> bool:
        server = services_of(data_dir)["postgres"]
        return bool(server["health"] == "ready" and server["restarts"])

    eventually(healed)
    client.terminate()
    again = await asyncpg.connect(dsn)
    assert await again.fetchval("SELECT 1") == 1
    await again.close()


def test_a_killed_supervisor_leaves_nothing_running(data_dir: Path) -> None:
    start_servers(data_dir)
    os.kill(status(data_dir)["pid"], signal.SIGKILL)
    eventually(lambda: processes_in(data_dir) == [], 5)
    assert local("status", data_dir=data_dir).returncode == 4
    start_servers(data_dir)
    assert set(services_of(data_dir)) == SERVERS


def test_what_a_killed_supervisor_left_is_ended_at_the_next_start(data_dir: Path) -> None:
    start_servers(data_dir)
    left = services_of(data_dir)["nats"]["pid"]
    os.kill(left, signal.SIGSTOP)
    os.kill(status(data_dir)["pid"], signal.SIGKILL)
    # A stopped process does not act on the signal that the kernel sends it.
    eventually(lambda: [process.pid for process in processes_in(data_dir)] == [left], 5)
    assert "ended what a killed supervisor left: nats" in start_servers(data_dir)
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(data_dir: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "services.local", "up", "--servers-only", "--data-dir", str(data_dir)],
        cwd=PROGRAM_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        eventually(lambda: (data_dir / "stack.json").exists())
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert output.splitlines()[-1] == "stopped"
    assert processes_in(data_dir) == []


def test_a_start_that_cannot_succeed_says_why_and_leaves_nothing(data_dir: Path) -> None:
    start_servers(data_dir)
    local("down", data_dir=data_dir)
    (data_dir / "postgres" / "data" / "PG_VERSION").write_text("9.6\n")
    failed = local("up", "--servers-only", data_dir=data_dir)
    assert failed.returncode == 4
    assert "postgres does not start" in failed.stdout
    assert "initialized by PostgreSQL version 9.6" in failed.stdout
    assert processes_in(data_dir) == []


def test_a_service_is_told_only_what_it_needs(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    data.path.mkdir()
    settings = data.settings()
    settings.ports.claim(port_names(2))
    secrets = settings.credentials

    def told(service: str) -> str:
        return json.dumps(settings.settings_for(service))

    assert "POSTGRES" not in told("runner")
    assert "S3" not in told("gateway")
    for service in ("runner", "scorer", "gateway", "simulator"):
        assert secrets.lease_seed not in told(service)
        assert secrets.master_key not in told(service)
    for service in ("hub", "scorer", "runner", "simulator"):
        assert secrets.principal_seed not in told(service)
        for other in {"hub", "scorer", "runner", "simulator", "admin"} - {service}:
            assert secrets.objects[other] not in told(service)
    assert secrets.api_key not in told("gateway")
    assert settings.settings_for("runner", 1) != settings.settings_for("runner", 2)


def test_the_whole_stack_is_up(stack: LocalStack) -> None:
    services = services_of(stack.data_dir)
    assert set(services) == SERVERS | {"hub", "scorer", "gateway", "simulator", "runner-1", "runner-2"}
    assert {service["health"] for service in services.values()} == {"ready"}
    with urllib.request.urlopen(f"{stack.api}/openapi.json", timeout=10) as answer:
        assert json.load(answer)["openapi"].startswith("3.")
    assert stack.api_key.startswith("bg_")


def test_killed_services_come_back(stack: LocalStack) -> None:
    before = services_of(stack.data_dir)
    ours = {name: service for name, service in before.items() if name not in SERVERS}
    for service in ours.values():
        os.kill(service["pid"], signal.SIGKILL)

    def healed() -> bool:
        now = services_of(stack.data_dir)
        return all(
            now[name]["pid"] != service["pid"] and now[name]["health"] == "ready"
            for name, service in ours.items()
        )

    eventually(healed, 40)


def test_a_runner_more_can_be_started_by_hand(stack: LocalStack) -> None:
    settings = DataDir(stack.data_dir).settings()
    port = free_port()
    environment = settings.settings_for("runner", 1) | {"BENCHGEN_HTTP_LISTEN": f"127.0.0.1:{port}"}

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
                return bool(answer.status == 200) and b"sandbox: programs can be run" in answer.read()
        except OSError:
            return False

    with subprocess.Popen(
        [sys.executable, "-m", "services.runner"], env=environment, stdout=subprocess.DEVNULL
    ) as process:
        eventually(ready)
        process.terminate()
        assert process.wait(20) == 0
