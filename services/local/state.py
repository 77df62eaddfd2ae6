"""What a data directory says about the stack that runs in it, if one does."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.local import credentials
from services.local.children import ProcessRecord, record_of
from services.local.files import private_folder, write_private
from services.local.ports import Ports
from services.local.settings import StackSettings


def default_data_dir() -> Path:
    """Return ``$BENCHGEN_DATA_DIR``, else ``benchgen`` in the user's data folder."""
    if chosen := os.environ.get("BENCHGEN_DATA_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "benchgen"


@dataclass(frozen=True, slots=True)
class ServiceState:
    """One running process of the stack. ``started_at`` is in seconds since 1970."""

    name: str
    pid: int
    port: int
    started_at: float
    restarts: int


@dataclass(frozen=True, slots=True)
class StackState:
    """The content of ``stack.json``, there while a stack is ready. ``api`` is a URL."""

    pid: int
    started_at: float
    data_dir: str
    api: str
    grpc: str
    api_key_file: str
    services: list[ServiceState]


class DataDir:
    """The files of one data directory; nothing in it is readable by anybody else."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.logs = self.path / "logs"
        self.api_key = self.path / "api-key"
        self._stack = self.path / "stack.json"
        self._processes = self.path / "processes.json"
        self._lock = self.path / "lock"

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Become the only supervisor of this directory; yields whether that succeeded.

        The kernel frees the lock when we end, however we end.
        """
        private_folder(self.path)
        private_folder(self.logs)
        with os.fdopen(os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            file.truncate()
            json.dump(asdict(record_of("supervisor", os.getpid())), file)
            file.flush()
            self._stack.unlink(missing_ok=True)
            yield True

    def supervisor(self) -> ProcessRecord | None:
        """Return the supervisor that holds the lock, or ``None``."""
        if not self._lock.exists():
            return None
        with self._lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                record = _record(json.load(file))
                return record if record.find() else None
        return None

    def settings(self) -> StackSettings:
        """Return the settings of this directory's stack, with secrets made the first time."""
        made = credentials.load_or_create(self.path / "secrets.json")
        if not self.api_key.exists():
            write_private(self.api_key, made.api_key + "\n")
        return StackSettings(self.path, made, Ports(self.path / "ports.json"))

    def write_processes(self, records: list[ProcessRecord]) -> None:
        """Remember which processes are ours, for whoever comes after a kill."""
        write_private(self._processes, json.dumps([asdict(record) for record in records], indent=1) + "\n")

    def processes(self) -> list[ProcessRecord]:
        """Return the processes that were ours when they were last written down."""
        if not self._processes.exists():
            return []
        return [_record(entry) for entry in json.loads(self._processes.read_text())]

    def write_state(self, state: StackState) -> None:
        """Say what runs where."""
        write_private(self._stack, json.dumps(asdict(state), indent=1) + "\n")

    def state(self) -> StackState | None:
        """Return what runs where, or ``None`` while nothing is ready."""
        try:
            document: dict[str, Any] = json.loads(self._stack.read_text())
        except FileNotFoundError:
            return None
        services = [ServiceState(**entry) for entry in document.pop("services")]
        return StackState(services=services, **document)

    def forget_state(self) -> None:
        """Say that nothing is ready."""
        self._stack.unlink(missing_ok=True)


def _record(entry: dict[str, Any]) -> ProcessRecord:
    return ProcessRecord(
        entry["name"], entry["pid"], entry["started"], tuple(entry["argv"]), entry["stop_signal"]
    )
