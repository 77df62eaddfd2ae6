"""Model calls of programs: stored before the program sees the answer, and given again to a trial that is run again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import orjson

from benchgen.errors import InvalidInput, LeaseLost, NotFound
from benchgen.eval.v1 import result_pb2
from services.common.queries import load_queries
from services.scorer.domain import Record
from services.scorer.intake import CallRecord, clean
from services.scorer.store import SQL as STORE

SQL = load_queries(Path(__file__).with_name("calls.sql"))

Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy

#: Rows that are read at once for a replay, and the characters of answers that one message of it holds, about.
_READ_AT_ONCE = 64
_MESSAGE_CHARACTERS = 1024 * 1024
#: The same for a page of whole calls. One call can have 8 MiB, and a message may have 16.
_PAGE_READ_AHEAD = 4
_PAGE_CHARACTERS = 1024 * 1024

_TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")

#: Of what a program wrote to one of its outputs, in bytes.
MAX_LOG = 32 * 1024


@dataclass(frozen=True, slots=True)
class Stored:
    """A call is stored.

    ``answer`` is the answer that counts where it is not the one that was sent.
    """

    number: int
    answer: str | None = None


class CallBook:
    """The calls of all trials."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def record(self, run_id: str, call: CallRecord) -> Stored:
        """Store a call and count what it cost. Doing so twice is the same as once.

        :raises LeaseLost: the run was sealed or removed.
        """
        key = (run_id, call.position, call.trial)
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(SQL["lock_trial_calls"], *key)
            known = await connection.fetchrow(SQL["find_call"], *key, call.call_id)
            if known is not None:
                return await _known(connection, key, known)
            earlier = None
            if call.occurrence is not None:
                earlier = await connection.fetchrow(
                    SQL["find_answer"], *key, call.request_digest, call.occurrence
                )
            number = await connection.fetchval(
                SQL["insert_call"], *key, *_values(call, earlier["number"] if earlier else None)
            )
            # Last: it holds the lock that orders batches, calls and the seal.
            if await connection.fetchval(SQL["count_call"], run_id, *_added(call)) is None:
                raise LeaseLost(f"run {run_id} is sealed: it takes no more calls")
            if call.charge is not None:
                await connection.execute(
                    STORE["add_charges"],
                    run_id,
                    [call.shard],
                    [call.attempt],
                    [call.charge.picousd],
                    [call.charge.tokens],
                )
        return Stored(number, earlier["answer"] if earlier else None)

    async def answers(
        self, run_id: str, position: int, trial: int
    ) -> AsyncIterator[list[result_pb2.ModelCall]]:
        """The stored answers of a trial in order, as messages that are not too large."""
        after = 0
        while True:
            async with self._pool.acquire() as connection:
                rows = await connection.fetch(
                    SQL["stored_answers"], run_id, position, trial, after, _READ_AT_ONCE
                )
            batch: list[result_pb2.ModelCall] = []
            characters = 0
            for row in rows:
                batch.append(
                    result_pb2.ModelCall(
                        position=position,
                        trial=trial,
                        number=row["number"],
                        request_digest=row["request_digest"].hex(),
                        occurrence=row["occurrence"],
                        answer_json=row["answer"],
                    )
                )
                characters += len(row["answer"])
                if characters >= _MESSAGE_CHARACTERS:
                    yield batch
                    batch, characters = [], 0
            if batch:
                yield batch
            if len(rows) < _READ_AT_ONCE:
                return
            after = rows[-1]["number"]

    async def close_trials(self, run_id: str, ended: Sequence[tuple[Record, result_pb2.ProgramRun]]) -> None:
        """Complete the records of programs with what their calls came to, and keep how the programs went.

        What the calls used is counted already.
        """
        positions, trials = [r.position for r, _ in ended], [r.trial for r, _ in ended]
        async with self._pool.acquire() as connection:
            spent = {
                (row["position"], row["trial"]): row
                for row in await connection.fetch(SQL["spent_by"], run_id, positions, trials)
            }
            await connection.executemany(
                SQL["insert_program_run"],
                [
                    (run_id, record.position, record.trial, record.attempt, *_run_values(went))
                    for record, went in ended
                ],
            )
        for record, _ in ended:
            _complete(record, spent.get((record.position, record.trial)))

    async def find_case(self, run_id: str, case_id: str) -> int:
        """The dataset position of a case.

        :raises NotFound: the run has no result of it.
        """
        async with self._pool.acquire() as connection:
            position: int | None = await connection.fetchval(SQL["find_case"], run_id, case_id)
        if position is None:
            raise NotFound(f"run {run_id} has no result of a case {case_id[:80]!r}")
        return position

    async def page(
        self, run_id: str, position: int, trial: int, after: int, size: int
    ) -> tuple[list[asyncpg.Record], bool]:
        """Calls of a trial with numbers above one, in order: at most ``size``, fewer where they are long; and whether
        there are more."""
        rows: list[asyncpg.Record] = []
        characters = 0
        async with self._pool.acquire() as connection, connection.transaction(readonly=True):
            async for row in connection.cursor(
                SQL["list_calls"], run_id, position, trial, after, size + 1, prefetch=_PAGE_READ_AHEAD
            ):
                if len(rows) == size or (rows and characters > _PAGE_CHARACTERS):
                    return rows, True
                rows.append(row)
                characters += len(row["request"]) + len(row["answer"])
        return rows, False


async def _known(connection: Connection, key: tuple[str, int, int], row: asyncpg.Record) -> Stored:
    if row["answered_by"] is None:
        return Stored(row["number"])
    return Stored(row["number"], await connection.fetchval(SQL["answer_of"], *key, row["answered_by"]))


def _values(call: CallRecord, answered_by: int | None) -> tuple[Any, ...]:
    """What `insert_call` takes after the key."""
    return (
        call.attempt,
        call.call_id,
        call.endpoint,
        call.request_digest,
        None if answered_by is not None else call.occurrence,
        call.request,
        call.answer,
        call.error,
        call.reported_model,
        call.input_tokens,
        call.output_tokens,
        call.cached_tokens,
        call.reasoning_tokens,
        call.latency_ms,
        call.first_byte_ms,
        call.started_at,
        call.tries,
        call.cost_picousd,
        orjson.dumps(call.failed_calls).decode() if call.failed_calls else None,
        answered_by,
    )


def _added(call: CallRecord) -> tuple[int, ...]:
    """What `count_call` adds: the tries, tokens and cost of one call."""
    failed = call.failed_calls
    return (
        call.tries,
        (call.input_tokens or 0) + sum(one.get("input_tokens") or 0 for one in failed),
        (call.output_tokens or 0) + sum(one.get("output_tokens") or 0 for one in failed),
        call.known_picousd,
        call.tries_of_unknown_cost,
    )


def _run_values(went: result_pb2.ProgramRun) -> tuple[Any, ...]:
    return (
        clean(went.ended[:40]),
        went.exit_code if went.HasField("exit_code") else None,
        went.signal if went.HasField("signal") else None,
        went.wall_seconds,
        went.cpu_seconds,
        went.peak_memory_bytes if went.HasField("peak_memory_bytes") else None,
        clean(went.stdout),
        clean(went.stderr),
        went.cut,
        went.batch,
    )


def check_program_run(went: result_pb2.ProgramRun) -> None:
    """:raises InvalidInput: a field is out of bounds."""
    for name, text in (("stdout", went.stdout), ("stderr", went.stderr)):
        if len(text) * 4 > MAX_LOG and len(text.encode()) > MAX_LOG:
            raise InvalidInput(f"program.{name}: at most {MAX_LOG} bytes")
    seconds = (went.wall_seconds, went.cpu_seconds)
    if not all(0 <= value < 1e9 for value in seconds) or went.peak_memory_bytes >= 2**63:
        raise InvalidInput("program: expected seconds and bytes from 0")


def _complete(record: Record, spent: asyncpg.Record | None) -> None:
    record.spend_counted = True
    record.charge = None
    record.failed_calls = []
    record.known_picousd = record.calls_of_unknown_cost = 0
    record.calls = spent["calls"] if spent else 0
    record.cost_picousd = spent["cost_picousd"] if spent else None
    record.started_at = spent["started_at"] if spent and record.started_at is None else record.started_at
    for name in _TOKENS:
        total = spent[name] if spent else None
        # The columns are int4.
        setattr(record, name, None if total is None else min(total, 2**31 - 1))


def call_message(row: asyncpg.Record, *, hidden: bool) -> result_pb2.ModelCall:
    """A stored call, for people.

    :param hidden: whether to leave out what was said. A later request of an agent repeats earlier answers.
    """
    failed = orjson.loads(row["failed_calls"] or "[]")
    return result_pb2.ModelCall(
        position=row["position"],
        trial=row["trial"],
        number=row["number"],
        call_id=row["call_id"],
        endpoint=row["endpoint"],
        request_digest=row["request_digest"].hex(),
        occurrence=row["occurrence"] or 0,
        request_json="" if hidden else row["request"],
        answer_json="" if hidden else row["answer"],
        error=row["error"] or "",
        usage=usage_message(row),
        latency_ms=row["latency_ms"],
        first_byte_ms=row["first_byte_ms"],
        failed_calls=[failed_call_message(call) for call in failed],
        calls=row["tries"],
        start_time=row["started_at"],
        reported_model=row["reported_model"] or "",
        attempt=row["attempt"],
        cost_picousd=row["cost_picousd"],
        record_time=row["recorded_at"],
        answered_by=row["answered_by"] or 0,
    )


def usage_message(fields: Mapping[str, Any] | asyncpg.Record) -> result_pb2.Usage | None:
    """The tokens in a row; None where none were reported."""
    tokens = {name: fields[name] for name in _TOKENS if fields.get(name) is not None}
    return result_pb2.Usage(**tokens) if tokens else None


def failed_call_message(call: Mapping[str, Any]) -> result_pb2.FailedCall:
    """A failed try as it is kept in a row."""
    return result_pb2.FailedCall(
        http_status=call["http_status"],
        error=call["error"],
        latency_ms=call["latency_ms"],
        wait_ms=call["wait_ms"],
        usage=usage_message(call),
        no_cost=call.get("no_cost", False),
    )


def program_run_message(row: asyncpg.Record, *, hide_output: bool) -> result_pb2.ProgramRun:
    """How a program went, for people."""
    return result_pb2.ProgramRun(
        ended=row["ended"],
        exit_code=row["exit_code"],
        signal=row["signal"],
        wall_seconds=row["wall_seconds"],
        cpu_seconds=row["cpu_seconds"],
        peak_memory_bytes=row["peak_memory_bytes"],
        stdout="" if hide_output else row["stdout"],
        stderr="" if hide_output else row["stderr"],
        cut=row["cut"],
        batch=row["batch"],
    )
