"""What a runner can be told."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr

from services.common.config import Address, ObjectSettings, ProcessSettings, RpcSettings
from services.common.sandbox import SandboxSettings


class RunnerSettings(ProcessSettings, RpcSettings, ObjectSettings, SandboxSettings):
    """Settings of one runner."""

    hub_address: Address
    scorer_address: Address
    nats_url: SecretStr
    simulator_token: SecretStr = SecretStr("")
    """What it presents to the simulator: of no use anywhere else, since it travels by plain HTTP."""
    cache_dir: Path | None = None
    """Where parts of environments are kept on disk; in memory only when not set."""
    runner_shards: int = Field(default=32, ge=1, le=1024)
    """How many shards it holds at once."""
    runner_calls: int = Field(default=512, ge=1, le=100_000)
    """How many calls it has in flight at once, over all models."""
    runner_sandboxes: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024)
    """How many programs it runs at once, each in a sandbox."""
    stop_seconds: float = Field(default=10.0, ge=0)
    """How long calls in flight may take to end when the runner is told to stop."""
