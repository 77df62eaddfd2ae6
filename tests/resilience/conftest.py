"""One cluster for all scenarios, whole again before each; and what clean runs on it leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.resilience.cluster import Cluster
from tests.resilience.tables import Final, Observed, check_left, final

Clean = Callable[[int, int], Final]


@pytest.fixture(scope="package")
def started_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    before = set(psutil.Process().children(recursive=True))
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start()
        yield made
    except BaseException:
        print(made.logs())
        raise
    finally:
        made.close()
    left = set(psutil.Process().children(recursive=True)) - before
    assert not left, f"processes were left behind: {left}"


@pytest.fixture
def cluster(started_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster, all of it at work. When a test fails, the logs of all processes are shown."""
    started_cluster.restore()
    started_cluster.model.deadly_case = ""
    started_cluster.model.latency = 0.05
    failed_before = request.session.testsfailed
    yield started_cluster
    if request.session.testsfailed > failed_before:
        print(started_cluster.logs())


_clean: dict[tuple[Path, int, int], Final] = {}


@pytest.fixture
def clean(cluster: Cluster) -> Clean:
    """What a run of so many cases and trials leaves when nothing happens to it."""

    def made(cases: int, trials: int) -> Final:
        key = (cluster.folder, cases, trials)
        if key not in _clean:
            observed = Observed(cluster, cases, trials=trials)
            cluster.until_ended(observed.run)
            check_left(cluster, observed.run)
            counts = cluster.model.counts
            assert counts.repeated == 0
            assert len(counts.asked) == observed.planned
            _clean[key] = final(cluster, observed.run)
            assert _clean[key].coverage["recorded"] == observed.planned
        return _clean[key]

    return made
