"""Server-sent events of one run."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
import orjson

from benchgen import schemas
from benchgen.errors import BenchgenError, Unavailable
from benchgen.eval.v1 import run_pb2
from services.gateway.backends import failure_of
from services.gateway.http.caller import Caller

MEDIA_TYPE = "text/event-stream"

#: A comment is sent after so much silence, so that nothing in between closes the connection, seconds.
_HEARTBEAT_SECONDS = 10.0

#: A hub that is away is asked again so often and for so long, seconds; then the client comes back by itself.
_RETRY_SECONDS = 0.5
_PATIENCE_SECONDS = 60.0

_ENDED = frozenset({run_pb2.Run.STATE_SUCCEEDED, run_pb2.Run.STATE_FAILED, run_pb2.Run.STATE_CANCELLED})


class RunEvents:
    """What one client is told about one run.

    The id of an event is a digest of its data: who comes back with the last id is not told the same again.
    """

    def __init__(self, caller: Caller, run: str, last_event_id: str | None) -> None:
        self._caller = caller
        self._run = run
        self._last_id = last_event_id
        self._call: Any = None
        self._ended = False
        self._first: bytes | None = None

    @classmethod
    async def open(cls, caller: Caller, run: str, last_event_id: str | None) -> Self | None:
        """Start to watch.

        :returns: None for somebody who has seen the end already.
        :raises BenchgenError: there is no such run, or the hub cannot be reached.
        """
        events = cls(caller, run, last_event_id)
        events._watch()
        try:
            state = await events._read()
        except BaseException:
            events._call.cancel()
            raise
        if state is not None:
            events._first = events._event(state)
        if events._ended and events._first is None:
            events._call.cancel()
            return None
        return events

    async def stream(self) -> AsyncIterator[bytes]:
        """The events as bytes, until the run has ended, the process stops, or the key is good no more."""
        stopping = asyncio.ensure_future(self._caller.api.stopping.wait())
        try:
            # Tells the client how soon to come back when the connection breaks, milliseconds.
            yield b"retry: 1000\n\n"
            if self._first is not None:
                yield self._first
            written = time.monotonic()
            async for event in self._events(stopping):
                if event is not None:
                    written = time.monotonic()
                    yield event
                elif time.monotonic() - written >= _HEARTBEAT_SECONDS:
                    written = time.monotonic()
                    yield b": still here\n\n"
        finally:
            stopping.cancel()
            self._call.cancel()

    async def _events(self, stopping: asyncio.Future[Any]) -> AsyncIterator[bytes | None]:
        """Events as they come; None whenever there was a chance for one."""
        reached = time.monotonic()
        while not self._ended:
            reading = asyncio.ensure_future(self._read())
            try:
                while not reading.done():
                    await asyncio.wait(
                        {reading, stopping}, timeout=_HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    if stopping.done():
                        return
                    if not reading.done():
                        yield None
                state = reading.result()
            except Unavailable:
                state = None
            except BenchgenError:
                return
            finally:
                reading.cancel()
            if state is not None:
                reached = time.monotonic()
                yield self._event(state)
            elif time.monotonic() - reached > _PATIENCE_SECONDS:
                return
            else:
                await asyncio.sleep(_RETRY_SECONDS)
                self._watch()
                yield None

    def _watch(self) -> None:
        backends = self._caller.backends
        metadata = backends.metadata(self._caller.who)
        self._call = backends.runs.WatchRun(run_pb2.WatchRunRequest(name=self._run), metadata=metadata)

    async def _read(self) -> run_pb2.Run | None:
        """The run's next state; None when the hub ended the watch before the run ended.

        :raises BenchgenError: what the hub answered instead.
        """
        try:
            state = await self._call.read()
        except grpc.aio.AioRpcError as failure:
            raise failure_of(failure) from None
        if state is grpc.aio.EOF:
            return None
        assert isinstance(state, run_pb2.Run)
        return state

    def _event(self, state: run_pb2.Run) -> bytes | None:
        """The event that tells a state; None when the client knows it already."""
        self._ended = state.state in _ENDED
        data = orjson.dumps(schemas.run_json(state))
        event_id = hashlib.sha256(data).hexdigest()[:16]
        if event_id == self._last_id:
            return None
        self._last_id = event_id
        return b"event: run\nid: " + event_id.encode() + b"\ndata: " + data + b"\n\n"
