"""Processes of every kind are killed at random moments, again and again, and come back after random times."""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.resilience.cluster import Cluster, Node
from tests.resilience.conftest import Clean
from tests.resilience.tables import Final, Observed

CASES, TRIALS = 300, 3
#: Slow enough that several kills fall into one run.
LATENCY = 0.2

SEED = int(os.environ.get("BENCHGEN_RESILIENCE_SEED", "20"))


class Killer:
    """Kills, and starts again what it killed.

    :param kills: how often.
    """

    def __init__(self, cluster: Cluster, seed: int, kills: int) -> None:
        self.left = kills
        self._cluster = cluster
        self._random = random.Random(seed)
        self._dead: list[tuple[float, Node]] = []
        print(f"seed {seed}, {kills} kills")

    def torment(self, observed: Observed) -> None:
        """Kill for as long as a run goes on."""
        while self.left and self._cluster.recorded(observed.run) < observed.planned:
            time.sleep(self._random.uniform(0.1, 0.9))
            self._bring_back()
            victim = self._random.choice([node for node in self._cluster.nodes.values() if node.runs])
            if victim.kind == "runner":
                observed.allow_for(victim.name)
            victim.kill()
            self.left -= 1
            back = self._random.choice([0.0, 0.3, 1.0, 3.0])
            self._dead.append((time.monotonic() + back, victim))
            print(f"{time.monotonic() - observed.started:6.1f} s: killed {victim.name} for {back} s")
        self._cluster.restore()
        self._dead.clear()

    def _bring_back(self) -> None:
        now = time.monotonic()
        for due, node in self._dead:
            if due <= now:
                node.start()
        self._dead = [(due, node) for due, node in self._dead if due > now]


def kill_over_runs(cluster: Cluster, expected: Final, seed: int, kills: int) -> None:
    """Start runs and kill, until so many kills are done; every run must end as a clean one."""
    cluster.model.latency = LATENCY
    killer = Killer(cluster, seed, kills)
    while killer.left:
        observed = Observed(cluster, CASES, trials=TRIALS)
        killer.torment(observed)
        observed.finish(expected)


@pytest.mark.timeout(240)
def test_twenty_kills_change_nothing(cluster: Cluster, clean: Clean) -> None:
    kill_over_runs(cluster, clean(CASES, TRIALS), SEED, 20)


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_a_thousand_kills_change_nothing(cluster: Cluster, clean: Clean) -> None:
    expected = clean(CASES, TRIALS)
    for hundred in range(10):
        kill_over_runs(cluster, expected, SEED + 1 + hundred, 100)
