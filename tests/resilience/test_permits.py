"""Runners that stand still for longer than their leases: the model never gets more calls at once than it allows."""

from __future__ import annotations

import time

import pytest

from tests.resilience.cluster import CAP, LEASE_SECONDS, Cluster
from tests.resilience.tables import Observed

#: Calls take from half to one and a half of it: many of them longer than what is left of a lease, two thirds at least;
#: none of them longer than that and the time for which permits are kept.
LATENCY = 1.05 * LEASE_SECONDS


@pytest.mark.parametrize("leases", [1.4, 2.2, 3.5])
def test_a_runner_that_stands_still_past_its_leases(cluster: Cluster, leases: float) -> None:
    """It wakes up when its leases have ended, when its permits are about to be given away, and when they are."""
    observed = Observed(cluster, 600)
    runners = cluster.of_kind("runner")
    counts = cluster.model.counts
    cluster.until(
        lambda: [row["told"] for row in cluster.query("SELECT told FROM hub.permits")] == [CAP // 2] * 2,
        "a half of the calls for each runner",
    )
    cluster.model.latency = LATENCY
    # All that is in flight now began just now.
    time.sleep(0.15)
    runners[0].freeze()
    time.sleep(leases * LEASE_SECONDS)
    runners[0].thaw()
    time.sleep(2 * LEASE_SECONDS)
    # The one that went on has had all of it meanwhile, or they share it again.
    assert counts.in_flight >= CAP // 2
    cluster.model.latency = 0.05
    cluster.until_ended(observed.run)
    assert counts.most_in_flight == CAP
