"""Runs one job and reads what it took from the processes themselves."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchgen.client import Client
from benchgen.errors import BenchgenError
from benchgen.eval.v1 import model_pb2, run_pb2
from benchmarks.jobs import Job
from benchmarks.stack import Stack

#: What is ours; the others are servers that it stands on.
_OURS = ("hub", "scorer", "gateway", "runner")


@dataclass(frozen=True, slots=True)
class Figures:
    """What one job took. CPU is in microseconds a case, memory in MiB at the peak so far."""

    job: Job
    wall_seconds: float
    run_seconds: float
    steady_rate: float | None
    right: int
    recorded: int
    cpu: dict[str, float]
    peak_mib: dict[str, float]

    @property
    def cpu_ours(self) -> float:
        """All our services together."""
        return sum(cost for name, cost in self.cpu.items() if name.startswith(_OURS))


def measure(job: Job, stack: Stack, base_url: str, model_id: str) -> Figures:
    """Publish the job's environment, run it, and check that the score is the known one."""
    with Client(stack.grpc, stack.api_key) as client, tempfile.TemporaryDirectory() as folder:
        job.write_environment(Path(folder))
        version = client.push(Path(folder)).environment_version
        model = _model(client, job, base_url, model_id)
        before = _cpu_seconds(stack)
        started = time.perf_counter()
        run = client.run(version, model=model)
        seen: list[tuple[float, int]] = []
        for latest in client.watch(run.name):
            seen.append((time.perf_counter() - started, latest.progress.recorded))
            run = latest
        wall = time.perf_counter() - started
        used = _cpu_seconds(stack)
        report = client.report(run.name)
    if run.state != run_pb2.Run.STATE_SUCCEEDED:
        raise BenchgenError(f"{job.name}: the run did not succeed: {run.state_message}")
    return Figures(
        job=job,
        wall_seconds=wall,
        run_seconds=report.seconds,
        steady_rate=_steady(seen, job.cases),
        right=report.metrics[report.primary_rule].passed,
        recorded=report.coverage.recorded,
        cpu={name: (used[name] - before[name]) / job.cases * 1e6 for name in used},
        peak_mib=_peaks(stack),
    )


def _model(client: Client, job: Job, base_url: str, model_id: str) -> str:
    name = f"bench-{job.name}"
    client.create_model(
        model_pb2.Model(
            name=name,
            base_url=base_url,
            model_id=model_id.format(latency_ms=job.latency_ms),
            max_concurrency=job.concurrency,
        )
    )
    return name


def _steady(seen: list[tuple[float, int]], cases: int) -> float | None:
    """Cases a second between a tenth and nine tenths of the run; None when it was too short to see."""
    middle = [(when, count) for when, count in seen if cases * 0.1 <= count <= cases * 0.9]
    if len(middle) < 2 or middle[-1][0] - middle[0][0] < 0.5:
        return None
    (first, low), (last, high) = middle[0], middle[-1]
    return (high - low) / (last - first)


def _cpu_seconds(stack: Stack) -> dict[str, float]:
    """By process; a server's children, such as Postgres' backends, count with it."""
    used: dict[str, float] = {}
    for name, pid in stack.pids.items():
        process = psutil.Process(pid)
        times = process.cpu_times()
        # What ended is in children_user: a backend that went away keeps counting.
        used[name] = times.user + times.system + times.children_user + times.children_system
        for child in process.children(recursive=True):
            child_times = child.cpu_times()
            used[name] += child_times.user + child_times.system
    return used


def _peaks(stack: Stack) -> dict[str, float]:
    peaks: dict[str, float] = {}
    for name, pid in stack.pids.items():
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peaks[name] = int(line.split()[1]) / 1024
    return peaks
