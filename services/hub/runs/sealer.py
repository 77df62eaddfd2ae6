"""Ends runs whose shards have all ended: has them sealed and reported, however often it must ask."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import grpc
import structlog

from benchgen.errors import BenchgenError
from benchgen.eval.v1 import result_pb2, run_pb2
from benchgen.statuses import error_of
from services.hub.runs import store
from services.hub.runs.domain import RunEvent, RunRow, transition
from services.hub.runs.locks import PoolLocks
from services.hub.runs.wakes import Wakes

if TYPE_CHECKING:
    from benchgen.eval.v1.result_pb2_grpc import RecordServiceAsyncStub

log = structlog.get_logger()

_RUNS_AT_ONCE = 16
_CALL_SECONDS = 30.0
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

    async def step(self) -> None:
        """Seal what can be sealed; what is not reported yet is asked for again in the next step."""
        async with self._db.acquire() as conn:
            runs = await store.runs_to_seal(conn, _RUNS_AT_ONCE)
        await asyncio.gather(*(self._seal(run) for run in runs))

    async def _seal(self, run: RunRow) -> None:
        try:
            if not await self._reported(run):
                return
        except BenchgenError as error:
            # One run's trouble must not keep the others from ending.
            log.warning("seal.failed", run=run.id, error=error.message)
            return
        async with self._locks.hold(run.pool) as conn:
            # None: it was cancelled meanwhile, and is sealed again as that.
            ended = await store.move_run(conn, run.id, run.state, RunEvent.REPORTED)
        if ended is None:
            self._wakes.seal.set()
            return
        log.info("run.ended", run=run.id, state=ended, seconds=round(run.seconds, 3))
        self._wakes.run_changed(run.id)

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
