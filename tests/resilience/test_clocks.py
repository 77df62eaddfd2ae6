"""Machines whose clocks are wrong by hours, each by another time: leases and signatures hold all the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchgen.client import Client
from tests.resilience.cluster import Cluster
from tests.resilience.conftest import Clean
from tests.resilience.tables import Observed

CASES, TRIALS = 200, 3
HOUR = 3600.0
AHEAD = {
    "hub-1": 5 * HOUR,
    "hub-2": -5 * HOUR,
    "scorer-1": -30 * HOUR,
    "scorer-2": 30 * HOUR,
    "runner-1": -7 * HOUR,
    "runner-2": 400 * 24 * HOUR,
    "gateway": -3 * HOUR,
}


@pytest.fixture
def wrong_clocks(cluster: Cluster) -> Iterator[None]:
    """Every service's clock is wrong, and nothing of an environment is cached."""

    def restart(ahead: dict[str, float]) -> None:
        for name in AHEAD:
            node = cluster.nodes[name]
            node.stop()
            node.clock = ahead.get(name, 0.0)
            node.start()
        for name in AHEAD:
            cluster.nodes[name].wait_ready()

    cluster.forget_cached()
    restart(AHEAD)
    yield
    restart({})


def test_clocks_that_differ_by_hours(cluster: Cluster, clean: Clean, wrong_clocks: None) -> None:
    expected = clean(CASES, TRIALS)
    cluster.model.latency = 0.1
    observed = Observed(cluster, CASES, trials=TRIALS)
    observed.until(0.25)
    workers = cluster.query(
        "SELECT DISTINCT runner FROM hub.shards WHERE run_id = $1 AND attempt > 0", observed.run
    )
    assert len(workers) == 2, "a runner with a wrong clock does nothing"
    # What the gateway signs is good at both hubs and both scorers.
    with Client(cluster.grpc_address, cluster.api_key) as client:
        for _ in range(4):
            assert client.get_run(observed.run).name == observed.run
    # A lease ends when it ends by PostgreSQL's clock.
    observed.allow_for("runner-1")
    cluster.nodes["runner-1"].kill()
    observed.until(0.6)
    cluster.nodes["runner-1"].start()
    observed.finish(expected)
    with Client(cluster.grpc_address, cluster.api_key) as client:
        assert client.report(observed.run).coverage.recorded == observed.planned
        assert sum(1 for _ in client.results(observed.run)) == observed.planned
