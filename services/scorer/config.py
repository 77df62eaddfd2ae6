"""What the scorer can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from services.common.config import Address, ObjectSettings, ProcessSettings, RpcSettings


class ScorerSettings(ProcessSettings, RpcSettings, ObjectSettings):
    """Settings of one scorer."""

    grpc_listen: Address = "127.0.0.1:0"
    postgres_dsn: SecretStr
    cache_dir: Path | None = None
    """Where parts of environments are kept on disk; in memory only when not set."""
    lease_public_key: str
    """The hub's Ed25519 public key, base64: what makes a lease a lease."""
    principal_public_key: str
    """The gateway's Ed25519 public key, base64: what makes a principal a principal."""
    postgres_connections: int = 8
