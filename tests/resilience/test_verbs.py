"""Cancel, pause and resume at any moment, from every door, again and again, while processes die."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchgen.client import Client
from benchgen.errors import FailedPrecondition, Unavailable
from benchgen.eval.v1 import run_pb2
from services.local.files import PROGRAM_ROOT
from tests.resilience.cluster import CAP, ENDS, Cluster
from tests.resilience.conftest import Clean
from tests.resilience.tables import Observed, check_left, check_same, final

CASES, TRIALS = 200, 3
SEED = int(os.environ.get("BENCHGEN_RESILIENCE_SEED", "20"))
#: How soon calls must have stopped, seconds.
STOPPED_WITHIN = 2.0

Run = run_pb2.Run
_AT_WORK = (Run.STATE_QUEUED, Run.STATE_RUNNING)
Door = Callable[[Cluster, str, str], None]


class Refused(Exception):
    """It cannot be done in the state that the run is in; the text says why."""


class Away(Exception):
    """Nobody could say, just now."""


def by_grpc(cluster: Cluster, verb: str, run: str) -> None:
    """As programs do it."""
    with Client(cluster.grpc_address, cluster.api_key) as client:
        try:
            getattr(client, verb)(run)
        except FailedPrecondition as error:
            raise Refused(error.message) from None
        except Unavailable as error:
            raise Away(error.message) from None


def by_http(cluster: Cluster, verb: str, run: str) -> None:
    """As web pages and pipelines do it."""
    request = urllib.request.Request(
        f"{cluster.api_url}/runs/{run}:{verb}",
        method="POST",
        headers={"Authorization": f"Bearer {cluster.api_key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert json.load(answer)["run"] == run
    except urllib.error.HTTPError as error:
        with error:
            problem = json.load(error)
        kinds = {409: Refused, 503: Away}
        raise kinds[error.code](problem["detail"]) from None
    except OSError as error:
        raise Away(str(error)) from None


def by_cli(cluster: Cluster, verb: str, run: str) -> None:
    """As people do it."""
    told = {"BENCHGEN_API_KEY": cluster.api_key, "HOME": str(cluster.folder), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("benchgen")),
            "runs",
            verb,
            run,
            "--server",
            cluster.grpc_address,
            "--json",
        ],
        cwd=PROGRAM_ROOT,
        env=told,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    match done.returncode:
        case 0:
            assert json.loads(done.stdout)["run"] == run
        case 4:
            raise Away(done.stderr)
        case _:
            assert "cannot be" in done.stderr or "keeps changing" in done.stderr, done
            raise Refused(done.stderr)


DOORS: dict[str, Door] = {"grpc": by_grpc, "http": by_http, "cli": by_cli}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("verb", ["cancel", "pause"])
def test_calls_stop_within_two_seconds(cluster: Cluster, verb: str, door: str) -> None:
    cluster.model.latency = 60
    observed = Observed(cluster, 100)
    counts = cluster.model.counts
    cluster.until(lambda: counts.in_flight == CAP, "calls")
    DOORS[door](cluster, verb, observed.run)
    began = time.monotonic()
    cluster.until(lambda: counts.in_flight == 0, "the end of all calls", within=STOPPED_WITHIN)
    print(f"{verb} by {door}: the last call ended after {time.monotonic() - began:.2f} s")
    asked = sum(counts.asked.values())
    # Twice is as once.
    DOORS[door](cluster, verb, observed.run)
    wanted = Run.STATE_CANCELLED if verb == "cancel" else Run.STATE_PAUSED
    cluster.until(lambda: cluster.get(observed.run).state == wanted, verb)
    assert sum(counts.asked.values()) == asked
    if verb == "pause":
        by_grpc(cluster, "cancel", observed.run)
        cluster.until_ended(observed.run)


class Meddler:
    """Does what it likes to one run: a verb by a door, twice in a row now and then, and kills in between."""

    def __init__(
        self, cluster: Cluster, observed: Observed, chance: random.Random, victims: list[str]
    ) -> None:
        self.done: list[str] = []
        self._cluster = cluster
        self._observed = observed
        self._chance = chance
        self._victims = victims

    def act(self) -> None:
        """Do something."""
        if self._victims and self._chance.random() < 0.25:
            self._kill()
            return
        verb = self._chance.choices(["pause", "resume", "cancel"], weights=[4, 6, 2])[0]
        for _ in range(self._chance.choice([1, 1, 2])):
            door = self._chance.choice(list(DOORS))
            if verb != "resume" and self._cluster.get(self._observed.run).state in _AT_WORK:
                # What is in flight then may be called off, and have been answered.
                self._observed.allowed += CAP
            try:
                DOORS[door](self._cluster, verb, self._observed.run)
                said = "done"
            except (Refused, Away) as why:
                said = f"{type(why).__name__}: {str(why)[:60]!r}"
            self.done.append(f"{verb} by {door}: {said}")

    def _kill(self) -> None:
        node = self._cluster.nodes[self._chance.choice(self._victims)]
        if not node.runs:
            return
        if node.kind == "runner":
            self._observed.allow_for(node.name)
        node.kill()
        node.start()
        self.done.append(f"killed {node.name}")


def _meddled(cluster: Cluster, clean: Clean, seed: int, acts: int) -> None:
    clean(CASES, TRIALS)
    cluster.model.latency = 0.3
    chance = random.Random(seed)
    observed = Observed(cluster, CASES, trials=TRIALS)
    victims = [
        *(node.name for node in cluster.of_kind("hub", "scorer", "runner", "gateway")),
        "nats",
        "postgres",
    ]
    meddler = Meddler(cluster, observed, chance, victims)
    for _ in range(acts):
        time.sleep(chance.uniform(0, 0.4))
        meddler.act()
    print(f"seed {seed}:", *meddler.done, sep="\n  ")
    cluster.restore()
    # What was stopped goes on, as often as that takes: it may be on its way to an end just now.
    deadline = time.monotonic() + 90
    while True:
        now = cluster.get(observed.run)
        complete = cluster.recorded(observed.run) == observed.planned
        if now.state == Run.STATE_SUCCEEDED and complete:
            break
        assert time.monotonic() < deadline, now
        if now.state == Run.STATE_PAUSED or now.state in ENDS:
            by_grpc(cluster, "resume", observed.run)
        time.sleep(0.1)
    expected = clean(CASES, TRIALS)
    found = final(cluster, observed.run)
    # Every end has a report of its own.
    assert found.reports >= 1
    check_same(replace(found, reports=expected.reports), expected)
    check_left(cluster, observed.run)
    counts = cluster.model.counts
    print(f"{counts.repeated} answers repeated of {observed.allowed} allowed, {found.reports} reports")
    assert counts.repeated <= observed.allowed


def test_verbs_at_any_moment_while_processes_die(cluster: Cluster, clean: Clean) -> None:
    _meddled(cluster, clean, SEED, 16)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(SEED + 1, SEED + 21))
def test_many_verbs_at_any_moment(cluster: Cluster, clean: Clean, seed: int) -> None:
    _meddled(cluster, clean, seed, 40)
