"""Keeping a claim while working on what it is for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from benchgen.errors import FailedPrecondition
from services.common import db


class ClaimLost(FailedPrecondition):
    """Somebody else works on it by now."""

    reason = "CLAIM_LOST"


@asynccontextmanager
async def kept(
    renew: Callable[[], Awaitable[bool]], *, seconds: float, stopping: asyncio.Event
) -> AsyncIterator[None]:
    """Renew a claim until the block ends, and end the block when that fails for longer than the claim holds.

    :param renew: makes the claim hold for ``seconds`` from now; False when it is somebody else's.
    :param stopping: ends the block, too.
    :raises ClaimLost: the block was ended; the claim may be somebody else's.
    """
    try:
        async with asyncio.timeout(seconds) as bound:
            keeper = asyncio.create_task(_keep(renew, seconds, stopping, bound))
            try:
                yield
            finally:
                keeper.cancel()
                with suppress(asyncio.CancelledError):
                    await keeper
    except TimeoutError:
        if bound.expired():
            raise ClaimLost from None
        raise


async def _keep(
    renew: Callable[[], Awaitable[bool]], seconds: float, stopping: asyncio.Event, bound: asyncio.Timeout
) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), seconds / 3)
        asked = clock()
        try:
            held = not stopping.is_set() and await renew()
        except (*db.TRANSIENT, TimeoutError):
            # The block goes on for as long as the claim surely holds.
            continue
        if bound.expired():
            return
        bound.reschedule(asked + seconds if held else asked)
        if not held:
            return
