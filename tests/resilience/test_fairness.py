"""Nobody waits behind a big run; who is more urgent goes first; many runs at once all end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from benchgen.eval.v1 import run_pb2
from tests.resilience.cluster import CASES, MODEL, Cluster


def held(cluster: Cluster, run: str) -> int:
    """How many shards of a run are rung for or leased."""
    rows = cluster.query(
        "SELECT count(*) AS n FROM hub.shards WHERE run_id = $1 AND state IN ('QUEUED', 'RUNNING')", run
    )
    count: int = rows[0]["n"]
    return count


@pytest.fixture
def create(cluster: Cluster) -> Iterator[Callable[..., str]]:
    """Creates runs; those that have not ended after the test are cancelled."""
    runs: list[str] = []

    def made(cases: int, *, trials: int = 1, priority: int = 0) -> str:
        runs.append(cluster.create(cases, trials=trials, priority=priority))
        return runs[-1]

    yield made
    for run in runs:
        cluster.cancel(run)


@pytest.mark.parametrize("latency", [0.05, 2.0])
def test_ten_cases_behind_two_hundred_thousand(
    cluster: Cluster, create: Callable[..., str], latency: float
) -> None:
    cluster.model.latency = latency
    began = time.monotonic()
    big = create(CASES, trials=200)
    created = time.monotonic() - began
    # With slow calls, too, runners must not fill up with what they cannot begin: they take a shard every 0.25 s.
    cluster.until_recorded(big, 1)
    time.sleep(3)
    # Runners that fill up stay so for as long as the big run has shards; 16 is what they have room for.
    cluster.until(lambda: held(cluster, big) <= 8, "runners that hold no more than they can begin")
    in_hand = held(cluster, big)
    began = time.monotonic()
    small = create(10)
    cluster.until(lambda: cluster.recorded(small) > 0, "the first result of the small run", within=15)
    first = time.monotonic() - began
    cluster.until_ended(small, within=20)
    ended = time.monotonic() - began
    print(
        f"created in {created:.2f} s; {in_hand} shards in hand; first result {first:.1f} s, end {ended:.1f} s"
    )


def test_a_run_of_higher_priority_overtakes(cluster: Cluster, create: Callable[..., str]) -> None:
    cluster.model.latency = 0.02
    low = create(CASES, trials=2)
    cluster.until_recorded(low, 1)
    high = create(CASES, trials=2, priority=50)
    cluster.until_ended(high)
    # Taking turns, the one that began first would have ended first.
    assert cluster.get(low).state == run_pb2.Run.STATE_RUNNING


def test_fifty_runs_of_two_models_at_once(cluster: Cluster) -> None:
    cluster.model.latency = 0.02
    cluster.register_model("other", cluster.model.url)
    runs = [cluster.create(5 + n % 7, model=[MODEL, "other"][n % 2], seed=n) for n in range(50)]
    for run in runs:
        ended = cluster.until_ended(run, within=60)
        assert ended.state == run_pb2.Run.STATE_SUCCEEDED
        assert ended.progress.recorded == ended.spec.planned
