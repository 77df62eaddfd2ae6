"""The scorer's tables. Everything that writes results is here, in one transaction a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import orjson

from benchgen.errors import FailedPrecondition, LeaseLost, NotFound
from services.common.amounts import Amount
from services.common.queries import load_queries
from services.scorer import cache_store, pending_store
from services.scorer.cases import slow_places
from services.scorer.competition import store as competition_store
from services.scorer.domain import Merge, Outcome, Record, ScoredRecord, Totals, TrialKey, merge

SQL = load_queries(Path(__file__).with_name("queries.sql"))

Connection = pending_store.Connection

#: The code of the exception that `must` raises.
_DOES_NOT_FIT = "BG001"

#: The final state of a run that was cancelled.
CANCELLED = "cancelled"

#: The number of a run's first pass of rules; scoring again makes further ones.
FIRST_SCORING = 0


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is known of a run from its signed specification."""

    run_id: str
    spec: bytes
    scoring_digest: str
    scoring_json: str


async def register(connection: Connection, facts: RunFacts, *, epoch: int) -> None:
    """Make the run known. Doing so twice is the same as once."""
    async with connection.transaction():
        await connection.execute(SQL["insert_run"], facts.run_id, facts.spec)
        await connection.execute(SQL["insert_progress"], facts.run_id, epoch)
        await connection.execute(
            SQL["insert_scoring"], facts.run_id, facts.scoring_digest, facts.scoring_json
        )


async def check_open(connection: Connection, facts: RunFacts, *, epoch: int) -> None:
    """Make sure that the run is known and that results of this epoch are wanted; a later one than the seal's unseals.

    :raises LeaseLost: the run was sealed or removed, or a later epoch began.
    """
    row = await connection.fetchrow(SQL["get_standing"], facts.run_id)
    if row is None:
        await register(connection, facts, epoch=epoch)
        row = await connection.fetchrow(SQL["get_standing"], facts.run_id)
    elif row["sealed"] and row["epoch"] < epoch:
        await _unseal(connection, facts, epoch)
        row = await connection.fetchrow(SQL["get_standing"], facts.run_id)
    if row is None:
        raise LeaseLost(f"run {facts.run_id} was removed")
    if row["sealed"] or row["epoch"] > epoch:
        raise LeaseLost(f"run {facts.run_id} takes no more results of epoch {epoch}")


async def _unseal(connection: Connection, facts: RunFacts, epoch: int) -> None:
    """Let the run go on. What slow rules did not judge, they judge then: it was dropped, or they failed on it."""
    async with connection.transaction():
        if await connection.fetchval(SQL["unseal"], facts.run_id, epoch) is not None:
            places = slow_places(facts.scoring_json)
            if places:
                await connection.execute(competition_store.SQL["forget_failed"], facts.run_id)
                await pending_store.requeue(connection, facts.run_id, places)


async def find_incomplete(
    connection: Connection, run_id: str, ranges: Sequence[tuple[int, int, int, int, int]]
) -> list[int]:
    """The places of the ranges (first and last position and trial, how many trials) that miss final results, or scores
    of slow rules that nobody is to make."""
    columns = [list(column) for column in zip(*ranges, strict=True)]
    found = {row["place"] for row in await connection.fetch(SQL["find_incomplete"], run_id, *columns)}
    rules = await connection.fetchval(SQL["get_rules"], run_id)
    places = slow_places(rules) if rules else []
    if places:
        found |= await pending_store.find_unscored(connection, run_id, columns, places)
    return sorted(found)


async def held_trials(connection: Connection, run_id: str, first: int, last: int) -> set[TrialKey]:
    """Trials with a final result, among the positions from first to last."""
    rows = await connection.fetch(SQL["held_trials"], run_id, first, last)
    return {TrialKey(row["position"], row["trial"]) for row in rows}


async def store_batch(connection: Connection, run_id: str, batch: Sequence[ScoredRecord]) -> Totals:
    """Store results with their scores and add them to the run's progress, all or nothing; returns what that added.

    :raises LeaseLost: the run was sealed meanwhile.
    """
    # One order in all transactions: two that meet on the same trials wait, and never for each other.
    ordered = sorted(batch, key=lambda item: (item.record.position, item.record.trial, item.record.attempt))
    if cache_store.concerns(ordered):
        return await _store_step_by_step(connection, run_id, ordered)
    totals = Totals()
    for item in ordered:
        item.count_in(totals)
        totals.add_spend(item.record)
    pending = _pending(ordered)
    try:
        if totals.charges or pending:
            async with connection.transaction():
                await _store_new(connection, run_id, ordered, totals)
                await _add_others(connection, run_id, totals, pending)
        else:
            await _store_new(connection, run_id, ordered, totals)
    except asyncpg.PostgresError as error:
        if error.sqlstate != _DOES_NOT_FIT:
            raise
        return await _store_step_by_step(connection, run_id, ordered)
    return totals


async def _store_new(
    connection: Connection, run_id: str, ordered: Sequence[ScoredRecord], totals: Totals
) -> None:
    await connection.execute(
        SQL["store_new"], run_id, _result_rows(ordered), _score_rows(ordered), *_added(totals)
    )


async def _add_others(
    connection: Connection, run_id: str, totals: Totals, pending: Sequence[tuple[int, int, int]]
) -> None:
    """Store what only some batches have."""
    if totals.charges:
        await _add_charges(connection, run_id, totals)
    if pending:
        await pending_store.insert(connection, run_id, pending)


async def _add_charges(connection: Connection, run_id: str, totals: Totals) -> None:
    """Count what results count for against budgets, by lease. In one order, like the results."""
    leases = sorted(totals.charges)
    charges = [totals.charges[lease] for lease in leases]
    await connection.execute(
        SQL["add_charges"],
        run_id,
        [shard for shard, _ in leases],
        [attempt for _, attempt in leases],
        [charge.picousd for charge in charges],
        [charge.tokens for charge in charges],
    )


async def charges(connection: Connection, run_id: str, leases: Sequence[tuple[str, int]]) -> list[Amount]:
    """What was recorded under leases (shard and attempt), in the order asked."""
    shards, attempts = [shard for shard, _ in leases], [attempt for _, attempt in leases]
    rows = await connection.fetch(SQL["get_charges"], run_id, shards, attempts)
    return [Amount(row["picousd"], row["tokens"]) for row in rows]


async def _store_step_by_step(connection: Connection, run_id: str, ordered: Sequence[ScoredRecord]) -> Totals:
    """The same for a batch of which something is held already, or that has to do with the response cache."""
    async with connection.transaction():
        ordered = await cache_store.settle(connection, ordered)
        inserted = await _insert(connection, run_id, ordered)
        standing: list[ScoredRecord] = []
        known: list[ScoredRecord] = []
        for item in ordered:
            if inserted.pop(item.record.key, None) == item.record.attempt:
                standing.append(item)
            else:
                known.append(item)
        totals = Totals()
        for item in standing:
            item.count_in(totals)
            totals.add_spend(item.record)
        if known:
            standing += await _settle(connection, run_id, known, totals)
        await connection.execute(SQL["insert_scores"], run_id, _score_rows(standing))
        if await connection.fetchval(SQL["add_progress"], run_id, *_added(totals)) is None:
            raise _sealed(run_id)
        await _add_others(connection, run_id, totals, _pending(standing))
    return totals


def _sealed(run_id: str) -> LeaseLost:
    return LeaseLost(f"run {run_id} is sealed: it takes no more results")


async def _insert(connection: Connection, run_id: str, items: Sequence[ScoredRecord]) -> dict[TrialKey, int]:
    """Insert what has no result yet; answers with the attempts that went in."""
    rows = await connection.fetch(SQL["insert_results"], run_id, _result_rows(items))
    went_in = {(row[0], row[1]) for row in rows}
    # Of two attempts at one trial in one batch the first went in: that is the order they were given in.
    first: dict[TrialKey, int] = {}
    for item in items:
        record = item.record
        if (record.position, record.trial) in went_in:
            first.setdefault(record.key, record.attempt)
    return first


def _result_rows(items: Iterable[ScoredRecord]) -> list[tuple[Any, ...]]:
    """Rows of the type `result_row_3`."""
    return [
        (
            r.position,
            r.trial,
            r.attempt,
            r.outcome,
            r.case_id,
            r.response,
            r.reasoning,
            r.finish_reason,
            r.reported_model,
            r.error,
            r.input_digest,
            r.input_tokens,
            r.output_tokens,
            r.cached_tokens,
            r.reasoning_tokens,
            r.latency_ms,
            r.first_byte_ms,
            r.started_at,
            r.calls,
            r.cost_picousd,
            _json(r.failed_calls),
            r.payload_digest,
            r.payload_bytes,
            r.cluster,
            _json(r.slices),
            None if r.saved is None else orjson.dumps(r.saved).decode(),
        )
        for r in (item.record for item in items)
    ]


def _score_rows(items: Iterable[ScoredRecord]) -> list[tuple[Any, ...]]:
    """Rows of the type `score_row`."""
    return [
        (rule, item.record.position, item.record.trial, *score)
        for item in items
        for rule, score in enumerate(item.scores)
        if score is not None
    ]


def _pending(items: Iterable[ScoredRecord]) -> list[tuple[int, int, int]]:
    """Rule, position and trial of the scores that are made later."""
    return [
        (rule, item.record.position, item.record.trial)
        for item in items
        for rule, score in enumerate(item.scores)
        if score is None
    ]


def _added(totals: Totals) -> tuple[int, ...]:
    """What the statements that change a run's progress take, in their order."""
    return (
        totals.recorded,
        totals.scored,
        totals.passed,
        totals.faults,
        totals.calls,
        totals.input_tokens,
        totals.output_tokens,
        totals.cost_picousd,
        totals.calls_of_unknown_cost,
        totals.cache_hits,
    )


async def _settle(
    connection: Connection, run_id: str, known: Sequence[ScoredRecord], totals: Totals
) -> list[ScoredRecord]:
    """Decide what becomes of attempts at trials that have a result; answers with those that take its place."""
    # Locked first: what is read then stays so. Locks on the rows themselves would lose those that others replace.
    if await connection.fetchval(SQL["lock_progress"], run_id) is None:
        raise _sealed(run_id)
    rows = await connection.fetch(
        SQL["standing_results"], run_id, *_columns({item.record.key for item in known})
    )
    held = {
        TrialKey(row["position"], row["trial"]): (Outcome(row["outcome"]), row["attempt"], row["cached"])
        for row in rows
    }
    taken: dict[TrialKey, ScoredRecord] = {}
    filed: list[ScoredRecord] = []
    for item in known:
        record = item.record
        outcome, attempt, held_cached = held[record.key]
        cached = record.saved is not None
        verdict = merge(
            held_final=outcome.final,
            held_attempt=attempt,
            final=record.outcome.final,
            attempt=record.attempt,
            held_cached=held_cached,
            cached=cached,
        )
        if verdict is Merge.FILE:
            filed.append(item)
        elif verdict is Merge.REPLACE:
            if record.key in taken:
                filed.append(taken[record.key])
            else:
                totals.add_standing(outcome, None, None, sign=-1)
            taken[record.key] = item
            held[record.key] = (record.outcome, record.attempt, cached)
    if taken:
        await connection.execute(SQL["file_standing"], run_id, *_columns(taken))
        await _insert(connection, run_id, list(taken.values()))
        for item in taken.values():
            item.count_in(totals)
            totals.add_spend(item.record)
    if filed:
        await _file(connection, run_id, [item.record for item in filed], totals)
    return list(taken.values())


async def _file(connection: Connection, run_id: str, records: Sequence[Record], totals: Totals) -> None:
    """Keep attempts that are not the trial's result; the spend of those that are new counts."""
    rows = await connection.fetch(
        SQL["file_attempts"],
        run_id,
        [r.position for r in records],
        [r.trial for r in records],
        [r.attempt for r in records],
        [r.outcome for r in records],
        [r.response for r in records],
        [r.error for r in records],
        [r.input_tokens for r in records],
        [r.output_tokens for r in records],
        [r.latency_ms for r in records],
        [r.calls for r in records],
        [r.cost_picousd for r in records],
    )
    new = {(row["position"], row["trial"], row["attempt"]) for row in rows}
    for record in records:
        if (record.position, record.trial, record.attempt) in new:
            new.discard((record.position, record.trial, record.attempt))
            totals.add_spend(record)


def _columns(keys: Iterable[TrialKey]) -> tuple[list[int], list[int]]:
    pairs = list(keys)
    return [key.position for key in pairs], [key.trial for key in pairs]


def _json(value: Any) -> str | None:
    return orjson.dumps(value).decode() if value else None


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a sealed run is."""

    seal: int
    pending_scores: int
    final_state: str
    seconds: float
    totals: Totals


async def seal(
    connection: Connection, facts: RunFacts, *, epoch: int, final_state: str, seconds: float
) -> Standing:
    """Take no more results of this epoch and those before. Sealing a sealed epoch changes nothing.

    Scores that are pending are still made, unless the run was cancelled.


    :raises FailedPrecondition: a later epoch goes on.
    """
    await register(connection, facts, epoch=epoch)
    async with connection.transaction():
        await connection.execute(SQL["seal"], facts.run_id, epoch, final_state, seconds)
        if final_state == CANCELLED:
            # Nobody waits for them. A run that is resumed makes them then.
            await pending_store.drop(connection, facts.run_id)
    row = await connection.fetchrow(SQL["sealed_progress"], facts.run_id)
    if row is None:
        raise FailedPrecondition(f"run {facts.run_id} goes on in an epoch after {epoch}")
    return Standing(row["seal"], row["pending_scores"], row["final_state"], row["seconds"], _totals(row))


def _totals(row: asyncpg.Record) -> Totals:
    return Totals(
        recorded=row["recorded"],
        scored=row["scored"],
        passed=row["passed"],
        faults=row["faults"],
        calls=row["calls"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        cost_picousd=row["cost_picousd"],
        calls_of_unknown_cost=row["calls_of_unknown_cost"],
        cache_hits=row["cache_hits"],
    )


async def progress(connection: Connection, runs: Sequence[str]) -> dict[str, Totals]:
    """How far runs are, by id; those without any result are left out."""
    rows = await connection.fetch(SQL["get_progress"], list(runs))
    return {row["run_id"]: _totals(row) for row in rows}


async def spec_of(connection: Connection, run_id: str) -> bytes:
    """:raises NotFound: nothing was recorded of this run."""
    spec: bytes | None = await connection.fetchval(SQL["get_spec"], run_id)
    if spec is None:
        raise NotFound(f"there are no results of run {run_id}")
    return spec
