"""The ways between processes are cut, slow, silent, or lose what was answered."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest

from tests.resilience.cluster import CAP, LEASE_SECONDS, Cluster
from tests.resilience.conftest import Clean
from tests.resilience.lossy import Lossy
from tests.resilience.network import Edge
from tests.resilience.tables import Observed

CASES, TRIALS = 200, 3
LATENCY = 0.1
SEED = 5
_SECONDS = 6.0


@pytest.fixture
def observed(cluster: Cluster, clean: Clean) -> Observed:
    """A run that has begun."""
    clean(CASES, TRIALS)
    cluster.model.latency = LATENCY
    made = Observed(cluster, CASES, trials=TRIALS)
    made.until(0.1)
    return made


def _trouble(cluster: Cluster, harm: Callable[[Edge, random.Random], None], pause: float) -> None:
    """Do harm to one edge after the other, at random, for some seconds."""
    chance = random.Random(SEED)
    until = time.monotonic() + _SECONDS
    edges = [edge for name, edge in cluster.edges.items() if not name.startswith("test")]
    while time.monotonic() < until:
        harm(chance.choice(edges), chance)
        time.sleep(chance.uniform(0, pause))


def test_connections_are_cut_everywhere(cluster: Cluster, clean: Clean, observed: Observed) -> None:
    _trouble(cluster, lambda edge, _: edge.cut(), 0.3)
    observed.finish(clean(CASES, TRIALS))


def test_answers_are_cut_off_in_the_middle(cluster: Cluster, clean: Clean, observed: Observed) -> None:
    def harm(edge: Edge, chance: random.Random) -> None:
        edge.answer_bytes = chance.randrange(2_000)

    _trouble(cluster, harm, 0.3)
    cluster.restore()
    observed.finish(clean(CASES, TRIALS))


def test_everything_is_slow(cluster: Cluster, clean: Clean, observed: Observed) -> None:
    for edge in cluster.edges.values():
        edge.delay = 0.04
    time.sleep(_SECONDS)
    cluster.restore()
    observed.finish(clean(CASES, TRIALS))


@pytest.mark.parametrize(
    "way",
    [
        "runner>hub",
        "runner>scorer",
        "hub>postgres",
        pytest.param("hub>scorer", marks=pytest.mark.soak),
        pytest.param("scorer>postgres", marks=pytest.mark.soak),
        pytest.param("hub>nats", marks=pytest.mark.soak),
        pytest.param("runner>nats", marks=pytest.mark.soak),
        pytest.param("scorer>seaweed", marks=pytest.mark.soak),
    ],
)
def test_a_way_is_silent_for_two_leases(cluster: Cluster, clean: Clean, observed: Observed, way: str) -> None:
    edge = cluster.edges[way]
    edge.stalled = True
    time.sleep(2 * LEASE_SECONDS)
    # Whoever can be heard first has the shard: what another had in flight for it may be asked again.
    observed.allowed += CAP if way in ("runner>hub", "hub>postgres") else 0
    cluster.restore()
    observed.finish(clean(CASES, TRIALS))


def test_what_servers_did_is_not_heard_of(cluster: Cluster, clean: Clean, observed: Observed) -> None:
    for way in ("runner>scorer", "runner>hub", "hub>scorer", "scorer>postgres", "hub>postgres", "hub>nats"):
        edge = cluster.edges[way]
        edge.deaf = True
        time.sleep(0.4)
        edge.heal()
        time.sleep(0.4)
    observed.finish(clean(CASES, TRIALS))


@pytest.fixture
def lossy(cluster: Cluster) -> Iterator[dict[str, Lossy]]:
    """Something between runners, hub and scorer that loses answers."""
    made = {}
    before = {}
    for way in ("runner>hub", "runner>scorer", "hub>scorer"):
        edge = cluster.edges[way]
        before[way] = edge.upstreams
        made[way] = Lossy(cluster.background, edge.upstreams[0])
        edge.upstreams = (made[way].port,)
        edge.cut()
    yield made
    for way, upstreams in before.items():
        cluster.edges[way].upstreams = upstreams
        made[way].close()


def test_answers_are_lost_after_the_commit(
    cluster: Cluster, clean: Clean, lossy: dict[str, Lossy], observed: Observed
) -> None:
    lossy["runner>hub"].every |= {"LeaseShard": 2, "CompleteShard": 2, "RenewLease": 3, "ReleaseShard": 2}
    lossy["runner>scorer"].every |= {"RecordResults": 5}
    lossy["hub>scorer"].every |= {"SealRun": 2}
    observed.finish(clean(CASES, TRIALS))
    for way, methods in (
        ("runner>hub", ("LeaseShard", "CompleteShard", "RenewLease")),
        ("runner>scorer", ("RecordResults",)),
    ):
        for method in methods:
            assert lossy[way].lost[method], f"no answer to {method} was lost"


def test_the_answer_to_a_seal_is_lost(
    cluster: Cluster, clean: Clean, lossy: dict[str, Lossy], observed: Observed
) -> None:
    lossy["hub>scorer"].every |= {"SealRun": 1}
    observed.until(1.0)
    cluster.until(lambda: lossy["hub>scorer"].lost["SealRun"] >= 2, "a lost answer")
    lossy["hub>scorer"].every.clear()
    observed.finish(clean(CASES, TRIALS))
