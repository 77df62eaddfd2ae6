"""Processes that go through many faults hold no more files, connections and threads afterwards than before."""

from __future__ import annotations

import random
import time
from collections import Counter

import psutil
import pytest

from tests.resilience.cluster import CAP, Cluster
from tests.resilience.conftest import Clean
from tests.resilience.tables import Observed

CASES, TRIALS = 200, 3
SEED = 11
#: A runner may keep as many connections to the model as it has calls. A leak is one for each of more faults.
SLACK = CAP
ROUNDS = 30


def _held(cluster: Cluster) -> dict[str, Counter[str]]:
    """Open files, connections and threads of every service."""
    found = {}
    for node in cluster.of_kind("hub", "scorer", "runner", "gateway"):
        process = psutil.Process(node.pid)
        connections = Counter(connection.status for connection in process.net_connections())
        found[node.name] = Counter(
            files=process.num_fds(),
            threads=process.num_threads(),
            closing=connections[psutil.CONN_CLOSE_WAIT],
            children=len(process.children(recursive=True)),
        )
    return found


@pytest.mark.timeout(180)
def test_nothing_is_left_open_by_faults(cluster: Cluster, clean: Clean) -> None:
    expected = clean(CASES, TRIALS)
    cluster.model.latency = 0.1
    before = _held(cluster)
    chance = random.Random(SEED)
    edges = [edge for name, edge in cluster.edges.items() if not name.startswith("test")]
    observed = Observed(cluster, CASES, trials=TRIALS)
    # Leases may end while PostgreSQL starts on a slow machine: what is in flight then may be asked again.
    observed.allowed = CAP
    for _ in range(ROUNDS):
        for edge in chance.sample(edges, len(edges)):
            edge.cut()
            time.sleep(chance.uniform(0, 0.04))
    cluster.nodes["nats"].kill()
    cluster.nodes["postgres"].kill()
    cluster.restore()
    observed.finish(expected)

    def grown() -> dict[str, Counter[str]]:
        now = _held(cluster)
        return {name: more for name in now if (more := now[name] - before[name])}

    def settled() -> bool:
        return all(
            more["files"] <= SLACK
            and more["threads"] <= SLACK
            and not more["closing"]
            and not more["children"]
            for more in grown().values()
        )

    try:
        cluster.until(settled, "what was opened for a moment to be closed")
    finally:
        print({name: dict(more) for name, more in grown().items()})
    # The object store keeps what runners wrote; nothing else is on the disks of services.
    left = [path for path in (cluster.folder / "tmp").rglob("*") if path.is_file()]
    assert not left, left
