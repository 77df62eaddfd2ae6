"""What runs and API keys may spend, and how that is reserved for leases. Nothing here waits.

A lease of a metered run has a grant: what its holder may use in all. What is granted counts against the budgets of the
run and of its API key in full, whether it is used or not, until the holder says that it will use less, or the lease has
ended and what was spent under it is known. So the sum of what all holders may use never passes a budget, whatever is
lost, late or out of order. See ADR 0027.

With everything that it says a holder promises to use no more than ``held`` until it hears an answer. Every word is
therefore a new deal: what it does not need is there for others. When the next call of a holder does not fit, and
nothing is reserved by anybody that could come back, the budget is used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from typing import NamedTuple

from services.common.amounts import NOTHING, Amount

_PICOUSD = 10**12
#: A lease gets at most this part of an even share of what is left: the last of a budget is dealt in small pieces.
_PART = 2


class Limits(NamedTuple):
    """The most of each; None: no limit."""

    picousd: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a run may spend; None: no such limit."""

    picousd: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    errors: int | None = None

    @property
    def limits(self) -> Limits:
        """What is reserved from; the rest is watched."""
        return Limits(self.picousd, self.tokens)

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return self != NO_BUDGET


NO_BUDGET = Budget()


class GrantState(StrEnum):
    """Where a grant stands."""

    OPEN = "OPEN"
    LOST = "LOST"
    """Its lease ran out; what was recorded under it has not been asked for."""
    CLOSED = "CLOSED"


@dataclass(frozen=True, slots=True)
class Grant:
    """What may be spent under one lease, and what was.

    ``sequence`` is the number of the holder's latest word.
    """

    granted: Amount = NOTHING
    spent: Amount = NOTHING
    state: GrantState = GrantState.OPEN
    sequence: int = 0

    @property
    def counted(self) -> Amount:
        """What it takes of the budgets. More than was granted may have been spent: endpoints need not obey."""
        return self.spent if self.state is GrantState.CLOSED else self.granted.at_least(self.spent)


@dataclass(frozen=True, slots=True)
class Purse:
    """A budget that leases reserve from, and what its grants add up to.

    ``whose`` is how a message begins that tells that it is used up.
    """

    whose: str
    limits: Limits
    held: Amount
    spent: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What a holder says; see ``Spending`` in the contract."""

    sequence: int
    spent: Amount
    held: Amount
    next: Amount = NOTHING
    wanted: Amount = NOTHING
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Deal:
    """What follows from a word: the grant from now on, and why the run has to be paused, if it has."""

    grant: Grant
    used_up: str | None = None


def deal(purses: Sequence[Purse], grant: Grant, word: Word, leases: int) -> Deal:
    """Deal again for a lease that goes on.

    :param grant: what it had; it is part of what the purses hold.
    :param leases: how many leases of the run have a grant, this one included.
    """
    if word.sequence <= grant.sequence:
        # It was overtaken by a later one: whoever said it does not wait for the answer any more.
        return Deal(grant)
    now = Grant(word.held, word.spent.at_least(grant.spent), GrantState.OPEN, word.sequence)
    others = [
        replace(purse, held=purse.held.minus(grant.counted), spent=purse.spent.minus(grant.spent))
        for purse in purses
    ]
    room = _room(others, now.counted)
    if _fits(word.next, room):
        share = max(1, leases) * _PART
        return Deal(replace(now, granted=word.held.plus(_given(word, room, share))))
    if now.counted != now.spent:
        return Deal(now)
    return Deal(now, next((words for purse in others if (words := _used_up(purse, now, word))), None))


def stop(grant: Grant, word: Word) -> Grant:
    """The grant of a lease that starts no more calls."""
    if word.sequence <= grant.sequence:
        return grant
    return Grant(word.held, word.spent.at_least(grant.spent), GrantState.OPEN, word.sequence)


def close(grant: Grant, spent: Amount) -> Grant:
    """The grant of a lease that has ended; what is known to be spent only grows."""
    return replace(grant, spent=grant.spent.at_least(spent), state=GrantState.CLOSED)


def heard_late(grant: Grant, word: Word) -> Grant:
    """The grant of a lease that somebody else has by now, when its holder says what it has spent."""
    return replace(grant, spent=grant.spent.at_least(word.spent))


def _room(others: Sequence[Purse], own: Amount) -> tuple[int | None, int | None]:
    """How much more can be given of each, without what the holder has now."""

    def least(which: int) -> int | None:
        rooms = [
            limit - purse.held[which] - own[which]
            for purse in others
            if (limit := purse.limits[which]) is not None
        ]
        return min(rooms, default=None)

    return least(0), least(1)


def _fits(wanted: Amount, room: tuple[int | None, int | None]) -> bool:
    return all(left is None or one <= left for one, left in zip(wanted, room, strict=True))


def _given(word: Word, room: tuple[int | None, int | None], share: int) -> Amount:
    def one(which: int) -> int:
        left = room[which]
        if left is None:
            return 0
        return min(word.wanted[which], max(word.next[which], left // share), max(0, left))

    return Amount(max(0, one(0)), max(0, one(1)))


def _used_up(purse: Purse, own: Grant, word: Word) -> str | None:
    """Why the next call will never fit into a purse; None where something may come back, or another one is short."""
    for which, limit in enumerate(purse.limits):
        if limit is None or purse.held[which] + own.counted[which] + word.next[which] <= limit:
            continue
        if purse.held[which] != purse.spent[which]:
            continue
        used = purse.spent[which] + own.spent[which]
        if which == 0:
            return (
                f"{purse.whose}: {usd(used)} of {usd(limit)} spent,"
                f" the next call may cost {usd(word.next[which])}"
            )
        return f"{purse.whose}: {used:,} of {limit:,} tokens used, the next call may use {word.next[which]:,}"
    return None


def run_purse(budget: Budget, held: Amount, spent: Amount) -> Purse:
    """The budget of a run."""
    return Purse("budget", budget.limits, held, spent)


def key_purse(key_id: str, day: date, limits: Limits, held: Amount, spent: Amount) -> Purse:
    """The budget of an API key for a day."""
    return Purse(f"budget of the API key {key_id} for {day.isoformat()} (UTC)", limits, held, spent)


def overdue(budget: Budget, worked: float) -> str | None:
    """Why a run has to be paused that was worked on for so long, seconds; None where it may go on."""
    if budget.seconds is None or worked < budget.seconds:
        return None
    return f"budget: its working time of {budget.seconds:,g} s is over"


def too_many_errors(budget: Budget, standing: int, before: int) -> str | None:
    """Why a run has to be paused of which so many results stand at a fault; None where it may go on.

    :param before: how many did when the run was resumed: those are being made again.
    """
    new = standing - before
    if budget.errors is None or new <= budget.errors:
        return None
    results = "result stands" if new == 1 else "results stand"
    return f"budget: {new:,} {results} at a fault, and {budget.errors:,} are allowed"


def usd(picousd: int) -> str:
    """Money for people, with as many decimals as it takes, and two at least."""
    whole, part = divmod(abs(picousd), _PICOUSD)
    decimals = f"{part:012d}".rstrip("0").ljust(2, "0")
    return f"{'-' if picousd < 0 else ''}${whole:,}.{decimals}"
