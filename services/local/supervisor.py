"""Keeps the processes of a local stack running: starts them together, restarts the dead, stops in order."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from services.local import report
from services.local.catalogue import publish_ready_environments
from services.local.children import Child
from services.local.errors import LocalStackError
from services.local.files import tail
from services.local.settings import StackSettings
from services.local.state import DataDir, ServiceState, StackState
from services.local.units import BEFORE_SERVICES, ServiceUnit, Unit, in_stop_order

START_SECONDS = 60.0
#: The exit code of a stack that cannot be had, the same as that of a server that cannot be reached.
CANNOT_START = 4
FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 0.2, 5.0
# Who lived this long is not in a loop of dying: the next restart is quick again.
_STEADY_SECONDS = 30.0
# Deaths before the first readiness that end `up`: something is wrong that trying again does not cure.
_HOPELESS = 4
_PROBE_SECONDS = 0.05
_LEAVING_SECONDS = 1.0


class Supervisor:
    """Runs the units of one data directory until SIGTERM or SIGINT; a second signal kills at once."""

    def __init__(self, data: DataDir, settings: StackSettings, units: list[Unit]) -> None:
        self._data = data
        self._settings = settings
        self._units = units
        self._ready = {unit.name: asyncio.Event() for unit in units}
        self._children: dict[str, Child] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._restarts = dict.fromkeys(self._ready, 0)
        self._stopping = asyncio.Event()
        self._began = time.monotonic()
        self._announced = False

    async def run(self) -> int:
        """Return the exit code: 0 when it was told to stop, 4 when the stack could not start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGCHLD, self._on_child)
        # Every unit may sit in a blocking call at once.
        loop.set_default_executor(ThreadPoolExecutor(len(self._units) + 2, thread_name_prefix="local"))
        code = 0
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._keep(unit)) for unit in self._units]
                tasks.append(group.create_task(self._announce()))
                await self._stopping.wait()
                for task in tasks:
                    task.cancel()
        except* LocalStackError as faults:
            for fault in faults.exceptions:
                report.trouble(str(fault))
            code = CANNOT_START
        finally:
            await self._stop_in_order()
        return code

    def _on_stop(self) -> None:
        if self._stopping.is_set():
            for child in self._children.values():
                child.kill()
        self._stopping.set()

    def _on_child(self) -> None:
        # Signals of one kind merge: one may stand for several deaths.
        for name, child in self._children.items():
            if child.exit_code() is not None:
                self._ended[name].set()

    async def _keep(self, unit: Unit) -> None:
        """Have one process running, always."""
        if isinstance(unit, ServiceUnit):
            for name in BEFORE_SERVICES:
                await self._ready[name].wait()
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            await asyncio.to_thread(unit.prepare)
            # Here and not on a thread: the kernel ends a child when the thread that made it ends.
            child = Child(unit.name, unit.command(), self._data.logs / f"{unit.name}.log")
            self._children[unit.name] = child
            self._ended[unit.name] = asyncio.Event()
            self._write_down()
            await self._until_ready(unit, child)
            await self._until_ended(unit, child)
            await self._mourn(unit, child)
            if time.monotonic() - child.started > _STEADY_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF_SECONDS)
            self._restarts[unit.name] += 1

    async def _until_ready(self, unit: Unit, child: Child) -> None:
        while child.exit_code() is None:
            if await asyncio.to_thread(unit.answers):
                await asyncio.to_thread(unit.provision)
                since = child.started if self._restarts[unit.name] else self._began
                report.started(unit.name, unit.port, child.pid, time.monotonic() - since)
                self._ready[unit.name].set()
                return
            await asyncio.sleep(_PROBE_SECONDS)

    async def _until_ended(self, unit: Unit, child: Child) -> None:
        """Wait for its end, and hasten it where it refuses work already: services never let go of a server."""
        while True:
            try:
                async with asyncio.timeout(_LEAVING_SECONDS):
                    await self._ended[unit.name].wait()
            except TimeoutError:
                if await asyncio.to_thread(unit.is_leaving):
                    child.ask_to_stop()
            else:
                return

    async def _mourn(self, unit: Unit, child: Child) -> None:
        """Report a death, and give up where a start was hopeless from the beginning."""
        code = child.exit_code() or 0
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        await asyncio.to_thread(unit.clean_up)
        if not self._ready[unit.name].is_set() and self._restarts[unit.name] + 1 >= _HOPELESS:
            raise LocalStackError(
                f"{unit.name} does not start ({how}); {child.log} ends with\n{tail(child.log)}"
            )
        report.trouble(f"{unit.name} died ({how}), starting it again; see {child.log}")

    async def _announce(self) -> None:
        """Tell everybody once all of it is ready."""
        try:
            async with asyncio.timeout(START_SECONDS):
                for event in self._ready.values():
                    await event.wait()
        except TimeoutError:
            waiting = ", ".join(name for name, event in self._ready.items() if not event.is_set())
            raise LocalStackError(
                f"not ready after {START_SECONDS:.0f} s: {waiting}; see the logs in {self._data.logs}"
            ) from None
        await self._publish(slow=False)
        self._announced = True
        self._write_down()
        report.ready(self._state(), time.monotonic() - self._began)
        await self._publish(slow=True)

    async def _publish(self, *, slow: bool) -> None:
        if "gateway" in self._ready:
            await asyncio.to_thread(
                publish_ready_environments,
                self._settings.address("gateway.grpc"),
                self._settings.credentials.api_key,
                self._data.path / "published.json",
                self._stopping.is_set,
                slow=slow,
            )

    def _state(self) -> StackState:
        ports = {unit.name: unit.port for unit in self._units}
        return StackState(
            pid=os.getpid(),
            started_at=time.time() - (time.monotonic() - self._began),
            data_dir=str(self._data.path),
            api=self._settings.api if "gateway" in ports else "",
            grpc=self._settings.address("gateway.grpc") if "gateway" in ports else "",
            api_key_file=str(self._data.api_key),
            services=[
                ServiceState(name, child.pid, ports[name], child.started_at, self._restarts[name])
                for name, child in self._children.items()
            ],
        )

    def _write_down(self) -> None:
        """Keep the files in step with the processes."""
        self._data.write_processes([child.record() for child in self._children.values()])
        if self._announced:
            self._data.write_state(self._state())

    async def _stop_in_order(self) -> None:
        self._data.forget_state()
        for names in in_stop_order(list(self._children)):
            await asyncio.gather(*(self._stop(self._children[name]) for name in names))
        for unit in self._units:
            unit.clean_up()
        self._data.write_processes([])

    async def _stop(self, child: Child) -> None:
        child.ask_to_stop()
        try:
            async with asyncio.timeout(child.command.grace_seconds):
                await self._ended[child.name].wait()
        except TimeoutError:
            child.kill()
            await self._ended[child.name].wait()


def supervise(data: DataDir, settings: StackSettings, units: list[Unit]) -> int:
    """Run the units until told to stop; the caller holds the lock of the data directory."""

    async def run() -> int:
        return await Supervisor(data, settings, units).run()

    return asyncio.run(run())
