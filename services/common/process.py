"""What every process is made of: signals, health, background loops, a graceful stop."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import structlog
import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, Metric

from benchgen.errors import BenchgenError, Unavailable
from services.common import db, tracing
from services.common.config import ProcessSettings
from services.common.telemetry import LOOP_FAULTS, configure_logging, exposition, say_build

log = structlog.get_logger()

S = TypeVar("S", bound=ProcessSettings)

#: Faults of neighbours that pass by themselves: a loop that meets one waits and goes on.
TRANSIENT = (*db.TRANSIENT, Unavailable, TimeoutError)

#: Who asks for metrics waits at most so long for what must be measured first, seconds.
_MEASURE_SECONDS = 3.0


class Process:
    """The running process: knows whether it is ready and whether it should stop."""

    def __init__(self, name: str, group: asyncio.TaskGroup) -> None:
        self.name = name
        self.ready = False
        self.stopping = asyncio.Event()
        self.notes: dict[str, str] = {}
        """What whoever asks for ``/readyz`` is told besides, a line each; none of it makes the process unready."""
        self._group = group
        self._tasks: set[asyncio.Task[None]] = set()
        self._measures: list[Callable[[], Awaitable[Sequence[Metric]]]] = []

    def measure(self, step: Callable[[], Awaitable[Sequence[Metric]]]) -> None:
        """Have ``/metrics`` show what ``step`` finds whenever somebody asks."""
        self._measures.append(step)

    async def measured(self) -> list[Metric]:
        """What stands now. What cannot be measured is left out: no figure is better than an old one."""
        found: list[Metric] = []
        for step in self._measures:
            try:
                async with asyncio.timeout(_MEASURE_SECONDS):
                    found += await step()
            except TRANSIENT as error:
                if not db.is_transient(error) and not isinstance(error, (Unavailable, TimeoutError)):
                    raise
                LOOP_FAULTS.labels("measure").inc()
                log.warning("measure.fault", error=str(error) or type(error).__name__)
        return found

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a background task; should it die, the process ends, and its supervisor starts another."""
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settled(self, grace: float = 5.0) -> None:
        """Wait until the background loops have ended, after ``stopping`` was set and before what they use closes."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()

    def loop(
        self,
        name: str,
        step: Callable[[], Awaitable[None]],
        *,
        every: float,
        wake: asyncio.Event | None = None,
        rest: float = 0.0,
    ) -> asyncio.Task[None]:
        """Repeat ``step`` every so many seconds, and at once when ``wake`` is set.

        :param rest: the least time from the end of one step to the start of the next: what wakes it often is then
            dealt with together.
        """
        # There from the start: a series that appears with its first fault hides that fault from `increase`.
        LOOP_FAULTS.labels(name)
        return self.spawn(name, self._repeat(name, step, every, wake or asyncio.Event(), rest))

    async def _repeat(
        self, name: str, step: Callable[[], Awaitable[None]], every: float, wake: asyncio.Event, rest: float
    ) -> None:
        while not self.stopping.is_set():
            wake.clear()
            try:
                await step()
            except TRANSIENT as error:
                if not db.is_transient(error) and not isinstance(error, (Unavailable, TimeoutError)):
                    raise
                if (task := asyncio.current_task()) and task.cancelling():
                    # A neighbour was lost while this was being cancelled: its fault must not make up for that.
                    raise asyncio.CancelledError from error
                LOOP_FAULTS.labels(name).inc()
                log.warning("loop.fault", loop=name, error=str(error) or type(error).__name__)
                # A loop without a pause of its own must not spin while a neighbour is away.
                await self.sleep(min(max(every, 0.1), 0.5))
                continue
            if rest:
                await self.sleep(rest)
            # Not `wait_for`: up to Python 3.11 it may swallow a cancellation, and the process would never end.
            with suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await _first(wake, self.stopping)

    async def sleep(self, seconds: float) -> None:
        """Sleep, but not past the moment when the process should stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def main(name: str, settings_type: type[S], serve: Callable[[S, Process], Awaitable[None]]) -> int:
    """Run a service until it is told to stop.

    :param serve: opens everything, marks the process ready, waits for ``stopping``, closes everything.
    :returns: the exit code: 0 after a graceful stop, 2 for settings that cannot be used, 1 for anything else.
    """
    try:
        settings = settings_type.from_environ()
    except BenchgenError as error:
        print(f"benchgen {name}: {error}", file=sys.stderr)
        return 2
    configure_logging(name, level=settings.log_level, form=settings.log_format)
    say_build(name)
    try:
        with tracing.exporting(name):
            uvloop.run(_run(name, settings, serve))
    except Exception as error:
        # A group when a background loop died, bare when the process could not start.
        for cause in error.exceptions if isinstance(error, ExceptionGroup) else (error,):
            log.exception("process.died", exc_info=cause)
        return 1
    return 0


async def _run(name: str, settings: S, serve: Callable[[S, Process], Awaitable[None]]) -> None:
    async with asyncio.TaskGroup() as group:
        process = Process(name, group)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, process.stopping.set)
        _spare_the_collector()
        async with _health(process, settings.http_listen):
            await serve(settings, process)
        process.stopping.set()
    log.info("process.stopped")


def _spare_the_collector() -> None:
    """Look for cycles of garbage less often, and never in what was loaded at the start.

    Measured: a sixth of a runner's time goes into looking. What is made for a request is freed by its last reference;
    cycles come with exceptions and closed connections, and are few.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@asynccontextmanager
async def _health(process: Process, listen: str) -> AsyncIterator[None]:
    """Serve ``/healthz`` (the process lives), ``/readyz`` (it does its work), ``/metrics``."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        ready = process.ready and not process.stopping.is_set()
        lines = [
            "ready" if ready else "not ready",
            *(f"{name}: {note}" for name, note in process.notes.items()),
        ]
        return web.Response(text="\n".join(lines) + "\n", status=200 if ready else 503)

    async def metrics(_: web.Request) -> web.Response:
        body = exposition(await process.measured())
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    await web.TCPSite(runner, host, int(port)).start()
    try:
        yield
    finally:
        await runner.cleanup()
