"""Callers against an endpoint that bears so many calls at once, in virtual time."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from services.common.models.limiter import AdaptiveLimit

#: From an answer to the next request at the endpoint, and from a refused request to its refusal, seconds.
TURNAROUND_S = 0.004
REFUSAL_S = 0.002


@dataclass
class Seen:
    """What the endpoint saw from ``since`` on: calls, refusals, and calls in flight times seconds."""

    since: float
    calls: int = 0
    refused: int = 0
    busy: float = 0.0


@dataclass
class World:
    """Callers that always have more to ask, and one endpoint.

    :param bears: how many calls it bears at a time of the clock; more are refused at once.
    :param latency_s: the median of a log-normal latency.
    :param mishaps: the share of calls that it refuses whatever it bears.
    """

    callers: int
    permits: int
    bears: Callable[[float], int]
    latency_s: float = 0.3
    mishaps: float = 0.0
    seed: int = 1
    now: float = 0.0
    serving: int = 0
    limits: list[AdaptiveLimit] = field(init=False)

    def __post_init__(self) -> None:
        self.limits = [AdaptiveLimit(self.permits, lambda: self.now) for _ in range(self.callers)]
        self._draw = random.Random(self.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._again: list[deque[int]] = [deque() for _ in range(self.callers)]
        self._seen = Seen(0.0)
        for caller in range(self.callers):
            self._at(0.0, lambda caller=caller: self._start(caller))  # type: ignore[misc]

    def run(self, seconds: float) -> Seen:
        """Let time pass; returns what the endpoint saw meanwhile."""
        end, seen = self.now + seconds, Seen(self.now)
        self._seen = seen
        while self._events[0][0] < end:
            when, _, event = heapq.heappop(self._events)
            seen.busy += self.serving * (when - self.now)
            self.now = when
            event()
        seen.busy += self.serving * (end - self.now)
        self.now = end
        return seen

    def _at(self, when: float, event: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, event))

    def _start(self, caller: int) -> None:
        limit = self.limits[caller]
        while (ticket := limit.try_acquire()) is not None:
            tries = self._again[caller].popleft() if self._again[caller] else 0
            arrival = self.now + TURNAROUND_S * (0.5 + self._draw.random())
            self._at(arrival, lambda ticket=ticket, tries=tries: self._arrive(caller, ticket, tries))  # type: ignore[misc]

    def _arrive(self, caller: int, ticket: int, tries: int) -> None:
        self._seen.calls += 1
        if self.serving < self.bears(self.now) and self._draw.random() >= self.mishaps:
            self.serving += 1
            latency = self.latency_s * self._draw.lognormvariate(0, 0.2)
            self._at(self.now + latency, lambda: self._answer(caller, ticket))
        else:
            self._seen.refused += 1
            self._at(self.now + REFUSAL_S, lambda: self._refuse(caller, ticket, tries))

    def _answer(self, caller: int, ticket: int) -> None:
        self.serving -= 1
        self.limits[caller].succeeded(ticket)
        self.limits[caller].release()
        self._start(caller)

    def _refuse(self, caller: int, ticket: int, tries: int) -> None:
        wait = min(30.0, 2.0**tries) * (1 - 0.5 * self._draw.random())
        self.limits[caller].refused(ticket, wait)
        self.limits[caller].release()
        self._at(self.now + wait, lambda: self._retry(caller, tries + 1))
        self._start(caller)

    def _retry(self, caller: int, tries: int) -> None:
        self._again[caller].append(tries)
        self._start(caller)
