"""Slots for boxes: so many at once, in turn between runs, and none lost to whoever gives up."""

from __future__ import annotations

import asyncio

from services.common.sandbox import SandboxSettings, provider_of
from services.runner.programs.boxes import Boxes


def boxes(most: int) -> Boxes:
    return Boxes(provider_of(SandboxSettings(sandbox="none")), most)


async def hold(slots: Boxes, run: str, order: list[str], end: asyncio.Event) -> None:
    async with slots.slot(run):
        order.append(run)
        await end.wait()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_runs_take_turns() -> None:
    slots, order = boxes(1), list[str]()
    end = asyncio.Event()
    end.set()
    async with slots.slot("first"):
        tasks = [asyncio.create_task(hold(slots, run, order, end)) for run in "aaaabbc"]
        await turns()
        assert (slots.busy, slots.waiting) == (1, 7)
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c", "a", "b", "a", "a"]
    assert (slots.busy, slots.waiting) == (0, 0)


async def test_who_gives_up_leaves_nothing_behind() -> None:
    slots, order, end = boxes(2), list[str](), asyncio.Event()
    holding = [asyncio.create_task(hold(slots, "a", order, end)) for _ in range(2)]
    await turns()
    waiting = [asyncio.create_task(hold(slots, "b", order, end)) for _ in range(3)]
    await turns()
    waiting[0].cancel()
    await turns()
    assert (slots.busy, slots.waiting) == (2, 2)
    # One is given the slot and cancelled before it can take it.
    holding[0].cancel()
    await asyncio.sleep(0)
    waiting[1].cancel()
    end.set()
    await asyncio.gather(*holding, *waiting, return_exceptions=True)
    assert (slots.busy, slots.waiting) == (0, 0)
    async with asyncio.timeout(5), slots.slot("c"), slots.slot("c"):
        assert slots.busy == 2
