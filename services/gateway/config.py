"""What the gateway can be told."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from services.common.config import Address, ProcessSettings, RpcSettings


class GatewaySettings(ProcessSettings, RpcSettings):
    """Settings of one gateway.

    Both public ports speak plain text: the load balancer or ingress in front of them ends TLS. The ``tls_*`` settings
    are for the calls to hub and scorer.
    """

    api_listen: Address = "127.0.0.1:0"
    """Where the HTTP API is served."""
    grpc_listen: Address = "127.0.0.1:0"
    """Where the public gRPC services are served."""
    hub_address: Address
    scorer_address: Address
    postgres_dsn: SecretStr
    postgres_connections: int = 4
    principal_signing_key: SecretStr
    """Seed of the Ed25519 key that principals are signed with, 32 bytes in base64."""
    bootstrap_key_hash: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """sha256 in hex of the first API key, which gets every scope; empty for none."""
