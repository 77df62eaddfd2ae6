"""Connections that a test can cut, delay and stall: one small proxy for each pair of parties."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from services.local.ports import LOOPBACK

T = TypeVar("T")

_CHUNK = 64 * 1024


class Background:
    """An event loop on a thread of its own, so that tests may block."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="resilience", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], timeout: float = 30) -> T:
        """Run something there and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def close(self) -> None:
        """End all that runs there."""
        self.call(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    @staticmethod
    async def _end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()


class Edge:
    """The way from one kind of process to another, over which each connection takes one of several servers.

    Attributes may be changed at any time and count for what passes from then on.
    """

    def __init__(self, name: str, background: Background, upstreams: Sequence[int]) -> None:
        self.name = name
        self.upstreams = tuple(upstreams)
        """Ports on this machine, taken in turn; one that does not answer is passed over."""
        self.delay = 0.0
        """How long every piece takes in each direction, seconds."""
        self.refusing = False
        """Whether new connections are closed at once."""
        self.stalled = False
        """Whether nothing passes; connections stay."""
        self.deaf = False
        """Whether what servers answer is dropped: they did what they were asked, and nobody hears of it."""
        self.answer_bytes: int | None = None
        """After so many bytes of answers from now on, the connection that carries the next is cut, once."""
        self._background = background
        self._turn = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._server = background.call(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, LOOPBACK, 0)

    def cut(self) -> None:
        """Break every connection, as a cable does."""
        self._background.call(self._cut())

    def heal(self) -> None:
        """Let everything pass again. Connections that lost something are broken: their two ends differ."""
        was_deaf = self.deaf
        self.delay, self.refusing, self.stalled, self.deaf = 0.0, False, False, False
        self.answer_bytes = None
        if was_deaf:
            self.cut()

    def close(self) -> None:
        """Serve nobody any more."""
        self._background.call(self._close())

    async def _close(self) -> None:
        self._server.close()
        await self._cut()

    async def _cut(self) -> None:
        for writer in list(self._open):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = None if self.refusing else await self._connect()
        if upstream is None:
            _reset(writer)
            return
        server_reader, server_writer = upstream
        pair = {writer, server_writer}
        self._open |= pair
        directions = [
            asyncio.ensure_future(self._carry(reader, server_writer, answers=False)),
            asyncio.ensure_future(self._carry(server_reader, writer, answers=True)),
        ]
        try:
            await asyncio.wait(directions)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            self._open -= pair
            for end in pair:
                end.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self.upstreams:
            port = self.upstreams[self._turn % len(self.upstreams)]
            self._turn += 1
            with suppress(OSError):
                return await asyncio.open_connection(LOOPBACK, port)
        return None

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        try:
            while data := await reader.read(_CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                while self.stalled:
                    await asyncio.sleep(0.01)
                if answers and self.deaf:
                    continue
                if answers and self._spent(len(data)):
                    _reset(writer)
                    return
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof() and not writer.transport.is_closing():
                writer.write_eof()
        except OSError:
            # The other direction ends with it.
            pass
        if writer.transport.is_closing() or reader.exception() is not None:
            _reset(writer)

    def _spent(self, size: int) -> bool:
        """Whether the answer that comes now is the one that is lost."""
        if self.answer_bytes is None:
            return False
        self.answer_bytes -= size
        if self.answer_bytes >= 0:
            return False
        self.answer_bytes = None
        return True


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the other end gets an error and not an end."""
    connection = writer.transport.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
