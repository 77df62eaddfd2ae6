"""One fault to one process, or all of one kind, in the middle of a run."""

from __future__ import annotations

import time

import pytest

from tests.resilience.cluster import LEASE_SECONDS, Cluster
from tests.resilience.conftest import Clean
from tests.resilience.tables import Observed, check_left, check_same, final

CASES, TRIALS = 200, 3
LATENCY = 0.1


@pytest.fixture
def observed(cluster: Cluster, clean: Clean) -> Observed:
    """A run with a good part of its work done, and as much ahead."""
    clean(CASES, TRIALS)
    cluster.model.latency = LATENCY
    made = Observed(cluster, CASES, trials=TRIALS)
    made.until(0.25)
    return made


@pytest.mark.parametrize("server", ["postgres", "nats", "seaweed"])
def test_a_server_that_is_restarted(cluster: Cluster, clean: Clean, observed: Observed, server: str) -> None:
    node = cluster.nodes[server]
    node.stop()
    time.sleep(1)
    node.start()
    node.wait_ready()
    observed.finish(clean(CASES, TRIALS))


def test_nats_loses_everything(cluster: Cluster, clean: Clean, observed: Observed) -> None:
    cluster.lose_nats_data()
    observed.finish(clean(CASES, TRIALS))


def test_all_hubs_are_away_for_two_leases(cluster: Cluster, clean: Clean, observed: Observed) -> None:
    for hub in cluster.of_kind("hub"):
        hub.kill()
    time.sleep(2 * LEASE_SECONDS)
    cluster.restore()
    observed.finish(clean(CASES, TRIALS))


def test_all_scorers_are_away(cluster: Cluster, clean: Clean, observed: Observed) -> None:
    for scorer in cluster.of_kind("scorer"):
        scorer.kill()
    time.sleep(1)
    # What is on its way back cannot be stored: nobody asks for more.
    asked = sum(cluster.model.counts.asked.values())
    time.sleep(2)
    assert sum(cluster.model.counts.asked.values()) == asked
    cluster.restore()
    observed.finish(clean(CASES, TRIALS))


def test_a_frozen_runner_wakes_up_and_writes(cluster: Cluster, clean: Clean, observed: Observed) -> None:
    observed.allow_for("runner-1")
    time.sleep(2 * LEASE_SECONDS)
    cluster.nodes["runner-1"].thaw()
    observed.finish(clean(CASES, TRIALS))


def test_a_frozen_runner_wakes_up_when_all_is_over(
    cluster: Cluster, clean: Clean, observed: Observed
) -> None:
    observed.allow_for("runner-1")
    observed.until(1.0)
    cluster.until_ended(observed.run)
    before = final(cluster, observed.run)
    check_same(before, clean(CASES, TRIALS))
    asked = sum(cluster.model.counts.asked.values())
    cluster.nodes["runner-1"].thaw()
    time.sleep(2)
    # It can tell by its clock that its leases have ended: it asks for nothing, whatever came back meanwhile.
    assert sum(cluster.model.counts.asked.values()) == asked
    assert final(cluster, observed.run) == before
    check_left(cluster, observed.run)


@pytest.mark.parametrize("kind", ["hub", "scorer"])
def test_a_frozen_replica_wakes_up(cluster: Cluster, clean: Clean, observed: Observed, kind: str) -> None:
    frozen = cluster.nodes[f"{kind}-1"]
    frozen.freeze()
    time.sleep(2 * LEASE_SECONDS)
    # A runner whose replica does not answer loses its leases, and what it has in flight.
    observed.allowed += 2 * 24
    frozen.thaw()
    observed.finish(clean(CASES, TRIALS))


def test_everything_is_killed_at_once(cluster: Cluster, clean: Clean, observed: Observed) -> None:
    for runner in cluster.of_kind("runner"):
        observed.allow_for(runner.name)
    for node in cluster.nodes.values():
        node.kill()
    cluster.restore()
    observed.finish(clean(CASES, TRIALS))
