"""uvicorn inside a process of ours: same event loop, no signal handlers, no logs of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.types import ASGIApp

from services.common.process import Process

#: How long answers under way may take to end when the process stops, seconds.
_GRACE_SECONDS = 5


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say when it listens."""
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: the process has its own handlers."""
        yield


@contextlib.asynccontextmanager
async def listening(app: ASGIApp, listen: str, process: Process) -> AsyncIterator[int]:
    """A running HTTP server; yields its port. On exit it takes no new requests and ends those under way."""
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=1024)
    server = _Server(
        uvicorn.Config(
            app,
            # h11 bounds the length of headers, which httptools does not.
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
    task = process.spawn("http", server.serve(sockets=[listener]))
    try:
        await server.listening.wait()
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
