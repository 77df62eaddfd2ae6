"""Ports on loopback: chosen once, remembered in the data directory, chosen again when somebody took them."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path

from services.local.errors import LocalStackError
from services.local.files import write_private

LOOPBACK = "127.0.0.1"
# Below the range that Linux hands to outgoing connections, so that none of those sits on a remembered port.
_FIRST, _LAST = 15_000, 32_000
_ATTEMPTS = 500


def is_free(port: int) -> bool:
    """Say whether a server could listen on this port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: a port whose last connections are in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port(taken: set[int] | None = None) -> int:
    """Choose a port at random that is free and not in ``taken``."""
    chooser = random.SystemRandom()
    for _ in range(_ATTEMPTS):
        port = chooser.randrange(_FIRST, _LAST)
        if port not in (taken or ()) and is_free(port):
            return port
    raise LocalStackError(f"no free port between {_FIRST} and {_LAST} on {LOOPBACK}")


class Ports:
    """Names to port numbers, kept in one JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}

    def claim(self, names: list[str]) -> None:
        """Give every name a port that is free now; a remembered one is kept where it still is."""
        before = dict(self._numbers)
        for name in names:
            if name not in self._numbers or not is_free(self._numbers[name]):
                self._numbers[name] = free_port(set(self._numbers.values()))
        if self._numbers != before:
            write_private(self._path, json.dumps(self._numbers, indent=1, sort_keys=True) + "\n")

    def __getitem__(self, name: str) -> int:
        return self._numbers[name]
