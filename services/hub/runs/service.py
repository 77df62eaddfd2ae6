"""RunService: creates, shows, lists, stops, resumes, removes and follows runs."""

# ruff: noqa: N802 - gRPC names the methods and passes a context

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import structlog

from benchgen.errors import InvalidInput, Unavailable
from benchgen.eval.v1 import result_pb2, run_pb2, run_pb2_grpc
from services.common.auth import Principal, Scope, has_scope, principal, require
from services.common.paging import Page, next_token
from services.hub.runs import budget_messages, budget_store, store
from services.hub.runs.budget_store import Spend
from services.hub.runs.creation import Creator
from services.hub.runs.domain import ENDED, RunId, RunRow, RunState
from services.hub.runs.estimates import Estimator
from services.hub.runs.plans import Plans
from services.hub.runs.removal import Removals
from services.hub.runs.resuming import Resumes
from services.hub.runs.stops import Stops
from services.hub.runs.store import Cursor
from services.hub.runs.wakes import Wakes
from services.hub.wire import timestamp

if TYPE_CHECKING:
    from benchgen.eval.v1.result_pb2_grpc import RecordServiceAsyncStub

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]

#: A run is worth showing without its progress: the scorer is not waited for, seconds.
_PROGRESS_SECONDS = 1.0
#: Who follows a run hears of it at least this often, seconds.
_WATCH_SECONDS = 1.0
#: Of how many API keys it is remembered which limits were stored.
_MOST_KEYS = 10_000


class RunService(run_pb2_grpc.RunServiceServicer):
    """Serves runs.

    :param stopping: set when the process should stop; watches end then.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        creator: Creator,
        estimator: Estimator,
        stops: Stops,
        resumes: Resumes,
        removals: Removals,
        plans: Plans,
        scorer: RecordServiceAsyncStub,
        wakes: Wakes,
        stopping: asyncio.Event,
    ) -> None:
        self._pool = pool
        self._creator = creator
        self._estimator = estimator
        self._stops = stops
        self._resumes = resumes
        self._removals = removals
        self._plans = plans
        self._scorer = scorer
        self._wakes = wakes
        self._stopping = stopping
        # Which limits of API keys were stored, so that they are not stored again at each call.
        self._key_versions: dict[str, int] = {}

    async def CreateRun(self, request: run_pb2.CreateRunRequest, context: Context) -> run_pb2.Run:
        require(Scope.RUN)
        who = await self._caller()
        row = await self._creator.create(request, who)
        self._wakes.dispatch.set()
        self._wakes.load.set()
        self._wakes.outbox.set()
        return (await self._messages([row]))[0]

    async def EstimateRun(self, request: run_pb2.EstimateRunRequest, context: Context) -> run_pb2.RunEstimate:
        require(Scope.RUN)
        return await self._estimator.estimate(*await self._creator.planned(request.run))

    async def GetRun(self, request: run_pb2.GetRunRequest, context: Context) -> run_pb2.Run:
        require(Scope.READ)
        await self._caller()
        return await self._current(request.name)

    async def ListRuns(self, request: run_pb2.ListRunsRequest, context: Context) -> run_pb2.ListRunsResponse:
        require(Scope.READ)
        await self._caller()
        page = Page.of(request.page_size, request.page_token, kinds=(str, str))
        size, after = page.size, page.after
        async with self._pool.acquire() as conn:
            rows = await store.list_runs(
                conn,
                after=None if after is None else _read_cursor(after),
                environment=request.environment,
                model=request.model,
                state=_state_filter(request.state),
                count=size + 1,
            )
        token = ""
        if len(rows) > size:
            rows = rows[:size]
            token = next_token([rows[-1].created_at.isoformat(), rows[-1].id])
        return run_pb2.ListRunsResponse(runs=await self._messages(rows), next_page_token=token)

    async def CancelRun(self, request: run_pb2.CancelRunRequest, context: Context) -> run_pb2.Run:
        require(Scope.RUN)
        run = RunId(request.name)
        plan = await self._plans.get(run)
        row = await self._stops.cancel(plan.pool, run, f"cancelled with the API key {principal.get().key_id}")
        return (await self._messages([row]))[0]

    async def PauseRun(self, request: run_pb2.PauseRunRequest, context: Context) -> run_pb2.Run:
        require(Scope.RUN)
        run = RunId(request.name)
        plan = await self._plans.get(run)
        message = f"paused by hand with the API key {principal.get().key_id}"
        return (await self._messages([await self._stops.pause(plan.pool, run, message)]))[0]

    async def ResumeRun(self, request: run_pb2.ResumeRunRequest, context: Context) -> run_pb2.Run:
        require(Scope.RUN)
        run = RunId(request.name)
        plan = await self._plans.get(run)
        await self._caller()
        budget = request.budget if request.HasField("budget") else None
        row = await self._resumes.resume(plan.pool, run, request.epoch, budget=budget)
        return (await self._messages([row]))[0]

    async def DeleteRun(
        self, request: run_pb2.DeleteRunRequest, context: Context
    ) -> run_pb2.DeleteRunResponse:
        require(Scope.RUN)
        run = RunId(request.name)
        plan = await self._plans.get(run)
        await self._removals.remove(plan.pool, run)
        return run_pb2.DeleteRunResponse()

    async def WatchRun(
        self, request: run_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[run_pb2.Run]:
        require(Scope.READ)
        with self._wakes.watching(RunId(request.name)) as changed:
            while not self._stopping.is_set():
                changed.clear()
                async with self._pool.acquire() as conn:
                    row = await store.get_run(conn, request.name)
                yield (await self._messages([row]))[0]
                if row.state in ENDED:
                    return
                await self._either(changed)
        raise Unavailable("the hub is being stopped; ask again")

    async def _caller(self) -> Principal:
        """Who calls; what that key may spend a day holds for all its runs from now on."""
        who = principal.get()
        if who.daily.version > self._key_versions.get(who.key_id, 0):
            async with self._pool.acquire() as conn:
                await budget_store.set_key_limits(
                    conn, who.key_id, who.daily.version, budget_messages.key_limits(who)
                )
            if len(self._key_versions) >= _MOST_KEYS:
                self._key_versions.clear()
            self._key_versions[who.key_id] = who.daily.version
        return who

    async def _either(self, changed: asyncio.Event) -> None:
        """Wait for a change, a second, or the end of the process."""
        waits = [asyncio.ensure_future(event.wait()) for event in (changed, self._stopping)]
        try:
            await asyncio.wait(waits, timeout=_WATCH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _current(self, run: str) -> run_pb2.Run:
        async with self._pool.acquire() as conn:
            row = await store.get_run(conn, run)
        return (await self._messages([row]))[0]

    async def _messages(self, rows: Sequence[RunRow]) -> list[run_pb2.Run]:
        progress: dict[str, run_pb2.RunProgress] = {}
        if rows:
            request = result_pb2.GetProgressRequest(runs=[row.id for row in rows])
            try:
                answer = await self._scorer.GetProgress(request, timeout=_PROGRESS_SECONDS)
                progress = dict(answer.progress)
            except grpc.RpcError as failure:
                log.info("progress.unknown", error=failure.details(), code=failure.code().name)
        budgeted = [row.id for row in rows if row.budgeted]
        spends: dict[RunId, Spend] = {}
        if budgeted:
            async with self._pool.acquire() as conn:
                spends = await budget_store.spends(conn, budgeted)
        return [_message(row, progress.get(row.id), spends.get(row.id)) for row in rows]


def _message(row: RunRow, recorded: run_pb2.RunProgress | None, spend: Spend | None) -> run_pb2.Run:
    """A run; what the scorer knows of it is None where there is nothing, or where it was not there to ask."""
    run = run_pb2.Run(
        name=row.id,
        state=run_pb2.Run.State.Value(f"STATE_{row.state}"),
        state_message=row.state_message,
        progress=recorded,
        create_time=timestamp(row.created_at),
        start_time=timestamp(row.started_at) if row.started_at is not None else None,
        end_time=timestamp(row.ended_at) if row.ended_at is not None else None,
        epoch=row.epoch,
        priority=row.priority,
        budget=None
        if spend is None
        else budget_messages.budget_message(spend, recorded.faults if recorded is not None else 0),
    )
    run.spec.ParseFromString(row.spec)
    if not has_scope(Scope.ANSWERS):
        # Rules can hold answers, word for word.
        run.spec.ClearField("scoring_json")
    run.progress.planned = row.planned
    run.progress.shards = row.shards
    run.progress.shards_done = row.shards - row.shards_open
    return run


def _state_filter(state: run_pb2.Run.State.ValueType) -> str:
    if state == run_pb2.Run.STATE_UNSPECIFIED:
        return ""
    try:
        return RunState(run_pb2.Run.State.Name(state).removeprefix("STATE_"))
    except ValueError:
        raise InvalidInput(f"state: expected one of Run.State, found {state}") from None


def _read_cursor(key: Sequence[str]) -> Cursor:
    try:
        moment = datetime.fromisoformat(key[0])
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidInput("page_token: expected the next_page_token of the page before, as it was given")
    return Cursor(moment, RunId(key[1]))
