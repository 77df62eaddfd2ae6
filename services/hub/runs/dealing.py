"""How the calls that a model allows are dealt among the runners that work for it. Nothing here waits.

Each runner is told a number. What it was told counts against the cap until it has said, knowing that number, that it
has less in flight: so the sum over all runners never passes the cap, whatever is lost, late or out of order. A runner
above its share is rung, renews, is told less, and gives back what its ending calls set free; then those below their
share are rung.

That is exact for as long as runners hold leases. What a runner has in flight that no longer holds one, and did not say
that its calls have ended, is reserved for a bounded time (see ADR 0015): nobody can tell a process that stands still
from one that is dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from services.hub.runs.domain import RunnerId


class Holder(NamedTuple):
    """A runner that holds a lease.

    ``granted`` is the most that it can have in flight, ``told`` what it was told last (never more), ``calls`` what
    it can do at all (0: it did not say).
    """

    runner: RunnerId
    granted: int
    told: int
    calls: int


@dataclass(frozen=True, slots=True)
class Table:
    """Everything that a deal depends on.

    ``idle`` counts runners that are there, have room for a shard and hold none of this pool; ``waiting`` the shards
    that nobody holds. A share is kept free for each idle runner that has a shard to take. ``turn`` counts up with
    time: where there are fewer calls than holders, they take turns. ``reserved`` is what runners that hold nothing any
    more may still have in flight.
    """

    cap: int
    holders: tuple[Holder, ...]
    idle: int
    waiting: int
    turn: int
    reserved: int = 0

    @property
    def dealt(self) -> int:
        """How many calls there are to deal."""
        return max(0, self.cap - self.reserved)


@dataclass(frozen=True, slots=True)
class Settlement:
    """What follows from one word of a runner.

    ``own`` is its new row, None to remove it; ``changed`` tells whether it differs from the old one, ``leaving``
    whether it is kept only until the calls of a runner without a lease must have ended. ``ring`` are other runners that
    have calls to give back or to get.
    """

    own: Holder | None
    changed: bool
    ring: tuple[RunnerId, ...]
    leaving: bool = False

    @property
    def permits(self) -> int:
        """What the runner is told."""
        return self.own.told if self.own is not None else 0


def deal(cap: int, wants: Sequence[int], *, kept: int = 0, turn: int = 0) -> list[int]:
    """Deal ``cap`` calls evenly; who wants less than an even share leaves the rest to the others.

    :param wants: the most that each holder can use, from 1.
    :param kept: for how many more an even share is kept free.
    :param turn: who comes first where there are not enough for all.
    :returns: one number for each holder, at least 1 if ``cap`` reaches that far.
    """
    holders = len(wants)
    if cap < holders:
        return [int((index - turn * cap) % holders < cap) for index in range(holders)]
    # A share that is kept free is no reason for a holder to get nothing.
    parties = min(holders + kept, cap)
    dealt = [0] * holders
    left = cap
    for index in sorted(range(holders), key=lambda index: wants[index]):
        dealt[index] = min(wants[index], left // parties)
        left -= dealt[index]
        parties -= 1
    return dealt


def settle(
    table: Table, runner: RunnerId, calls: int, *, in_use: int | None, heard: bool = True
) -> Settlement:
    """Deal again at a word of a runner that holds a lease.

    :param calls: what the runner can do at all; 0 where it did not say.
    :param in_use: what it says it has in flight or may start without asking; None where it did not say.
    :param heard: whether it had heard what it was told last when it said so. A report from before says nothing about
        what it does with that number, and may have been overtaken by a later one.
    """
    own = next((holder for holder in table.holders if holder.runner == runner), None)
    before = own or Holder(runner, 0, 0, calls)
    others = [holder for holder in table.holders if holder.runner != runner]
    holders = sorted([*others, before])
    shares = _shares(table, holders)
    room = table.dealt - sum(holder.granted for holder in others)
    told = max(0, min(shares[runner], room))
    # What it was told last counts in any case: a caller that does not say which number it had heard is one of before.
    in_flight = max(in_use or 0, before.told if heard and in_use is not None else before.granted)
    granted = max(told, min(in_flight, room))
    now = Holder(runner, granted, told, calls)
    return Settlement(
        own=now,
        changed=own is None or (now.granted, now.told) != (own.granted, own.told),
        ring=_to_ring(others, shares, room - granted),
    )


def leave(table: Table, runner: RunnerId, *, in_use: int = 0) -> Settlement:
    """Deal again when a runner holds nothing more.

    :param in_use: what it says it has in flight all the same: that stays reserved for a while.
    """
    others = [holder for holder in table.holders if holder.runner != runner]
    room = max(0, table.dealt - sum(holder.granted for holder in others))
    reserved = min(in_use, room)
    left = replace(table, reserved=table.reserved + reserved)
    return Settlement(
        own=Holder(runner, reserved, 0, 0) if reserved else None,
        changed=len(others) < len(table.holders) or reserved > 0,
        ring=_to_ring(others, _shares(left, sorted(others)), room - reserved),
        leaving=reserved > 0,
    )


def _shares(table: Table, holders: Sequence[Holder]) -> dict[RunnerId, int]:
    wants = [holder.calls or table.cap for holder in holders]
    kept = min(table.idle, table.waiting)
    dealt = deal(table.dealt, wants, kept=kept, turn=table.turn)
    return {holder.runner: share for holder, share in zip(holders, dealt, strict=True)}


def _to_ring(others: Sequence[Holder], shares: dict[RunnerId, int], room: int) -> tuple[RunnerId, ...]:
    return tuple(
        holder.runner
        for holder in others
        if holder.told > shares[holder.runner] or (room > 0 and holder.told < shares[holder.runner])
    )
