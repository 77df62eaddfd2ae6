"""A process of the local stack is killed in the middle of a run, and its supervisor starts another."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchgen.client import Client
from benchgen.eval.v1 import run_pb2
from tests.conftest import LocalStack, local

SUBJECT = "builtin/simulated?accuracy=0.7&latency_ms=150&latency_sigma=0.5"
CASES = 87
TRIALS = 15


@pytest.fixture(scope="module")
def short_leases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A stack whose leases end soon, so that what a dead runner held is taken up quickly."""
    data_dir = tmp_path_factory.mktemp("kills")
    os.environ["BENCHGEN_LEASE_SECONDS"] = "2"
    try:
        started = local("up", "--detach", "--runners", "2", data_dir=data_dir)
    finally:
        del os.environ["BENCHGEN_LEASE_SECONDS"]
    try:
        if started.returncode != 0:
            pytest.fail(f"the stack did not start:\n{started.stdout}\n{started.stderr}")
        yield LocalStack(data_dir, json.loads((data_dir / "stack.json").read_text()))
    finally:
        local("down", data_dir=data_dir)


Table = list[tuple[str, int, str, float | None, bool | None, str | None]]


def finish(client: Client, run: str) -> Table:
    """Wait for the end; answer with everything that a result is judged by."""
    for latest in client.watch(run):
        state = latest.state
    assert state == run_pb2.Run.STATE_SUCCEEDED
    return [
        (result.case_id, result.trial, result.response, score.value, score.passed, score.answer)
        for result in client.results(run)
        for score in result.scores
    ]


@pytest.fixture(scope="module")
def clean(short_leases: LocalStack) -> Table:
    """What a run gives when nothing dies."""
    with Client(short_leases.grpc, short_leases.api_key) as client:
        run = client.run("instruction-basics", model=SUBJECT, trials=TRIALS, seed=7)
        table = finish(client, run.name)
    assert len({row[:2] for row in table}) == CASES * TRIALS
    return table


@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", ["hub", "scorer", "gateway", "runner-1", "simulator", "postgres"])
def test_a_killed_process_changes_nothing(short_leases: LocalStack, clean: Table, victim: str) -> None:
    with Client(short_leases.grpc, short_leases.api_key) as client:
        run = client.run("instruction-basics", model=SUBJECT, trials=TRIALS, seed=7)
        for latest in client.watch(run.name):
            if latest.progress.recorded >= CASES * TRIALS // 4:
                break
        os.kill(pid_of(short_leases.data_dir, victim), signal.SIGKILL)
        table = finish(client, run.name)
        report = client.report(run.name)
    assert table == clean
    assert report.coverage.recorded == report.coverage.planned == CASES * TRIALS


def pid_of(data_dir: Path, name: str) -> int:
    """The process that does this job now; after an earlier kill it takes a moment to be there again."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        services = json.loads((data_dir / "stack.json").read_text())["services"]
        pid = next(int(service["pid"]) for service in services if service["name"] == name)
        if Path(f"/proc/{pid}").exists():
            return pid
        time.sleep(0.05)
    raise AssertionError(f"{name} did not come back")
