"""How many calls may be in flight to one model: permits given by the hub, and what the endpoint can take."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from time import monotonic

DECREASE = 0.85


class AdaptiveLimit:
    """Additive increase, multiplicative decrease, below a number of permits that may change at any time.

    It starts at the permits. Congestion multiplies the limit by 0.85, at most once per round trip: only a
    call that started after the last decrease can cause the next one. A success adds 1, once per round trip
    likewise. With at least one permit the limit is at least 1; with none, nothing starts. Waiters are served
    in order, and never more calls are in flight than permits, except those that had started before permits
    were taken back. Permits may be good until a time only; that is looked up, not timed, because a process that
    was stopped for a while deals with what came in meanwhile before its timers go off.

    Each call takes a ticket, which says when it started: ``ticket = await limit.acquire()``, then
    ``limit.succeeded(ticket)`` or ``limit.congested(ticket)``, and always ``limit.release()``. For one event
    loop.
    """

    __slots__ = (
        "_allowed",
        "_decreased_at",
        "_in_flight",
        "_increased_at",
        "_limit",
        "_permits",
        "_tickets",
        "_until",
        "_waiters",
    )

    def __init__(self, permits: int) -> None:
        self._permits = 0
        self._limit = math.inf  # infinite: the endpoint has not objected, so that the permits alone decide
        self._allowed = 0
        self._in_flight = 0
        self._tickets = 0
        self._decreased_at = 0
        self._increased_at = 0
        self._until = math.inf
        self._waiters: OrderedDict[asyncio.Future[int], None] = OrderedDict()
        self.set_permits(permits)

    @property
    def permits(self) -> int:
        """What the hub gave."""
        return self._permits

    @property
    def allowed(self) -> int:
        """How many calls may be in flight now."""
        return self._allowed

    @property
    def in_flight(self) -> int:
        """How many calls hold a slot."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """How many callers wait for a slot."""
        return len(self._waiters)

    def set_permits(self, permits: int) -> None:
        """Change the permits. Calls in flight go on; waiters start as soon as there is room."""
        if permits < 0:
            raise ValueError(f"permits: expected 0 or more, found {permits}")
        self._permits = permits
        self._settle()

    def hold_until(self, until: float) -> None:
        """Start nothing from a time of the monotonic clock on, seconds; until then, as permits allow."""
        self._until = until
        self._wake()

    @property
    def holds(self) -> bool:
        """Whether the permits are good now."""
        return monotonic() < self._until

    def try_acquire(self) -> int | None:
        """Take a slot if one is free and nobody waits for it; returns its ticket or None."""
        if self._in_flight < self._allowed and not self._waiters and self.holds:
            self._in_flight += 1
            self._tickets += 1
            return self._tickets
        return None

    async def acquire(self) -> int:
        """Wait for a slot and return its ticket. A caller that is cancelled leaves nothing behind."""
        ticket = self.try_acquire()
        if ticket is not None:
            return ticket
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            return await waiter
        except asyncio.CancelledError:
            self._waiters.pop(waiter, None)
            if not waiter.cancelled():
                self.release()  # the slot had been handed over just before
            raise

    def release(self) -> None:
        """Give a slot back."""
        if self._in_flight <= 0:
            raise RuntimeError("release without acquire")
        self._in_flight -= 1
        if self._waiters:
            self._wake()

    def succeeded(self, ticket: int) -> None:
        """The call with this ticket was answered."""
        if self._limit >= self._permits:
            return
        if ticket > self._increased_at and ticket > self._decreased_at:
            self._increased_at = self._tickets
            self._limit = self._limit + 1 if self._limit + 1 < self._permits else math.inf
            self._settle()

    def congested(self, ticket: int) -> None:
        """The call with this ticket met 429, 503 or a timeout."""
        if ticket > self._decreased_at and self._permits:
            self._decreased_at = self._tickets
            self._limit = max(1.0, min(self._limit, self._permits) * DECREASE)
            self._settle()

    def _settle(self) -> None:
        self._allowed = min(self._permits, max(1, int(min(self._limit, self._permits))))
        self._wake()

    def _wake(self) -> None:
        if not self._waiters or not self.holds:
            return
        while self._waiters and self._in_flight < self._allowed:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                self._in_flight += 1
                self._tickets += 1
                waiter.set_result(self._tickets)
