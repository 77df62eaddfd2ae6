"""A local stack of the benchmark's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Stack:
    """Where a running stack is, and its processes by name."""

    grpc: str
    api_key: str
    simulator: str
    pids: dict[str, int]


@contextmanager
def bench_stack(data_dir: Path, runners: int) -> Iterator[Stack]:
    """Start a stack, and stop it whatever happens."""
    _local("up", "--detach", f"--runners={runners}", data_dir=data_dir)
    try:
        state = json.loads((data_dir / "stack.json").read_text())
        ports = {service["name"]: service["port"] for service in state["services"]}
        yield Stack(
            grpc=state["grpc"],
            api_key=(data_dir / "api-key").read_text().strip(),
            simulator=f"http://127.0.0.1:{ports['simulator']}/v1",
            pids={service["name"]: service["pid"] for service in state["services"]},
        )
    finally:
        _local("down", data_dir=data_dir)


def _local(*arguments: str, data_dir: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "services.local", *arguments, "--data-dir", str(data_dir)],
        cwd=ROOT,
        check=True,
        stdout=sys.stderr,
    )
