"""API keys and idempotency keys as values."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime

from benchgen.errors import InvalidInput, Unauthenticated
from services.common.auth import NO_LIMITS, DailyLimits, Principal

BEARER_HINT = "send it as `Authorization: Bearer bg_...`, which is the metadata `authorization` in gRPC"

_REQUESTS = uuid.UUID("6f2d4a53-9d0c-4c7e-8f0a-1f6a4f1f5b3e")
_LONGEST_IDEMPOTENCY_KEY = 200


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of an API key. The key itself is not."""

    id: str
    name: str
    scopes: frozenset[str]
    expires_at: datetime | None
    revoked_at: datetime | None
    daily: DailyLimits = NO_LIMITS

    def principal(self, now: datetime) -> Principal:
        """Whom the key speaks for at this moment.

        :raises Unauthenticated: it is revoked, or has expired.
        """
        if self.revoked_at is not None:
            raise Unauthenticated("this API key was revoked")
        if self.expires_at is not None and self.expires_at <= now:
            raise Unauthenticated("this API key has expired")
        return Principal(self.id, self.scopes, self.daily)


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key as it is listed."""

    key: ApiKey
    created_at: datetime
    last_used_at: datetime | None


def new_key_id() -> str:
    """An id for a key, which may be shown and logged."""
    return "k" + secrets.token_hex(6)


def bearer_token(authorization: str | None) -> str:
    """The API key in an ``Authorization`` header.

    :raises Unauthenticated: there is none.
    """
    if not authorization:
        raise Unauthenticated(f"an API key is needed: {BEARER_HINT}")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated(f"the API key was not passed as expected: {BEARER_HINT}")
    return token.strip()


def checked_idempotency_key(value: str) -> str:
    """An ``Idempotency-Key`` that can be used.

    :raises InvalidInput: it is empty, too long, or not printable ASCII.
    """
    if not 0 < len(value) <= _LONGEST_IDEMPOTENCY_KEY or not value.isascii() or not value.isprintable():
        raise InvalidInput(
            f"Idempotency-Key: expected 1 to {_LONGEST_IDEMPOTENCY_KEY} printable ASCII characters,"
            " such as a UUID"
        )
    return value


def request_id(key_id: str, idempotency_key: str | None) -> str:
    """The id that makes a request harmless to repeat for the services behind the gateway.

    The same caller's same key gives the same id, whichever gateway takes the request and whatever it still knows.
    """
    if idempotency_key is None:
        return str(uuid.uuid4())
    return str(uuid.uuid5(_REQUESTS, f"{key_id}:{idempotency_key}"))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered with."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class KnownRequest:
    """A request that carried the same idempotency key before."""

    method: str
    path: str
    request_hash: str | None
    """sha256 of its body in hex; None while it is being executed."""
    answer: Answer | None
    """None while it is being executed."""
