"""The settings of each service of a local stack: exactly what it needs, and nothing that it must not hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from services.local.credentials import Credentials
from services.local.files import PROGRAM_ROOT
from services.local.ports import LOOPBACK, Ports
from services.local.servers.nats import NatsServer
from services.local.servers.postgres import PostgresServer
from services.local.servers.seaweed import PORT_NAMES, SeaweedServer, access_key

BUCKET_PREFIX = "benchgen-"
# Gateway and runners call hub and scorer, and those two each other.
_CALLERS = {"hub": ("runner", "scorer", "gateway"), "scorer": ("hub", "runner", "gateway")}
_PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "BENCHGEN_LOG_LEVEL",
    "BENCHGEN_LEASE_SECONDS",
    "BENCHGEN_SANDBOX",
    "BENCHGEN_RUNTIMES",
    "BENCHGEN_RUNNER_SANDBOXES",
    "BENCHGEN_CONTAINER_HOST",
    "BENCHGEN_CONTAINER_PULL",
)


def runner_name(index: int) -> str:
    """Return the name of the n-th runner, counted from 1."""
    return f"runner-{index}"


def _peers(tokens: Mapping[str, str]) -> str:
    """Whom a service accepts: identities with the hashes of their tokens."""
    hashes = {caller: hashlib.sha256(token.encode()).hexdigest() for caller, token in tokens.items()}
    return ",".join(f"{caller}={digest}" for caller, digest in hashes.items())


def port_names(runners: int) -> list[str]:
    """Return the names of all ports that a stack with so many runners listens on."""
    http = ["hub.http", "scorer.http", "gateway.http", "simulator.http"]
    return [
        "postgres",
        "nats",
        *PORT_NAMES,
        "gateway.api",
        "gateway.grpc",
        "hub.grpc",
        "scorer.grpc",
        *http,
        *(f"{runner_name(index)}.http" for index in range(1, runners + 1)),
    ]


class StackSettings:
    """What a data directory's secrets and ports mean for every process of its stack."""

    def __init__(self, data_dir: Path, credentials: Credentials, ports: Ports) -> None:
        self.data_dir = data_dir
        self.credentials = credentials
        self.ports = ports

    def postgres(self) -> PostgresServer:
        """Return the database server."""
        return PostgresServer(self.data_dir / "postgres", self.ports["postgres"], self.credentials.postgres)

    def nats(self) -> NatsServer:
        """Return the message server."""
        return NatsServer(self.data_dir / "nats", self.ports["nats"], self.credentials.nats)

    def seaweed(self) -> SeaweedServer:
        """Return the object store."""
        numbers = {name: self.ports[name] for name in PORT_NAMES}
        return SeaweedServer(self.data_dir / "seaweed", numbers, self.credentials.objects, [BUCKET_PREFIX])

    def address(self, port: str) -> str:
        """Return ``host:port`` of a named port."""
        return f"{LOOPBACK}:{self.ports[port]}"

    @property
    def api(self) -> str:
        """The gateway's HTTP address, a URL."""
        return f"http://{self.address('gateway.api')}"

    def settings_for(self, service: str, index: int = 1) -> dict[str, str]:
        """Return the whole environment of a service's process; ``index`` tells runners apart, from 1.

        Nothing else of this process's environment reaches it.
        """
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in _PASSED_ON or name.startswith("OTEL_")
        }
        environment["PYTHONPATH"] = str(PROGRAM_ROOT)
        name = runner_name(index) if service == "runner" else service
        environment["BENCHGEN_HTTP_LISTEN"] = self.address(f"{name}.http")
        for settings in (
            self._callers(service),
            self._servers(service),
            self._objects(service),
            self._own(service, name),
        ):
            environment.update(settings)
        return environment

    def _callers(self, service: str) -> dict[str, str]:
        """Whom it calls and who may call it."""
        tokens = self.credentials.service_tokens
        settings = {}
        if service in tokens:
            settings["BENCHGEN_SERVICE_TOKEN"] = tokens[service]
        if service in _CALLERS:
            settings["BENCHGEN_GRPC_LISTEN"] = self.address(f"{service}.grpc")
            settings["BENCHGEN_PEER_TOKENS"] = _peers(
                {caller: tokens[caller] for caller in _CALLERS[service]}
            )
        for other in _CALLERS:
            if other != service and service in _CALLERS[other]:
                settings[f"BENCHGEN_{other.upper()}_ADDRESS"] = self.address(f"{other}.grpc")
        return settings

    def _servers(self, service: str) -> dict[str, str]:
        settings = {}
        if service in ("hub", "scorer", "gateway"):
            settings["BENCHGEN_POSTGRES_DSN"] = self.postgres().dsn(service)
        if service in ("hub", "scorer", "gateway", "runner"):
            settings["BENCHGEN_NATS_URL"] = self.nats().url
        return settings

    def _objects(self, service: str) -> dict[str, str]:
        if service not in ("hub", "scorer", "runner", "simulator"):
            return {}
        return {
            "BENCHGEN_S3_ENDPOINT": self.address("seaweed.s3"),
            "BENCHGEN_S3_ACCESS_KEY": access_key(service),
            "BENCHGEN_S3_SECRET_KEY": self.credentials.objects[service],
            "BENCHGEN_S3_SECURE": "0",
            "BENCHGEN_BUCKET_PREFIX": BUCKET_PREFIX,
        }

    def _own(self, service: str, name: str) -> dict[str, str]:
        secrets = self.credentials
        match service:
            case "hub":
                return {
                    "BENCHGEN_LEASE_SIGNING_KEY": secrets.lease_seed,
                    "BENCHGEN_PRINCIPAL_PUBLIC_KEY": secrets.principal_public,
                    "BENCHGEN_MASTER_KEY": secrets.master_key,
                    "BENCHGEN_SIMULATOR_URL": f"http://{self.address('simulator.http')}",
                    "BENCHGEN_CACHE_DIR": str(self.data_dir / "cache" / name),
                }
            case "scorer":
                return {
                    "BENCHGEN_LEASE_PUBLIC_KEY": secrets.lease_public,
                    "BENCHGEN_PRINCIPAL_PUBLIC_KEY": secrets.principal_public,
                    "BENCHGEN_CACHE_DIR": str(self.data_dir / "cache" / name),
                }
            case "gateway":
                return {
                    "BENCHGEN_PRINCIPAL_SIGNING_KEY": secrets.principal_seed,
                    "BENCHGEN_API_LISTEN": self.address("gateway.api"),
                    "BENCHGEN_GRPC_LISTEN": self.address("gateway.grpc"),
                    "BENCHGEN_BOOTSTRAP_KEY_HASH": secrets.api_key_hash(),
                }
            case "runner":
                return {
                    "BENCHGEN_SIMULATOR_TOKEN": secrets.simulator_token,
                    "BENCHGEN_CACHE_DIR": str(self.data_dir / "cache" / name),
                }
            case "simulator":
                return {"BENCHGEN_PEER_TOKENS": _peers({"runner": secrets.simulator_token})}
        raise ValueError(f"expected a service, found {service!r}")
