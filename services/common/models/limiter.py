"""How many calls may be in flight to one model: permits given by the hub, and what the endpoint can take."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

#: What is left of the limit after a timeout.
DECREASE = 0.85
#: After a refusal so many answers come before the next call more is tried: that keeps refusals near 1 in 100, from
#: however many runners, since each costs one place and so many answers bring one back.
PATIENCE = 100
#: And after so many for each call in flight, where these are few: it would take long.
PATIENCE_EACH = 40
#: Where a call more was borne, the next one is tried after half as many answers, down to a quarter of the limit.
_HASTE = 0.5
_FASTEST = 0.25
#: So many refusals, and so large a share of all that came back meanwhile, are not chance: the limit has fallen.
_MANY = 5
_SHARE = 1 / 3
#: The longest that a provider is obeyed, seconds.
LONGEST_REST_S = 120.0


class AdaptiveLimit:
    """Finds how many calls an endpoint bears, below a number of permits that may change at any time.

    It starts at the permits. **A refusal** (429, 503, 529) takes away one place: the endpoint refuses what is one too
    many, and bears the others. So the limit is found within one round trip, however far it has fallen. Places come
    back one at a time, after 100 answers first (40 for each call, where they are few) and sooner each time that it
    goes well, so that a limit that rises is found as well. Refusals that come by chance among many answers do not take
    more than half of the places. **A timeout** multiplies the limit by 0.85, at most once per round trip: only a call
    that started after the last decrease can cause the next one.

    With at least one permit the limit is at least 1. A refusal at 1 cannot be about the calls of this process: then
    nothing starts for as long as the refused call waits, and when the endpoint answers again the limit goes back
    quickly to 0.85 of what it was. ``rest`` holds back everything, for as long as a provider asks.

    With no permit nothing starts. Waiters are served in order, and never more calls are in flight than permits, except
    those that had started before permits were taken back. Permits may be good until a time only; that is looked up,
    not timed, because a process that was stopped for a while deals with what came in meanwhile before its timers go
    off.

    Each call takes a ticket, which says when it started: ``ticket = await limit.acquire()``, then
    ``limit.succeeded(ticket)``, ``limit.refused(ticket)`` or ``limit.timed_out(ticket)``, and always
    ``limit.release()``. For one event loop. See docs/adr/0026.
    """

    __slots__ = (
        "_accepted",
        "_allowed",
        "_calm",
        "_clock",
        "_fell_at",
        "_fell_from",
        "_in_flight",
        "_is_out",
        "_known",
        "_limit",
        "_patience",
        "_permits",
        "_refused",
        "_rest_until",
        "_resume_at",
        "_streak_at",
        "_tickets",
        "_timer",
        "_until",
        "_waiters",
    )

    def __init__(self, permits: int, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._permits = 0
        self._limit = math.inf  # infinite: the endpoint has not objected, so that the permits alone decide
        self._allowed = 0
        self._in_flight = 0
        self._tickets = 0
        self._until = math.inf
        self._rest_until = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: OrderedDict[asyncio.Future[int], None] = OrderedDict()
        # Growth: the answers since the last change, and how many bring the next place.
        self._calm = 0
        self._patience = float(PATIENCE)
        # The latest ticket at the last decrease: calls from before it say nothing about the limit of now.
        self._fell_at = 0
        # A streak of refusals lasts until a call is answered that began after the first of them.
        self._refused = 0
        self._accepted = 0
        self._streak_at = 0
        self._fell_from = 0.0
        self._is_out = False  # even a single call was refused
        # What is gone back to quickly, and the most that was borne since the limit fell last.
        self._resume_at = 0.0
        self._known = math.inf
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
        return self._clock() < self._until

    def rest(self, seconds: float) -> None:
        """Start nothing for so long, at most two minutes: the provider asks for it."""
        self._rest_until = max(self._rest_until, self._clock() + min(seconds, LONGEST_REST_S))
        if self._waiters:
            self._wake_after_rest()

    @property
    def resting(self) -> bool:
        """Whether nothing may start because the provider asked for it."""
        return self._clock() < self._rest_until

    def try_acquire(self) -> int | None:
        """Take a slot if one is free and nobody waits for it; returns its ticket or None."""
        if self._in_flight < self._allowed and not self._waiters and self.holds and not self.resting:
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
        if self.resting:
            self._wake_after_rest()
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
        if self._refused:
            self._accepted += 1
            if ticket > self._streak_at:
                self._refused = 0
                self._resume_at = DECREASE * self._fell_from if self._is_out else 0.0
        if self._limit >= self._permits or ticket <= self._fell_at:
            return
        self._calm += 1
        if self._limit < self._resume_at:
            self._grow()
        elif self._calm >= self._patience:
            self._grow()
            self._patience = max(_HASTE * self._patience, _FASTEST * min(self._limit, self._permits), 1.0)

    def refused(self, ticket: int, wait_s: float = 0.0, *, asked_s: float = 0.0) -> None:
        """The call with this ticket met 429, 503 or 529.

        :param wait_s: how long it waits before it is tried again, seconds.
        :param asked_s: what the provider asked for, seconds; 0 where it did not say.
        """
        if not self._permits:
            return
        level = min(self._limit, self._permits)
        if not self._refused:
            self._streak_at, self._fell_from, self._accepted = self._tickets, level, 0
            self._is_out = False
        self._refused += 1
        is_heavy = self._refused >= _MANY and self._refused >= _SHARE * (self._refused + self._accepted)
        if level <= 1:
            self._is_out = True
            self.rest(wait_s)
        if is_heavy and asked_s:
            self.rest(asked_s)
        self._known = min(self._known, float(self._permits))
        lower = max(1.0, math.ceil(level) - 1.0)
        if is_heavy:
            self._known = lower
        else:
            lower = max(lower, min(level, self._known / 2))
        self._fall(lower)

    def timed_out(self, ticket: int) -> None:
        """The call with this ticket was not answered in time."""
        if ticket > self._fell_at and self._permits:
            self._fall(max(1.0, min(self._limit, self._permits) * DECREASE))

    def _fall(self, limit: float) -> None:
        self._limit = limit
        self._fell_at = self._tickets
        self._calm, self._patience = 0, min(float(PATIENCE), PATIENCE_EACH * limit)
        self._resume_at = 0.0
        self._settle()

    def _grow(self) -> None:
        self._calm = 0
        self._limit = self._limit + 1 if self._limit + 1 < self._permits else math.inf
        self._known = max(self._known, min(self._limit, self._permits))
        self._settle()

    def _settle(self) -> None:
        self._allowed = min(self._permits, max(1, int(min(self._limit, self._permits))))
        self._wake()

    def _wake(self) -> None:
        if not self._waiters or not self.holds or self.resting:
            return
        while self._waiters and self._in_flight < self._allowed:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                self._in_flight += 1
                self._tickets += 1
                waiter.set_result(self._tickets)

    def _wake_after_rest(self) -> None:
        if self._timer is None:
            left = self._rest_until - self._clock()
            self._timer = asyncio.get_running_loop().call_later(max(0.0, left), self._rested)

    def _rested(self) -> None:
        self._timer = None
        if self.resting:
            self._wake_after_rest()
        else:
            self._wake()
