"""Watches what is spent where no holder of a lease can tell: under leases that ran out, by time, and by results."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING

import asyncpg
import grpc
import structlog

from benchgen.errors import FailedPrecondition, NotFound, Unavailable
from benchgen.eval.v1 import result_pb2
from services.common.amounts import Amount
from services.hub.runs import budget_store, budgets, metering
from services.hub.runs.budget_store import LostGrant, Watched
from services.hub.runs.domain import RunId
from services.hub.runs.locks import PoolLocks
from services.hub.runs.stops import Stops

if TYPE_CHECKING:
    from benchgen.eval.v1.result_pb2_grpc import RecordServiceAsyncStub

log = structlog.get_logger()

_AT_ONCE = 1000
_CALL_SECONDS = 10.0


class Auditor:
    """Settles lost grants by what was recorded, and pauses runs whose time is over or that had too many errors.

    :param patience: how long after the end of a lease its holder may still have results recorded.
    """

    def __init__(
        self,
        db: asyncpg.Pool,
        locks: PoolLocks,
        stops: Stops,
        scorer: RecordServiceAsyncStub,
        patience: timedelta,
    ) -> None:
        self._db = db
        self._locks = locks
        self._stops = stops
        self._scorer = scorer
        self._patience = patience

    async def step(self) -> None:
        """Look once at everything.

        :raises Unavailable: the scorer is away; what is reserved stays so until it is there.
        """
        await self._settle_lost()
        await self._watch()

    async def _settle_lost(self) -> None:
        async with self._db.acquire() as conn:
            lost = await budget_store.lost_grants(conn, self._patience, _AT_ONCE)
        for _, grants in groupby(lost, key=lambda grant: grant.shard.run):
            await self._settle(list(grants))

    async def _settle(self, lost: list[LostGrant]) -> None:
        """Settle grants of one run."""
        run, pool = lost[0].shard.run, lost[0].pool
        request = result_pb2.GetChargesRequest(
            run=run,
            leases=[result_pb2.LeaseName(shard=str(grant.shard), attempt=grant.attempt) for grant in lost],
        )
        try:
            answer = await self._scorer.GetCharges(request, timeout=_CALL_SECONDS)
        except grpc.RpcError as failure:
            raise _unavailable(failure) from None
        async with self._locks.hold(pool) as conn:
            for grant, charge in zip(lost, answer.charges, strict=True):
                recorded = Amount(charge.picousd, charge.tokens)
                await metering.settle_lost(conn, grant.shard, grant.attempt, recorded)
        log.info("grants.settled", run=run, grants=len(lost))

    async def _watch(self) -> None:
        after = ""
        while True:
            async with self._db.acquire() as conn:
                runs = await budget_store.watched_runs(conn, after, _AT_ONCE)
            if not runs:
                return
            after = runs[-1].run
            faults = await self._faults([run.run for run in runs if run.budget.errors is not None])
            for run, reason in _to_pause(runs, faults):
                await self._pause(run, reason)

    async def _faults(self, runs: list[RunId]) -> dict[str, int]:
        if not runs:
            return {}
        try:
            request = result_pb2.GetProgressRequest(runs=runs)
            answer = await self._scorer.GetProgress(request, timeout=_CALL_SECONDS)
        except grpc.RpcError as failure:
            # Time goes on all the same.
            log.info("audit.waiting", error=failure.details(), code=failure.code().name)
            return {}
        return {run: progress.faults for run, progress in answer.progress.items()}

    async def _pause(self, run: Watched, reason: str) -> None:
        try:
            await self._stops.pause(run.pool, run.run, reason, epoch=run.epoch)
        except (FailedPrecondition, NotFound) as late:
            # Its trials have all ended, or it was cancelled or removed.
            log.info("audit.late", run=run.run, error=late.message)
        else:
            log.info("run.paused", run=run.run, reason=reason)


def _to_pause(runs: list[Watched], faults: dict[str, int]) -> Iterator[tuple[Watched, str]]:
    for run in runs:
        reason = budgets.overdue(run.budget, run.worked)
        if reason is None:
            reason = budgets.too_many_errors(run.budget, faults.get(run.run, 0), run.errors_before)
        if reason is not None:
            yield run, reason


def _unavailable(failure: grpc.RpcError) -> Unavailable:
    return Unavailable(f"the scorer did not say what was recorded: {failure.details()}")
