"""``python -m benchmarks``: runs jobs on a local stack of its own and prints what they took.

Every figure is of a complete run: planned, leased, executed over HTTP, recorded durably, scored, reported. The model
is this project's simulator.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchgen.errors import BenchgenError
from benchmarks.jobs import JOBS
from benchmarks.measure import Figures, measure
from benchmarks.stack import bench_stack
from benchmarks.table import print_table


def main() -> int:
    """Measure and print; 1 when a run did not come out as it must."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runners", type=int, default=2, help="how many runners (default: %(default)s)")
    parser.add_argument("--only", choices=[job.name for job in JOBS], help="one job instead of all")
    options = parser.parse_args()
    jobs = [job for job in JOBS if options.only in (None, job.name)]
    with tempfile.TemporaryDirectory(prefix="benchgen-bench-") as folder:
        with bench_stack(Path(folder) / "data", options.runners) as stack:
            figures: list[Figures] = []
            for job in jobs:
                print(f"{job.name}: {job.cases:,} cases, {job.what}", file=sys.stderr)
                found = measure(job, stack, stack.simulator, "simulated?latency_ms={latency_ms}")
                if (found.right, found.recorded) != (job.right, job.cases):
                    raise BenchgenError(
                        f"{job.name}: {found.right} of {found.recorded} right, expected {job.right} of {job.cases}"
                    )
                figures.append(found)
        print_table(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
