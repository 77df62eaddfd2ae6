"""Budgets, grants and spend in PostgreSQL.

Whatever changes grants runs in a transaction that holds the lock of the run's pool; the rows of ``key_spend`` order
what runs of several pools do to one API key, and no transaction touches those of two keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import asyncpg

from services.common.amounts import Amount
from services.common.queries import load_queries
from services.hub.registry.store import Conn
from services.hub.runs.budgets import (
    Budget,
    Grant,
    GrantState,
    Limits,
    Purse,
    key_purse,
    run_purse,
)
from services.hub.runs.domain import Pool, RunId, RunState, ShardId

_SQL = load_queries(Path(__file__).with_name("budgets.sql"))


@dataclass(frozen=True, slots=True)
class Ledger:
    """Everything that decides about one grant. ``worked`` is the run's working time, seconds."""

    grant: Grant
    budget: Budget
    purses: tuple[Purse, Purse]
    leases: int
    worked: float


@dataclass(frozen=True, slots=True)
class Spend:
    """What a run may spend, and did. ``reserved`` may still come back."""

    budget: Budget
    spent: Amount
    reserved: Amount
    worked: float
    errors_before: int


class Watched(NamedTuple):
    """A run whose time or errors are limited."""

    run: RunId
    pool: Pool
    state: RunState
    epoch: int
    budget: Budget
    errors_before: int
    worked: float


class LostGrant(NamedTuple):
    """A grant whose lease ran out."""

    pool: Pool
    shard: ShardId
    attempt: int


async def set_budget(conn: Conn, run: RunId, budget: Budget, errors_before: int) -> None:
    """Replace the budget of a run.

    :param errors_before: how many results stand at a fault now.
    """
    values = (budget.picousd, budget.tokens, budget.seconds, budget.errors, errors_before)
    await conn.execute(_SQL["set_budget"], run, *values)


async def set_key_limits(conn: Conn, key_id: str, version: int, limits: Limits) -> None:
    """Note what a key may spend a day, unless something later was said."""
    await conn.execute(_SQL["set_key_limits"], key_id, version, limits.picousd, limits.tokens)


async def open_grant(conn: Conn, shard: ShardId, attempt: int) -> None:
    """Begin a grant of nothing, where there is none for this lease."""
    await conn.execute(_SQL["open_grant"], shard.run, shard.number, attempt)


async def ledger(conn: Conn, shard: ShardId, attempt: int) -> Ledger | None:
    """What decides about a grant, locked until the transaction ends; None where the lease has none."""
    key = (shard.run, shard.number, attempt)
    # First locked, then read: a statement sees what was committed when it began.
    if await conn.fetchval(_SQL["lock_key"], *key) is None:
        return None
    row = await conn.fetchrow(_SQL["ledger"], *key)
    assert row is not None
    budget = _read_budget(row)
    return Ledger(
        Grant(_amount(row, "granted"), _amount(row, "spent"), GrantState(row["state"]), row["sequence"]),
        budget,
        (
            run_purse(budget, _amount(row, "run_held"), _amount(row, "run_spent")),
            key_purse(
                row["key_id"],
                row["day"],
                Limits(row["key_max_picousd"], row["key_max_tokens"]),
                _amount(row, "key_held"),
                _amount(row, "key_spent"),
            ),
        ),
        row["leases"],
        row["worked"],
    )


async def put_grant(conn: Conn, shard: ShardId, attempt: int, before: Grant, now: Grant) -> None:
    """Store a grant, and what that changes of what grants add up to."""
    if now == before:
        return
    await conn.execute(
        _SQL["put_grant"],
        shard.run,
        shard.number,
        attempt,
        now.state,
        now.sequence,
        *now.granted,
        *now.spent,
        *now.counted.minus(before.counted),
        *now.spent.minus(before.spent),
    )


async def lose_grant(conn: Conn, shard: ShardId, attempt: int) -> None:
    """Note that the lease of an open grant ran out."""
    await conn.execute(_SQL["lose_grant"], shard.run, shard.number, attempt)


async def raise_spent(conn: Conn, run: RunId, spent: Amount) -> None:
    """Note that a run has spent at least so much."""
    await conn.execute(_SQL["raise_spent"], run, *spent)


async def lost_grants(conn: Conn, age: timedelta, count: int) -> list[LostGrant]:
    """Grants that were lost at least so long ago, run by run."""
    rows = await conn.fetch(_SQL["lost_grants"], age, count)
    return [
        LostGrant(Pool(row["pool"]), ShardId(RunId(row["run_id"]), row["number"]), row["attempt"])
        for row in rows
    ]


async def watched_runs(conn: Conn, after: str, count: int) -> list[Watched]:
    """Runs under way whose time or errors are limited, by id, from after one."""
    return [
        Watched(
            RunId(row["id"]),
            Pool(row["pool"]),
            RunState(row["state"]),
            row["epoch"],
            Budget(seconds=row["max_seconds"], errors=row["max_errors"]),
            row["errors_before"],
            row["worked"],
        )
        for row in await conn.fetch(_SQL["watched_runs"], after, count)
    ]


async def spends(conn: Conn, runs: Sequence[RunId]) -> dict[RunId, Spend]:
    """What runs may spend, and did."""
    found = {}
    for row in await conn.fetch(_SQL["spends"], list(runs)):
        held, spent = _amount(row, "held"), _amount(row, "spent")
        reserved = held.minus(spent)
        found[RunId(row["id"])] = Spend(
            _read_budget(row), spent, reserved, row["worked"], row["errors_before"]
        )
    return found


async def forget_grants(conn: Conn, run: RunId) -> None:
    """Give back what is reserved for a run that is about to be removed."""
    await conn.execute(_SQL["forget_grants"], run)


def _read_budget(row: asyncpg.Record) -> Budget:
    return Budget(
        picousd=row["max_picousd"],
        tokens=row["max_tokens"],
        seconds=row["max_seconds"],
        errors=row["max_errors"],
    )


def _amount(row: asyncpg.Record, prefix: str) -> Amount:
    return Amount(row[f"{prefix}_picousd"], row[f"{prefix}_tokens"])
