"""Background loops: what passes is waited out, what does not ends the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from prometheus_client import REGISTRY

from benchgen.errors import InvalidInput, Unavailable
from services.common.process import Process


@asynccontextmanager
async def process() -> AsyncIterator[Process]:
    """A process whose loops have ended when the block ends."""
    async with asyncio.TaskGroup() as group:
        made = Process("test", group)
        try:
            yield made
        finally:
            made.stopping.set()


class Steps:
    """A step that counts, and raises what it is told to."""

    def __init__(self, *errors: BaseException | None) -> None:
        self.count = 0
        self._errors = list(errors)

    async def __call__(self) -> None:
        self.count += 1
        await asyncio.sleep(0)
        if self._errors and (error := self._errors.pop(0)) is not None:
            raise error


def faults(loop: str) -> float:
    return REGISTRY.get_sample_value("benchgen_loop_faults_total", {"loop": loop}) or 0.0


async def test_a_loop_repeats_and_ends_when_the_process_stops() -> None:
    steps = Steps()
    async with process() as made:
        task = made.loop("a", steps, every=0.02)
        await asyncio.sleep(0.13)
        assert steps.count >= 3
        assert not task.done()
    assert task.done()
    assert not task.cancelled()


async def test_a_loop_that_sleeps_long_is_woken_and_stopped() -> None:
    steps, wake = Steps(), asyncio.Event()
    async with asyncio.timeout(2), process() as made:
        made.loop("a", steps, every=60, wake=wake)
        await asyncio.sleep(0.02)
        assert steps.count == 1
        for count in (2, 3):
            wake.set()
            await asyncio.sleep(0.02)
            assert steps.count == count


async def test_a_ring_during_a_step_is_not_lost() -> None:
    wake, seen = asyncio.Event(), list[int]()

    async def step() -> None:
        seen.append(len(seen))
        if len(seen) == 1:
            wake.set()

    async with asyncio.timeout(2), process() as made:
        made.loop("a", step, every=60, wake=wake)
        await asyncio.sleep(0.05)
        assert seen == [0, 1]


@pytest.mark.parametrize(
    "error",
    [Unavailable(), TimeoutError(), ConnectionResetError(), asyncpg.CannotConnectNowError("starting")],
    ids=lambda error: type(error).__name__,
)
async def test_a_fault_that_passes_is_counted_and_waited_out(error: Exception) -> None:
    steps = Steps(error, None)
    before = faults("patient")
    async with process() as made:
        made.loop("patient", steps, every=0.05)
        await asyncio.sleep(0.2)
    assert steps.count >= 2
    assert faults("patient") == before + 1


async def test_a_loop_without_a_pause_does_not_spin_while_a_neighbour_is_away() -> None:
    steps = Steps(*[Unavailable()] * 1000)
    async with process() as made:
        made.loop("eager", steps, every=0.0)
        await asyncio.sleep(0.35)
        assert 2 <= steps.count <= 6


async def test_rings_are_dealt_with_together() -> None:
    steps, wake = Steps(), asyncio.Event()
    async with asyncio.timeout(2), process() as made:
        made.loop("a", steps, every=60, wake=wake, rest=0.1)
        for _ in range(30):
            await asyncio.sleep(0.01)
            wake.set()
        assert 2 <= steps.count <= 10


async def test_a_fault_of_our_own_ends_the_process() -> None:
    async def run() -> None:
        async with process() as made:
            made.loop("a", Steps(None, InvalidInput("a bug")), every=0.01)
            await asyncio.sleep(5)

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert caught.group_contains(InvalidInput, match="a bug")


async def test_sleep_ends_when_the_process_stops() -> None:
    async with asyncio.timeout(2), process() as made:
        asyncio.get_running_loop().call_later(0.05, made.stopping.set)
        await made.sleep(60)
        await made.sleep(60)


async def test_settled_waits_for_steps_that_end_and_cancels_those_that_do_not() -> None:
    async def slow() -> None:
        await asyncio.sleep(0.1)

    async def endless() -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(5), process() as made:
        ending, hanging = made.loop("a", slow, every=60), made.loop("b", endless, every=60)
        await asyncio.sleep(0.01)
        made.stopping.set()
        await made.settled(grace=0.3)
        assert ending.done()
        assert not ending.cancelled()
        await asyncio.sleep(0)
        assert hanging.cancelled()


async def test_a_fault_on_the_way_out_does_not_keep_a_loop_alive() -> None:
    """A step that is cancelled and meets a lost connection while it cleans up."""

    async def step() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise asyncpg.InterfaceError("connection is closed")

    async with asyncio.timeout(2), process() as made:
        task = made.loop("a", step, every=60)
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
