"""Errors as the HTTP API tells them: RFC 9457 problem details, whatever went wrong and wherever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from benchgen import errors
from services.common import db
from services.gateway.http.replies import json_response
from services.gateway.idempotency import InProgress, KeyReused

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"

#: The one table from errors to statuses; subclasses count as their nearest listed parent.
STATUSES: Mapping[type[errors.BenchgenError], HTTPStatus] = {
    errors.InvalidInput: HTTPStatus.BAD_REQUEST,
    KeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.AlreadyExists: HTTPStatus.CONFLICT,
    errors.FailedPrecondition: HTTPStatus.CONFLICT,
    errors.PermissionDenied: HTTPStatus.FORBIDDEN,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Exhausted: HTTPStatus.TOO_MANY_REQUESTS,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.BenchgenError: HTTPStatus.INTERNAL_SERVER_ERROR,
}

#: What trying again a moment later may cure.
_PASSING = (InProgress, errors.Exhausted, errors.Unavailable)


class Refusal(HTTPException):
    """A request that is refused before any service sees it."""

    def __init__(self, status: HTTPStatus, detail: str, reason: str) -> None:
        super().__init__(status, detail)
        self.reason = reason


def problem(
    status: HTTPStatus,
    detail: str,
    reason: str,
    *,
    fields: Sequence[Mapping[str, str]] = (),
    metadata: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """One problem document.

    :param reason: what programs look at; the same words as in gRPC's ``ErrorInfo``.
    :param fields: ``field`` and ``message`` of everything in the request that cannot be used.
    """
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": detail,
        "reason": reason,
    }
    if fields:
        document["errors"] = list(fields)
    if metadata:
        document["metadata"] = dict(metadata)
    return json_response(document, status=status, media_type=MEDIA_TYPE, headers=headers)


def problem_of(error: errors.BenchgenError) -> Response:
    """The document of an error of ours."""
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    headers = {}
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, _PASSING):
        headers["Retry-After"] = "1"
    return problem(status, error.message, error.reason, metadata=error.metadata, headers=headers)


def install(app: FastAPI) -> None:
    """Make every error of the application a problem document."""
    app.add_exception_handler(errors.BenchgenError, _of_benchgen)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(HTTPException, _of_http)
    for passing in (*db.TRANSIENT, TimeoutError):
        app.add_exception_handler(passing, _of_database)
    app.add_exception_handler(ClientDisconnect, _to_nobody)
    app.add_exception_handler(Exception, _of_anything)


async def _of_benchgen(_: Request, error: Exception) -> Response:
    assert isinstance(error, errors.BenchgenError)
    return problem_of(error)


async def _of_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    reason = error.reason if isinstance(error, Refusal) else status.name
    detail = error.detail
    if status is HTTPStatus.BAD_REQUEST:
        reason = errors.InvalidInput.reason
    if status is HTTPStatus.NOT_FOUND:
        detail = "there is no such address here; see /openapi.json"
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        detail = "this address does not take this method; see /openapi.json"
    return problem(status, detail, reason, headers=error.headers)


async def _of_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    content_type = request.headers.get("content-type", "")
    if any(fault["loc"] == ("body",) for fault in faults) and "json" not in content_type:
        return problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"expected a JSON object as `Content-Type: application/json`, found {content_type or 'none'}",
            "UNSUPPORTED_MEDIA_TYPE",
        )
    fields = [_field(fault) for fault in faults]
    detail = "; ".join(f"{field['field']}: {field['message']}".removeprefix(": ") for field in fields)
    return problem(HTTPStatus.BAD_REQUEST, detail, errors.InvalidInput.reason, fields=fields)


def _field(fault: Mapping[str, Any]) -> dict[str, str]:
    """One thing that cannot be used. Its value is not repeated: it may be a secret."""
    if fault["type"] == "json_invalid":
        position = fault["loc"][-1]
        return {"field": "", "message": f"not JSON: {fault['ctx']['error']} (character {position})"}
    where = [str(part) for part in fault["loc"][1:]]
    return {"field": ".".join(where), "message": fault["msg"].removeprefix("Value error, ")}


async def _of_database(_: Request, error: Exception) -> Response:
    log.warning("http.database", error=str(error) or type(error).__name__)
    return problem_of(errors.Unavailable("the gateway's database cannot be reached; try again"))


async def _to_nobody(_: Request, __: Exception) -> Response:
    """The client left while it was sending; whatever is answered goes nowhere."""
    return problem(HTTPStatus.BAD_REQUEST, "the request broke off", "CLIENT_LEFT")


async def _of_anything(request: Request, error: Exception) -> Response:
    log.error("http.failed", method=request.method, path=request.url.path, exc_info=error)
    return problem_of(errors.BenchgenError("internal error; the server's log has it"))
