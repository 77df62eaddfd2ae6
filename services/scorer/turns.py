"""Work on the scoring thread, in turns: nobody keeps it for long, and work that nobody waits for any more ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from itertools import islice
from time import monotonic
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")

#: After so long a turn ends with the item in hand, and others have theirs, seconds.
TURN_SECONDS = 0.25


async def in_turns(
    threads: Executor, work: Callable[[Item], Done], items: Sequence[Item]
) -> AsyncGenerator[list[Done], None]:
    """Do something with all items, in order; yields what each turn did.

    Whoever is cancelled while waiting leaves nothing behind but the item that is being worked on.
    """
    stop = threading.Event()
    loop = asyncio.get_running_loop()
    first = 0
    try:
        while first < len(items):
            done = await loop.run_in_executor(threads, _turn, work, items, first, stop)
            first += len(done)
            yield done
    finally:
        stop.set()


def _turn(
    work: Callable[[Item], Done], items: Sequence[Item], first: int, stop: threading.Event
) -> list[Done]:
    until = monotonic() + TURN_SECONDS
    done: list[Done] = []
    for item in islice(items, first, None):
        if stop.is_set():
            break
        done.append(work(item))
        if monotonic() >= until:
            break
    return done
