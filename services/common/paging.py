"""Opaque cursors: a page token says after which key the next page starts."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from benchgen.errors import InvalidInput

MAX_PAGE = 1000
DEFAULT_PAGE = 50


@dataclass(frozen=True, slots=True)
class Page:
    """Which page is wanted."""

    size: int
    after: list[Any] | None
    """The key of the last row of the page before; None for the first page."""

    @classmethod
    def of(cls, size: int, token: str, *, kinds: Sequence[type]) -> Page:
        """Read a request's page size and token.

        :param kinds: the types of the key's values.
        :raises InvalidInput: the size is out of bounds, or the token is not one of ours.
        """
        if not 0 <= size <= MAX_PAGE:
            raise InvalidInput(f"page_size: expected 0 to {MAX_PAGE}, found {size}")
        return cls(size or DEFAULT_PAGE, _read(token, kinds) if token else None)


def next_token(key: list[Any]) -> str:
    """The token of the page that starts after this key."""
    return base64.urlsafe_b64encode(orjson.dumps(key)).decode().rstrip("=")


def _read(token: str, kinds: Sequence[type]) -> list[Any]:
    try:
        key = orjson.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        key = None
    # PostgreSQL's texts hold no NUL.
    if (
        not isinstance(key, list)
        or [type(value) for value in key] != list(kinds)
        or any(isinstance(value, str) and "\0" in value for value in key)
    ):
        raise InvalidInput("page_token: expected the next_page_token of the page before, as it was given")
    return key
