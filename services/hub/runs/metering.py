"""Grants of leases: opened with a lease, dealt anew at every word of its holder, closed when it has ended.

Every function runs in the transaction that holds the lock of the run's pool.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common.amounts import Amount
from services.hub.registry.store import Conn
from services.hub.runs import budget_store, budgets
from services.hub.runs.budget_store import Ledger
from services.hub.runs.budgets import Grant, GrantState, Word
from services.hub.runs.domain import ShardId, Verdict


@dataclass(frozen=True, slots=True)
class GrantTold:
    """What a holder is told. None: no limit."""

    picousd: int | None
    tokens: int | None
    seconds: float | None
    errors: int | None


async def begin(conn: Conn, shard: ShardId, attempt: int) -> GrantTold:
    """Give a lease its grant: of nothing, until its holder says what a call can cost."""
    await budget_store.open_grant(conn, shard, attempt)
    now = await budget_store.ledger(conn, shard, attempt)
    assert now is not None
    return _told(now, now.grant)


async def hear(
    conn: Conn, shard: ShardId, attempt: int, verdict: Verdict, word: Word | None
) -> tuple[GrantTold | None, str | None]:
    """Deal again at a word of a holder.

    :returns: the grant, None where the lease has none; and why the run has to be paused, if it has.
    """
    if word is None:
        return None, None
    now = await budget_store.ledger(conn, shard, attempt)
    if now is None:
        return None, None
    used_up = None
    match verdict:
        case Verdict.GO_ON:
            dealt = budgets.deal(now.purses, now.grant, word, now.leases)
            after, used_up = dealt.grant, dealt.used_up
        case Verdict.STOP:
            after = budgets.stop(now.grant, word)
        case Verdict.LOST:
            after = budgets.heard_late(now.grant, word)
    await budget_store.put_grant(conn, shard, attempt, now.grant, after)
    return _told(now, after), used_up


async def end(conn: Conn, shard: ShardId, attempt: int, word: Word | None) -> None:
    """Close the grant of a lease that has ended; without a last word it is to be asked what was recorded."""
    if word is None:
        await lose(conn, shard, attempt)
        return
    await settle(conn, shard, attempt, word.held)


async def settle(conn: Conn, shard: ShardId, attempt: int, spent: Amount) -> None:
    """Close a grant under which so much was spent, as far as this is known."""
    now = await budget_store.ledger(conn, shard, attempt)
    if now is not None:
        await budget_store.put_grant(conn, shard, attempt, now.grant, budgets.close(now.grant, spent))


async def settle_lost(conn: Conn, shard: ShardId, attempt: int, recorded: Amount) -> None:
    """Settle a lost grant by what was recorded, unless its holder has been heard of since."""
    now = await budget_store.ledger(conn, shard, attempt)
    if now is not None and now.grant.state is GrantState.LOST:
        await budget_store.put_grant(conn, shard, attempt, now.grant, budgets.close(now.grant, recorded))


async def lose(conn: Conn, shard: ShardId, attempt: int) -> None:
    """A lease ran out: until it is known what was recorded under it, all of its grant may have been spent."""
    await budget_store.lose_grant(conn, shard, attempt)


def _told(now: Ledger, grant: Grant) -> GrantTold:
    limited = [purse.limits for purse in now.purses]
    budget = now.budget
    return GrantTold(
        grant.granted.picousd if any(limits.picousd is not None for limits in limited) else None,
        grant.granted.tokens if any(limits.tokens is not None for limits in limited) else None,
        None if budget.seconds is None else max(0.0, budget.seconds - now.worked),
        budget.errors,
    )
