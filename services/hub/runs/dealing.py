"""How the calls that a model allows are dealt among the runners that work for it. Nothing here waits.

Each runner is told a number. What it was told counts against the cap until it has said that it has less in flight:
so the sum over all runners never passes the cap, whatever is lost or late. A runner above its share is rung, renews,
is told less, and gives back what its ending calls set free; then those below their share are rung.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    time: where there are fewer calls than holders, they take turns.
    """

    cap: int
    holders: tuple[Holder, ...]
    idle: int
    waiting: int
    turn: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """What follows from one word of a runner.

    ``own`` is its new row, None to remove it; ``changed`` tells whether it differs from the old one. ``ring`` are
    other runners that have calls to give back or to get.
    """

    own: Holder | None
    changed: bool
    ring: tuple[RunnerId, ...]

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


def settle(table: Table, runner: RunnerId, calls: int, *, in_use: int | None) -> Settlement:
    """Deal again at a word of a runner that holds a lease.

    :param calls: what the runner can do at all; 0 where it did not say.
    :param in_use: what it says it has in flight or may start without asking; None where it did not say.
    """
    own = next((holder for holder in table.holders if holder.runner == runner), None)
    before = own or Holder(runner, 0, 0, calls)
    others = [holder for holder in table.holders if holder.runner != runner]
    holders = sorted([*others, before])
    shares = _shares(table, holders)
    room = table.cap - sum(holder.granted for holder in others)
    told = max(0, min(shares[runner], room))
    # A report that was sent before its sender heard the last number says nothing about that number: it still counts.
    in_flight = before.granted if in_use is None else max(in_use, before.told)
    granted = max(told, min(in_flight, room))
    now = Holder(runner, granted, told, calls)
    return Settlement(
        own=now,
        changed=own is None or (now.granted, now.told) != (own.granted, own.told),
        ring=_to_ring(others, shares, room - granted),
    )


def leave(table: Table, runner: RunnerId) -> Settlement:
    """Deal again when a runner holds nothing more."""
    others = [holder for holder in table.holders if holder.runner != runner]
    shares = _shares(table, sorted(others))
    room = table.cap - sum(holder.granted for holder in others)
    return Settlement(own=None, changed=len(others) < len(table.holders), ring=_to_ring(others, shares, room))


def _shares(table: Table, holders: Sequence[Holder]) -> dict[RunnerId, int]:
    wants = [holder.calls or table.cap for holder in holders]
    kept = min(table.idle, table.waiting)
    dealt = deal(table.cap, wants, kept=kept, turn=table.turn)
    return {holder.runner: share for holder, share in zip(holders, dealt, strict=True)}


def _to_ring(others: Sequence[Holder], shares: dict[RunnerId, int], room: int) -> tuple[RunnerId, ...]:
    return tuple(
        holder.runner
        for holder in others
        if holder.told > shares[holder.runner] or (room > 0 and holder.told < shares[holder.runner])
    )
