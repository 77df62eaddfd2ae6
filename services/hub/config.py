"""What the hub can be told."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import Field, SecretStr

from services.common.config import Address, ObjectSettings, ProcessSettings, RpcSettings


class HubSettings(ProcessSettings, RpcSettings, ObjectSettings):
    """Settings of one hub."""

    grpc_listen: Address = "127.0.0.1:0"
    postgres_dsn: SecretStr
    postgres_connections: int = Field(default=12, ge=2, le=200)
    nats_url: SecretStr
    scorer_address: Address
    lease_signing_key: SecretStr
    """Seed of the Ed25519 key that signs leases, 32 bytes in base64."""
    principal_public_key: str
    """The gateway's Ed25519 public key, base64: what makes a principal a principal."""
    master_key: SecretStr
    """Encrypts the secrets of models: 32 bytes in base64."""
    master_key_old: SecretStr = SecretStr("")
    """The master key before this one, while secrets are being sealed anew: ``python -m services.hub.rekey``."""
    lease_seconds: float = Field(default=30.0, ge=1, le=3600)
    """How long a lease holds without renewal."""
    ring_seconds: float = Field(default=5.0, gt=0)
    """After how long a ring that nobody answered is rung again."""
    simulator_url: str = ""
    """Where `builtin/simulated` is; empty where there is none."""
    cache_dir: Path = Path(tempfile.gettempdir()) / "benchgen-hub"
    """Where bundles are unpacked while they are being published."""
    retention_days: float = Field(default=0.0, ge=0, le=36_500)
    """Runs that ended longer ago than this are removed; 0 keeps them."""
    orphan_seconds: float = Field(default=86_400.0, ge=60)
    """Objects that nothing names are removed when they are older than this."""
    sweep_seconds: float = Field(default=3_600.0, gt=0)
    """How often they, and runs to remove, are looked for."""
    upload_bytes: int = Field(default=512 * 1024**2, gt=0)
    """The largest bundle that can be uploaded."""
    materialise_seconds: float = Field(default=120.0, gt=0)
    """How long rendering a bundle may take."""
    materialise_bytes: int = Field(default=1024**3, gt=0)
    """How much memory rendering a bundle may take."""
