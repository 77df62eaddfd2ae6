"""The words of the model client: what is asked, what came back, and what went wrong.

A call ends in exactly one of two values. A :class:`Reply` is an answer of the model, good or bad. A
:class:`Fault` is everything else: the network, the provider, or a request that the endpoint will not take.
Neither is an exception, because both are data that a run records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from yarl import URL

from benchgen.errors import InvalidInput


class Outcome(StrEnum):
    """How a trial ended."""

    OK = "ok"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    EMPTY = "empty"
    LIMIT = "limit"
    PROVIDER_ERROR = "provider_error"
    SANDBOX_ERROR = "sandbox_error"
    HARNESS_ERROR = "harness_error"
    JUDGE_ERROR = "judge_error"
    CANCELLED = "cancelled"
    BUDGET = "budget"

    @property
    def final(self) -> bool:
        """Whether this is the model's doing: it is scored, and no later attempt replaces it."""
        return self in _FINAL


_FINAL = frozenset({Outcome.OK, Outcome.TRUNCATED, Outcome.REFUSED, Outcome.EMPTY, Outcome.LIMIT})


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one try, in seconds. All of them count from its start, so ``total_s`` covers everything."""

    connect_s: float = 10.0
    first_byte_s: float = 120.0
    total_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("connect_s", "first_byte_s", "total_s"):
            value = getattr(self, name)
            if not 0 < value <= 86_400:
                raise InvalidInput(
                    f"timeouts.{name}: expected more than 0 and at most 86400 s, found {value}"
                )


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """One OpenAI-compatible server and the model asked for there.

    Compared by identity, so that the client can prepare each one once. ``base_url`` is what comes before
    ``/chat/completions`` and may hold a query (Azure's ``api-version``).
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        """Refuse what could not be sent, or would send a secret to the wrong place."""
        try:
            url = URL(self.base_url)
        except ValueError as error:
            raise InvalidInput(f"base_url: expected an http or https address, found {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidInput(f"base_url: expected http://HOST or https://HOST, found {self.base_url!r}")
        if url.user is not None or url.password is not None:
            raise InvalidInput("base_url: expected no user or password in the address; use api_key")
        if url.fragment:
            raise InvalidInput(f"base_url: expected no '#' part, found '#{url.fragment}'")
        if not self.model:
            raise InvalidInput("model: expected the id that the endpoint knows, found nothing")
        if self.api_key is not None and not _HEADER_VALUE.fullmatch(self.api_key):
            raise InvalidInput(
                "api_key: expected visible ASCII characters only; found a line break, a blank or another"
            )


_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question. ``params`` are the generation parameters as the API names them; those that are None are
    left out.
    """

    messages: Sequence[Mapping[str, Any]]
    params: Mapping[str, Any] = field(default_factory=dict)
    extra_headers: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one call used. None is unknown, which is not zero.

    ``input`` includes ``cached`` and ``cache_write``; ``output`` includes ``reasoning``.
    """

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None


UNKNOWN_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered. Times are in milliseconds from the start of the try.

    ``no_cost`` says that it cost nothing for certain: a filter refused the prompt with an error status.
    """

    text: str
    reasoning: str | None = None
    refusal: str | None = None
    finish_reason: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    usage: Usage = UNKNOWN_USAGE
    model: str | None = None
    request_id: str | None = None
    latency_ms: float = 0.0
    first_byte_ms: float = 0.0
    no_cost: bool = False
    rest_s: float | None = None
    """For how many seconds the provider takes no more calls: with this one a rate limit is used up."""


class FaultKind(StrEnum):
    """What went wrong, as far as it decides what to do next."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    CONNECT_TIMEOUT = "connect_timeout"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    DISCONNECTED = "disconnected"
    BAD_REPLY = "bad_reply"
    TOO_LARGE = "too_large"
    REDIRECT = "redirect"
    BAD_REQUEST = "bad_request"
    CONTEXT_LENGTH = "context_length"
    AUTHENTICATION = "authentication"
    NOT_FOUND = "not_found"
    QUOTA = "quota"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server_error"

    @property
    def refusal(self) -> bool:
        """Whether the endpoint says that this call is one too many: 429, 503 or 529."""
        return self in (FaultKind.RATE_LIMITED, FaultKind.OVERLOADED)

    @property
    def timeout(self) -> bool:
        """Whether the endpoint took too long."""
        return self in _TIMEOUTS


_TIMEOUTS = frozenset({FaultKind.CONNECT_TIMEOUT, FaultKind.FIRST_BYTE_TIMEOUT, FaultKind.TOTAL_TIMEOUT})


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no answer.

    ``message`` is the provider's own words where it had any, at most 2,000 characters, without secrets.
    ``retryable`` says that the same request may succeed later; ``permanent_for_run`` that no request to this
    endpoint will, until somebody acts. ``retry_after_s`` is what the provider asked for, unbounded.
    ``no_cost`` says that it cost nothing for certain: it was never sent, or refused with an error status. What
    other faults cost follows from ``usage``, and is unknown without it.
    """

    kind: FaultKind
    message: str
    status: int | None = None
    retry_after_s: float | None = None
    retryable: bool = False
    permanent_for_run: bool = False
    request_id: str | None = None
    latency_ms: float = 0.0
    usage: Usage = UNKNOWN_USAGE
    no_cost: bool = False
    rest_s: float | None = None
    """For how many seconds the provider takes no more calls of anybody's: a rate limit is used up."""


def classify(reply: Reply) -> Outcome:
    """Name the outcome of a reply. A refusal counts before a length limit: a cut refusal is still one."""
    finish = reply.finish_reason
    if reply.refusal or finish in ("content_filter", "refusal"):
        return Outcome.REFUSED
    if finish in ("length", "max_tokens"):
        return Outcome.TRUNCATED
    if not reply.tool_calls and (not reply.text or reply.text.isspace()):
        return Outcome.EMPTY
    return Outcome.OK
