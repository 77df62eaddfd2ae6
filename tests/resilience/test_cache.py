"""Runs that share answers while runners and scorers die."""

from __future__ import annotations

import pytest

from tests.resilience.cluster import Cluster
from tests.resilience.conftest import Clean
from tests.resilience.model_server import refused_case
from tests.resilience.tables import Observed

CASES = 600
KNOWN = 250


def answered(cases: int) -> int:
    """How many of the first cases the model answers, and so how many answers can be kept."""
    return sum(not refused_case(f"c-{n}") for n in range(cases))


def hits(cluster: Cluster, run: str) -> int:
    query = "SELECT cache_hits FROM scorer.run_progress WHERE run_id = $1"
    found: int = cluster.query(query, run)[0]["cache_hits"]
    return found


@pytest.mark.timeout(180)
def test_a_half_cached_run_under_kills_is_as_a_clean_one(cluster: Cluster, clean: Clean) -> None:
    expected = clean(CASES, 1)
    first = Observed(cluster, KNOWN, use_cache=True)
    cluster.until_ended(first.run)
    observed = Observed(cluster, CASES, use_cache=True)
    observed.until((KNOWN + 20) / CASES)
    observed.allow_for("runner-1")
    for name in ("runner-1", "scorer-1"):
        cluster.nodes[name].kill()
    cluster.restore()
    observed.finish(expected)
    assert hits(cluster, observed.run) == answered(KNOWN)
    assert sum(cluster.model.counts.answered.values()) >= answered(CASES) - answered(KNOWN)
    # Whatever died, what is kept now is all of it.
    again = Observed(cluster, CASES, use_cache=True)
    again.finish(expected)
    assert hits(cluster, again.run) == answered(CASES)
    assert not cluster.model.counts.answered
