"""One lane per model: its permits, and the trials that wait for them, dealt in turn between runs."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from typing import Any

from services.common.models.limiter import AdaptiveLimit
from services.runner.harness.chat import Trial

Work = Callable[[Trial], Coroutine[Any, Any, None]]


class ShardTrials:
    """The trials of one shard that wait or are under way in a lane."""

    def __init__(self, shard: str, run: str, trials: list[Trial], work: Work) -> None:
        self.shard = shard
        self.run = run
        self.work = work
        self.waiting = deque(trials)
        self.tasks: set[asyncio.Task[None]] = set()
        self.paused = False
        self.finished = 0
        """How many trials were worked off."""
        self.done = asyncio.Event()
        self.failure: BaseException | None = None
        """The first thing that went wrong with the work itself."""
        if not trials:
            self.done.set()

    def drop_waiting(self) -> None:
        """Start no more; those under way go on."""
        self.waiting.clear()
        if not self.tasks:
            self.done.set()

    def fail(self, error: BaseException) -> None:
        """Something went wrong with the work itself: start no more."""
        self.failure = self.failure or error
        self.waiting.clear()

    def left(self, task: asyncio.Task[None]) -> None:
        """A task does not work on this shard any more."""
        self.tasks.discard(task)
        if not self.tasks and not self.waiting:
            self.done.set()

    async def abort(self) -> None:
        """Start no more, and drop those under way; returns when they are gone."""
        self.drop_waiting()
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Not all of them had begun, so not all of them could say that they left.
        self.tasks.clear()
        self.done.set()


class Lane:
    """Starts trials of one model as permits allow.

    A call is started only while the results that are not stored yet do not exceed the calls that may be in
    flight: that bounds what has to be paid for twice after a crash.

    Trials are worked off by tasks that take the next one when they are done with one: starting a task for each
    costs a tenth of all that a runner does.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.limit = AdaptiveLimit(0)
        self.shards = 0
        """How many leases this lane works for."""
        self.hub_turn = asyncio.Lock()
        """Held during every exchange with the hub about permits, so that answers are applied in order."""
        self.unstored = 0
        """How many results have been made and not been acknowledged by the scorer."""
        self._by_run: OrderedDict[str, deque[ShardTrials]] = OrderedDict()
        # Started, and not run yet: they have not asked for a permit.
        self._fresh: set[asyncio.Task[None]] = set()
        self._lowered = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many trials have not been started."""
        return sum(len(shard.waiting) for shards in self._by_run.values() for shard in shards)

    @property
    def permits_in_use(self) -> int:
        """How many calls are in flight, or may be started without asking."""
        return max(self.limit.permits, self.limit.in_flight)

    def set_permits(self, permits: int) -> None:
        """Apply what the hub said."""
        self.limit.set_permits(permits)
        self._note_lowered()
        self.pump()

    async def until_lowered(self) -> None:
        """Wait until no more calls are in flight than there are permits."""
        while self.limit.in_flight > self.limit.permits:
            self._lowered.clear()
            await self._lowered.wait()

    def add(self, shard: ShardTrials) -> None:
        """Take in the trials of a shard."""
        self._by_run.setdefault(shard.run, deque()).append(shard)
        self.pump()

    def set_paused(self, shard: str, *, paused: bool) -> None:
        """Start no more trials of a shard, or go on with them; those under way go on."""
        for shards in self._by_run.values():
            for trials in shards:
                if trials.shard == shard:
                    trials.paused = paused
        self.pump()

    def stored(self, count: int) -> None:
        """So many results are stored now."""
        self.unstored -= count
        self.pump()

    def pump(self) -> None:
        """Start what may be started."""
        while self._has_room() and (shard := self._next_shard()) is not None:
            trial = shard.waiting.popleft()
            task = asyncio.create_task(self._work_off(shard, trial))
            shard.tasks.add(task)
            self._fresh.add(task)
            task.add_done_callback(self._ended)

    def _has_room(self) -> bool:
        limit = self.limit
        return (
            self.unstored <= limit.allowed
            and limit.in_flight + limit.waiting + len(self._fresh) < limit.allowed
        )

    async def _work_off(self, shard: ShardTrials | None, trial: Trial) -> None:
        """Work off one trial, and the next for as long as there is room for one."""
        task = asyncio.current_task()
        assert task is not None
        self._fresh.discard(task)
        while shard is not None:
            try:
                await shard.work(trial)
            except Exception as error:
                shard.fail(error)
            else:
                shard.finished += 1
            shard.left(task)
            if self.limit.in_flight <= self.limit.permits:
                self._lowered.set()
            shard = self._next_shard() if self._has_room() else None
            if shard is not None:
                trial = shard.waiting.popleft()
                shard.tasks.add(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task found no room, or was cancelled with its shard."""
        self._fresh.discard(task)
        self._note_lowered()
        self.pump()

    def _note_lowered(self) -> None:
        if self.limit.in_flight <= self.limit.permits:
            self._lowered.set()

    def _next_shard(self) -> ShardTrials | None:
        """The next shard with a trial to start, runs in turn."""
        for _ in range(len(self._by_run)):
            run, shards = next(iter(self._by_run.items()))
            while shards and not shards[0].waiting:
                shards.popleft()
            if not shards:
                del self._by_run[run]
                continue
            self._by_run.move_to_end(run)
            for shard in shards:
                if shard.waiting and not shard.paused:
                    return shard
        return None
