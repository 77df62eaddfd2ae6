"""Ranks runs as the bundle's leaderboard says."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from benchgen.bundle.competition.model import Column, Leaderboard


@dataclass(frozen=True, slots=True)
class Entry:
    """One run with the scores it has, by the columns' keys; what it has no score for is not there."""

    run: Hashable
    scores: Mapping[str, float]
    at: datetime


@dataclass(frozen=True, slots=True)
class Ranked:
    """An entry and its place from 1. Equal scores in all columns are the same place."""

    place: int
    entry: Entry


def rank(board: Leaderboard, entries: Sequence[Entry]) -> list[Ranked]:
    """The entries in order: by the primary column, then the others by index, then the earlier one first.

    A missing score is behind every score, whichever way a column sorts. Values are compared as they are
    stored, not as they are shown.
    """
    return rank_by(order_of(board), entries)


def order_of(board: Leaderboard) -> list[Column]:
    """The columns in the order in which they decide."""
    primary = board.primary
    return [primary, *(column for column in board.columns if column is not primary)]


def rank_by(columns: Sequence[Column], entries: Sequence[Entry]) -> list[Ranked]:
    """As ``rank``, by columns in the order in which they decide."""

    def key(entry: Entry) -> tuple[tuple[bool, float], ...]:
        return tuple(_key(column, entry.scores.get(column.key)) for column in columns)

    ordered = sorted(entries, key=lambda entry: (key(entry), entry.at))
    ranked: list[Ranked] = []
    for position, entry in enumerate(ordered):
        tied = ranked and key(ranked[-1].entry) == key(entry)
        ranked.append(Ranked(ranked[-1].place if tied else position + 1, entry))
    return ranked


def _key(column: Column, value: float | None) -> tuple[bool, float]:
    if value is None:
        return True, 0.0
    return False, -value if column.sorting == "desc" else value
