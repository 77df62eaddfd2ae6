"""Settings from ``BENCHGEN_*`` environment variables, checked before anything starts."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr, ValidationError

from benchgen.errors import InvalidInput

PREFIX = "BENCHGEN_"

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def _check_address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError("expected host:port")
    return value


Address = Annotated[str, AfterValidator(_check_address)]


def _check_public_key(value: str) -> str:
    for encoded in value.split(","):
        try:
            key = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            key = b""
        if len(key) != 32:
            raise ValueError("expected an Ed25519 public key, 32 bytes in base64; two with a comma between")
    return value


PublicKey = Annotated[str, AfterValidator(_check_public_key)]


def _check_peers(value: str) -> str:
    for item in filter(None, value.split(",")):
        identity, _, digest = item.partition("=")
        if not identity.strip() or not _SHA256.fullmatch(digest.strip()):
            raise ValueError("expected identity=<sha256 of its token, 64 hex digits>, separated by commas")
    return value


class Settings(BaseModel):
    """Base of every group of settings: a field ``grpc_listen`` is read from ``BENCHGEN_GRPC_LISTEN``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the settings.

        :raises InvalidInput: some are missing or wrong; the message names every one of them.
        """
        values = {
            name: environ[PREFIX + name.upper()]
            for name in cls.model_fields
            if environ.get(PREFIX + name.upper(), "") != ""
        }
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [
                f"{PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg']}"
                for fault in error.errors(include_url=False, include_input=False)
            ]
            raise InvalidInput("settings cannot be used:\n  " + "\n  ".join(lines)) from None


class ProcessSettings(Settings):
    """What every process has."""

    http_listen: Address = "127.0.0.1:0"
    """Where ``/healthz``, ``/readyz`` and ``/metrics`` are served."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json", "auto"] = "auto"
    """``auto``: for people on a terminal, JSON otherwise."""


class RpcSettings(Settings):
    """Who may call whom. On one machine tokens, between machines mutual TLS as well."""

    service_token: SecretStr = SecretStr("")
    """What this process presents to other services."""
    peer_tokens: Annotated[str, AfterValidator(_check_peers)] = ""
    """Whom it accepts: ``hub=<sha256 of its token, hex>,runner=...``."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    """With all three set, both sides use mutual TLS, and a peer's certificate must name its identity."""

    def peers(self) -> dict[str, str]:
        """Token hashes to identities."""
        pairs = [item.partition("=") for item in filter(None, self.peer_tokens.split(","))]
        return {digest.strip().lower(): identity.strip() for identity, _, digest in pairs}


class ObjectSettings(Settings):
    """Where objects are. Each service has its own identity there, with its own rights."""

    s3_endpoint: Address
    s3_access_key: str
    s3_secret_key: SecretStr
    s3_secure: bool = False
    s3_region: str = "us-east-1"
    bucket_prefix: str = "benchgen-"
