"""One lane per model: its permits, and the trials that wait for them, dealt in turn between runs."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

import structlog

from services.common.models.limiter import AdaptiveLimit
from services.runner import metrics
from services.runner.harness.chat import Trial
from services.runner.streaks import Streaks

log = structlog.get_logger()

Work = Callable[[Trial], Coroutine[Any, Any, None]]

#: Before calls are called off what has come in already is dealt with, and a late renewal may be answered, seconds.
_LAST_MOMENT_S = 0.1


class CallLimit(AdaptiveLimit):
    """A limit that knows whose calls are in flight. For slots that are taken and given back by the same task."""

    __slots__ = ("_called_off", "_calling")

    def __init__(self, permits: int) -> None:
        super().__init__(permits)
        self._calling: set[asyncio.Task[Any]] = set()
        self._called_off: set[asyncio.Task[Any]] = set()

    async def acquire(self) -> int:
        ticket = await super().acquire()
        task = asyncio.current_task()
        assert task is not None
        self._calling.add(task)
        return ticket

    def release(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calling.discard(task)
        super().release()

    def is_calling(self, task: asyncio.Task[Any]) -> bool:
        """Whether a task has a call in flight at this moment."""
        return task in self._calling

    def call_off(self) -> int:
        """Cancel the tasks whose calls are in flight, and tell how many; they ask ``was_called_off``."""
        for task in self._calling:
            self._called_off.add(task)
            task.cancel()
        return len(self._calling)

    def was_called_off(self, task: asyncio.Task[Any]) -> bool:
        """Whether a cancelled task was cancelled by ``call_off`` alone; then it may go on."""
        if task not in self._called_off:
            return False
        self._called_off.discard(task)
        return task.uncancel() == 0


class ShardTrials:
    """The trials of one shard that wait or are under way in a lane.

    :param may_start: asked before each trial is started: whether the shard's lease holds at this moment.
    """

    def __init__(
        self, shard: str, run: str, trials: list[Trial], work: Work, may_start: Callable[[], bool]
    ) -> None:
        self.shard = shard
        self.run = run
        self.work = work
        self.may_start = may_start
        self.waiting = deque(trials)
        self.tasks: set[asyncio.Task[None]] = set()
        self.finished = 0
        """How many trials were worked off."""
        self.closed = False
        """Whether no trial is to be started any more, not even one that was called off."""
        self.done = asyncio.Event()
        self.failure: BaseException | None = None
        """The first thing that went wrong with the work itself."""
        if not trials:
            self.done.set()

    def drop_waiting(self) -> None:
        """Start no more; those under way go on."""
        self.closed = True
        self.waiting.clear()
        if not self.tasks:
            self.done.set()

    def fail(self, error: BaseException) -> None:
        """Something went wrong with the work itself: start no more."""
        self.failure = self.failure or error
        self.closed = True
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
        self.limit = CallLimit(0)
        self.calls = metrics.calls_of(name)
        self.shards = 0
        """How many leases this lane works for."""
        self._idle_since = monotonic()
        self.programs = 0
        """How many of them are of runs whose harness is a program: those do not start trials by lanes."""
        self.hub_turn = asyncio.Lock()
        """Held during every exchange with the hub about permits, so that answers are applied in order."""
        self.unstored = 0
        """How many results have been made and not been acknowledged by the scorer."""
        self.permits_version = 0
        """Which number of permits is the newest that was heard of."""
        self.streaks = Streaks()
        """How the trials of each run have ended here."""
        # When the last lease ends, and when its calls end that go on without one.
        self._until = math.inf
        self._calls_end = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._by_run: OrderedDict[str, deque[ShardTrials]] = OrderedDict()
        # Started, and not run yet: they have not asked for a permit.
        self._fresh: set[asyncio.Task[None]] = set()
        self._lowered = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many trials have not been started."""
        return sum(len(shard.waiting) for shards in self._by_run.values() for shard in shards)

    @property
    def idle_for(self) -> float:
        """For how long it has worked for no lease, seconds."""
        return 0.0 if self.shards else monotonic() - self._idle_since

    def leave(self) -> None:
        """One lease less to work for."""
        self.shards -= 1
        self._idle_since = monotonic()

    @property
    def permits_in_use(self) -> int:
        """How many calls are in flight, or may be started without asking."""
        return max(self.limit.permits if self.limit.holds else 0, self.limit.in_flight)

    def set_permits(self, permits: int, version: int = 0) -> None:
        """Apply what the hub said, unless it has said something else since.

        :param version: which number this is; 0 where the hub does not say.
        """
        if version and version < self.permits_version:
            return
        self.permits_version = max(version, self.permits_version)
        self.limit.set_permits(permits)
        self._note_lowered()
        self.pump()

    def hold_until(self, until: float, calls_end: float) -> None:
        """Go on under a lease. When the last one has ended nothing is started, retries included.

        :param until: when it ends; this and the next are of the monotonic clock, in seconds.
        :param calls_end: when calls are called off that are still in flight then, unless there is another lease.
        """
        if math.isinf(self._until) or until > self._until:
            self._until, self._calls_end = until, calls_end
        self.limit.hold_until(self._until)
        self.pump()
        if self._timer is None:
            self._time(self._end_calls, self._calls_end - monotonic())

    def _time(self, then: Callable[[], None], seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), then)

    def _end_calls(self) -> None:
        """Call off what is in flight without a lease: the hub gives its permits to others soon."""
        self._timer = None
        left = self._calls_end - monotonic()
        if left <= 0:
            self._time(self._call_off, _LAST_MOMENT_S)
        elif self.shards or self.limit.in_flight:
            self._time(self._end_calls, left)

    def _call_off(self) -> None:
        if monotonic() < self._calls_end:
            self._end_calls()
            return
        self._timer = None
        if dropped := self.limit.call_off():
            log.warning("calls.off", model=self.name, calls=dropped)

    async def until_lowered(self) -> None:
        """Wait until no more calls are in flight than there are permits."""
        while self.limit.in_flight > self.limit.permits:
            self._lowered.clear()
            await self._lowered.wait()

    def add(self, shard: ShardTrials) -> None:
        """Take in the trials of a shard."""
        self._by_run.setdefault(shard.run, deque()).append(shard)
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
            except asyncio.CancelledError:
                if not self.limit.was_called_off(task):
                    raise
                self._put_back(shard, trial)
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

    def _put_back(self, shard: ShardTrials, trial: Trial) -> None:
        """A trial is made again when there is a lease again."""
        if shard.closed:
            return
        shard.waiting.appendleft(trial)
        shards = self._by_run.setdefault(shard.run, deque())
        if shard not in shards:
            shards.append(shard)

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
                if shard.waiting and shard.may_start():
                    return shard
        return None
