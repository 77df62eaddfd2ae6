"""API keys: made, listed, limited, revoked. All of it needs the scope `admin`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import Response

from benchgen import schemas
from benchgen.eval.v1 import key_pb2
from services.gateway.http import documents, openapi
from services.gateway.http.bodies import KeyBody, KeyBudgetBody
from services.gateway.http.caller import CallerDep
from services.gateway.http.replies import json_response, page_response

router = APIRouter(prefix="/api/v1/keys", tags=["keys"])

KeyId = Annotated[str, Path(description="The key's id.", examples=["k3f9a1c07be24"])]


@router.get("", summary="List keys", responses=openapi.answer(documents.KeyPage))
async def list_keys(caller: CallerDep) -> Response:
    """Keys, oldest first, revoked ones included; never their secrets."""
    listed = await caller.api.key_admin.list(caller.who)
    return page_response(listed.keys, schemas.key_json, "")


@router.post(
    "",
    summary="Make a key",
    status_code=HTTPStatus.CREATED,
    responses=openapi.answer(documents.NewKey, HTTPStatus.CREATED),
)
async def create_key(body: KeyBody, caller: CallerDep) -> Response:
    """Makes a key. Its `secret` is in this answer and nowhere else, so an `Idempotency-Key` is not honoured here."""
    made = await caller.api.key_admin.create(caller.who, body.message())
    return json_response(schemas.new_key_json(made), status=HTTPStatus.CREATED)


@router.delete(
    "/{key}", summary="Revoke a key", status_code=HTTPStatus.NO_CONTENT, responses=openapi.PROBLEMS
)
async def revoke_key(caller: CallerDep, key: KeyId) -> Response:
    """Revokes a key: within seconds nobody can use it. Its runs go on. 409 for the key that the call is made with."""
    await caller.api.key_admin.revoke(caller.who, key_pb2.RevokeKeyRequest(name=key))
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.put("/{key}/budget", summary="Limit a key", responses=openapi.answer(documents.Key))
async def set_budget(caller: CallerDep, key: KeyId, body: KeyBudgetBody) -> Response:
    """Replaces what all runs of a key may spend a day (UTC); runs that are under way, too."""
    request = key_pb2.SetKeyBudgetRequest(name=key, daily_budget=body.message())
    return json_response(schemas.key_json(await caller.api.key_admin.set_budget(caller.who, request)))
