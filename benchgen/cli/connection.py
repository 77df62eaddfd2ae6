"""Which server a command talks to: a configured one, or the stack of this machine, started when need be."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

import benchgen
from benchgen.cli.exits import Exit, Stop

if TYPE_CHECKING:
    from benchgen.client import Client

# A gateway that its supervisor restarts is back within this time.
_PROBE_SECONDS = 3.0
_NO_SERVICES = "the services of BenchGen are not installed here, only its command line"
_GET_SERVICES = (
    "get them with `git clone https://github.com/benchgen/eval && cd eval && make setup`, or name a server "
    "with --server HOST:PORT and BENCHGEN_API_KEY"
)


class _LocalStack(NamedTuple):
    """What `stack.json` in a data directory says, as far as a client needs it."""

    pid: int
    grpc: str
    api_key_file: Path


@dataclass
class Target:
    """What the command line and the environment say about the server.

    A flag wins over a variable, and a named server over the machine's own stack.
    """

    server: str | None = None
    data_dir: Path | None = None

    def folder(self) -> Path:
        """The local stack's data directory, absolute."""
        chosen = self.data_dir or os.environ.get("BENCHGEN_DATA_DIR")
        if not chosen:
            base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
            chosen = Path(base) / "benchgen"
        return Path(chosen).expanduser().absolute()

    def connect(self, *, start: bool = False) -> Client:
        """A client for the server.

        :param start: whether to start the local stack where no server is configured and none runs.
        """
        if self.server and self.data_dir:
            raise click.UsageError("--server and --data-dir exclude each other: a server keeps its own data")
        server = self.server or (os.environ.get("BENCHGEN_SERVER") if self.data_dir is None else None)
        if server:
            return _client(server, _configured_key(server))
        stack = self._running()
        if stack is None:
            if not start:
                if self._is_supervised():
                    raise Stop(
                        Exit.UNREACHABLE,
                        f"the stack in {self.folder()} runs, but its gateway does not answer",
                        "`benchgen status` shows what is ready; what died is started again by itself",
                    )
                raise Stop(
                    Exit.UNREACHABLE,
                    f"no server: none is configured, and none runs in {self.folder()}",
                    "start one with `benchgen up`, or name one with --server HOST:PORT and BENCHGEN_API_KEY",
                )
            stack = self._started()
        return _client(stack.grpc, stack.api_key_file.read_text().strip())

    def _is_supervised(self) -> bool:
        stack = _read_stack(self.folder())
        return stack is not None and _is_alive(stack.pid)

    def _running(self) -> _LocalStack | None:
        stack = _read_stack(self.folder())
        if stack is None or not _is_alive(stack.pid):
            return None
        host, _, port = stack.grpc.rpartition(":")
        deadline = time.monotonic() + _PROBE_SECONDS
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except OSError:
                if time.monotonic() > deadline:
                    return None
                time.sleep(0.1)
            else:
                return stack

    def _started(self) -> _LocalStack:
        folder = self.folder()
        root = services_root()
        click.echo(f"no server runs: starting one in {folder}; `benchgen down` stops it", err=True)
        command = [*local_command("up", folder), "--detach"]
        ended = subprocess.run(
            command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        stack = _read_stack(folder)
        if ended.returncode != 0 or stack is None:
            click.echo(ended.stdout.rstrip(), err=True)
            raise Stop(
                Exit.UNREACHABLE, "the local stack did not start", f"its logs are in {folder / 'logs'}"
            )
        return stack


def services_root() -> Path:
    """The folder that `services` is imported from. Ends the command where there is none."""
    beside = Path(benchgen.__file__).resolve().parents[1]
    if (beside / "services" / "local" / "__main__.py").is_file():
        return beside
    try:
        spec = find_spec("services.local")
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise Stop(Exit.UNREACHABLE, _NO_SERVICES, _GET_SERVICES)
    return Path(spec.origin).resolve().parents[2]


def local_command(name: str, data_dir: Path) -> list[str]:
    """The command of the local stack's supervisor; to be run in :func:`services_root`."""
    return [sys.executable, "-m", "services.local", name, "--data-dir", str(data_dir)]


def _read_stack(folder: Path) -> _LocalStack | None:
    try:
        document = json.loads((folder / "stack.json").read_text())
        return _LocalStack(int(document["pid"]), document["grpc"], Path(document["api_key_file"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        raise Stop(
            Exit.UNREACHABLE,
            f"{folder / 'stack.json'} is damaged",
            "stop the stack with `benchgen down` and start it again with `benchgen up`",
        ) from None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _configured_key(server: str) -> str:
    key = os.environ.get("BENCHGEN_API_KEY", "").strip()
    if not key:
        raise Stop(
            Exit.BAD_INPUT,
            f"no API key for {server}",
            "put a key of that server into the variable BENCHGEN_API_KEY",
        )
    return key


def _client(address: str, api_key: str) -> Client:
    # Forks and reconnections are gRPC's own business: its notes do not belong into a report.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from benchgen.client import Client

    return Client(address, api_key)
