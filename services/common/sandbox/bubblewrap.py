"""Boxes by bubblewrap: Linux namespaces, a file system of small pieces, and our launcher as process 1.

As root the program gets a user id of its own, derived from a process id, that nothing else on the machine has; no
user namespace is needed. As an ordinary user everything happens in user namespaces, and the program in one more.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Self

from services.common.sandbox import wire
from services.common.sandbox.order import Order, order_for
from services.common.sandbox.runtimes import Prefix, Runtimes
from services.common.sandbox.types import Ended, Finished, Job, Limits, Mount, SandboxFailed, run

#: User ids that no distribution gives out (systemd keeps 524288 to 1879048191 for containers); one for each process.
_FIRST_USER = 0x70000000
_FEW_USERS = range(10_000, 60_000)
#: Namespaces, mounts, becoming somebody else, and what guarding takes. The launcher gives up most before it starts
#: the program, which never has any.
_CAPABILITIES = (
    "CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH",
    "CAP_KILL", "CAP_SYS_PTRACE",
)  # fmt: skip
_START_SECONDS = 30.0
#: How much longer than its program a box may take: killing, and handing out what it made.
_END_SECONDS = 60.0
#: How long the kernel may take to end what was killed: freeing much memory takes seconds on a busy machine.
_KILL_SECONDS = 30.0
_LIBRARIES = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
#: What programs need of the machine's /etc: the linker's cache, and which of several programs a name means.
_ETC = ("ld.so.cache", "alternatives")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Bubblewrap:
    """The provider."""

    name = "bubblewrap"

    def __init__(self, runtimes: Runtimes, *, program: str | None = None) -> None:
        self._runtimes = runtimes
        self._program = program or shutil.which("bwrap")
        self._python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()

    async def check(self) -> None:
        """Start a box with the default runtime's Python."""
        limits = Limits(wall_seconds=20, cpu_seconds=20)
        command = ["python3", "-I", "-c", "print('works')"]
        found = await run(self, Job(command=command, folders=(), collect=(), limits=limits))
        if found.ended is not Ended.EXITED or found.stdout != b"works\n":
            words = found.stderr.decode(errors="replace").strip()[:500]
            raise SandboxFailed(f"a program that prints one line {found.describe()}: {words}")

    async def sweep(self) -> None:
        """Nothing: boxes die with their services, and all they have is in their memory."""

    @asynccontextmanager
    async def run(self, job: Job) -> AsyncIterator[_Running]:
        """Make a box and start the program."""
        runtime = self._runtimes.find(job.runtime)
        if not isinstance(runtime, Prefix):
            raise SandboxFailed(f"the runtime {job.runtime!r} is a container image: bubblewrap cannot run it")
        if self._program is None:
            raise SandboxFailed(
                "bubblewrap is not installed (no bwrap on PATH); on Debian: apt-get install bubblewrap"
            )
        shown = list(self._shown(job, runtime))
        running = _Running(job, _covered(job, shown))
        try:
            running.start([self._program, *self._arguments(shown)], self._python)
            await running.prepare(runtime)
            yield running
        finally:
            await running.close()

    def _arguments(self, shown: Sequence[tuple[Path, str]]) -> list[str]:
        arguments = [
            "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
            "--die-with-parent", "--new-session", "--as-pid-1", "--hostname", "box", "--clearenv", "--cap-drop", "ALL",
        ]  # fmt: skip
        if os.geteuid() != 0:
            # The last one: the kernel asks it of whoever shows its root to another user namespace.
            arguments += ["--unshare-user", "--uid", "0", "--gid", "0", "--cap-add", "CAP_SETFCAP"]
        for capability in _CAPABILITIES:
            arguments += ["--cap-add", capability]
        arguments += ["--proc", "/proc", "--dev", "/dev"]
        for folder in _ways_to([target for _, target in shown]):
            # Said for each: bubblewrap would make them for its own user only.
            arguments += ["--perms", "0755", "--dir", folder]
        for source, target in shown:
            arguments += ["--ro-bind", str(source), target]
        for name in _LIBRARIES:
            if (link := Path("/", name)).is_symlink():
                arguments += ["--symlink", str(link.readlink()), f"/{name}"]
        return [*arguments, "--chdir", "/", "--"]

    def _shown(self, job: Job, runtime: Prefix) -> Iterator[tuple[Path, str]]:
        """What the box sees of this machine; folders before what lies in them."""
        shown = [Path("/usr")]
        shown += [path for name in _LIBRARIES if (path := Path("/", name)).is_dir() and not path.is_symlink()]
        shown += [path for name in _ETC if (path := Path("/etc", name)).exists()]
        for prefix in (runtime.path, _base_of(runtime.path), self._python.parent.parent):
            if prefix is not None and not any(prefix.is_relative_to(path) for path in shown):
                shown.append(prefix)
        for path in shown:
            yield path, str(path)
        for mount in sorted(job.mounts, key=lambda mount: mount.target):
            yield _existing(mount), mount.target


def _ways_to(targets: list[str]) -> list[str]:
    """The folders above the targets, outermost first, but for those that a target itself holds."""
    held = {PurePosixPath(target) for target in targets}
    ways = {
        folder
        for target in held
        for folder in target.parents
        if folder.parts != ("/",) and not held & {folder, *folder.parents}
    }
    return [str(folder) for folder in sorted(ways)]


def _covered(job: Job, shown: Sequence[tuple[Path, str]]) -> list[str]:
    """What the box's own disk would hide: a clone below /tmp has its runtimes there."""
    places = [PurePosixPath(place) for place in ("/tmp", "/dev/shm", *job.folders)]  # noqa: S108 - the box's own
    return [
        target
        for source, target in shown
        if source.is_dir() and any(place in PurePosixPath(target).parents for place in places)
    ]


def _existing(mount: Mount) -> Path:
    if not mount.source.exists():
        raise SandboxFailed(f"{mount.source} should be shown in the box as {mount.target}, and is not there")
    return mount.source


def _base_of(prefix: Path) -> Path | None:
    """The Python that a virtual environment is made from."""
    try:
        lines = (prefix / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition("=")
        if key.strip() == "home":
            return Path(value.strip()).resolve().parent
    return None


class _Running:
    """One box."""

    def __init__(self, job: Job, covered: Sequence[str]) -> None:
        self._job = job
        self._covered = covered
        self._conversation: wire.Conversation | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._outer: int | None = None
        """A descriptor of bubblewrap, which ends when everything in the box is dead."""
        self._first: int | None = None
        """A descriptor of process 1 of the box, with which everything else in it dies."""
        self._errors: int | None = None
        self.listener: socket.socket | None = None

    def start(self, command: list[str], python: Path) -> None:
        """Start bubblewrap. From the event loop's thread: the box dies with the thread that started it."""
        ours, theirs = socket.socketpair()
        self._conversation = wire.Conversation(ours)
        self._errors, errors = os.pipe()
        try:
            arguments = [str(python), "-I", "-S", "-E", "-B", "-c", wire.INHERITED, str(theirs.fileno())]
            self._process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                pass_fds=(theirs.fileno(),), env={}, cwd="/",
            )  # fmt: skip
            self._outer = os.pidfd_open(self._process.pid)
        except OSError as error:
            raise SandboxFailed(f"bubblewrap cannot be started: {error}") from None
        finally:
            theirs.close()
            os.close(errors)

    async def prepare(self, runtime: Prefix) -> None:
        """Send the job and wait until the program starts."""
        assert self._conversation is not None
        order = self._order(runtime)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._conversation.send(self._job, order)
                started = await self._conversation.started()
        except EOFError:
            raise SandboxFailed(f"no box can be made: {await self._complaint()}") from None
        except TimeoutError:
            raise SandboxFailed(f"the box did not start within {_START_SECONDS:.0f} s") from None
        self.listener = started.listener
        with suppress(ProcessLookupError):
            self._first = os.pidfd_open(started.pid)

    def _order(self, runtime: Prefix) -> Order:
        assert self._process is not None
        own_users = os.geteuid() != 0
        user = 1000 if own_users else _user_of(self._process.pid)
        path = {"PATH": f"{runtime.path}/bin:{_PATH}"}
        return order_for(
            self._job,
            uid=user,
            env=path,
            etc=_etc(user),
            own_users=own_users,
            contained=False,
            covered=self._covered,
        )

    async def wait(self) -> Finished:
        """Wait until every process of the box is dead, and take what it made."""
        assert self._conversation is not None
        try:
            async with asyncio.timeout(self._job.limits.wall_seconds + _END_SECONDS):
                return await self._conversation.finished(self._job)
        except EOFError:
            raise SandboxFailed(f"the box died: {await self._complaint()}") from None
        except TimeoutError:
            raise SandboxFailed("the box did not end after its time limit") from None

    async def _complaint(self) -> str:
        """What bubblewrap or the launcher wrote to stderr before it ended."""
        assert self._errors is not None
        assert self._outer is not None
        with suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                await _readable(self._outer)
        os.set_blocking(self._errors, False)
        try:
            words = os.read(self._errors, 4096).decode(errors="replace").strip()
        except BlockingIOError:
            words = ""
        return words.splitlines()[-1] if words else "it gave no reason"

    async def close(self) -> None:
        """Kill what lives, and wait until it is dead."""
        # Bubblewrap ends when process 1 of the box has; before that one is known, it dies with bubblewrap.
        for known in (self._first, self._outer):
            if known is not None:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(known, signal.SIGKILL)
                break
        if self._conversation is not None:
            self._conversation.close()
        try:
            if self._outer is not None:
                await _dead(self._outer)
        finally:
            self._free()

    def _free(self) -> None:
        if self._process is not None:
            self._process.poll()
        if self.listener is not None:
            self.listener.close()
        for file in (self._first, self._outer, self._errors):
            if file is not None:
                os.close(file)
        self._first = self._outer = self._errors = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _readable(file: int) -> None:
    """Wait for a process, by its descriptor."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(file, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(file)


async def _dead(process: int) -> None:
    """Wait for a process that was killed, even while being cancelled once: until then nothing is free."""
    loop = asyncio.get_running_loop()
    dead = loop.create_future()
    loop.add_reader(process, lambda: None if dead.done() else dead.set_result(None))
    cancelled: asyncio.CancelledError | None = None
    try:
        while not dead.done():
            try:
                await asyncio.wait([dead], timeout=_KILL_SECONDS)
                break
            except asyncio.CancelledError as error:
                if cancelled is not None:
                    raise
                cancelled = error
    finally:
        loop.remove_reader(process)
    if cancelled is not None:
        raise cancelled


def _user_of(pid: int) -> int:
    """A user id that no other process on this machine leads to."""
    for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines():
        first, _, count = map(int, line.split())
        if first <= _FIRST_USER and first + count > _FIRST_USER + (1 << 22):
            return _FIRST_USER + pid
    # We are in a container with few user ids: two boxes may share one, and then their limit of processes.
    return _FEW_USERS[pid % len(_FEW_USERS)]


def _etc(user: int) -> dict[str, bytes]:
    return {
        "passwd": f"root:x:0:0:root:/:/usr/sbin/nologin\nbox:x:{user}:{user}:box:/tmp/home:/bin/sh\n".encode(),
        "group": f"root:x:0:\nbox:x:{user}:\n".encode(),
        "hosts": b"127.0.0.1 localhost box\n::1 localhost\n",
        "nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files\n",
    }
