"""Which cases a run takes and how its trials are cut into shards. Nothing here waits.

Trials are counted over the run: trial ``t`` is repeat ``t % trials`` of the case in slot ``t // trials``. The slots
are the selected cases in dataset order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

MOST_TRIALS = 1_000
MOST_PLANNED = 10_000_000

#: Of programs, which are started once a shard.
MOST_STARTS = 100_000

#: What one lease covers at most; the scorer takes batches of this size.
LARGEST_SHARD = 256
_SMALLEST_SHARD = 16
#: A run is cut into at least so many shards where they do not get too small, so that several runners share it.
_WANTED_SHARDS = 16


@dataclass(frozen=True, slots=True)
class Cut:
    """How trials are cut: ``shards`` of ``size`` trials, the last one of what is left."""

    shards: int
    size: int

    def bounds(self, number: int, planned: int) -> tuple[int, int]:
        """The first trial of a shard and how many it has."""
        first = number * self.size
        return first, min(self.size, planned - first)


def cut(planned: int, size: int = 0) -> Cut:
    """Cut so many trials into shards.

    :param size: how many trials one start of a program takes; 0 where no program runs.
    """
    if size:
        return Cut(-(-planned // size), size)
    size = min(LARGEST_SHARD, max(_SMALLEST_SHARD, -(-planned // _WANTED_SHARDS)))
    return Cut(-(-planned // size), size)


def draw(cases: int, count: int, seed: int) -> list[int]:
    """Dataset positions of a random sample, ascending.

    The draw is Floyd's, with the one method of ``random.Random`` whose numbers never change between Pythons.
    """
    chance = random.Random(seed).random  # noqa: S311 - a draw that must be repeatable
    drawn: set[int] = set()
    for last in range(cases - count, cases):
        position = int(chance() * (last + 1))
        drawn.add(last if position in drawn else position)
    return sorted(drawn)


def positions(first: int, count: int, trials: int) -> range:
    """The slots of the cases that these trials are of; without a sample also their dataset positions."""
    return range(first // trials, (first + count - 1) // trials + 1)
