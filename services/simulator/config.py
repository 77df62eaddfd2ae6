"""Settings of the simulator."""

from __future__ import annotations

from services.common.config import Address, ObjectSettings, ProcessSettings, RpcSettings


class SimulatorSettings(ProcessSettings, RpcSettings, ObjectSettings):
    """The usual ones, and an identity in object storage that may read solutions and nothing else.

    Only the peers named in ``peer_tokens`` are answered with solutions.
    """

    http_listen: Address = "127.0.0.1:0"
    """Where everything is served: chat completions, health and metrics."""
