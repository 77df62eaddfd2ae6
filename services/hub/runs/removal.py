"""Removing runs: by hand, and when they have been kept long enough.

The hub's rows go at once and leave a note; the note goes when the scorer has removed everything. So nothing is left
behind, whatever dies in between.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import grpc
import structlog

from benchgen.errors import BenchgenError, FailedPrecondition, NotFound
from benchgen.eval.v1 import result_pb2, run_pb2
from benchgen.statuses import error_of
from services.common import db
from services.hub.runs import budget_store, domain, removal_store, store
from services.hub.runs.domain import Pool, RunId
from services.hub.runs.locks import PoolLocks
from services.hub.runs.removal_store import Removed
from services.hub.runs.wakes import Wakes
from services.hub.wire import timestamp

if TYPE_CHECKING:
    from benchgen.eval.v1.result_pb2_grpc import RecordServiceAsyncStub

log = structlog.get_logger()

_CALL_SECONDS = 30.0
#: How long whoever removes a run waits for the scorer's part; the rest is done after the answer.
_PATIENCE_SECONDS = 5.0
_AT_ONCE = 20
_REST_SECONDS = 0.1


class Removals:
    """Removes runs."""

    def __init__(
        self, pool: asyncpg.Pool, locks: PoolLocks, scorer: RecordServiceAsyncStub, wakes: Wakes
    ) -> None:
        self._db = pool
        self._locks = locks
        self._scorer = scorer
        self._wakes = wakes

    async def remove(self, pool: Pool, run: RunId) -> None:
        """Remove an ended run. What the scorer does not remove within some seconds is removed later.

        :raises NotFound: there is no such run, or no more.
        :raises FailedPrecondition: it has not ended.
        """
        removed = await self._forget(pool, run)
        try:
            await asyncio.wait_for(self._clear(removed), _PATIENCE_SECONDS)
        except (BenchgenError, TimeoutError, *db.TRANSIENT) as error:
            log.info("run.clearing", run=run, error=str(error) or type(error).__name__)

    async def step(self) -> None:
        """Finish what was begun; what cannot be finished is tried again in the next step."""
        async with self._db.acquire() as conn:
            waiting = await removal_store.removed(conn, _AT_ONCE)
        for removed in waiting:
            try:
                await self._clear(removed)
            except BenchgenError as error:
                # One run's trouble must not keep the others.
                log.warning("run.clearing", run=removed.run, error=error.message)

    async def expire(self, keep: timedelta) -> None:
        """Remove runs that ended longer ago than that, some at a time."""
        while True:
            async with self._db.acquire() as conn:
                runs = await removal_store.ended_before(conn, keep, _AT_ONCE)
            for pool, run in runs:
                try:
                    await self._forget(pool, run)
                except (NotFound, FailedPrecondition) as error:
                    # Another hub was first, or it was resumed.
                    log.info("run.kept", run=run, error=error.message)
                else:
                    log.info("run.expired", run=run)
            await self.step()
            if len(runs) < _AT_ONCE:
                return

    async def _forget(self, pool: Pool, run: RunId) -> Removed:
        """Remove the hub's rows of a run."""
        async with self._locks.hold(pool) as conn:
            row = await store.get_run(conn, run)
            domain.check_removable(row.state)
            await budget_store.forget_grants(conn, run)
            await removal_store.remove(conn, run)
        self._wakes.run_changed(run)
        assert row.ended_at is not None
        return Removed(run, row.spec, row.created_at, row.ended_at)

    async def _clear(self, removed: Removed) -> None:
        """Have the scorer remove everything of a run.

        :raises BenchgenError: it could not.
        """
        request = result_pb2.DeleteResultsRequest(run=removed.run, end_time=timestamp(removed.ended_at))
        try:
            while True:
                answer = await self._scorer.DeleteResults(request, timeout=_CALL_SECONDS)
                if answer.done:
                    break
                # There is more, or another hub is at it.
                await asyncio.sleep(_REST_SECONDS)
            await self._clear_predictions(removed)
        except grpc.RpcError as failure:
            raise error_of(failure) from None
        async with self._db.acquire() as conn:
            await removal_store.cleared(conn, removed.run)
        log.info("run.removed", run=removed.run)

    async def _clear_predictions(self, removed: Removed) -> None:
        spec = run_pb2.RunSpec.FromString(removed.spec)
        if spec.subject.WhichOneof("kind") != "predictions":
            return
        digest = spec.subject.predictions.digest
        async with self._db.acquire() as conn:
            if digest in await removal_store.predictions_in_use(conn, [digest]):
                return
        stored = result_pb2.StoredPredictions(targets_digest=spec.targets_digest, digest=digest)
        await delete_predictions(self._scorer, stored, removed.created_at)


async def delete_predictions(
    scorer: RecordServiceAsyncStub, stored: result_pb2.StoredPredictions, written_before: datetime
) -> None:
    """Have the scorer remove recorded answers, unless they were uploaded again later."""
    await scorer.DeletePredictions(
        result_pb2.DeletePredictionsRequest(predictions=stored, written_before=timestamp(written_before)),
        timeout=_CALL_SECONDS,
    )
