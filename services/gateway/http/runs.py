"""Runs: created, followed, stopped, resumed, removed, read."""

from __future__ import annotations

from enum import StrEnum
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import Response, StreamingResponse

from benchgen import schemas
from benchgen.eval.v1 import result_pb2, run_pb2
from services.gateway.http import documents, openapi
from services.gateway.http.bodies import ResumeBody, RunBody
from services.gateway.http.caller import CallerDep
from services.gateway.http.events import MEDIA_TYPE, RunEvents
from services.gateway.http.once import OnceDep
from services.gateway.http.paging import PageSize, PageToken
from services.gateway.http.replies import json_response, page_response

router = APIRouter(prefix="/api/v1/runs", tags=["runs"])

RunId = Annotated[str, Path(description="The run's id.", examples=["r7k2m9qd4x1c"])]


class RunState(StrEnum):
    """Where a run can stand."""

    QUEUED = "queued"
    RUNNING = "running"
    SCORING = "scoring"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    PAUSED = "paused"


class Which(StrEnum):
    """Which results, by the primary rule."""

    ALL = "all"
    FAILED = "failed"
    PASSED = "passed"
    UNSCORED = "unscored"


_FILTERS = {
    Which.ALL: result_pb2.ListResultsRequest.FILTER_UNSPECIFIED,
    Which.FAILED: result_pb2.ListResultsRequest.FILTER_FAILED,
    Which.PASSED: result_pb2.ListResultsRequest.FILTER_PASSED,
    Which.UNSCORED: result_pb2.ListResultsRequest.FILTER_UNSCORED,
}


@router.get("", summary="List runs", responses=openapi.answer(documents.RunPage))
async def list_runs(
    caller: CallerDep,
    environment: Annotated[str, Query(description="Only of this `name` or `name@version`.")] = "",
    model: Annotated[str, Query(description="Only of this model.")] = "",
    state: Annotated[RunState | None, Query(description="Only in this state.")] = None,
    page_size: PageSize = 50,
    page_token: PageToken = "",
) -> Response:
    """Runs, newest first."""
    request = run_pb2.ListRunsRequest(
        environment=environment, model=model, page_size=page_size, page_token=page_token
    )
    if state is not None:
        request.state = run_pb2.Run.State.Value(f"STATE_{state.name}")
    page = await caller.call(caller.backends.runs.ListRuns, request)
    return page_response(page.runs, schemas.run_json, page.next_page_token)


@router.post(
    "",
    summary="Create a run",
    status_code=HTTPStatus.CREATED,
    responses=openapi.answer(documents.Run, HTTPStatus.CREATED),
)
async def create_run(body: RunBody, caller: CallerDep, once: OnceDep) -> Response:
    """Points an environment at a model, or at recorded answers. Follow the run at `/events`, or by asking for it;
    its report is there when it has ended."""

    async def execute(request_id: str) -> Response:
        made = await caller.call(caller.backends.runs.CreateRun, body.message(request_id))
        return json_response(
            schemas.run_json(made),
            status=HTTPStatus.CREATED,
            headers={"Location": f"/api/v1/runs/{made.name}"},
        )

    return await once(execute)


@router.post(":estimate", summary="Estimate a run", responses=openapi.answer(documents.Estimate))
async def estimate_run(body: RunBody, caller: CallerDep) -> Response:
    """What a run would take at most, without making it."""
    estimate = await caller.call(
        caller.backends.runs.EstimateRun, run_pb2.EstimateRunRequest(run=body.message(""))
    )
    return json_response(schemas.estimate_json(estimate))


@router.post("/{run}:cancel", summary="Cancel a run", responses=openapi.answer(documents.Run))
async def cancel_run(caller: CallerDep, run: RunId, once: OnceDep) -> Response:
    """Stops a run: no new calls; what was recorded stays and is reported. A run that has ended is returned as it
    is."""

    async def execute(_: str) -> Response:
        stopped = await caller.call(caller.backends.runs.CancelRun, run_pb2.CancelRunRequest(name=run))
        return json_response(schemas.run_json(stopped))

    return await once(execute)


@router.post("/{run}:pause", summary="Pause a run", responses=openapi.answer(documents.Run))
async def pause_run(caller: CallerDep, run: RunId, once: OnceDep) -> Response:
    """Stops a run for now: no new calls; what comes back meanwhile is stored. A run that is paused already is returned
    as it is; 409 when its trials have all ended."""

    async def execute(_: str) -> Response:
        paused = await caller.call(caller.backends.runs.PauseRun, run_pb2.PauseRunRequest(name=run))
        return json_response(schemas.run_json(paused))

    return await once(execute)


@router.post("/{run}:resume", summary="Resume a run", responses=openapi.answer(documents.Run))
async def resume_run(
    caller: CallerDep, run: RunId, once: OnceDep, body: ResumeBody | None = None
) -> Response:
    """Lets a paused run go on, or an ended one run again the trials that have no final result, and no others. A run
    that goes on, or misses nothing, is returned as it is; 409 while it is being cancelled."""
    request = run_pb2.ResumeRunRequest(name=run)
    if body is not None and body.budget is not None:
        request.budget.CopyFrom(body.budget.message())

    async def execute(_: str) -> Response:
        resumed = await caller.call(caller.backends.runs.ResumeRun, request)
        return json_response(schemas.run_json(resumed))

    return await once(execute)


@router.delete(
    "/{run}",
    summary="Remove a run",
    status_code=HTTPStatus.NO_CONTENT,
    responses=openapi.PROBLEMS,
)
async def delete_run(caller: CallerDep, run: RunId) -> Response:
    """Removes an ended run with its results and reports; 409 for one that has not ended: cancel it first."""
    await caller.call(caller.backends.runs.DeleteRun, run_pb2.DeleteRunRequest(name=run))
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.get("/{run}", summary="Get a run", responses=openapi.answer(documents.Run))
async def get_run(caller: CallerDep, run: RunId) -> Response:
    """One run: where it stands and how far it is."""
    found = await caller.call(caller.backends.runs.GetRun, run_pb2.GetRunRequest(name=run))
    return json_response(schemas.run_json(found))


@router.get("/{run}/events", summary="Follow a run", responses=openapi.EVENTS)
async def watch_run(
    caller: CallerDep,
    run: RunId,
    last_event_id: Annotated[
        str | None, Header(description="The id of the last event that was seen, when coming back.")
    ] = None,
) -> Response:
    """Server-sent events: `event: run` with the run as JSON whenever it changed, comments in between, the end after
    the state is `succeeded`, `failed` or `cancelled`. Who comes back after the last event gets 204, which tells a
    browser to stop."""
    events = await RunEvents.open(caller, run, last_event_id)
    if events is None:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return StreamingResponse(
        events.stream(),
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("/{run}/results", summary="List results", responses=openapi.answer(documents.ResultPage))
async def list_results(
    caller: CallerDep,
    run: RunId,
    which: Annotated[
        Which, Query(alias="filter", description="Which results, by the primary rule.")
    ] = Which.ALL,
    case_id: Annotated[str, Query(max_length=300, description="Only of this case. Not with `filter`.")] = "",
    page_size: PageSize = 50,
    page_token: PageToken = "",
) -> Response:
    """Results in dataset order, then by trial. Without the scope `answers` there is nothing in them that tells an
    expected answer: no `target`, no explanations, no responses of `builtin/oracle` and `builtin/simulated`."""
    request = result_pb2.ListResultsRequest(
        run=run, filter=_FILTERS[which], case_id=case_id, page_size=page_size, page_token=page_token
    )
    page = await caller.call(caller.backends.results.ListResults, request)
    return page_response(page.results, schemas.result_json, page.next_page_token)


@router.get("/{run}/calls", summary="List model calls", responses=openapi.answer(documents.CallPage))
async def list_calls(
    caller: CallerDep,
    run: RunId,
    case_id: Annotated[str, Query(min_length=1, max_length=300, description="The case.")],
    trial: Annotated[int, Query(ge=0, le=1_000_000, description="The repeat, from 0.")] = 0,
    page_size: PageSize = 50,
    page_token: PageToken = "",
) -> Response:
    """The model calls that the program of one trial made, in the order in which they were stored: its transcript.
    Empty for harnesses that run no program."""
    request = result_pb2.ListCallsRequest(
        run=run, case_id=case_id, trial=trial, page_size=page_size, page_token=page_token
    )
    page = await caller.call(caller.backends.results.ListCalls, request)
    return page_response(page.calls, schemas.call_json, page.next_page_token)


@router.get("/{run}/report", summary="Get a report", responses=openapi.answer(documents.Report))
async def get_report(caller: CallerDep, run: RunId) -> Response:
    """The latest report of a run; 409 until there is one."""
    report = await caller.call(caller.backends.results.GetReport, result_pb2.GetReportRequest(run=run))
    return json_response(schemas.report_json(report))
