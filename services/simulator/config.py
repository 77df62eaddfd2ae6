"""Settings of the simulator."""

from __future__ import annotations

from services.common.config import Address, ObjectSettings, ProcessSettings


class SimulatorSettings(ProcessSettings, ObjectSettings):
    """The usual ones, and an identity in object storage that may read solutions and nothing else."""

    http_listen: Address = "127.0.0.1:0"
    """Where everything is served: chat completions, health and metrics."""
