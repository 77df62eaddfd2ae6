"""Answers as bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

import orjson
from fastapi.responses import Response

Item = TypeVar("Item")


def json_response(
    document: Any,
    *,
    status: HTTPStatus = HTTPStatus.OK,
    media_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A document as JSON."""
    return Response(orjson.dumps(document), status.value, headers=headers, media_type=media_type)


def page_response(items: Iterable[Item], shape: Callable[[Item], Any], next_page_token: str) -> Response:
    """A page of a list; `next_page_token` is null on the last."""
    return json_response(
        {"items": [shape(item) for item in items], "next_page_token": next_page_token or None}
    )
