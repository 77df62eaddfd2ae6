"""What the scorer can be told."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr

from services.common.config import Address, ObjectSettings, ProcessSettings, PublicKey, RpcSettings
from services.common.sandbox import SandboxSettings


class ScorerSettings(ProcessSettings, RpcSettings, ObjectSettings, SandboxSettings):
    """Settings of one scorer."""

    grpc_listen: Address = "127.0.0.1:0"
    postgres_dsn: SecretStr
    cache_dir: Path | None = None
    """Where parts of environments are kept on disk; in memory only when not set."""
    lease_public_key: PublicKey
    """The hub's Ed25519 public key, base64: what makes a lease a lease."""
    principal_public_key: PublicKey
    """The gateway's Ed25519 public key, base64: what makes a principal a principal."""
    postgres_connections: int = 8
    orphan_seconds: float = Field(default=86_400.0, ge=60)
    """Objects that nothing names are removed when they are older than this."""
    ingestion_sees_reference: bool = False
    """Whether an ingestion program that a competition runs during the scoring may see the reference data, as in the
    original."""
    sweep_seconds: float = Field(default=3_600.0, gt=0)
    """How often they are looked for."""
    cache_days: float = Field(default=30.0, ge=0, le=36_500)
    """How long answers are kept for runs that use the response cache; with 0 it is off, and emptied."""
    sandboxes: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1_000)
    """How many boxes with code or programs that judge it may have at once; default: the processors."""
    scores_seconds: float = Field(default=1.0, gt=0)
    """How often it looks for scores to make that another scorer left."""
