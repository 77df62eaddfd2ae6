"""Storing batches: whatever comes twice, late or at once, the tables end up the same."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from benchgen.errors import LeaseLost
from benchgen.scoring.rules import RuleScore
from services.common import db
from services.scorer import app, store
from services.scorer.domain import Outcome, Record, ScoredRecord, Totals
from services.scorer.recorder import Recorder

PASSED = RuleScore(1.0, True, "4", "", None)
FAILED = RuleScore(0.0, False, "5", "expected 4", None)
BROKEN = RuleScore(None, None, None, "", "rule_error: no number")


@pytest.fixture
async def pool(scorer_dsn: str) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(scorer_dsn, app.MIGRATIONS, size=8) as connections:
        yield connections


@pytest.fixture
async def run(pool: asyncpg.Pool) -> str:
    """A run that is open."""
    return await new_run(pool)


async def new_run(pool: asyncpg.Pool) -> str:
    name = f"r{secrets.token_hex(6)}"
    async with pool.acquire() as connection:
        await store.register(connection, facts(name), epoch=0)
    return name


def facts(run: str) -> store.RunFacts:
    return store.RunFacts(run, b"spec", "digest", '[{"name": "correct"}]')


def item(
    position: int,
    attempt: int = 1,
    outcome: Outcome = Outcome.OK,
    *,
    trial: int = 0,
    scores: tuple[RuleScore, ...] = (PASSED, FAILED),
    **fields: Any,
) -> ScoredRecord:
    """An attempt that made two calls of known cost, ten tokens each way."""
    fields.setdefault("calls", 2)
    fields.setdefault("cost_picousd", 1000)
    if fields["cost_picousd"] is None:
        fields.setdefault("calls_of_unknown_cost", fields["calls"])
    fields.setdefault("input_tokens", 10)
    fields.setdefault("output_tokens", 20)
    if fields["cost_picousd"] is None:
        fields.setdefault("calls_of_unknown_cost", fields["calls"])
    record = Record(
        position, trial, attempt, outcome, f"case-{position}", f"attempt {attempt} at {position}", **fields
    )
    return ScoredRecord(record, scores if outcome.final else ())


def broken(position: int, attempt: int = 1, **fields: Any) -> ScoredRecord:
    return item(position, attempt, Outcome.PROVIDER_ERROR, error="server_error", **fields)


async def put(pool: asyncpg.Pool, run: str, *batch: ScoredRecord) -> None:
    async with pool.acquire() as connection:
        await store.store_batch(connection, run, batch)


async def standing(pool: asyncpg.Pool, run: str) -> dict[int, tuple[int, int]]:
    """Attempt and outcome of the result that stands, by position."""
    rows = await pool.fetch("SELECT position, attempt, outcome FROM results WHERE run_id = $1", run)
    return {row["position"]: (row["attempt"], row["outcome"]) for row in rows}


async def check(pool: asyncpg.Pool, run: str) -> Totals:
    """The run's progress, after making sure that it is what the tables say."""
    counted = await pool.fetchrow(
        """
        WITH spent AS (
            SELECT position, trial, attempt, calls, cost_picousd, input_tokens, output_tokens
            FROM results WHERE run_id = $1
            UNION ALL
            SELECT position, trial, attempt, calls, cost_picousd, input_tokens, output_tokens
            FROM attempts WHERE run_id = $1
        ), standing AS (
            SELECT r.outcome, s.value, s.passed FROM results r
            LEFT JOIN scores s ON s.run_id = r.run_id AND s.position = r.position AND s.trial = r.trial AND s.rule = 0
            WHERE r.run_id = $1
        )
        SELECT (SELECT count(*) FROM standing) AS recorded,
               (SELECT count(*) FROM standing WHERE value IS NOT NULL) AS scored,
               (SELECT count(*) FROM standing WHERE passed) AS passed,
               (SELECT count(*) FROM standing WHERE outcome > 5) AS faults,
               coalesce(sum(calls), 0) AS calls,
               coalesce(sum(input_tokens), 0) AS input_tokens,
               coalesce(sum(output_tokens), 0) AS output_tokens,
               coalesce(sum(cost_picousd), 0) AS cost_picousd,
               coalesce(sum(calls) FILTER (WHERE cost_picousd IS NULL), 0) AS calls_of_unknown_cost,
               count(*) = count(DISTINCT (position, trial, attempt)) AS each_once
        FROM spent
        """,
        run,
    )
    assert counted is not None
    fields = dict(counted)
    assert fields.pop("each_once"), "an attempt is in the tables twice"
    async with pool.acquire() as connection:
        told = (await store.progress(connection, [run]))[run]
    counts: dict[str, Any] = {name: int(value) for name, value in fields.items()}
    assert told == Totals(**counts)
    # Every final result has all its scores, and nothing else has any.
    unlike = await pool.fetchval(
        """
        SELECT count(*) FROM (
            SELECT position, trial, 2 AS n FROM results WHERE run_id = $1 AND outcome <= 5
        ) r FULL JOIN (
            SELECT position, trial, count(*) AS n FROM scores WHERE run_id = $1 GROUP BY position, trial
        ) s USING (position, trial) WHERE r.n IS DISTINCT FROM s.n
        """,
        run,
    )
    assert unlike == 0
    return told


async def test_a_batch_that_comes_again_changes_nothing(pool: asyncpg.Pool, run: str) -> None:
    batch = [item(0), broken(1), item(2, scores=(BROKEN, PASSED))]
    await put(pool, run, *batch)
    once = await check(pool, run)
    assert once == Totals(
        recorded=3,
        scored=1,
        passed=1,
        faults=1,
        calls=6,
        input_tokens=30,
        output_tokens=60,
        cost_picousd=3000,
        calls_of_unknown_cost=0,
    )
    await put(pool, run, *batch)
    # Together with something new, too: the others are known, this one is not.
    await put(pool, run, *batch, item(3))
    assert (await check(pool, run)).recorded == 4
    assert await pool.fetchval("SELECT count(*) FROM attempts WHERE run_id = $1", run) == 0


async def test_the_first_final_result_wins(pool: asyncpg.Pool, run: str) -> None:
    await put(pool, run, item(0, 1))
    await put(pool, run, item(0, 2, scores=(FAILED, FAILED)))
    totals = await check(pool, run)
    assert await standing(pool, run) == {0: (1, Outcome.OK)}
    assert (totals.passed, totals.calls) == (1, 4)
    # The second was paid for: it is kept.
    kept = await pool.fetchrow("SELECT attempt, response FROM attempts WHERE run_id = $1", run)
    assert kept is not None
    assert tuple(kept) == (2, "attempt 2 at 0")


async def test_a_fault_gives_way_to_an_answer_and_to_a_later_fault(pool: asyncpg.Pool, run: str) -> None:
    await put(pool, run, broken(0, 1), broken(1, 1), broken(2, 2))
    await put(pool, run, item(0, 2), broken(1, 2), broken(2, 1))
    totals = await check(pool, run)
    assert await standing(pool, run) == {
        0: (2, Outcome.OK),
        1: (2, Outcome.PROVIDER_ERROR),
        2: (2, Outcome.PROVIDER_ERROR),
    }
    assert (totals.recorded, totals.faults, totals.scored, totals.calls) == (3, 2, 1, 12)


@pytest.mark.parametrize("zombie_first", [True, False])
async def test_a_zombies_fault_and_its_successors_answer(
    pool: asyncpg.Pool, run: str, zombie_first: bool
) -> None:
    both = [broken(0, 1), item(0, 2)]
    for one in both if zombie_first else reversed(both):
        await put(pool, run, one)
    # A zombie says it again.
    await put(pool, run, broken(0, 1))
    totals = await check(pool, run)
    assert await standing(pool, run) == {0: (2, Outcome.OK)}
    assert (totals.recorded, totals.faults, totals.calls, totals.cost_picousd) == (1, 0, 4, 2000)


async def test_one_batch_may_hold_several_attempts_at_one_trial(pool: asyncpg.Pool, run: str) -> None:
    await put(pool, run, broken(0, 1))
    await put(pool, run, item(0, 3), broken(0, 2), broken(0, 1), item(0, 3), item(1), item(1), broken(1, 2))
    totals = await check(pool, run)
    assert await standing(pool, run) == {0: (3, Outcome.OK), 1: (1, Outcome.OK)}
    # Three attempts at the first, two at the second, two calls each.
    assert totals.calls == 10


@pytest.mark.parametrize("split", [1, 2, 5])
async def test_the_order_of_arrival_does_not_matter(pool: asyncpg.Pool, split: int) -> None:
    """One answer among faults, everything twice, in every order of five that a queue may come up with."""
    attempts = [broken(0, 1), broken(0, 2), item(0, 3), broken(0, 4), broken(0, 1)]
    orders = list(itertools.permutations(attempts))[:: 120 // 12]
    ends = set()
    for order in orders:
        name = await new_run(pool)
        doubled = [*order, *reversed(order)]
        for start in range(0, len(doubled), split):
            await put(pool, name, *doubled[start : start + split])
        totals = await check(pool, name)
        ends.add((tuple((await standing(pool, name)).items()), totals.calls, totals.cost_picousd))
    assert ends == {(((0, (3, Outcome.OK)),), 8, 4000)}


async def test_unknown_cost_is_counted_as_unknown(pool: asyncpg.Pool, run: str) -> None:
    await put(pool, run, item(0, cost_picousd=None), item(1, calls=0, cost_picousd=None), item(2))
    totals = await check(pool, run)
    assert (totals.cost_picousd, totals.calls_of_unknown_cost, totals.calls) == (1000, 2, 4)
    # Of two calls one: what the other cost is not lost.
    await put(pool, run, item(3, cost_picousd=None, known_picousd=400, calls_of_unknown_cost=1))
    async with pool.acquire() as connection:
        totals = (await store.progress(connection, [run]))[run]
    assert (totals.cost_picousd, totals.calls_of_unknown_cost, totals.calls) == (1400, 3, 6)


async def test_tokens_of_tries_that_failed_count_too(pool: asyncpg.Pool, run: str) -> None:
    failed = [{"input_tokens": 7, "output_tokens": None}, {"input_tokens": None, "output_tokens": 3}]
    await put(pool, run, item(0, failed_calls=failed))
    async with pool.acquire() as connection:
        totals = (await store.progress(connection, [run]))[run]
    assert (totals.input_tokens, totals.output_tokens) == (17, 23)


async def test_writers_that_overlap_neither_deadlock_nor_disagree(scorer_dsn: str) -> None:
    """Two processes with the same shards in their hands, again and again: zombies and successors at once."""
    async with (
        db.pool(scorer_dsn, app.MIGRATIONS, size=6) as one,
        db.pool(scorer_dsn, app.MIGRATIONS, size=6) as other,
    ):
        run = await new_run(one)
        width = 64
        batches = [
            [
                item(position, attempt) if (position + attempt) % 3 == 0 else broken(position, attempt)
                for position in range(start, start + width)
            ]
            for attempt in range(1, 7)
            for start in (0, width // 2)
        ]
        for _ in range(2):
            await asyncio.gather(
                *(put(one, run, *batch) for batch in batches),
                *(put(other, run, *reversed(batch)) for batch in batches),
            )
        totals = await check(one, run)
        rows = await standing(one, run)
        assert len(rows) == width + width // 2
        assert all(outcome == Outcome.OK for _, outcome in rows.values())
        assert totals.calls == len(rows) * 6 * 2


async def test_a_seal_lets_nothing_in_after_it(scorer_dsn: str) -> None:
    async with (
        db.pool(scorer_dsn, app.MIGRATIONS, size=6) as writers,
        db.pool(scorer_dsn, app.MIGRATIONS, size=2) as sealers,
    ):
        for known in (False, True):
            run = await new_run(writers)
            if known:
                # The batches below then take the way of those of which something is held.
                await put(writers, run, *(broken(position, 1) for position in range(0, 400, 20)))
            puts = [
                asyncio.create_task(
                    put(writers, run, *(item(position, 2) for position in range(start, start + 20)))
                )
                for start in range(0, 400, 20)
            ]
            await asyncio.wait(puts, return_when=asyncio.FIRST_COMPLETED)
            async with sealers.acquire() as connection:
                sealed = await store.seal(
                    connection, facts(run), epoch=0, final_state="succeeded", seconds=1.0
                )
            at_seal = await check(sealers, run)
            outcomes = await asyncio.gather(*puts, return_exceptions=True)
            assert sealed.totals.recorded == at_seal.recorded
            assert await check(sealers, run) == at_seal
            lost = [outcome for outcome in outcomes if outcome is not None]
            assert all(isinstance(outcome, LeaseLost) for outcome in lost)
            with pytest.raises(LeaseLost):
                await put(writers, run, item(999))
            with pytest.raises(LeaseLost):
                await put(writers, run, item(0, 3))
            assert await check(sealers, run) == at_seal


async def test_a_value_that_cannot_be_stored_harms_its_own_batch_only(pool: asyncpg.Pool, run: str) -> None:
    """Batches that wait together are committed together, and one of them has a number that is out of range."""
    recorder = Recorder(pool)
    batches = [[item(0)], [item(1, input_tokens=2**40), item(2)], [item(3)], [item(4, error="\0")], [item(5)]]
    outcomes = await asyncio.gather(
        *(recorder.store(run, batch) for batch in batches), return_exceptions=True
    )
    assert [isinstance(outcome, asyncpg.DataError) for outcome in outcomes] == [
        False,
        True,
        False,
        True,
        False,
    ]
    rows = await pool.fetch("SELECT position FROM results WHERE run_id = $1 ORDER BY position", run)
    assert [row["position"] for row in rows] == [0, 3, 5]
    assert await pool.fetchval("SELECT recorded FROM run_progress WHERE run_id = $1", run) == 3
