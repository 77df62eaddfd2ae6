"""Tasks of competitions in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import asyncpg
import orjson

from benchgen.errors import NotFound
from services.common.competition import ProgramLog
from services.common.queries import load_queries
from services.scorer.domain import TrialKey

SQL = load_queries(Path(__file__).with_name("competition.sql"))

Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy

PREDICTION = "prediction"
SCORING = "scoring"

MOST_RANKED = 10_000


class StepLog(NamedTuple):
    """How one program of one step of one attempt at a task went."""

    key: TrialKey
    attempt: int
    step: str
    log: ProgramLog


@dataclass(frozen=True, slots=True)
class TaskScores:
    """The values of a task's columns, and why others have none; with an error there are no scores at all."""

    values: Mapping[str, float]
    reasons: Mapping[str, str]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """A run on a leaderboard."""

    run_id: str
    label: str
    scores: dict[str, float]
    reported_at: datetime
    spec: bytes


async def add_programs(connection: Connection, run_id: str, logs: Sequence[StepLog]) -> None:
    """Keep how programs went."""
    if not logs:
        return
    rows = [
        (
            one.key.position,
            one.key.trial,
            one.attempt,
            one.step,
            one.log.name,
            one.log.ended,
            one.log.exit_code,
            one.log.seconds,
            one.log.stdout,
            one.log.stderr,
            one.log.cut,
        )
        for one in logs
    ]
    columns = [list(column) for column in zip(*rows, strict=True)]
    await connection.execute(SQL["insert_programs"], run_id, *columns)


async def scores_of(connection: Connection, run_id: str, key: TrialKey) -> TaskScores | None:
    """The scores of a task, if they were made."""
    row = await connection.fetchrow(SQL["scoring"], run_id, *key)
    if row is None:
        return None
    return TaskScores(orjson.loads(row["scores"]), orjson.loads(row["reasons"]), row["error"])


async def add_scores(
    connection: Connection,
    run_id: str,
    key: TrialKey,
    scores: TaskScores,
    *,
    cases: bytes | None,
    case_count: int,
    details: bytes | None,
) -> None:
    """Keep the scores of a task, unless there are some."""
    await connection.execute(
        SQL["insert_scoring"],
        run_id,
        *key,
        _json(scores.values),
        _json(scores.reasons),
        scores.error,
        cases,
        case_count,
        details,
    )


async def find_task(connection: Connection, run_id: str, case_id: str, trial: int) -> asyncpg.Record:
    """The result of a task, with what is known of its scoring.

    :raises NotFound: there is none.
    """
    row = await connection.fetchrow(SQL["task"], run_id, case_id, trial)
    if row is None:
        raise NotFound(f"run {run_id} has no result of {case_id[:200]!r}, trial {trial}")
    return row


async def standings(connection: Connection, digest: str, phase: int) -> list[Standing]:
    """The runs of a phase, in the order in which they were reported."""
    rows = await connection.fetch(SQL["leaderboard"], digest, phase, MOST_RANKED)
    return [
        Standing(row["run_id"], row["label"], orjson.loads(row["scores"]), row["reported_at"], row["spec"])
        for row in rows
    ]


def _json(value: object) -> str:
    # Programs name columns' reasons with what they wrote: PostgreSQL has no place for NUL.
    return orjson.dumps(value).replace(rb"\u0000", rb"\ufffd").decode()
