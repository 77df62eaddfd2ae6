"""What messages have in common: ids that make repeats harmless, pages, and times."""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from benchgen.errors import InvalidInput

DEFAULT_PAGE = 50
LARGEST_PAGE = 1_000


def checked_request_id(value: str) -> uuid.UUID:
    """The id that makes a repeated request harmless.

    :raises InvalidInput: it is no UUID.
    """
    try:
        return uuid.UUID(value)
    except ValueError:
        raise InvalidInput(f"request_id: expected a UUID made by the caller, found {value[:80]!r}") from None


def checked_page_size(value: int) -> int:
    """How many rows a page has.

    :raises InvalidInput: it is not 0 (the default) to 1,000.
    """
    if not 0 <= value <= LARGEST_PAGE:
        raise InvalidInput(f"page_size: expected 1 to {LARGEST_PAGE:,}, or 0 for the default, found {value}")
    return value or DEFAULT_PAGE


def page_token(key: Sequence[str]) -> str:
    """An opaque token for the page after the row with this key."""
    return base64.urlsafe_b64encode(orjson.dumps(list(key))).decode().rstrip("=")


def read_page_token(token: str, parts: int) -> list[str] | None:
    """The key in a token; None for the first page.

    :param parts: how many texts the key has.
    :raises InvalidInput: no such token was ever given out.
    """
    if not token:
        return None
    try:
        padded = token + "=" * (-len(token) % 4)
        key: Any = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        key = None
    if not isinstance(key, list) or len(key) != parts or not all(map(_is_key_part, key)):
        raise InvalidInput("page_token: expected the next_page_token of the page before, as it was given")
    return key


def _is_key_part(part: Any) -> bool:
    """Whether this can be part of a key: PostgreSQL's texts hold no NUL."""
    return isinstance(part, str) and "\0" not in part


def timestamp(moment: datetime) -> Timestamp:
    """A moment as messages have it."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message
