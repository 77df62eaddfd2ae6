"""What a local stack consists of: three servers and the services, as one table."""

from __future__ import annotations

import http.client
import sys
from typing import Protocol

from services.local.children import Command
from services.local.files import private_folder
from services.local.ports import LOOPBACK
from services.local.settings import StackSettings, runner_name


class Unit(Protocol):
    """One process that the supervisor keeps running. Methods may block, probes for a second at most."""

    @property
    def name(self) -> str:
        """What it is called in lines, logs and ``stack.json``."""

    @property
    def port(self) -> int:
        """Where it is reached first of all."""

    def prepare(self) -> None:
        """Write what it needs before it starts."""

    def command(self) -> Command:
        """Say how to start it."""

    def answers(self) -> bool:
        """Say whether it does its work."""

    def provision(self) -> None:
        """Set it up once it answers."""

    def is_leaving(self) -> bool:
        """Say whether somebody told it to stop, and it stays for as long as others use it."""

    def clean_up(self) -> None:
        """Remove what it leaves behind when it has ended."""


class ServiceUnit:
    """A service of ours, ``python -m services.<service>``."""

    def __init__(self, settings: StackSettings, service: str, index: int = 1) -> None:
        self.service = service
        self.name = runner_name(index) if service == "runner" else service
        self._settings = settings
        self._index = index
        self._health = settings.ports[f"{self.name}.http"]
        main_port = {"hub": "hub.grpc", "scorer": "scorer.grpc", "gateway": "gateway.api"}
        self.port = settings.ports[main_port.get(service, f"{self.name}.http")]

    def prepare(self) -> None:
        """Make its cache folder."""
        private_folder(self._settings.data_dir / "cache" / self.name)

    def command(self) -> Command:
        """Return how it is run: with its own settings only, handing back what it holds on SIGTERM."""
        return Command(
            argv=(sys.executable, "-m", f"services.{self.service}"),
            env=self._settings.settings_for(self.service, self._index),
            cwd=self._settings.data_dir,
            grace_seconds=15.0,
        )

    def answers(self) -> bool:
        """Say whether ``/readyz`` says yes."""
        connection = http.client.HTTPConnection(LOOPBACK, self._health, timeout=1.0)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def provision(self) -> None:
        """Do nothing: services migrate their own schemas and declare their own streams."""

    def is_leaving(self) -> bool:
        """Say no: told to stop, it does."""
        return False

    def clean_up(self) -> None:
        """Do nothing: it leaves nothing behind."""


#: Services are held back until these answer: they are up within a second, and a refused client waits longer.
#: The object store takes three; services begin without it.
BEFORE_SERVICES = ("postgres", "nats")

#: What stops together, in this order: first who takes work in, last who keeps the data.
STOP_ORDER = ("gateway", "runner", "hub", "scorer", "simulator")


def servers(settings: StackSettings) -> list[Unit]:
    """Return the three servers."""
    return [settings.postgres(), settings.nats(), settings.seaweed()]


def services(settings: StackSettings, runners: int) -> list[ServiceUnit]:
    """Return the services, in the order in which they are started."""
    return [
        ServiceUnit(settings, "hub"),
        ServiceUnit(settings, "scorer"),
        ServiceUnit(settings, "gateway"),
        *(ServiceUnit(settings, "runner", index) for index in range(1, runners + 1)),
        ServiceUnit(settings, "simulator"),
    ]


def in_stop_order(names: list[str]) -> list[list[str]]:
    """Group process names into those that stop together, first to last."""
    kinds = [name.rpartition("-")[0] or name for name in names]
    groups = [
        [name for name, kind in zip(names, kinds, strict=True) if kind == stopping] for stopping in STOP_ORDER
    ]
    groups.append([name for name, kind in zip(names, kinds, strict=True) if kind not in STOP_ORDER])
    return [group for group in groups if group]
