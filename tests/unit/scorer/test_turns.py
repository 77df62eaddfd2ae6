"""Turns on the scoring thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.scorer.turns import TURN_SECONDS, in_turns


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


async def test_everything_is_done_once_and_in_order(threads: ThreadPoolExecutor) -> None:
    turns = [turn async for turn in in_turns(threads, str, range(10_000))]
    assert [done for turn in turns for done in turn] == [str(number) for number in range(10_000)]
    assert [turn async for turn in in_turns(threads, str, [])] == []


async def test_slow_work_lets_others_have_their_turn(threads: ThreadPoolExecutor) -> None:
    finished: list[str] = []

    async def work(name: str, items: int, seconds: float) -> int:
        count = 0
        async for _ in in_turns(threads, lambda _: time.sleep(seconds), range(items)):
            count += 1
        finished.append(name)
        return count

    slow = asyncio.create_task(work("slow", 4, TURN_SECONDS * 0.9))
    await asyncio.sleep(0.05)
    assert await work("quick", 3, 0) == 1
    # Two items a turn, and one where the machine is slow.
    assert 2 <= await slow <= 4
    assert finished == ["quick", "slow"]


@pytest.mark.parametrize("waits_for_the_thread", [False, True])
async def test_work_that_nobody_waits_for_ends(
    threads: ThreadPoolExecutor, waits_for_the_thread: bool
) -> None:
    started: list[int] = []

    def work(number: int) -> None:
        started.append(number)
        time.sleep(0.02)

    async def run() -> None:
        async for _ in in_turns(threads, work, range(100)):
            pass

    if waits_for_the_thread:
        threads.submit(time.sleep, 0.1)
    running = asyncio.create_task(run())
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    before = len(started)
    await asyncio.to_thread(threads.submit(time.sleep, 0).result, 1)
    assert len(started) <= before + 1
    assert (not started) == waits_for_the_thread
