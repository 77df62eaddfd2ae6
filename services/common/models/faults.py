"""Which error is which: from a status, headers and a body to a typed fault.

The table, by status:

==============================  ================  =========  =========
status                          kind              retryable  permanent
==============================  ================  =========  =========
300 to 399                      redirect          no         yes
401, 403                        authentication    no         yes
402, any with a quota code      quota             no         yes
404, any with "no such model"   not_found         no         yes
400 or 413, context length      context_length    no         no
408, 409, 500 to 599            server_error      yes        no
429                             rate_limited      yes        no
503, 529                        overloaded        yes        no
other 400 to 499                bad_request       no         no
==============================  ================  =========  =========

``x-should-retry`` of the provider overrules the column "retryable" of faults that are not permanent. A
prompt that the provider's filter blocked is no fault but a refusal. An error status from 300 on costs nothing,
and so does an error under status 200 that names such a status for the request as a whole; what any other reply
cost is unknown, unless it says.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from services.common.models.rates import retry_after, used_up
from services.common.models.replies import ErrorBody, Timing, read_json, valid
from services.common.models.types import UNKNOWN_USAGE, Endpoint, Fault, FaultKind, Reply, Usage

MAX_MESSAGE_CHARS = 2_000

_QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "enforced_spend_limit_reached",
        "billing_hard_limit_reached",
        "billing_not_active",
    }
)
_NO_MODEL_CODES = frozenset({"model_not_found", "model_not_exist", "invalid_model", "unknown_model"})
_CONTEXT_CODES = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "model_context_window_exceeded"}
)
_FILTER_CODES = frozenset({"content_filter", "content_policy_violation", "responsibleaipolicyviolation"})
_CONTEXT_WORDS = re.compile(
    r"maximum context length|context (?:length|window|size)|too many tokens|(?:prompt|input) is too long",
    re.IGNORECASE,
)
_KEY_LIKE = re.compile(r"(?i:\bbearer\s+)[\w.~+/=-]{8,}|\b(?:sk|pk|rk|gsk|xai)-[\w-]{12,}|\bAIza[\w-]{20,}")
_KINDS = {
    401: FaultKind.AUTHENTICATION,
    402: FaultKind.QUOTA,
    403: FaultKind.AUTHENTICATION,
    404: FaultKind.NOT_FOUND,
    408: FaultKind.SERVER_ERROR,
    409: FaultKind.SERVER_ERROR,
    429: FaultKind.RATE_LIMITED,
    503: FaultKind.OVERLOADED,
    529: FaultKind.OVERLOADED,
}
_PERMANENT = frozenset({FaultKind.REDIRECT, FaultKind.AUTHENTICATION, FaultKind.QUOTA, FaultKind.NOT_FOUND})
_TRANSIENT = frozenset({FaultKind.SERVER_ERROR, FaultKind.RATE_LIMITED, FaultKind.OVERLOADED})


class Said(NamedTuple):
    """What an error body says: its words, its codes in lower case, and whether moderation flagged it."""

    message: str
    codes: frozenset[str]
    flagged: bool


def fault_of_status(
    endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes, timing: Timing
) -> Fault | Reply:
    """Name the fault of a reply whose status is not 200. A prompt that a filter blocked becomes a refusal."""
    said, daily_quota = _said(body), b"PerDay" in body
    return _fault(endpoint, status, headers, said, timing, daily_quota=daily_quota, no_cost=status >= 300)


def fault_of_error(
    endpoint: Endpoint, headers: Mapping[str, str], error: ErrorBody, timing: Timing
) -> Fault | Reply:
    """Name the fault of an error that came with status 200. Where it names no status, 502 is assumed."""
    return _fault(
        endpoint,
        error.status or 502,
        headers,
        _said_of(error.error),
        timing,
        daily_quota=False,
        usage=error.usage,
        no_cost=error.refused and error.usage == UNKNOWN_USAGE,
    )


def _fault(
    endpoint: Endpoint,
    status: int,
    headers: Mapping[str, str],
    said: Said,
    timing: Timing,
    *,
    daily_quota: bool,
    usage: Usage = UNKNOWN_USAGE,
    no_cost: bool,
) -> Fault | Reply:
    message = scrub(endpoint, said.message) or f"status {status} without a message"
    request_id = request_id_of(headers)
    if said.flagged or said.codes & _FILTER_CODES:
        return Reply(
            text="",
            refusal=message,
            finish_reason="content_filter",
            usage=usage,
            request_id=request_id,
            latency_ms=timing.latency_ms,
            first_byte_ms=timing.first_byte_ms,
            no_cost=no_cost,
        )
    kind = _kind(status, said, daily_quota)
    if kind is FaultKind.REDIRECT:
        message = f"status {status}: redirects are not followed; use the address that it leads to"
    permanent = kind in _PERMANENT
    retryable = kind in _TRANSIENT
    should = headers.get("x-should-retry")
    if should in ("true", "false") and not permanent:
        retryable = should == "true"
    now = time.time()
    return Fault(
        kind,
        message,
        status=status,
        retry_after_s=retry_after(headers, now),
        retryable=retryable,
        permanent_for_run=permanent,
        request_id=request_id,
        latency_ms=timing.latency_ms,
        usage=usage,
        no_cost=no_cost,
        rest_s=used_up(headers, now),
    )


def _kind(status: int, said: Said, daily_quota: bool) -> FaultKind:
    if said.codes & _QUOTA_CODES or (status == 429 and daily_quota):
        return FaultKind.QUOTA
    if 300 <= status < 400:
        return FaultKind.REDIRECT
    if 400 <= status < 500 and said.codes & _NO_MODEL_CODES:
        return FaultKind.NOT_FOUND
    if status in (400, 413, 422) and (said.codes & _CONTEXT_CODES or _CONTEXT_WORDS.search(said.message)):
        return FaultKind.CONTEXT_LENGTH
    known = _KINDS.get(status)
    if known is not None:
        return known
    return FaultKind.BAD_REQUEST if 400 <= status < 500 else FaultKind.SERVER_ERROR


def _said(body: bytes) -> Said:
    try:
        data = read_json(body)
    except ValueError:
        return Said(" ".join(body.decode("utf-8", "replace").split()), frozenset(), False)
    return _said_of(data)


def _said_of(data: Any) -> Said:
    """Read the shapes in use: {error: {...}}, {error: text}, {message}, {detail}, or a list of these."""
    if isinstance(data, list) and data:
        data = data[0]
    if not isinstance(data, dict):
        return Said(_written(data), frozenset(), False)
    error = data.get("error")
    inner = error if isinstance(error, dict) else data
    message: Any = error if isinstance(error, str) and error != "error" else None
    for name in ("message", "detail", "error_description"):
        message = message or inner.get(name)
    if message is not None and not isinstance(message, str):
        message = _written(message)
    codes = [inner.get(name) for name in ("code", "type", "status", "error_type")]
    inner_error = inner.get("innererror")
    if isinstance(inner_error, dict):
        codes.append(inner_error.get("code"))
    metadata = inner.get("metadata")
    flagged = isinstance(metadata, dict) and isinstance(metadata.get("reasons"), list)
    words = message if message else _written(data) if data else ""
    return Said(words, frozenset(code.lower() for code in codes if isinstance(code, str)), flagged)


def _written(data: Any) -> str:
    try:
        return str(data)
    except RecursionError:
        return "nested too deeply to be shown"


def scrub(endpoint: Endpoint, text: str) -> str:
    """Bound a message, make it valid, and take out the endpoint's secret and what looks like somebody's."""
    text = text[: 4 * MAX_MESSAGE_CHARS]
    if endpoint.api_key and len(endpoint.api_key) >= 4:
        text = text.replace(endpoint.api_key, "[secret]")
    return valid(_KEY_LIKE.sub("[secret]", text))[:MAX_MESSAGE_CHARS]


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """The provider's name of the call, for its support desk."""
    found = headers.get("x-request-id") or headers.get("request-id")
    return valid(found[:200]) if found else None
