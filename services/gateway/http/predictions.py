"""Recorded answers, to be scored without calling a model."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from benchgen.eval.v1 import environment_pb2, result_pb2
from services.gateway.http import competitions, documents, openapi
from services.gateway.http.caller import CallerDep
from services.gateway.http.once import OnceDep
from services.gateway.http.replies import json_response
from services.gateway.http.uploads import expect_type, upload

UPLOAD_PATH = "/api/v1/predictions"
MAX_UPLOAD_BYTES = 4 << 30

router = APIRouter(tags=["runs"])

_JSON_LINES = ("application/x-ndjson", "application/jsonl", "application/octet-stream", "text/plain")


@router.post(
    UPLOAD_PATH,
    summary="Upload recorded answers",
    status_code=HTTPStatus.CREATED,
    responses=openapi.answer(documents.StoredPredictions, HTTPStatus.CREATED),
    openapi_extra=openapi.raw_body(
        _JSON_LINES[0], "JSON lines `{case_id, trial?, response, usage?, latency_ms?}`, at most 4 GiB."
    ),
)
async def upload_predictions(
    request: Request,
    caller: CallerDep,
    once: OnceDep,
    environment: Annotated[
        str, Query(min_length=1, description="What they answer: `name@version`, `name` or a digest.")
    ],
    label: Annotated[str, Query(max_length=200, description="What to call them in lists.")] = "predictions",
) -> Response:
    """Checks every line against the environment and stores the file. For a competition it is a zip of predictions, and
    the answer has a `submission` instead. It can be sent to `POST /api/v1/runs` as it is."""
    expect_type(request, *_JSON_LINES, *competitions.ZIP)

    async def execute(_: str) -> Response:
        version = await caller.call(
            caller.backends.environments.GetEnvironmentVersion,
            environment_pb2.GetEnvironmentVersionRequest(name=environment),
        )
        if version.competition_json:
            zipped = await competitions.store_submission(request, caller, label, answers_only=True)
            return json_response(
                {"environment": version.name, "submission": competitions.submission_json(zipped)},
                status=HTTPStatus.CREATED,
            )
        header = result_pb2.PredictionsHeader(targets_digest=version.targets_digest, label=label)
        stored = await upload(
            request,
            caller,
            caller.backends.results.UploadPredictions,
            result_pb2.UploadPredictionsRequest(header=header),
            lambda chunk: result_pb2.UploadPredictionsRequest(chunk=chunk),
        )
        return json_response(
            {
                "environment": version.name,
                "predictions": {"digest": stored.digest, "rows": stored.rows, "label": stored.label},
            },
            status=HTTPStatus.CREATED,
        )

    return await once(execute)
