"""PostgreSQL has no room left for a while, and a runner none for its cache at any time."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.resilience.cluster import Cluster
from tests.resilience.tables import Observed, check_same, final

#: So many that their rows do not fit into what PostgreSQL has set aside.
CASES, TRIALS = 200, 10
_DISK_MIB = 160


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for a cluster whose PostgreSQL, and whose runner's cache, have small disks of their own."""
    folder = tmp_path_factory.mktemp("disk")
    with ExitStack() as mounts:
        for place, size in (("postgres", f"{_DISK_MIB}m"), ("cache/runner-1", "8k")):
            disk = folder / place
            disk.mkdir(mode=0o700, parents=True)
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(disk)],
                capture_output=True,
                check=False,
            )
            if mounted.returncode != 0:
                pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
            mounts.callback(subprocess.run, ["umount", str(disk)], check=True)
        yield folder


@pytest.mark.timeout(150)
def test_a_full_disk_is_waited_for(small_disk: Path) -> None:
    cluster = Cluster(small_disk, hubs=1, scorers=1, runners=1)
    try:
        cluster.start()
        first = Observed(cluster, CASES, trials=TRIALS)
        cluster.until_ended(first.run)
        assert "cache.failed" in cluster.nodes["runner-1"].log.read_text()
        clean = final(cluster, first.run)
        cluster.model.latency = 0.1
        observed = Observed(cluster, CASES, trials=TRIALS)
        observed.until(0.1)
        ballast = small_disk / "postgres" / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(os.urandom(64 * 1024))
        log = cluster.nodes["postgres"].log
        cluster.until(lambda: "No space left" in log.read_text(), "PostgreSQL to notice", within=60)
        time.sleep(4)
        ballast.unlink()
        cluster.restore()
        observed.finish(clean)
        check_same(final(cluster, first.run), clean)
    except BaseException:
        print(cluster.logs())
        raise
    finally:
        cluster.close()
