"""Scores that are made later: which there are, who makes them, and how they are written.

The lock on a run's progress comes first in everything that writes or drops scores, as it orders batches and the seal.
Claims take no such lock, and wait for nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

import asyncpg

from benchgen.scoring.rules import RuleScore
from services.common.queries import load_queries
from services.scorer.domain import TrialKey

SQL = load_queries(Path(__file__).with_name("pending.sql"))

Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy


class Group(NamedTuple):
    """One rule of one run that has scores to make, and the run's specification."""

    run_id: str
    scoring: int
    rule: int
    spec: bytes


@dataclass(frozen=True, slots=True)
class Held:
    """What was tried before with one score."""

    claims: int
    faults: int
    fault: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to make some scores of one rule, for as long as their rows carry the token."""

    group: Group
    token: UUID
    held: Mapping[TrialKey, Held]


async def insert(connection: Connection, run_id: str, rows: Sequence[tuple[int, int, int]]) -> None:
    """Note scores that are to be made, by rule, position and trial, in the transaction that stores their results."""
    await connection.execute(
        SQL["insert_pending"], run_id, *(list(column) for column in zip(*rows, strict=True))
    )


async def groups(connection: Connection, most: int) -> list[Group]:
    """Some rules of runs that have something to do now, in no order."""
    return [Group(*row) for row in await connection.fetch(SQL["groups"], most)]


async def claim(connection: Connection, group: Group, most: int, seconds: float) -> Claim | None:
    """Take some scores of a group for so long; None when others were quicker."""
    token = uuid4()
    rows = await connection.fetch(SQL["claim"], group.run_id, group.scoring, group.rule, most, token, seconds)
    if not rows:
        return None
    held = {
        TrialKey(row["position"], row["trial"]): Held(row["claims"], row["faults"], row["fault"] or "")
        for row in rows
    }
    return Claim(group, token, held)


async def claimed_results(
    connection: Connection, run_id: str, keys: Iterable[TrialKey]
) -> list[asyncpg.Record]:
    """The results that are to be judged."""
    pairs = list(keys)
    return await connection.fetch(
        SQL["claimed_results"], run_id, [key.position for key in pairs], [key.trial for key in pairs]
    )


async def renew(pool: asyncpg.Pool, claim: Claim, seconds: float) -> bool:
    """Hold a claim for so long from now; whether anything is left of it."""
    held: bool = await pool.fetchval(SQL["renew"], claim.token, seconds)
    return held


async def release(pool: asyncpg.Pool, claim: Claim, *, pause: float, fault: str | None = None) -> None:
    """Hand back what is left of a claim.

    :param pause: for so long nobody takes it, seconds.
    :param fault: why it could not be judged; without one the claim counts for nothing.
    """
    taken_back, faults = (1, 0) if fault is None else (0, 1)
    await pool.execute(SQL["release"], claim.token, pause, taken_back, faults, fault)


async def write(
    connection: Connection, claim: Claim, scores: Mapping[TrialKey, RuleScore], *, primary: int
) -> int:
    """Store scores and count them, those only that are still the claim's; returns how many."""
    group = claim.group
    rows = [(group.rule, key.position, key.trial, *score) for key, score in scores.items()]
    async with connection.transaction():
        if await connection.fetchval(SQL["lock_run"], group.run_id) is None:
            return 0
        written: int = await connection.fetchval(
            SQL["write"], group.run_id, group.scoring, claim.token, rows, primary
        )
    return written


async def drop(connection: Connection, run_id: str) -> None:
    """Forget what is pending of a run whose progress is locked."""
    await connection.execute(SQL["drop"], run_id)


async def requeue(connection: Connection, run_id: str, places: Sequence[int]) -> None:
    """Have slow rules judge what they have not, in a run whose progress is locked."""
    await connection.execute(SQL["forget_errors"], run_id, places)
    await connection.execute(SQL["requeue"], run_id, places)


async def find_unscored(
    connection: Connection, run_id: str, ranges: Sequence[Sequence[int]], places: Sequence[int]
) -> set[int]:
    """Of ranges of trials, given in columns, those with scores of slow rules missing that nobody is to make."""
    return {row["place"] for row in await connection.fetch(SQL["find_unscored"], run_id, *ranges, places)}
