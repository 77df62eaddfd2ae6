"""Models: the endpoints that runs are pointed at."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path
from fastapi.responses import Response

from benchgen import schemas
from benchgen.eval.v1 import model_pb2, result_pb2
from services.gateway.http import documents, openapi
from services.gateway.http.bodies import ModelBody
from services.gateway.http.caller import CallerDep
from services.gateway.http.once import OnceDep
from services.gateway.http.paging import PageSize, PageToken
from services.gateway.http.replies import json_response, page_response

router = APIRouter(prefix="/api/v1/models", tags=["models"])

#: A model may think for minutes before it answers the tiny call.
_TEST_SECONDS = 600.0

Name = Annotated[
    str,
    Path(
        description="A registered model, or a built-in one; write its `?` as `%3F`.",
        examples=["builtin/simulated"],
    ),
]


@router.get("", summary="List models", responses=openapi.answer(documents.ModelPage))
async def list_models(caller: CallerDep, page_size: PageSize = 50, page_token: PageToken = "") -> Response:
    """Models by name, the built-in ones first. Secrets are never shown."""
    request = model_pb2.ListModelsRequest(page_size=page_size, page_token=page_token)
    page = await caller.call(caller.backends.models.ListModels, request)
    return page_response(page.models, schemas.model_json, page.next_page_token)


@router.post(
    "",
    summary="Register a model",
    status_code=HTTPStatus.CREATED,
    responses=openapi.answer(documents.Model, HTTPStatus.CREATED),
)
async def create_model(body: ModelBody, caller: CallerDep, once: OnceDep) -> Response:
    """Registers an endpoint. No call is made to it; see `:test`."""

    async def execute(request_id: str) -> Response:
        request = model_pb2.CreateModelRequest(
            request_id=request_id, model=body.message(), secret=body.secret or ""
        )
        made = await caller.call(caller.backends.models.CreateModel, request)
        return json_response(
            schemas.model_json(made),
            status=HTTPStatus.CREATED,
            headers={"Location": f"/api/v1/models/{quote(made.name)}"},
        )

    return await once(execute)


@router.post("/{name:slashed}:test", summary="Test a model", responses=openapi.answer(documents.ModelTest))
async def test_model(caller: CallerDep, name: Name, once: OnceDep) -> Response:
    """Makes one tiny call and says what came back. A call that fails is an answer too, with `ok` false."""

    async def execute(_: str) -> Response:
        request = model_pb2.TestModelRequest(name=name)
        answer = await caller.call(caller.backends.models.TestModel, request, seconds=_TEST_SECONDS)
        return json_response(schemas.model_test_json(answer))

    return await once(execute)


@router.post(
    "/{name:slashed}:clearCache",
    summary="Clear a model's answers from the response cache",
    responses=openapi.answer(documents.CacheCleared),
)
async def clear_cache(caller: CallerDep, name: Name, once: OnceDep) -> Response:
    """Removes the answers of this model, at its endpoint, that were kept for runs with `cache`. Do so when another
    model answers there under the same id. Results that were taken from the cache stay."""

    async def execute(_: str) -> Response:
        model = await caller.call(caller.backends.models.GetModel, model_pb2.GetModelRequest(name=name))
        request = result_pb2.ClearCacheRequest(
            base_url=model.base_url, model_id=model.model_id, api=model.api
        )
        answer = await caller.call(caller.backends.results.ClearCache, request)
        return json_response({"removed": answer.removed})

    return await once(execute)


@router.get("/{name:slashed}", summary="Get a model", responses=openapi.answer(documents.Model))
async def get_model(caller: CallerDep, name: Name) -> Response:
    """One model. Its secret is never shown."""
    found = await caller.call(caller.backends.models.GetModel, model_pb2.GetModelRequest(name=name))
    return json_response(schemas.model_json(found))


@router.delete(
    "/{name:slashed}",
    summary="Remove a model",
    status_code=HTTPStatus.NO_CONTENT,
    responses=openapi.PROBLEMS,
)
async def delete_model(caller: CallerDep, name: Name) -> Response:
    """Removes a model and its secret. Refused while a run of it is under way."""
    await caller.call(caller.backends.models.DeleteModel, model_pb2.DeleteModelRequest(name=name))
    return Response(status_code=HTTPStatus.NO_CONTENT)
