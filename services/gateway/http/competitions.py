"""Competitions: submissions, what tasks gave, pages of bundles, leaderboards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any

import grpc
import orjson
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from benchgen import schemas
from benchgen.errors import NotFound
from benchgen.eval.v1 import environment_pb2, result_pb2
from services.gateway.backends import failure_of
from services.gateway.http import documents, openapi
from services.gateway.http.caller import Caller, CallerDep
from services.gateway.http.environments import Name, VersionNumber, reference
from services.gateway.http.once import OnceDep
from services.gateway.http.replies import json_response
from services.gateway.http.runs import RunId
from services.gateway.http.uploads import expect_type, upload

UPLOAD_PATH = "/api/v1/submissions"
MAX_UPLOAD_BYTES = 512 << 20

router = APIRouter(tags=["competitions"])

ZIP = ("application/zip", "application/x-zip-compressed", "application/octet-stream")

#: What bundles and their programs wrote is shown as a page of nobody's: no scripts, no forms, no other pages, nothing
#: loaded from anywhere, and not within a page of ours.
_HARMLESS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    "Content-Disposition": "inline",
}
_IMAGES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}

CaseId = Annotated[
    str,
    Query(
        min_length=1, max_length=600, description="The case: `<phase>/<task>`.", examples=["Final/Letters"]
    ),
]
Trial = Annotated[int, Query(ge=0, le=1_000, description="The repeat, from 0.")]


class TaskFile(StrEnum):
    """What a task gives."""

    PREDICTIONS = "predictions"
    DETAILS = "details"
    CASES = "cases"


_TYPES = {
    TaskFile.PREDICTIONS: "application/zip",
    TaskFile.DETAILS: "text/html; charset=utf-8",
    TaskFile.CASES: "application/x-ndjson",
}


@router.post(
    UPLOAD_PATH,
    summary="Upload a submission",
    status_code=HTTPStatus.CREATED,
    responses=openapi.answer(documents.StoredSubmission, HTTPStatus.CREATED),
    openapi_extra=openapi.raw_body(ZIP[0], "A program with its metadata, or predictions, at most 512 MiB."),
)
async def upload_submission(
    request: Request,
    caller: CallerDep,
    once: OnceDep,
    label: Annotated[str, Query(max_length=200, description="What to call it in lists.")] = "submission",
    answers_only: Annotated[
        bool, Query(description="It holds predictions, and nothing is run to make them.")
    ] = False,
) -> Response:
    """Stores a zip that can be submitted to any competition; send the answer's `submission` to `POST /api/v1/runs`."""
    expect_type(request, *ZIP)

    async def execute(_: str) -> Response:
        stored = await store_submission(request, caller, label, answers_only=answers_only)
        return json_response({"submission": submission_json(stored)}, status=HTTPStatus.CREATED)

    return await once(execute)


async def store_submission(
    request: Request, caller: Caller, label: str, *, answers_only: bool
) -> environment_pb2.Submission:
    """Pass a zip on to the hub."""
    length = request.headers.get("content-length", "")
    header = environment_pb2.SubmissionHeader(
        label=label, answers_only=answers_only, size_bytes=int(length) if length.isdigit() else 0
    )
    return await upload(
        request,
        caller,
        caller.backends.environments.UploadSubmission,
        environment_pb2.UploadSubmissionRequest(header=header),
        lambda chunk: environment_pb2.UploadSubmissionRequest(chunk=chunk),
    )


def submission_json(stored: environment_pb2.Submission) -> dict[str, Any]:
    """A stored submission as runs take it."""
    return {
        "digest": stored.digest,
        "files": stored.files,
        "label": stored.label,
        "answers_only": stored.answers_only,
    }


@router.get("/api/v1/runs/{run}/task", summary="Get a task", responses=openapi.answer(documents.Task))
async def get_task(caller: CallerDep, run: RunId, case_id: CaseId, trial: Trial = 0) -> Response:
    """How the two steps of a task went: the logs of every program. Those of the scoring step, and why there are no
    scores, are for keys with the scope `answers`: they can quote the reference data."""
    request = result_pb2.GetTaskRequest(run=run, case_id=case_id, trial=trial)
    found = await caller.call(caller.backends.results.GetTask, request)
    return json_response(schemas.task_json(found))


@router.get("/api/v1/runs/{run}/task/{file}", summary="Get a file of a task", responses=openapi.FILE)
async def get_task_file(
    caller: CallerDep,
    run: RunId,
    file: Annotated[TaskFile, Path(description="Which file.")],
    case_id: CaseId,
    trial: Trial = 0,
) -> Response:
    """The zip of predictions; the page with detailed results, which is shown without scripts and loads nothing; or what
    the scoring program said of single cases. The last two need the scope `answers`."""
    request = result_pb2.DownloadTaskFileRequest(
        run=run,
        case_id=case_id,
        trial=trial,
        file=result_pb2.DownloadTaskFileRequest.File.Value(f"FILE_{file.name}"),
    )
    chunks = await _stream(caller, caller.backends.results.DownloadTaskFile, request)
    return StreamingResponse(chunks, media_type=_TYPES[file], headers=_HARMLESS)


@router.get(
    "/api/v1/environments/{name:slashed}/versions/{version}/assets/{sha256}",
    summary="Get a page or picture",
    responses=openapi.FILE,
)
async def get_asset(
    caller: CallerDep,
    name: Name,
    version: VersionNumber,
    sha256: Annotated[
        str, Path(pattern="^[0-9a-f]{64}$", description="As `competition` of the version has it.")
    ],
) -> Response:
    """A page or picture of a competition, as its author wrote it; shown without scripts, and loads nothing."""
    ref = reference(name, version)
    found = await caller.call(
        caller.backends.environments.GetEnvironmentVersion,
        environment_pb2.GetEnvironmentVersionRequest(name=ref),
    )
    request = environment_pb2.DownloadAssetRequest(name=ref, sha256=sha256)
    chunks = await _stream(caller, caller.backends.environments.DownloadAsset, request)
    data = b"".join([chunk async for chunk in chunks])
    about = orjson.loads(found.competition_json or "{}")
    pages = [page for page in (about.get("terms"), *about.get("pages", ())) if page is not None]
    kind = next((page["format"] for page in pages if page["sha256"] == sha256), "")
    media_type = {"markdown": "text/markdown; charset=utf-8", "html": "text/html; charset=utf-8"}.get(
        kind, _image_type(data)
    )
    return Response(data, media_type=media_type, headers=_HARMLESS)


def _image_type(data: bytes) -> str:
    return next((kind for head, kind in _IMAGES.items() if data.startswith(head)), "application/octet-stream")


@router.get(
    "/api/v1/environments/{name:slashed}/versions/{version}/leaderboard",
    summary="Get a leaderboard",
    responses=openapi.answer(documents.Leaderboard),
)
async def get_leaderboard(
    caller: CallerDep,
    name: Name,
    version: VersionNumber,
    phase: Annotated[int, Query(ge=0, le=1_000, description="The place of the phase, from 0.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1_000, description="How many at most.")] = 100,
) -> Response:
    """The runs of one phase of a competition, ranked as the bundle says: by its primary column, then the others, then
    time; missing scores last. Runs with made-up answers are left out."""
    found = await caller.call(
        caller.backends.environments.GetEnvironmentVersion,
        environment_pb2.GetEnvironmentVersionRequest(name=reference(name, version)),
    )
    if not found.competition_json:
        raise NotFound(f"{found.name} is no competition.yaml environment: it has no leaderboard")
    board = await caller.call(
        caller.backends.results.GetLeaderboard,
        result_pb2.GetLeaderboardRequest(digest=found.digest, phase=phase, limit=limit),
    )
    return json_response(schemas.leaderboard_json(board))


async def _stream(
    caller: Caller, method: grpc.aio.UnaryStreamMultiCallable[Any, Any], request: object
) -> AsyncIterator[bytes]:
    """The chunks of an answer, once it is certain that there is one.

    :raises BenchgenError: what the service answered instead.
    """
    call = method(request, metadata=caller.backends.metadata(caller.who))
    try:
        first: Any = await call.read()
    except grpc.aio.AioRpcError as failure:
        raise failure_of(failure) from None

    async def chunks() -> AsyncIterator[bytes]:
        try:
            part: Any = first
            while part is not grpc.aio.EOF:
                yield part.chunk
                part = await call.read()
        finally:
            call.cancel()

    return chunks()
