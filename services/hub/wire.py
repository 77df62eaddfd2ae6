"""What messages have in common: ids that make repeats harmless, and times."""

from __future__ import annotations

import uuid
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from benchgen.errors import InvalidInput


def checked_request_id(value: str) -> uuid.UUID:
    """The id that makes a repeated request harmless.

    :raises InvalidInput: it is no UUID.
    """
    try:
        return uuid.UUID(value)
    except ValueError:
        raise InvalidInput(f"request_id: expected a UUID made by the caller, found {value[:80]!r}") from None


def timestamp(moment: datetime) -> Timestamp:
    """A moment as messages have it."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message
