"""The conversation with the launcher of a box (``launcher.py``), from our side.

What comes back is read as from a stranger: kinds, sizes and counts are checked against the limits, names must be UTF-8.
"""

from __future__ import annotations

import asyncio
import io
import marshal
import socket
import struct
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from services.common.sandbox import launcher
from services.common.sandbox.order import MOST_FILES, Order
from services.common.sandbox.types import Ended, Finished, Job, SandboxFailed

_ENDED = {
    launcher.EXITED: Ended.EXITED,
    launcher.SIGNALLED: Ended.SIGNALLED,
    launcher.WALL: Ended.WALL_LIMIT,
    launcher.CPU: Ended.CPU_LIMIT,
    launcher.MEMORY: Ended.MEMORY_LIMIT,
    launcher.OUTPUT: Ended.OUTPUT_LIMIT,
}
_CHUNK = 1 << 20
_SPOOL_BYTES = 1 << 20
#: Python reads the launcher from the control socket; nothing of it lies in the box. ``f`` is that socket.
_BOOTSTRAP = (
    "c=os.fdopen(f,'rb',closefd=False);n={'__name__':'launcher'};"
    "exec(marshal.loads(c.read(int.from_bytes(c.read(8),'little'))),n);n['main'](c)"
)
#: For a socket that is inherited, named by its number.
INHERITED = "import marshal,os,sys;f=int(sys.argv[1]);" + _BOOTSTRAP
#: For one that is connected to, named by its path.
CONNECTED = (
    "import marshal,os,sys,_socket;s=_socket.socket(1,1);s.connect(sys.argv[1]);f=s.detach();" + _BOOTSTRAP
)


class Started(NamedTuple):
    pid: int
    listener: socket.socket | None


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")


@cache
def _code() -> bytes:
    """The launcher, compiled once."""
    source = Path(launcher.__file__).read_text(encoding="utf-8")
    return marshal.dumps(compile(source, "<launcher>", "exec", dont_inherit=True, optimize=2))


def outgoing(job: Job, order: Order) -> Iterator[bytes]:
    """All that the launcher reads, in pieces."""
    packed = marshal.dumps(cast(dict[str, Any], order))
    code = _code()
    yield _number(len(code)) + code + _number(len(packed)) + packed
    for path, content in job.files.items():
        yield _file_head(path, 0o755, len(content)) + content
    for archive in job.archives:
        yield from _archived(archive.source, archive.target.rstrip("/"))
    yield _number(0)


def _file_head(path: str, mode: int, size: int) -> bytes:
    name = path.encode()
    return _number(len(name)) + _number(mode) + _number(size) + name


def _archived(source: bytes | IO[bytes], target: str) -> Iterator[bytes]:
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        for member in tar:
            if not member.isreg() or (content := tar.extractfile(member)) is None:
                continue
            parts = [part for part in member.name.split("/") if part not in ("", ".")]
            if ".." in parts or not parts:
                raise SandboxFailed(f"an archive for the box names {member.name!r}, which leads out of it")
            yield _file_head("/".join([target, *parts]), member.mode, member.size)
            while data := content.read(_CHUNK):
                yield data


class Conversation:
    """Our end of the control socket."""

    def __init__(self, control: socket.socket) -> None:
        self._socket = control
        control.setblocking(False)
        # The kernel then says which process the first byte is from, as we number processes.
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()

    async def send(self, job: Job, order: Order) -> None:
        """Send code, job and files. A launcher that gives up early says why in what is read next."""
        try:
            for piece in outgoing(job, order):
                await self._loop.sock_sendall(self._socket, piece)
        except (BrokenPipeError, ConnectionResetError):
            return

    async def started(self) -> Started:
        """Wait until the program is about to start.

        :raises SandboxFailed: the box cannot be prepared.
        :raises EOFError: the launcher is not there any more.
        """
        readable = asyncio.Event()
        self._loop.add_reader(self._socket, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(self._socket)
        fd_size, cred_size = struct.calcsize("i"), struct.calcsize("3i")
        space = socket.CMSG_SPACE(fd_size) + socket.CMSG_SPACE(cred_size)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(1, space, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        pid, listener = 0, None
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                listener = socket.socket(fileno=struct.unpack("i", value[:fd_size])[0])
                listener.setblocking(False)
            elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid = struct.unpack("3i", value[:cred_size])[0]
        if data == b"E":
            (length,) = struct.unpack("<Q", await self._read(8))
            message = await self._read(min(length, 4096))
            raise SandboxFailed("the box cannot be prepared: " + message.decode(errors="replace"))
        if data != b"S":
            raise SandboxFailed(f"the box answered {data!r} where it should start")
        return Started(pid, listener)

    async def finished(self, job: Job) -> Finished:
        """Read what came of the program.

        :raises EOFError: the launcher died.
        """
        limits = job.limits
        if await self._read(1) != b"R":
            raise SandboxFailed("the box answered something else than a result")
        ended, code, wall, cpu, peak, cut, out, err = struct.unpack("<8Q", await self._read(64))
        if ended not in _ENDED or max(out, err) > limits.output_bytes:
            raise SandboxFailed("the box answered a result that cannot be")
        stdout, stderr = await self._read(out), await self._read(err)
        refused: list[str] = []
        packers = [_Packer() for _ in job.collect]
        left = limits.disk_bytes
        for _ in range(MOST_FILES + 64):
            kind = await self._read(1)
            if kind == b"Z":
                break
            at, length, size = struct.unpack("<3Q", await self._read(24))
            if at >= len(packers) or length > 4096 or (kind == b"X" and size > 4096) or size > left:
                raise SandboxFailed("the box handed out something that cannot be")
            name = await self._read(length)
            if kind == b"X":
                reason = (await self._read(size)).decode(errors="replace")
                refused.append(
                    f"{job.collect[at].rstrip('/')}/{name.decode(errors='backslashreplace')}: {reason}"
                )
                continue
            left -= size
            if not await self._take(packers[at], name, size):
                refused.append(
                    f"{job.collect[at].rstrip('/')}/{name.decode(errors='backslashreplace')}: its name is not UTF-8"
                )
        else:
            raise SandboxFailed("the box handed out more files than it may")
        return Finished(
            ended=_ENDED[ended],
            exit_code=code if _ENDED[ended] is Ended.EXITED else None,
            signal=code if _ENDED[ended] is Ended.SIGNALLED else None,
            stdout=stdout,
            stderr=stderr,
            truncated=bool(cut),
            files={folder: packer.finish() for folder, packer in zip(job.collect, packers, strict=True)},
            refused=refused[:50],
            wall_seconds=wall / 1e6,
            cpu_seconds=cpu / 1e6,
            peak_memory_bytes=peak or None,
        )

    async def _take(self, packer: _Packer, name: bytes, size: int) -> bool:
        """Take one file; false when it was read past, since its name is no text."""
        try:
            packer.begin(name.decode(), size)
            kept = True
        except UnicodeDecodeError:
            kept = False
        left = size
        while left:
            data = await self._read(min(left, _CHUNK))
            left -= len(data)
            if kept:
                packer.add(data)
        if kept:
            packer.end(size)
        return kept

    async def _read(self, length: int) -> bytes:
        while len(self._buffer) < length:
            try:
                data = await self._loop.sock_recv(self._socket, _CHUNK)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._buffer += data
        data = bytes(memoryview(self._buffer)[:length])
        del self._buffer[:length]
        return data

    def close(self) -> None:
        """End the conversation; the launcher, if it still lives, ends its box."""
        self._socket.close()


class _Spool(tempfile.SpooledTemporaryFile[bytes]):
    """In memory while it is small, then on an unnamed file; gone with its last reference."""

    def __del__(self) -> None:
        self.close()


class _Packer:
    """Writes a tar piece by piece."""

    def __init__(self) -> None:
        self._file = _Spool(max_size=_SPOOL_BYTES)

    def begin(self, name: str, size: int) -> None:
        info = tarfile.TarInfo(name)
        info.size = size
        self._file.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))

    def add(self, data: bytes) -> None:
        self._file.write(data)

    def end(self, size: int) -> None:
        self._file.write(bytes(-size % tarfile.BLOCKSIZE))

    def finish(self) -> IO[bytes]:
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.seek(0)
        return self._file
