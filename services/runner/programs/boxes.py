"""The sandboxes of a runner: how many there are at once, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.sandbox import Ended, Job, Limits, Provider, SandboxFailed, run

#: So many shards may wait for each box; more are left to other runners.
_WAITING_PER_BOX = 2


class Boxes:
    """Slots for boxes, dealt in turn between runs.

    :param most: how many boxes may be there at once.
    """

    def __init__(self, provider: Provider, most: int) -> None:
        self.provider = provider
        self.most = most
        self.busy = 0
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._usable: set[str] = set()
        self._checking = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return sum(map(len, self._waiting.values()))

    def crowded(self, held: int) -> bool:
        """Whether more work is better left to others.

        :param held: how many shards there are that take a box, or will soon.
        """
        return held >= (1 + _WAITING_PER_BOX) * self.most

    async def ready(self, runtime: str) -> None:
        """Make sure that programs of a runtime can be run here; looked at until it works once.

        :raises SandboxFailed: they cannot; says why.
        """
        async with self._checking:
            if runtime in self._usable:
                return
            limits = Limits(wall_seconds=20, cpu_seconds=20)
            job = Job(command=["true"], runtime=runtime, cwd="/", folders=(), collect=(), limits=limits)
            finished = await run(self.provider, job)
            if finished.ended is not Ended.EXITED or finished.exit_code != 0:
                raise SandboxFailed(f"a program that does nothing {finished.describe()}")
            self._usable.add(runtime)

    @asynccontextmanager
    async def slot(self, run: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it for the block."""
        if self.busy < self.most and not self._waiting:
            self.busy += 1
        else:
            await self._turn(run)
        try:
            yield
        finally:
            self._pass_on()

    async def _turn(self, run: str) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(run, deque()).append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._pass_on()
            else:
                self._forget(run, waiter)
            raise

    def _forget(self, run: str, waiter: asyncio.Future[None]) -> None:
        queue = self._waiting.get(run)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            if not queue:
                del self._waiting[run]

    def _pass_on(self) -> None:
        """Give a slot to the next run in turn, or back."""
        while self._waiting:
            run, queue = next(iter(self._waiting.items()))
            waiter = queue.popleft()
            self._waiting.move_to_end(run)
            if not queue:
                del self._waiting[run]
            if not waiter.done():
                waiter.set_result(None)
                return
        self.busy -= 1
