"""What a box is asked for, and what came of it. Values only: nothing here starts anything."""

from __future__ import annotations

import signal
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from socket import socket
from typing import IO, Protocol, Self

from benchgen.errors import BenchgenError


class SandboxFailed(BenchgenError):
    """The sandbox could not do its work; the program is not to blame."""

    reason = "SANDBOX_FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one box may use, over all of its processes together unless said otherwise."""

    wall_seconds: float = 60.0
    cpu_seconds: float = 60.0
    memory_bytes: int = 1 << 30
    """Of the processes' memory. What lies in the box's files is counted by ``disk_bytes`` and comes on top."""
    processes: int = 64
    """Processes and threads at a time."""
    file_bytes: int = 256 << 20
    """Of one file."""
    disk_bytes: int = 512 << 20
    """Of everything that is written: in ``folders``, ``/tmp`` and ``/dev/shm`` together."""
    output_bytes: int = 1 << 20
    """Of stdout, and of stderr."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, found {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or folder of this machine that the box sees read-only.

    The box's user is another one than ours: what it shall read must be readable by all (``0644``, folders ``0755``).
    The folders above ``source`` need not be.
    """

    source: Path
    target: str


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar that is unpacked into the box before the program starts.

    :param source: only its regular files are taken, with names relative to ``target``.
    """

    source: bytes | IO[bytes]
    target: str = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One program and the box around it. Paths are absolute paths in the box."""

    command: Sequence[str]
    """The program and its arguments; no shell. A name without a slash is looked for on the box's ``PATH``."""
    cwd: str = "/app"
    env: Mapping[str, str] = field(default_factory=dict)
    """On top of ``PATH``, ``HOME`` and ``LANG``; nothing of our own environment is passed on."""
    runtime: str = "default"
    """The name of a runtime (``BENCHGEN_RUNTIMES``)."""
    mounts: Sequence[Mount] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Small files by path; read-only for the program unless they lie in one of ``folders`` or ``/tmp``."""
    archives: Sequence[Archive] = ()
    """As ``files``, from tars; for what another box gave."""
    folders: Sequence[str] = ("/app/output",)
    """Made empty, and writable."""
    collect: Sequence[str] = ("/app/output",)
    """Folders whose regular files are handed out when every process of the box is dead."""
    stdin: bytes = b""
    port: int | None = None
    """A loopback port of the box whose listening socket is handed to the caller: the box's only way out."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.command:
            raise ValueError("command: expected at least one word")
        paths = [self.cwd, *self.files, *self.folders, *self.collect]
        paths += [mount.target for mount in self.mounts] + [archive.target for archive in self.archives]
        for path in paths:
            if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
                raise ValueError(f"expected an absolute path without '..', found {path!r}")


class Ended(StrEnum):
    """Why the program ended. Full disks and too many processes are errors that the program itself gets to see."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    WALL_LIMIT = "wall_limit"
    CPU_LIMIT = "cpu_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What came of a program, whose every process is dead."""

    ended: Ended
    exit_code: int | None
    """For ``EXITED``; 127 when there is no such command, 126 when it cannot be executed."""
    signal: int | None
    """For ``SIGNALLED``."""
    stdout: bytes
    stderr: bytes
    truncated: bool
    """Whether stdout or stderr was cut."""
    files: Mapping[str, IO[bytes]]
    """By folder of ``Job.collect``: a tar of its regular files, on an unnamed file of our own that goes with it."""
    refused: Sequence[str]
    """What was not handed out, and why: links, devices, what is too much. At most 50 are named."""
    wall_seconds: float
    cpu_seconds: float
    peak_memory_bytes: int | None

    def read(self, path: str, limit: int = 64 << 20) -> bytes | None:
        """The content of one collected file; nothing if there is none, or if it is larger than ``limit``."""
        for folder, packed in self.files.items():
            prefix = folder.rstrip("/") + "/"
            if path.startswith(prefix):
                packed.seek(0)
                with tarfile.open(fileobj=packed) as tar:
                    try:
                        member = tar.getmember(path[len(prefix) :])
                    except KeyError:
                        continue
                    content = tar.extractfile(member)
                    return content.read() if content is not None and member.size <= limit else None
        return None

    def describe(self) -> str:
        """One clause for people."""
        match self.ended:
            case Ended.EXITED:
                return f"exited with code {self.exit_code}"
            case Ended.SIGNALLED:
                return (
                    f"was ended by signal {self.signal} ({signal.strsignal(self.signal or 0) or 'unknown'})"
                )
            case Ended.WALL_LIMIT:
                return f"reached its time limit after {self.wall_seconds:.1f} s"
            case Ended.CPU_LIMIT:
                return f"reached its limit of CPU time after {self.cpu_seconds:.1f} s"
            case Ended.MEMORY_LIMIT:
                return "reached its limit of memory"
            case Ended.OUTPUT_LIMIT:
                return "wrote more to stdout or stderr than it may"


class Running(Protocol):
    """A box whose program runs. Leaving its context kills every process of the box and frees what it held."""

    @property
    def listener(self) -> socket | None:
        """With ``Job.port``: a listening socket inside the box's network. Whoever takes it closes it."""

    async def wait(self) -> Finished:
        """Wait until every process of the box is dead.

        :raises SandboxFailed: the box broke.
        """

    async def __aenter__(self) -> Self: ...


class Provider(Protocol):
    """A way to make boxes."""

    @property
    def name(self) -> str: ...

    async def check(self) -> None:
        """See whether boxes can be made here.

        :raises SandboxFailed: they cannot; says why and what would help.
        """

    async def sweep(self) -> None:
        """Remove what services that died have left, if boxes can leave anything."""

    def run(self, job: Job) -> AbstractAsyncContextManager[Running]:
        """Make a box and start the program.

        :raises SandboxFailed: on entering, when the box cannot be made.
        """


async def run(provider: Provider, job: Job) -> Finished:
    """Run a program to its end."""
    async with provider.run(job) as running:
        return await running.wait()
