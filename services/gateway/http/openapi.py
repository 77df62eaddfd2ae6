"""The OpenAPI document: what operations answer with and expect, for those parts that FastAPI cannot see."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

from services.gateway.http.documents import Problem, Shape

Responses = dict[int | str, dict[str, Any]]

PROBLEMS: Responses = {
    "default": {
        "description": "What went wrong.",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}

FILE: Responses = PROBLEMS | {
    200: {
        "description": "The file as it is.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

EVENTS: Responses = PROBLEMS | {
    200: {
        "description": "`event: run`, `id: <digest of the data>`, `data: <the run as JSON>`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "The run has ended, and its last event was seen."},
}


def answer(shape: type[Shape], status: HTTPStatus = HTTPStatus.OK) -> Responses:
    """What an operation answers with."""
    return PROBLEMS | {status.value: {"model": shape, "description": shape.__doc__ or ""}}


def raw_body(media_type: str, description: str) -> dict[str, Any]:
    """What an operation that takes a file expects."""
    schema = {"type": "string", "format": "binary"}
    return {
        "requestBody": {
            "required": True,
            "description": description,
            "content": {media_type: {"schema": schema}},
        }
    }


def document(
    title: str, description: str, tags: list[dict[str, Any]], routes: Sequence[BaseRoute]
) -> dict[str, Any]:
    """The whole document."""
    whole = get_openapi(title=title, version="1", description=description, routes=routes, tags=tags)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = whole["components"]["schemas"]
    schemas |= problem.pop("$defs", {})
    schemas["Problem"] = problem
    return whole
