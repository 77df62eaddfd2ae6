"""What people wait for goes through an index, also right after a run was written and nothing is known of it yet."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import orjson
import pytest

from services.common import db
from services.scorer import app, calls, store
from tests import conftest

RESULTS = 50_000

FILL = """
INSERT INTO results (run_id, position, trial, attempt, outcome, case_id, response, calls)
SELECT $1, n, 0, 1, CASE WHEN n % 100 = 0 THEN 6 ELSE 1 END, 'case-' || n, 'an answer', 1
FROM generate_series(0, $2::int - 1) n
"""
SCORE = """
INSERT INTO scores (run_id, scoring, rule, position, trial, value, passed)
SELECT $1, 0, rule, n, 0, (n % 4 > 0)::int, n % 4 > 0
FROM generate_series(0, $2::int - 1) n, generate_series(0, 1) rule WHERE n % 100 > 0
"""

#: Ten calls each of a tenth of the trials.
CALL = """
INSERT INTO model_calls (run_id, position, trial, number, attempt, call_id, endpoint, request_digest, occurrence,
                         request, answer, tries)
SELECT $1, n / 10, 0, n % 10 + 1, 1, n, 'chat.completions', decode(md5(n::text), 'hex'), 0, '{}', '{}', 1
FROM generate_series(0, $2::int - 1) n
"""
START = """
INSERT INTO program_runs (run_id, position, trial, attempt, ended, wall_seconds, cpu_seconds, stdout, stderr, cut,
                          batch)
SELECT $1, n, 0, 1, 'exited', 1, 1, '', '', false, 1 FROM generate_series(0, $2::int - 1) n
"""

_SHOWN = {"Node Type", "Index Name", "Relation Name", "Index Cond", "Filter", "Actual Rows", "Actual Loops"}

#: Each with its arguments after the run, and the most rows that it may look at.
QUERIES = {
    "list_results": ((40_000, 0, 51), 60),
    "list_case": ((-1, -1, 51, "case-40000"), 4),
    "list_failed": ((40_000, 0, 51, 0, 0), 110),
    "list_passed": ((40_000, 0, 51, 0, 0), 140),
    "list_unscored": ((40_000, 0, 51, 0, 0), 160),
    "held_trials": ((30_000, 30_255), 260),
    "find_incomplete": (([0, 30_000], [0, 0], [255, 30_255], [0, 0], [256, 256]), 520),
    "standing_results": (([7, 40_000], [0, 0]), 4),
    "scores_of": ((0, [7, 40_000], [0, 0], [0, 1]), 4),
    "get_progress": ((), 2),
}
#: The same for the calls of programs.
CALLS = {
    "find_call": ((4_000, 0, "40000"), 11),
    "find_answer": ((4_000, 0, b"x", 0), 11),
    "answer_of": ((4_000, 0, 3), 1),
    "stored_answers": ((4_000, 0, 0, 64), 11),
    "list_calls": ((4_000, 0, 5, 51), 11),
    "spent_by": (([7, 4_000], [0, 0]), 21),
    "program_runs_of": (([7, 4_000], [0, 0], [1, 1]), 2),
    "find_case": (("case-40000",), 1),
}


@pytest.fixture
async def connection(
    database: Callable[..., conftest.Database],
) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
    """Of a database of its own: what other tests leave behind is in its statistics, and may tip a plan."""
    dsn = database().dsn("scorer")
    async with db.pool(dsn, app.MIGRATIONS, size=1) as pool, pool.acquire() as connection:
        yield connection


@pytest.mark.parametrize("statistics", ["none", "of another day", "of today"])
async def test_plans(connection: asyncpg.pool.PoolConnectionProxy, statistics: str) -> None:
    run = f"r{secrets.token_hex(6)}"
    transaction = connection.transaction()
    await transaction.start()
    try:
        if statistics == "of another day":
            await connection.execute(FILL, run, 5)
            await connection.execute("ANALYZE results; ANALYZE scores; DELETE FROM results")
        await connection.execute(FILL, run, RESULTS)
        await connection.execute(SCORE, run, RESULTS)
        await connection.execute(CALL, run, RESULTS)
        await connection.execute(START, run, RESULTS)
        if statistics == "of today":
            await connection.execute(
                "ANALYZE results; ANALYZE scores; ANALYZE model_calls; ANALYZE program_runs"
            )
        await connection.execute(store.SQL["walk_indexes"])
        statements = store.SQL | calls.SQL
        for name, (arguments, most) in (QUERIES | CALLS).items():
            first = [run] if name == "get_progress" else run
            plan = await connection.fetchval(
                f"EXPLAIN (ANALYZE, FORMAT JSON) {statements[name]}", first, *arguments
            )
            nodes = list(flattened(orjson.loads(plan)[0]["Plan"]))
            scans = {node["Node Type"] for node in nodes if "Scan" in node["Node Type"]}
            shown = [{key: value for key, value in node.items() if key in _SHOWN} for node in nodes]
            assert "Seq Scan" not in scans, f"{name}: {shown}"
            looked_at = sum(
                (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
                for node in nodes
                if "Index" in node["Node Type"]
            )
            assert looked_at <= most, f"{name}: {shown}"
    finally:
        await transaction.rollback()


def flattened(node: dict[str, Any]) -> list[dict[str, Any]]:
    """A node of a plan and all below it."""
    return [node, *(found for child in node.get("Plans", []) for found in flattened(child))]
