"""Puts the HTTP API together."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp

from services.gateway.http import (
    competitions,
    edge,
    environments,
    keys,
    models,
    openapi,
    pages,
    predictions,
    problems,
    runs,
)
from services.gateway.http.caller import Api

_DESCRIPTION = (
    "Environments, models, runs and their results. Send an API key as `Authorization: Bearer bg_...` with every"
    " request. Errors are problem details (RFC 9457). Lists are read page by page with `next_page_token`. POST"
    " requests that carry an `Idempotency-Key` are safe to repeat. What is not known is null, never 0."
)

_TAGS = [
    {"name": "environments", "description": "Versioned packages of test cases, harness and scoring rules."},
    {"name": "models", "description": "Endpoints that runs are pointed at."},
    {"name": "runs", "description": "One environment version pointed at one model, or at recorded answers."},
    {"name": "keys", "description": "API keys and what they may spend a day."},
    {"name": "competitions", "description": "What environments of competition.yaml have beside that."},
]

#: What takes more than a mebibyte.
_UPLOADS = {
    environments.UPLOAD_PATH: environments.MAX_UPLOAD_BYTES,
    predictions.UPLOAD_PATH: predictions.MAX_UPLOAD_BYTES,
    competitions.UPLOAD_PATH: competitions.MAX_UPLOAD_BYTES,
}

_bearer = HTTPBearer(auto_error=False, description="An API key, `bg_...`.")


def build(api: Api) -> ASGIApp:
    """The whole HTTP API. It loads nothing from elsewhere, not even for its documents."""
    # The router alone would already be complete; the security scheme is there for the OpenAPI document.
    guarded = APIRouter(dependencies=[Depends(_bearer)])
    for part in (competitions, environments, models, runs, predictions, keys):
        guarded.include_router(part.router)
    app = _Documented(
        title="BenchGen Eval",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.api = api
    app.include_router(pages.router)
    app.include_router(guarded)
    problems.install(app)
    # The last that is added is the first that a request meets.
    app.add_middleware(edge.Bearer, keys=api.keys)
    app.add_middleware(edge.Bodies, most_bytes=_UPLOADS)
    return edge.Edge(app)


class _Documented(FastAPI):
    """Describes the problems that every operation can answer with."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made when it is first asked for."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi.document(self.title, self.description, _TAGS, self.routes)
        return self.openapi_schema
