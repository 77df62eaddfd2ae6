"""Prints figures for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Figures


def print_table(figures: Sequence[Figures]) -> None:
    """Speed and CPU by job, then memory by process."""
    console = Console(width=110)
    console.print(_speed(figures))
    console.print(_memory(figures))
    console.print(
        "run: first lease to the end of the last shard. steady: between 10 % and 90 % of the results being stored.\n"
        "x ideal: run against cases x latency / concurrency. CPU: microseconds a case; ours are hub, scorer, gateway\n"
        "and runners together. Memory: highest resident size since start, so it can only grow down the table."
    )


def _speed(figures: Sequence[Figures]) -> Table:
    table = Table(title="Speed", title_justify="left")
    for name in (
        "job",
        "cases",
        "calls",
        "latency",
        "run s",
        "cases/s",
        "steady/s",
        "x ideal",
        "CPU ours",
        "Postgres",
    ):
        table.add_column(name, justify="left" if name == "job" else "right", no_wrap=True)
    for found in figures:
        job, ideal = found.job, found.job.ideal_seconds
        table.add_row(
            job.name,
            f"{job.cases:,}",
            str(job.concurrency),
            f"{job.latency_ms} ms",
            f"{found.run_seconds:.2f}",
            f"{job.cases / found.run_seconds:,.0f}",
            f"{found.steady_rate:,.0f}" if found.steady_rate else "-",
            f"{found.run_seconds / ideal:.2f}" if ideal else "-",
            f"{found.cpu_ours:.0f}",
            f"{found.cpu['postgres']:.0f}",
        )
    return table


def _memory(figures: Sequence[Figures]) -> Table:
    table = Table(title="Peak memory, MiB", title_justify="left")
    names = sorted(name for name in figures[0].peak_mib)
    table.add_column("after", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for found in figures:
        table.add_row(found.job.name, *(f"{found.peak_mib[name]:.0f}" for name in names))
    return table
