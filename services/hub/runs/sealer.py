"""Ends runs whose shards have all ended: has them sealed and reported, however often it must ask."""

from __future__ import annotations

import asyncio
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import asyncpg
import grpc
import structlog

from benchgen.eval.v1 import result_pb2, run_pb2
from benchgen.statuses import error_of
from services.common import tracing
from services.hub.runs import budget_messages, budget_store, store
from services.hub.runs.domain import RunEvent, RunId, RunRow, transition
from services.hub.runs.locks import PoolLocks
from services.hub.runs.wakes import Wakes

if TYPE_CHECKING:
    from benchgen.eval.v1.result_pb2_grpc import RecordServiceAsyncStub

log = structlog.get_logger()

_RUNS_AT_ONCE = 16
#: Reports of the largest runs take seconds; a scorer that does not answer at all is noticed by its connection.
_CALL_SECONDS = 600.0
_STEP_SECONDS = 1.0
_FIRST_REST_SECONDS, _LONGEST_REST_SECONDS = 0.1, 2.0
#: Most reports are there within moments: ask again after these times, seconds, before the next sweep does.
_SOON = (0.01, 0.02, 0.04, 0.08, 0.16)


class Sealer:
    """Asks the scorer to seal runs until it has reported them."""

    def __init__(
        self, db: asyncpg.Pool, locks: PoolLocks, scorer: RecordServiceAsyncStub, wakes: Wakes
    ) -> None:
        self._db = db
        self._locks = locks
        self._scorer = scorer
        self._wakes = wakes
        # Only pace is kept here: another hub may try the same at any time.
        self._under_way: dict[RunId, asyncio.Task[bool]] = {}
        self._rests: dict[RunId, float] = {}
        self._rest_until: dict[RunId, float] = {}

    async def step(self) -> None:
        """Seal what can be sealed; what is not reported yet is asked for again in a later step.

        Returns when that is done or after a moment: one run whose report takes long keeps no other waiting.
        """
        now = monotonic()
        resting = [run for run, until in self._rest_until.items() if until > now]
        async with self._db.acquire() as conn:
            runs = await store.runs_to_seal(conn, _RUNS_AT_ONCE, [*self._under_way, *resting])
        for run in runs:
            task = asyncio.create_task(self._seal(run), name=f"seal {run.id}")
            self._under_way[run.id] = task
            task.add_done_callback(partial(self._done, run.id))
        if self._under_way:
            await asyncio.wait(self._under_way.values(), timeout=_STEP_SECONDS)

    def _done(self, run: RunId, task: asyncio.Task[bool]) -> None:
        del self._under_way[run]
        if not task.cancelled() and task.exception() is None and task.result():
            self._rest_until.pop(run, None)
            self._rests.pop(run, None)
            return
        # One run's trouble must not keep the others from ending: it rests longer each time.
        rest = self._rests[run] = min(
            self._rests.get(run, _FIRST_REST_SECONDS / 2) * 2, _LONGEST_REST_SECONDS
        )
        self._rest_until[run] = monotonic() + rest
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("seal.failed", run=run, error=str(error) or type(error).__name__)

    async def _seal(self, run: RunRow) -> bool:
        """Whether the run has ended."""
        if not await self._traced(run):
            return False
        async with self._locks.hold(run.pool) as conn:
            given_up = await store.given_up(conn, run.id)
            # None: it was cancelled meanwhile, and is sealed again as that; or it has ended, and even been resumed.
            ended = await store.move_run(
                conn, run.id, run.state, RunEvent.REPORTED, message=given_up, epoch=run.epoch
            )
        if ended is None:
            self._wakes.seal.set()
            return False
        log.info("run.ended", run=run.id, state=ended, seconds=round(run.seconds, 3))
        self._wakes.run_changed(run.id)
        return True

    async def _traced(self, run: RunRow) -> bool:
        trace = (await store.traces(self._db, [run.id])).get(run.id, "")
        with tracing.span("seal", parent=trace, run=run.id, epoch=run.epoch):
            return await self._reported(run)

    async def _budget(self, run: RunRow) -> run_pb2.Budget | None:
        """What the run was allowed to spend, and did, for its report."""
        if not run.budgeted:
            return None
        async with self._db.acquire() as conn:
            spends = await budget_store.spends(conn, [run.id])
        return budget_messages.budget_message(spends[run.id], 0) if run.id in spends else None

    async def _reported(self, run: RunRow) -> bool:
        """Ask a few times.

        :raises BenchgenError: the scorer did not answer, or not as it should.
        """
        final = transition(run.state, RunEvent.REPORTED)
        request = result_pb2.SealRunRequest(
            spec=run_pb2.RunSpec.FromString(run.spec),
            epoch=run.epoch,
            final_state=run_pb2.Run.State.Value(f"STATE_{final}"),
            seconds=run.seconds,
            budget=await self._budget(run),
        )
        for delay in (*_SOON, None):
            try:
                answer = await self._scorer.SealRun(request, timeout=_CALL_SECONDS)
            except grpc.RpcError as failure:
                raise error_of(failure) from None
            if answer.state == result_pb2.SealRunResponse.STATE_REPORTED:
                return True
            if delay is not None:
                await asyncio.sleep(delay)
        return False
