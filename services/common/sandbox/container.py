"""Boxes by a container engine, for runtimes that are images: Docker or Podman, over the Engine API on a unix socket.

The engine makes the namespaces, mounts and control groups. Process 1 of the container is the launcher that bubblewrap
boxes have too; it brings its own Python and libraries, so an image needs neither. Limits, outcomes and what is handed
out are therefore the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self
from urllib.parse import quote

import aiohttp
import orjson

from services.common.sandbox import wire
from services.common.sandbox.order import order_for
from services.common.sandbox.runtimes import Image, Runtimes
from services.common.sandbox.types import Finished, Job, Running, SandboxFailed

Pull = Literal["never", "missing", "always"]

#: What the launcher needs to become somebody else and to guard; the program never has any.
_CAPABILITIES = [
    "SETUID",
    "SETGID",
    "SETPCAP",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "KILL",
    "SYS_PTRACE",
]
#: Where the launcher's own Python and libraries are in the container.
_OWN = "/.box"
_FOLDER = "benchgen-box-"
_LABEL = "ai.benchgen.box"
_LAUNCHER_BYTES = 64 << 20
_START_SECONDS = 60.0
_END_SECONDS = 60.0
_PULL_SECONDS = 1800.0
#: What nobody holds is removed when it is older; a folder is locked right after it was made.
_ABANDONED_SECONDS = 5.0
#: Where engines listen when nobody said otherwise.
_USUAL = ("/var/run/docker.sock", "/run/podman/podman.sock")


class Container:
    """The provider."""

    name = "container"

    def __init__(self, runtimes: Runtimes, host: str, *, pull: Pull = "missing") -> None:
        self._runtimes = runtimes
        self._host = host
        self._pull = pull

    async def check(self) -> None:
        """Ask the engine whether it is there."""
        async with self._engine() as engine:
            await engine.ask("GET", "/_ping")

    async def sweep(self) -> None:
        """Remove what services that died have left. Containers end by themselves; their folders do not."""
        async with self._engine() as engine:
            await _sweep(engine)

    @asynccontextmanager
    async def run(self, job: Job) -> AsyncIterator[Running]:
        """Make a container and start the program."""
        runtime = self._runtimes.find(job.runtime)
        if not isinstance(runtime, Image):
            raise SandboxFailed(f"the runtime {job.runtime!r} is a folder: it needs no container")
        async with self._engine() as engine, AsyncExitStack() as stack:
            image = await engine.image(runtime.name, self._pull)
            folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.callback(os.close, _hold(folder))
            door = stack.enter_context(socket.socket(socket.AF_UNIX))
            door.bind(str(folder / "door"))
            door.listen(1)
            door.setblocking(False)
            made = await engine.ask("POST", "/containers/create", _wanted(job, runtime.name, folder))
            stack.push_async_callback(engine.remove, made["Id"])
            await engine.ask("POST", f"/containers/{made['Id']}/start")
            running = _Running(job, engine, made["Id"])
            stack.callback(running.close)
            await running.prepare(door, image)
            yield running

    @asynccontextmanager
    async def _engine(self) -> AsyncIterator[_Engine]:
        usual = next((path for path in _USUAL if Path(path).exists()), _USUAL[0])
        path = (self._host or usual).removeprefix("unix://")
        if not path.startswith("/"):
            raise SandboxFailed(
                f"BENCHGEN_CONTAINER_HOST: expected unix:///path/of/a/socket, found {self._host!r}"
            )
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path), timeout=timeout) as session:
            yield _Engine(session, path)


class _Engine:
    """The parts of the Engine API that are needed."""

    def __init__(self, session: aiohttp.ClientSession, path: str) -> None:
        self._session = session
        self._path = path

    async def ask(self, method: str, path: str, body: object = None, *, seconds: float = 60.0) -> Any:
        """Ask for something.

        :raises SandboxFailed: the engine is not there, or refuses.
        """
        status, content = await self._ask(method, path, body, seconds)
        if status >= 400:
            raise SandboxFailed(f"the container engine refuses {method} {path}: {_message(content)}")
        return orjson.loads(content) if content[:1] in (b"{", b"[") else content

    async def _ask(self, method: str, path: str, body: object, seconds: float) -> tuple[int, bytes]:
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request(method, f"http://engine{path}", json=body) as answer,
            ):
                return answer.status, await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise SandboxFailed(
                f"no container engine answers at {self._path} ({error}): start Docker or Podman "
                "(podman system service), or say with BENCHGEN_CONTAINER_HOST where it listens"
            ) from None

    async def image(self, name: str, pull: Pull) -> dict[str, Any]:
        """Have an image, as the policy says; returns what the engine knows of it.

        :raises SandboxFailed: it is not here and cannot be had.
        """
        known = f"/images/{quote(name, safe='/:@')}/json"
        status, content = await self._ask("GET", known, None, 60.0)
        if status == 404 and pull == "never":
            raise SandboxFailed(
                f"the image {name} is not on this machine, and BENCHGEN_CONTAINER_PULL is never: pull it, or map the "
                "name to another runtime with BENCHGEN_RUNTIMES"
            )
        if status == 404 or pull == "always":
            status, content = await self._ask(
                "POST", f"/images/create?fromImage={quote(name)}", None, _PULL_SECONDS
            )
            fault = _message(content) if status >= 400 else _fault_of_pull(content)
            if fault:
                raise SandboxFailed(
                    f"the image {name} is not on this machine and cannot be pulled ({fault}): pull or import it "
                    "there, or map the name to another runtime with BENCHGEN_RUNTIMES"
                )
            return dict(await self.ask("GET", known))
        if status >= 400:
            raise SandboxFailed(f"the container engine cannot say what {name} is: {_message(content)}")
        return dict(orjson.loads(content))

    async def remove(self, container: str) -> None:
        """Kill and remove a container; it may be gone."""
        with contextlib.suppress(SandboxFailed):
            await self.ask("DELETE", f"/containers/{container}?force=true&v=true")

    async def words(self, container: str) -> str:
        """The last line that the launcher wrote."""
        with contextlib.suppress(SandboxFailed):
            content = await self.ask("GET", f"/containers/{container}/logs?stderr=true&tail=1")
            # Each piece has a head of eight bytes.
            if isinstance(content, bytes) and len(content) > 8:
                return content[8:].decode(errors="replace").strip()
        return "it gave no reason"


def _message(content: bytes) -> str:
    try:
        return str(orjson.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace").strip()[:500] or "no reason given"


def _fault_of_pull(content: bytes) -> str:
    """Pulling answers 200 and says in a line what went wrong."""
    for line in content.splitlines():
        with contextlib.suppress(ValueError):
            if isinstance(found := orjson.loads(line), dict) and found.get("error"):
                return str(found["error"])
    return ""


def _linker() -> Path:
    """The machine's own dynamic linker, which starts the launcher whatever the image has."""
    for pattern in ("/lib64/ld-linux-*.so.*", "/lib/ld-linux-*.so.*"):
        for path in sorted(Path("/").glob(pattern[1:])):
            return path.resolve()
    raise SandboxFailed("containers need a launcher linked with glibc; this machine has no ld-linux")


def _wanted(job: Job, image: str, folder: Path) -> dict[str, Any]:
    """The body of ``POST /containers/create``."""
    limits = job.limits
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    prefix, linker = python.parent.parent, _linker()
    libraries = f"{_OWN}/python/lib:{_OWN}{linker.parent}:{_OWN}/usr/lib"
    command = [f"{_OWN}{linker}", "--library-path", libraries, f"{_OWN}/python/bin/{python.name}"]
    binds = [f"/usr:{_OWN}/usr:ro", f"{prefix}:{_OWN}/python:ro", f"{folder}:{_OWN}/door:ro"]
    if not linker.is_relative_to("/usr"):
        binds.append(f"{linker.parent}:{_OWN}{linker.parent}:ro")
    binds += [f"{mount.source}:{mount.target}:ro" for mount in job.mounts]
    size = f"size={limits.disk_bytes},nosuid,nodev,exec"
    places = {"/tmp": f"{size},mode=1777", "/dev/shm": f"{size},mode=1777"}  # noqa: S108
    places |= dict.fromkeys(_places(job), f"{size},mode=755")
    ceiling = limits.memory_bytes + limits.disk_bytes + _LAUNCHER_BYTES
    return {
        "Image": image,
        "Entrypoint": command,
        "Cmd": ["-I", "-S", "-E", "-B", "-c", wire.CONNECTED, f"{_OWN}/door/door"],
        "WorkingDir": "/",
        "User": "0:0",
        "Hostname": "box",
        "NetworkDisabled": True,
        "Labels": {_LABEL: folder.name},
        "HostConfig": {
            "NetworkMode": "none", "IpcMode": "private", "ReadonlyRootfs": True, "AutoRemove": True,
            "CapDrop": ["ALL"], "CapAdd": _CAPABILITIES, "SecurityOpt": ["no-new-privileges"], "Privileged": False,
            "Memory": ceiling, "MemorySwap": ceiling, "PidsLimit": limits.processes + 8, "OomScoreAdj": 500,
            "Binds": binds, "Tmpfs": places,
            "Ulimits": [
                {"Name": "nofile", "Soft": 1024, "Hard": 1024}, {"Name": "core", "Soft": 1, "Hard": 1},
                {"Name": "nproc", "Soft": limits.processes + 8, "Hard": limits.processes + 8},
            ],
        },
    }  # fmt: skip


def _places(job: Job) -> list[str]:
    """Where the container needs something that can be written: its folders, and what the job's files lie in.

    A container's own root is read-only from the start, for the launcher as well.
    """
    places = {PurePosixPath(folder) for folder in job.folders}
    held = [*places, PurePosixPath("/tmp")]  # noqa: S108
    wanted = [PurePosixPath(path).parent for path in job.files]
    wanted += [PurePosixPath(archive.target) for archive in job.archives]
    wanted.append(PurePosixPath(job.cwd))
    for place in sorted(wanted):
        if any(
            place.is_relative_to(other) for other in (*held, *(PurePosixPath(m.target) for m in job.mounts))
        ):
            continue
        if place == PurePosixPath("/"):
            raise SandboxFailed("a container's root folder cannot be written: send files into a folder of it")
        held.append(place)
        places.add(place)
    return sorted(map(str, places))


class _Running:
    """One container."""

    def __init__(self, job: Job, engine: _Engine, container: str) -> None:
        self._job = job
        self._engine = engine
        self._container = container
        self._conversation: wire.Conversation | None = None
        self.listener: socket.socket | None = None

    async def prepare(self, door: socket.socket, image: dict[str, Any]) -> None:
        """Wait for the launcher, send it the job, wait until the program starts."""
        given = (image.get("Config") or {}).get("Env") or []
        env = dict(line.partition("=")[::2] for line in given)
        user = 10_000 + secrets.randbelow(50_000)
        order = order_for(self._job, uid=user, env=env, etc={}, own_users=False, contained=True)
        try:
            async with asyncio.timeout(_START_SECONDS):
                control, _ = await asyncio.get_running_loop().sock_accept(door)
                self._conversation = wire.Conversation(control)
                await self._conversation.send(self._job, order)
                started = await self._conversation.started()
        except EOFError:
            raise SandboxFailed(
                f"no container can be used: {await self._engine.words(self._container)}"
            ) from None
        except TimeoutError:
            words = await self._engine.words(self._container)
            raise SandboxFailed(
                f"the container did not start within {_START_SECONDS:.0f} s: {words}"
            ) from None
        self.listener = started.listener

    async def wait(self) -> Finished:
        """Wait until every process of the container is dead, and take what it made."""
        assert self._conversation is not None
        try:
            async with asyncio.timeout(self._job.limits.wall_seconds + _END_SECONDS):
                return await self._conversation.finished(self._job)
        except EOFError:
            raise SandboxFailed("the container died") from None
        except TimeoutError:
            raise SandboxFailed("the container did not end after its time limit") from None

    def close(self) -> None:
        if self._conversation is not None:
            self._conversation.close()
        if self.listener is not None:
            self.listener.close()

    async def __aenter__(self) -> Self:
        return self


async def _sweep(engine: _Engine) -> None:
    places = Path(tempfile.gettempdir())
    for folder in places.glob(_FOLDER + "*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS and not _is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)
    query = quote(orjson.dumps({"label": [_LABEL]}).decode())
    for found in await engine.ask("GET", f"/containers/json?all=true&filters={query}"):
        old = time.time() - found["Created"] > _ABANDONED_SECONDS
        if old and not (places / found["Labels"][_LABEL]).exists():
            await engine.remove(found["Id"])


def _hold(folder: Path) -> int:
    """Lock a folder as long as this process lives, or until the descriptor is closed."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return held


def _is_held(folder: Path) -> bool:
    try:
        os.close(_hold(folder))
    except BlockingIOError:
        return True
    return False
