"""The secrets of one data directory, made once and readable by its owner only."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.local.files import write_private

POSTGRES_ADMIN = "benchgen"
POSTGRES_ROLES = ("hub", "scorer", "gateway")
SERVICE_IDENTITIES = ("hub", "runner", "scorer", "gateway")
OBJECT_IDENTITIES = ("admin", "hub", "runner", "scorer", "simulator")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Every secret of a local stack. Keys are base64; ``*_seed`` are Ed25519 private seeds of 32 bytes."""

    postgres: dict[str, str]
    nats: str
    objects: dict[str, str]
    service_tokens: dict[str, str]
    lease_seed: str
    lease_public: str
    principal_seed: str
    principal_public: str
    master_key: str
    api_key: str
    simulator_token: str

    def api_key_hash(self) -> str:
        """Return the sha256 of the first API key in hex, which is all that the gateway is told."""
        return hashlib.sha256(self.api_key.encode()).hexdigest()


def _token() -> str:
    return secrets.token_urlsafe(32)


def _key_pair() -> tuple[str, str]:
    """Return a new Ed25519 seed and its public key, both base64."""
    # Needed once in the life of a data directory, and slow to import.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    return base64.b64encode(key.private_bytes_raw()).decode(), base64.b64encode(public).decode()


def generate() -> Credentials:
    """Make a new set of secrets."""
    lease_seed, lease_public = _key_pair()
    principal_seed, principal_public = _key_pair()
    return Credentials(
        postgres={role: _token() for role in (POSTGRES_ADMIN, *POSTGRES_ROLES)},
        nats=_token(),
        objects={identity: _token() for identity in OBJECT_IDENTITIES},
        service_tokens={identity: _token() for identity in SERVICE_IDENTITIES},
        lease_seed=lease_seed,
        lease_public=lease_public,
        principal_seed=principal_seed,
        principal_public=principal_public,
        master_key=base64.b64encode(secrets.token_bytes(32)).decode(),
        api_key="bg_" + secrets.token_urlsafe(30),
        simulator_token=_token(),
    )


def load_or_create(path: Path) -> Credentials:
    """Read the secrets of a data directory, making those that are not there."""
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if known and "simulator_token" in known:
        return Credentials(**known)
    # A directory from before there was one of them keeps the others.
    made = Credentials(**asdict(generate()) | known)
    write_private(path, json.dumps(asdict(made), indent=1) + "\n")
    return made
