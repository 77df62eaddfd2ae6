"""Who is calling: the service at the other end, and the principal on whose behalf it calls."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import orjson

from benchgen.errors import PermissionDenied, Unauthenticated
from services.common.signing import Signer, Verifier

TOKEN_KEY = "benchgen-service-token"  # noqa: S105 - the name of a header
PRINCIPAL_KEY = "benchgen-principal-bin"

#: Principals are signed for one call. This is how long that call may take to arrive, and how far the clocks of the
#: gateway and of who verifies may differ: what is signed travels between authenticated services only.
_PRINCIPAL_SECONDS = 60
_CLOCK_SKEW_SECONDS = 300


class Scope(StrEnum):
    """What an API key may do."""

    READ = "read"
    """See environments, models, runs, results and reports."""
    RUN = "run"
    """Create and stop runs, upload predictions."""
    PUBLISH = "publish"
    """Upload and yank environments."""
    MODELS = "models"
    """Register, test and remove models."""
    ANSWERS = "answers"
    """Read targets, solutions and bundles."""
    ADMIN = "admin"
    """Make and revoke API keys."""


class DailyLimits(NamedTuple):
    """What an API key may spend a day (UTC); None: no limit. The higher ``version`` was set later.

    Money is in 1e-12 US dollars.
    """

    picousd: int | None = None
    tokens: int | None = None
    version: int = 0


NO_LIMITS = DailyLimits()


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of an API key, as the gateway vouches for it."""

    key_id: str
    scopes: frozenset[str]
    daily: DailyLimits = NO_LIMITS

    def require(self, scope: Scope) -> None:
        """:raises PermissionDenied: the key does not have the scope."""
        if scope not in self.scopes:
            raise PermissionDenied(f"this API key lacks the scope `{scope}`", scope=scope)


caller: ContextVar[str] = ContextVar("caller")
"""The identity of the calling service: ``hub``, ``runner``, ``scorer`` or ``gateway``."""

principal: ContextVar[Principal] = ContextVar("principal")
"""Set while a call that came through the gateway is handled."""


def require(scope: Scope) -> None:
    """Check the scope of whoever is behind the current call.

    :raises PermissionDenied: the principal lacks it, or there is none.
    """
    who = principal.get(None)
    if who is None:
        raise PermissionDenied("the call carries no principal")
    who.require(scope)


def has_scope(scope: Scope) -> bool:
    """Whether whoever is behind the current call has the scope."""
    who = principal.get(None)
    return who is not None and scope in who.scopes


def hash_token(token: str) -> str:
    """What is stored of a token. Tokens are long and random, so a plain hash gives nothing away."""
    return hashlib.sha256(token.encode()).hexdigest()


def identify(token: str, peers: Mapping[str, str]) -> str:
    """The identity that a service token belongs to.

    :param peers: token hashes to identities.
    :raises Unauthenticated: none.
    """
    digest = hash_token(token)
    for known, identity in peers.items():
        if hmac.compare_digest(known, digest):
            return identity
    raise Unauthenticated("no valid service credential was presented")


def seal_principal(who: Principal, signer: Signer, now: Callable[[], float] = time.time) -> bytes:
    """The metadata value that carries a principal for one call.

    :param now: the clock that is asked, of which the other end knows too.
    """
    fields = {"key": who.key_id, "scopes": sorted(who.scopes), "expires": now() + _PRINCIPAL_SECONDS}
    if who.daily != NO_LIMITS:
        fields["daily"] = list(who.daily)
    body = orjson.dumps(fields)
    return signer.sign(body) + body


def open_principal(sealed: bytes, verifier: Verifier, now: Callable[[], float] = time.time) -> Principal:
    """The principal in a metadata value.

    :raises PermissionDenied: it was not signed by the gateway, or long ago.
    """
    signature, body = sealed[:64], sealed[64:]
    verifier.verify(body, signature, what="principal")
    fields = orjson.loads(body)
    if fields["expires"] + _CLOCK_SKEW_SECONDS < now():
        raise PermissionDenied("the principal has expired")
    daily = DailyLimits(*fields["daily"]) if "daily" in fields else NO_LIMITS
    return Principal(fields["key"], frozenset(fields["scopes"]), daily)
