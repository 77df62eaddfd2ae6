"""A case that kills every runner that works on it: it alone is given up, with the reason."""

from __future__ import annotations

import time
from queue import Empty

import pytest

from benchgen.eval.v1 import run_pb2
from tests.resilience.cluster import Cluster

CASES = 48
DEADLY = "c-21"

_GIVEN_UP = (
    "SELECT number, first, count, faults, reason FROM hub.shards WHERE run_id = $1 AND state = 'ABANDONED'"
)


@pytest.mark.timeout(180)
def test_a_deadly_case_is_given_up_and_no_other(cluster: Cluster) -> None:
    cluster.model.reset()
    cluster.model.deadly_case = DEADLY
    run = cluster.create(CASES)
    ends = (run_pb2.Run.STATE_SUCCEEDED, run_pb2.Run.STATE_FAILED)
    deaths = 0
    deadline = time.monotonic() + 150
    while cluster.get(run).state not in ends:
        assert time.monotonic() < deadline, cluster.query("SELECT * FROM hub.shards WHERE run_id = $1", run)
        try:
            port = cluster.model.askers.get(timeout=0.2)
        except Empty:
            continue
        victim = next((node for node in cluster.of_kind("runner") if port in node.ports()), None)
        if victim is not None:
            victim.kill()
            deaths += 1
            victim.start()
    print(f"{deaths} runners died of {DEADLY}")
    assert cluster.get(run).state == run_pb2.Run.STATE_SUCCEEDED
    missing = [tuple(row) for row in cluster.query(_GIVEN_UP, run)]
    assert [row[1:4] for row in missing] == [(21, 1, 3)], missing
    assert missing[0][4].startswith("the lease of runner ")
    recorded = cluster.query("SELECT position FROM scorer.results WHERE run_id = $1 ORDER BY position", run)
    assert [row["position"] for row in recorded] == [n for n in range(CASES) if n != 21]
