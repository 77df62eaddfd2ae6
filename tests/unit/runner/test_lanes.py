"""Trials are started as permits allow, runs in turn, and stopped as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from time import monotonic

import pytest

from services.runner.harness.chat import Trial
from services.runner.lanes import Lane, ShardTrials


class Calls:
    """Work that takes a permit, notes that it is under way, and ends when it is told to."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.started: list[str] = []
        self.paused: set[str] = set()
        """Shards of which no trial may be started."""
        self.most = 0
        self._gates: dict[str, asyncio.Event] = {}

    async def work(self, trial: Trial) -> None:
        await self.lane.limit.acquire()
        try:
            self.started.append(trial.case_id)
            self.most = max(self.most, self.lane.limit.in_flight)
            await self._gates.setdefault(trial.case_id, asyncio.Event()).wait()
        finally:
            self.lane.limit.release()

    def end(self, *cases: str) -> None:
        for case in cases:
            self._gates.setdefault(case, asyncio.Event()).set()


def trials(name: str, count: int) -> list[Trial]:
    return [Trial(n, 0, f"{name}{n}", (), "") for n in range(count)]


@pytest.fixture
def lane() -> Lane:
    return Lane("m")


@pytest.fixture
def calls(lane: Lane) -> Calls:
    return Calls(lane)


@pytest.fixture
async def add(lane: Lane, calls: Calls) -> AsyncIterator[Callable[..., ShardTrials]]:
    """Adds shards; what is still under way at the end is aborted."""
    added: list[ShardTrials] = []

    def make(name: str, count: int, run: str = "r1") -> ShardTrials:
        shard = ShardTrials(
            f"{run}-{name}", run, trials(name, count), calls.work, lambda: name not in calls.paused
        )
        lane.add(shard)
        added.append(shard)
        return shard

    yield make
    lane.set_permits(0)
    for shard in added:
        await shard.abort()


Add = Callable[..., ShardTrials]


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_more_calls_than_permits(lane: Lane, calls: Calls, add: Add) -> None:
    shard = add("a", 10)
    await settle()
    assert calls.started == []
    lane.set_permits(3)
    await settle()
    assert calls.started == ["a0", "a1", "a2"]
    lane.set_permits(4)
    await settle()
    assert calls.started[3:] == ["a3"]
    # Taken back: what is in flight goes on, nothing is started before it has come down to two.
    lane.set_permits(2)
    calls.end("a0", "a1")
    await settle()
    assert len(calls.started) == 4
    calls.end("a2")
    await settle()
    assert calls.started[4:] == ["a4"]
    calls.end(*(f"a{n}" for n in range(10)))
    await settle()
    assert shard.done.is_set()
    assert (shard.finished, shard.failure, lane.waiting, calls.most) == (10, None, 0, 4)


async def test_runs_take_turns(lane: Lane, calls: Calls, add: Add) -> None:
    add("a", 100)
    add("b", 3, run="r2")
    add("c", 2, run="r2")
    add("d", 4, run="r3")
    calls.end(*(f"{name}{n}" for name in "abcd" for n in range(100)))
    lane.set_permits(1)
    for _ in range(20):
        await settle()
    # A run of a hundred does not keep those of a few waiting; within a run the older shard goes first.
    assert calls.started[:15] == [
        "a0", "b0", "d0", "a1", "b1", "d1", "a2", "b2", "d2", "a3", "c0", "d3", "a4", "c1", "a5",
    ]  # fmt: skip
    assert calls.started[15:] == [f"a{n}" for n in range(6, 100)]


async def test_a_run_that_comes_late_gets_the_next_turn(lane: Lane, calls: Calls, add: Add) -> None:
    lane.set_permits(2)
    add("a", 10)
    await settle()
    add("b", 2, run="r2")
    calls.end("a0", "a1")
    await settle()
    assert set(calls.started[2:]) == {"a2", "b0"}


async def test_results_that_are_not_stored_hold_back_new_calls(lane: Lane, calls: Calls, add: Add) -> None:
    lane.set_permits(2)
    lane.unstored = 3
    add("a", 4)
    await settle()
    assert calls.started == []
    lane.stored(1)
    await settle()
    assert calls.started == ["a0", "a1"]
    lane.unstored += 1
    calls.end("a0", "a1")
    await settle()
    assert len(calls.started) == 2
    lane.stored(3)
    await settle()
    assert calls.started == ["a0", "a1", "a2", "a3"]


async def test_work_that_never_waits_is_held_back_too(lane: Lane) -> None:
    """Built-in subjects answer at once and take no permit: the store is what bounds them."""
    made: list[str] = []

    async def work(trial: Trial) -> None:
        made.append(trial.case_id)
        lane.unstored += 1

    lane.set_permits(4)
    shard = ShardTrials("s", "r", trials("a", 100), work, lambda: True)
    lane.add(shard)
    await settle()
    # As many as there are permits, and one at which the bound is seen, for each that was started at once.
    assert 4 < len(made) <= 9
    while len(made) < 100:
        before = len(made)
        lane.stored(lane.unstored)
        await settle()
        assert before < len(made) <= before + 9
    assert shard.done.is_set()
    assert sorted(made) == sorted(f"a{n}" for n in range(100))


async def test_a_shard_whose_lease_does_not_hold_waits_and_goes_on(
    lane: Lane, calls: Calls, add: Add
) -> None:
    lane.set_permits(2)
    first = add("a", 4)
    add("b", 2)
    await settle()
    calls.paused.add("a")
    calls.end("a0", "a1")
    await settle()
    # Those under way went on; the next are of the other shard, though it is of the same run.
    assert (first.finished, calls.started) == (2, ["a0", "a1", "b0", "b1"])
    calls.end("b0", "b1")
    await settle()
    assert len(calls.started) == 4
    assert not first.done.is_set()
    calls.paused.clear()
    lane.pump()
    await settle()
    assert calls.started[4:] == ["a2", "a3"]


async def test_dropping_what_waits(lane: Lane, calls: Calls, add: Add) -> None:
    lane.set_permits(2)
    shard, idle = add("a", 5), add("b", 1)
    await settle()
    shard.drop_waiting()
    idle.drop_waiting()
    assert idle.done.is_set()
    assert not shard.done.is_set()
    calls.end("a0", "a1")
    await settle()
    assert shard.done.is_set()
    assert (shard.finished, calls.started) == (2, ["a0", "a1"])


async def test_an_abort_leaves_nothing_behind_and_others_alone(lane: Lane, calls: Calls, add: Add) -> None:
    shard = add("a", 5)
    other = add("b", 4, run="r2")
    lane.set_permits(3)
    await settle()
    assert sorted(calls.started) == ["a0", "a1", "b0"]
    await shard.abort()
    assert (shard.finished, shard.tasks, shard.done.is_set()) == (0, set(), True)
    await settle()
    assert lane.limit.in_flight == 3
    assert sorted(calls.started) == ["a0", "a1", "b0", "b1", "b2"]
    calls.end("b0", "b1", "b2", "b3")
    await settle()
    assert other.finished == 4
    assert lane.limit.in_flight == 0


async def test_an_abort_before_anything_has_begun(lane: Lane, calls: Calls, add: Add) -> None:
    lane.set_permits(8)
    shard = add("a", 5)
    # The tasks are there and have not run a step.
    await shard.abort()
    assert (calls.started, shard.finished, shard.done.is_set()) == ([], 0, True)
    other = add("b", 8, run="r2")
    await settle()
    assert len(calls.started) == 8
    calls.end(*calls.started)
    await settle()
    assert other.finished == 8


async def test_an_abort_while_waiting_for_a_permit(lane: Lane, calls: Calls, add: Add) -> None:
    lane.set_permits(2)
    shard = add("a", 4)
    # Between its start and its first step the permits are taken back: the tasks wait in the limit.
    lane.set_permits(0)
    await settle()
    assert (calls.started, lane.limit.waiting) == ([], 2)
    await shard.abort()
    assert lane.limit.waiting == 0
    lane.set_permits(1)
    add("b", 1)
    await settle()
    assert calls.started == ["b0"]


async def test_a_task_that_went_on_to_another_shard_is_that_shards(
    lane: Lane, calls: Calls, add: Add
) -> None:
    """Tasks take the next trial of whatever shard has the turn; an abort of their first must not hit them."""
    lane.set_permits(1)
    first = add("a", 1)
    second = add("b", 1, run="r2")
    await settle()
    calls.end("a0")
    await settle()
    assert calls.started == ["a0", "b0"]
    await first.abort()
    assert not second.done.is_set()
    calls.end("b0")
    await settle()
    assert (first.finished, second.finished) == (1, 1)


async def test_a_failure_of_the_work_ends_its_shard_only(lane: Lane, calls: Calls, add: Add) -> None:
    class Broken(Exception):
        pass

    async def work(trial: Trial) -> None:
        if trial.case_id == "x0":
            raise Broken
        await calls.work(trial)

    lane.set_permits(2)
    broken = ShardTrials("r1-x", "r1", trials("x", 5), work, lambda: True)
    lane.add(broken)
    fine = add("a", 3, run="r2")
    await settle()
    assert isinstance(broken.failure, Broken)
    assert not broken.waiting
    calls.end("x1", "a0", "a1", "a2")
    await settle()
    assert broken.done.is_set()
    assert (fine.finished, fine.failure) == (3, None)
    assert "x2" not in calls.started


def test_a_shard_of_which_everything_is_held_is_done() -> None:
    assert ShardTrials("s", "r", [], Calls(Lane("m")).work, lambda: True).done.is_set()


async def test_waiting_until_calls_have_come_down(lane: Lane, calls: Calls, add: Add) -> None:
    lane.set_permits(3)
    add("a", 3)
    await settle()
    lane.set_permits(1)
    assert lane.permits_in_use == 3
    lowered = asyncio.create_task(lane.until_lowered())
    calls.end("a0")
    await settle()
    assert not lowered.done()
    assert lane.permits_in_use == 2
    calls.end("a1")
    await settle()
    assert lowered.done()
    assert lane.permits_in_use == 1


async def test_calls_that_are_called_off_are_made_again(lane: Lane, calls: Calls, add: Add) -> None:
    shard = add("a", 3)
    dropped = add("b", 1, run="r2")
    lane.set_permits(2)
    await settle()
    assert calls.started == ["a0", "b0"]
    dropped.drop_waiting()
    lane.set_permits(0)
    assert lane.limit.call_off() == 2
    await settle()
    # A shard that starts nothing any more has no use for a trial.
    assert (lane.limit.in_flight, dropped.done.is_set(), dropped.finished) == (0, True, 0)
    assert (shard.done.is_set(), shard.tasks) == (False, set())
    calls.end("a0", "a1", "a2")
    lane.set_permits(2)
    await settle()
    assert sorted(calls.started) == ["a0", "a0", "a1", "a2", "b0"]
    assert shard.finished == 3


async def test_a_shard_is_aborted_when_its_calls_were_called_off(lane: Lane, calls: Calls, add: Add) -> None:
    lane.set_permits(2)
    shard = add("a", 4)
    await settle()
    lane.limit.call_off()
    await shard.abort()
    await settle()
    assert (calls.started, lane.limit.in_flight, lane.waiting) == (["a0", "a1"], 0, 0)


async def test_a_trial_between_two_tries_is_not_called_off(lane: Lane) -> None:
    """It has no call in flight: it waits until there are permits again."""
    tries: list[str] = []

    async def work(trial: Trial) -> None:
        for _ in range(2):
            await lane.limit.acquire()
            tries.append(trial.case_id)
            lane.limit.release()
            await asyncio.sleep(0.02)

    lane.set_permits(1)
    shard = ShardTrials("s", "r", trials("a", 1), work, lambda: True)
    lane.add(shard)
    await settle()
    lane.hold_until(0.0, 0.0)
    assert lane.limit.call_off() == 0
    await asyncio.sleep(0.05)
    assert tries == ["a0"]
    lane.hold_until(monotonic() + 60, monotonic() + 90)
    await asyncio.sleep(0.05)
    assert (tries, shard.finished) == (["a0", "a0"], 1)


async def test_a_lane_knows_how_long_it_has_been_idle(lane: Lane) -> None:
    lane.shards += 1
    assert lane.idle_for == 0
    lane.leave()
    await asyncio.sleep(0.01)
    assert lane.idle_for >= 0.01
