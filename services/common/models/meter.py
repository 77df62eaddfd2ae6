"""What may be spent under one lease: the most that a call can cost is taken from it before the call is sent.

Where there is no room for the next call, it waits, and whoever gave the grant is asked for more at once. For one event
loop.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

from services.common.amounts import NOTHING, Amount
from services.common.models.bounds import Tariff, input_bound, reply_bound
from services.common.models.types import ChatRequest, Usage


class Allowance(NamedTuple):
    """What was granted. None: no limit.

    ``until`` is when calls may be started no more, of the monotonic clock, seconds. ``errors`` is how many results may
    still end in a fault before the giver wants to hear of it.
    """

    picousd: int | None = None
    tokens: int | None = None
    until: float = math.inf
    errors: int | None = None


class Standing(NamedTuple):
    """What is told about a grant; see ``Spending`` in the contract."""

    sequence: int
    spent: Amount
    held: Amount
    next: Amount
    wanted: Amount
    errors: int


class _Waiter(NamedTuple):
    amount: Amount
    room: asyncio.Future[None]


@dataclass(slots=True)
class Tally:
    """What the calls of one trial count for."""

    charge: Amount = NOTHING


_tally: ContextVar[Tally | None] = ContextVar("tally", default=None)


@contextmanager
def tallied() -> Iterator[Tally]:
    """Count what is settled in this block, also by tasks that it starts."""
    tally = Tally()
    token = _tally.set(tally)
    try:
        yield tally
    finally:
        _tally.reset(token)


class Meter:
    """Reserves and settles the calls of one lease.

    :param ask: called when more is needed than there is: ask for it now.
    """

    def __init__(self, tariff: Tariff, ask: Callable[[], None] = lambda: None) -> None:
        self._tariff = tariff
        self.ask = ask
        self.outlook: Callable[[], Iterable[Amount]] = tuple
        """What the calls can cost at most that are still to be made, the next one first."""
        self.wake: Callable[[], None] = lambda: None
        """Called when more may be started."""
        self._allowance = Allowance(0, 0)
        self._spent = NOTHING
        self._in_flight = NOTHING
        self._calls = 0
        self._sequence = 0
        self._waiters: deque[_Waiter] = deque()
        self._errors = 0
        # How many there were when the latest word was said.
        self._errors_told = 0
        # Between a word and its answer nothing is started: the word promises that.
        self._promised = False
        self._asked = False
        # Whether the latest word named a call to come.
        self._named = False

    @property
    def is_short(self) -> bool:
        """Whether something waits for more than there is."""
        return self._asked

    @property
    def spent(self) -> Amount:
        """What calls that have ended cost."""
        return self._spent

    def most(self, request: ChatRequest) -> Amount:
        """The most that one try of a request can cost."""
        return self._tariff.most(input_bound(request.messages, request.params), reply_bound(request.params))

    def admits(self, amount: Amount) -> bool:
        """Whether a call may be started now; if not, more is asked for."""
        if not self._waiters and self._fits(amount):
            return True
        self._want()
        return False

    async def reserve(self, amount: Amount) -> None:
        """Take the most that a call can cost, as soon as there is room for it."""
        if not self._waiters and self._fits(amount):
            self._take(amount)
            return
        waiter = _Waiter(amount, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._want()
        try:
            await waiter.room
        except asyncio.CancelledError:
            if waiter.room.done() and not waiter.room.cancelled():
                self.settle(amount, NOTHING)
            else:
                self._waiters.remove(waiter)
            raise

    def settle(self, reserved: Amount, used: Amount) -> None:
        """Give back what a call that was reserved for did not use."""
        self._in_flight = self._in_flight.minus(reserved)
        self._calls -= 1
        self._spent = self._spent.plus(used)
        if (tally := _tally.get()) is not None:
            tally.charge = tally.charge.plus(used)
        self._wake()
        if self._asked and not self._calls:
            # Only now is it certain what is missing.
            self.ask()

    def used(self, usage: Usage, most: Amount, *, no_cost: bool) -> Amount:
        """What a call counts for that has ended.

        :param no_cost: whether one that does not tell its usage cost nothing for certain.
        """
        if no_cost and usage.input is None and usage.output is None:
            return NOTHING
        return self._tariff.used(usage, most)

    def note_fault(self) -> None:
        """A result ended in a fault."""
        self._errors += 1
        if self._too_many_faults():
            self._want()

    def word(self, *, last: bool = False) -> Standing:
        """What to say about the grant. From now on no more is started, until ``apply`` is called with an answer.

        :param last: nothing more is to be started.
        """
        self._promised = True
        self._sequence += 1
        self._errors_told = self._errors
        held = self._spent.plus(self._in_flight)
        self._named = False
        if last:
            return Standing(self._sequence, self._spent, held, NOTHING, NOTHING, self._errors)
        following, wanted = NOTHING, NOTHING
        for place, amount in enumerate(self._ahead()):
            if not place:
                following = amount
                self._named = True
            wanted = wanted.plus(amount)
        return Standing(self._sequence, self._spent, held, following, wanted, self._errors)

    def apply(self, allowance: Allowance) -> None:
        """Go on as was answered to the latest word."""
        self._allowance = allowance
        self._promised = False
        self._asked = False
        self._wake()
        following = next(iter(self._ahead()), None)
        if following is not None and not self._fits(following):
            if self._named:
                # What was asked for was not given; it is asked for again in a while.
                self._asked = True
            else:
                # It was between the queue and here when the word was said: nobody has asked for it.
                self._want()
        else:
            self.wake()

    def _ahead(self) -> Iterator[Amount]:
        for waiter in self._waiters:
            yield waiter.amount
        yield from self.outlook()

    def _fits(self, amount: Amount) -> bool:
        allowance = self._allowance
        if self._promised or self._too_many_faults() or monotonic() >= allowance.until:
            return False
        held = self._spent.plus(self._in_flight).plus(amount)
        return (allowance.picousd is None or held.picousd <= allowance.picousd) and (
            allowance.tokens is None or held.tokens <= allowance.tokens
        )

    def _too_many_faults(self) -> bool:
        most = self._allowance.errors
        return most is not None and self._errors - self._errors_told > most

    def _take(self, amount: Amount) -> None:
        self._in_flight = self._in_flight.plus(amount)
        self._calls += 1

    def _wake(self) -> None:
        while self._waiters and self._fits(self._waiters[0].amount):
            waiter = self._waiters.popleft()
            if not waiter.room.done():
                self._take(waiter.amount)
                waiter.room.set_result(None)

    def _want(self) -> None:
        if not self._asked and not self._promised:
            self._asked = True
            self.ask()
