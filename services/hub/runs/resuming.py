"""Letting a run go on: the trials without a final result are run again, and nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import grpc

from benchgen.errors import FailedPrecondition, NotFound, Unavailable
from benchgen.eval.v1 import result_pb2, run_pb2
from benchgen.statuses import error_of
from services.common.amounts import Amount
from services.common.auth import principal
from services.common.models.builtin import is_builtin
from services.hub.registry.service import resolve_subject_model
from services.hub.registry.store import Conn
from services.hub.runs import budget_store, store
from services.hub.runs.budgets import Budget
from services.hub.runs.creation import checked_budget
from services.hub.runs.domain import Pool, RunEvent, RunId, RunRow, RunState, transition
from services.hub.runs.leases import Leases
from services.hub.runs.locks import PoolLocks

if TYPE_CHECKING:
    from benchgen.eval.v1.result_pb2_grpc import RecordServiceAsyncStub

_PAGE = 1000
_CALL_SECONDS = 30.0
#: Of a paused run shards may still end while it is asked what is missing.
_TRIES = 10
_PAUSE_SECONDS = 0.1


class _Standing(NamedTuple):
    """A run's new budget, None where it keeps the one it has, and what was recorded of it."""

    budget: Budget | None
    faults: int
    spent: Amount


class Resumes:
    """Resumes runs.

    The scorer is only asked what is missing. That the run goes on it hears from the next lease, whose epoch is above
    that of its seal: so there is no moment at which one of the two knows and the other never will.
    """

    def __init__(
        self, db: asyncpg.Pool, locks: PoolLocks, leases: Leases, scorer: RecordServiceAsyncStub
    ) -> None:
        self._db = db
        self._locks = locks
        self._leases = leases
        self._scorer = scorer

    async def resume(
        self, pool: Pool, run: RunId, epoch: int = 0, *, budget: run_pb2.Budget | None = None
    ) -> RunRow:
        """Run what is missing; a run that goes on, or misses nothing, is returned as it is.

        :param epoch: the one that the caller saw; a run in a later one is returned as it is. 0: any.
        :param budget: takes the place of the run's; None: it keeps the one it has.
        :raises InvalidInput: the budget makes no sense, or cannot be kept.
        :raises NotFound: there is no such run.
        :raises FailedPrecondition: it is being cancelled, its model is not what it was, or it is under way with
            another budget.
        :raises Unavailable: the scorer cannot be asked.
        """
        for _ in range(_TRIES):
            async with self._db.acquire() as conn:
                seen = await store.get_run(conn, run)
            if epoch and seen.epoch > epoch:
                return seen
            if _following(seen) is seen.state:
                await self._check_same_budget(seen, budget)
                return seen
            missing = await self._missing(run)
            if not missing and not seen.shards_open:
                return seen
            resumed = await self._resume(pool, seen, missing, await self._standing(seen, budget))
            if resumed is not None:
                return resumed
            await asyncio.sleep(_PAUSE_SECONDS)
        raise Unavailable(f"run {run} keeps changing; try again")

    async def _check_same_budget(self, seen: RunRow, budget: run_pb2.Budget | None) -> None:
        """Make sure that nobody believes in a budget that is not the one of a run that goes on.

        :raises FailedPrecondition: it is another one.
        """
        if budget is None:
            return
        new = checked_budget(budget, run_pb2.RunSpec.FromString(seen.spec), principal.get())
        async with self._db.acquire() as conn:
            now = (await budget_store.spends(conn, [seen.id]))[seen.id].budget
        if new != now:
            raise FailedPrecondition(
                f"the run is {seen.state}, and keeps its budget while it is under way; pause it, then resume it"
                " with the new one"
            )

    async def _standing(self, seen: RunRow, budget: run_pb2.Budget | None) -> _Standing | None:
        """What a budget goes on from; None where there is none.

        :raises InvalidInput: the budget cannot be kept.
        """
        if budget is None and not seen.budgeted:
            return None
        new = None
        if budget is not None:
            new = checked_budget(budget, run_pb2.RunSpec.FromString(seen.spec), principal.get())
        request = result_pb2.GetProgressRequest(runs=[seen.id])
        try:
            answer = await self._scorer.GetProgress(request, timeout=_CALL_SECONDS)
        except grpc.RpcError as failure:
            raise error_of(failure) from None
        recorded = answer.progress.get(seen.id, run_pb2.RunProgress())
        spent = Amount(recorded.cost_picousd, recorded.input_tokens + recorded.output_tokens)
        return _Standing(new, recorded.faults, spent)

    async def _resume(
        self, pool: Pool, seen: RunRow, missing: list[int], standing: _Standing | None
    ) -> RunRow | None:
        """Do it, unless the run changed since it was looked at."""
        async with self._locks.hold(pool) as conn:
            row = await store.get_run(conn, seen.id)
            if (row.state, row.epoch, row.shards_open) != (seen.state, seen.epoch, seen.shards_open):
                return None
            await _check_model(conn, run_pb2.RunSpec.FromString(row.spec))
            await store.move_run(conn, row.id, row.state, _event(row), message="")
            await store.reopen_shards(conn, row.id, missing)
            if standing is not None:
                budget = standing.budget or (await budget_store.spends(conn, [row.id]))[row.id].budget
                await budget_store.set_budget(conn, row.id, budget, standing.faults)
                # Before it had a budget nothing was counted.
                await budget_store.raise_spent(conn, row.id, standing.spent)
            # Whoever still works for the epoch before hands its shards back.
            holders = await store.runners_of(conn, pool, row.id)
            row = await store.get_run(conn, row.id)
        self._leases.wake(row.id, run_changed=True)
        await self._leases.ring(holders)
        return row

    async def _missing(self, run: RunId) -> list[int]:
        """Ended shards that have trials without a final result."""
        found: list[int] = []
        after = -1
        while True:
            async with self._db.acquire() as conn:
                page = await store.trial_ranges(conn, run, after, _PAGE)
            if not page:
                return found
            request = result_pb2.FindMissingRequest(
                run=run,
                ranges=[
                    result_pb2.TrialRange(
                        first_position=shard.first_position,
                        first_trial=shard.first_trial,
                        last_position=shard.last_position,
                        last_trial=shard.last_trial,
                        count=shard.trials,
                    )
                    for shard in page
                ],
            )
            try:
                answer = await self._scorer.FindMissing(request, timeout=_CALL_SECONDS)
            except grpc.RpcError as failure:
                raise error_of(failure) from None
            found += [page[place].number for place in answer.incomplete]
            after = page[-1].number


def _event(row: RunRow) -> RunEvent:
    return RunEvent.REQUEUED if row.started_at is None else RunEvent.RESUMED


def _following(row: RunRow) -> RunState:
    return transition(row.state, _event(row))


async def _check_model(conn: Conn, spec: run_pb2.RunSpec) -> None:
    """Make sure that what is registered under the model's name now is what the run asked before: it gets its secret.

    :raises FailedPrecondition: it was removed, or is another one.
    """
    model = spec.subject.model
    if not model.name or is_builtin(model.name):
        return
    try:
        now = await resolve_subject_model(conn, model.name, "")
    except NotFound:
        raise FailedPrecondition(
            f"the model `{model.name}` was removed; add it again with the same address and id, then resume"
        ) from None
    if (now.base_url, now.model_id) != (model.base_url, model.model_id):
        raise FailedPrecondition(
            f"the model `{model.name}` is another one now ({now.model_id} at {now.base_url}); this run asked"
            f" {model.model_id} at {model.base_url}"
        )
