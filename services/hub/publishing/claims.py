"""Keeping a claim on a publication while working on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg

from services.common import db
from services.hub.publishing import ledger
from services.hub.publishing.domain import Claim
from services.hub.publishing.ledger import ClaimLost


@asynccontextmanager
async def kept(
    pool: asyncpg.Pool, claim: Claim, *, seconds: float, stopping: asyncio.Event
) -> AsyncIterator[None]:
    """Renew a claim until the block ends, and end the block when that fails for longer than the claim holds.

    :param stopping: ends the block, too.
    :raises ClaimLost: the block was ended; the claim may be somebody else's.
    """
    try:
        async with asyncio.timeout(seconds) as bound:
            keeper = asyncio.create_task(_keep(pool, claim, seconds, stopping, bound))
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
    pool: asyncpg.Pool, claim: Claim, seconds: float, stopping: asyncio.Event, bound: asyncio.Timeout
) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), seconds / 3)
        asked = clock()
        try:
            held = not stopping.is_set() and await ledger.renew(pool, claim, seconds)
        except (*db.TRANSIENT, TimeoutError):
            # The block goes on for as long as the claim surely holds.
            continue
        if bound.expired():
            return
        bound.reschedule(asked + seconds if held else asked)
        if not held:
            return
