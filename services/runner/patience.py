"""Waiting for what comes back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from benchgen.errors import Unavailable

log = structlog.get_logger()

T = TypeVar("T")

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


async def until_available(get: Callable[[], Awaitable[T]], wanted: Callable[[], bool]) -> T:
    """Try until the server behind it is there.

    :raises Unavailable: it is not, and nobody waits for it any more.
    """
    delay = _FIRST_PAUSE_S
    while True:
        try:
            return await get()
        except Unavailable as error:
            if not wanted():
                raise
            log.info("runner.waiting", error=error.message)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_PAUSE_S)
