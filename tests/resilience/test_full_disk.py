"""PostgreSQL has no room left for a while."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.resilience.cluster import Cluster
from tests.resilience.tables import Observed, check_same, final

CASES, TRIALS = 200, 3
_DISK_MIB = 160


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for a cluster whose PostgreSQL has a small disk of its own."""
    folder = tmp_path_factory.mktemp("disk")
    disk = folder / "postgres"
    disk.mkdir(mode=0o700)
    options = f"size={_DISK_MIB}m,mode=0700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.timeout(150)
def test_a_full_disk_is_waited_for(small_disk: Path) -> None:
    cluster = Cluster(small_disk, hubs=1, scorers=1, runners=1)
    try:
        cluster.start()
        first = Observed(cluster, CASES, trials=TRIALS)
        cluster.until_ended(first.run)
        clean = final(cluster, first.run)
        cluster.model.latency = 0.1
        observed = Observed(cluster, CASES, trials=TRIALS)
        observed.until(0.2)
        ballast = small_disk / "postgres" / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(os.urandom(64 * 1024))
        time.sleep(5)
        assert "No space left" in cluster.nodes["postgres"].log.read_text()
        ballast.unlink()
        cluster.restore()
        observed.finish(clean)
        check_same(final(cluster, first.run), clean)
    except BaseException:
        print(cluster.logs())
        raise
    finally:
        cluster.close()
