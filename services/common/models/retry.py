"""Trying again: when, how long to wait, and a record of every try, since every call may cost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchgen.errors import InvalidInput
from services.common.amounts import NOTHING
from services.common.models.client import ModelClient
from services.common.models.limiter import LONGEST_REST_S, AdaptiveLimit
from services.common.models.meter import Meter
from services.common.models.types import ChatRequest, Endpoint, Fault, FaultKind, Reply, Usage

MAX_RETRY_AFTER_S = LONGEST_REST_S


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently. Waits double from ``base_s`` up to ``cap_s``.

    ``jitter`` is the share of a wait that is drawn at random, 0 to 1, so that callers who were refused
    together do not come back together.
    """

    max_tries: int = 5
    base_s: float = 1.0
    cap_s: float = 30.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if self.max_tries < 1:
            raise InvalidInput(f"max_tries: expected at least 1, found {self.max_tries}")
        if not 0 <= self.base_s <= self.cap_s:
            raise InvalidInput(f"base_s: expected 0 to cap_s ({self.cap_s:g}), found {self.base_s:g}")
        if not 0 <= self.jitter <= 1:
            raise InvalidInput(f"jitter: expected 0 to 1, found {self.jitter:g}")


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One HTTP try, counted from 1. ``kind`` is None where it was answered, and then ``status`` is 200.

    ``status`` is None where no status line came. What a fault cost is unknown where usage is and ``no_cost`` is
    not set.
    """

    number: int
    status: int | None
    kind: FaultKind | None
    usage: Usage
    latency_ms: float
    request_id: str | None
    message: str = ""
    """What went wrong; empty where it was answered."""
    waited_s: float = 0.0
    """How long the caller waits after it, in seconds, before the next try."""
    no_cost: bool = False
    """Whether it cost nothing for certain."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """All tries of one request and how the last one ended.

    ``began_ns`` is when the first of them was sent, in nanoseconds since 1970; 0 when none was.
    """

    result: Reply | Fault
    calls: tuple[CallRecord, ...]
    began_ns: int = 0


def wait_s(policy: RetryPolicy, tries: int, fault: Fault, draw: float) -> float | None:
    """Seconds to wait after the ``tries``-th try failed, or None to give up. ``draw`` is uniform in [0, 1).

    What the provider asks for is a lower bound, up to 120 s; the jitter comes on top of it. Waits double all the same:
    many callers that are told the same time would meet there again and again.
    """
    if not fault.retryable or fault.permanent_for_run or tries >= policy.max_tries:
        return None
    backoff = min(policy.cap_s, policy.base_s * 2.0 ** min(tries - 1, 60)) * (1.0 - policy.jitter * draw)
    if fault.retry_after_s is None:
        return backoff
    return max(backoff, min(fault.retry_after_s, MAX_RETRY_AFTER_S) + policy.base_s * policy.jitter * draw)


async def chat_with_retries(
    client: ModelClient,
    endpoint: Endpoint,
    request: ChatRequest,
    policy: RetryPolicy,
    *,
    limit: AdaptiveLimit | None = None,
    on_try: Callable[[CallRecord], None] | None = None,
    meter: Meter | None = None,
) -> Conversation:
    """Call until there is a reply, a fault that does not pass, or no try left.

    With ``limit``, each try holds a slot of it and tells it how the endpoint took the call; no slot is held
    while waiting. ``on_try`` learns of every try as soon as it ended, also when a later one is cancelled. With
    ``meter``, each try is reserved for before it is sent.
    """
    calls: list[CallRecord] = []
    began_ns = 0
    while True:
        most = used = NOTHING
        if meter is not None:
            most = meter.most(request)
            await meter.reserve(most)
        try:
            ticket = await limit.acquire() if limit is not None else 0
            try:
                began_ns = began_ns or time.time_ns()
                # Of what is broken off from here on nobody knows what it cost.
                used = most
                result = await client.chat(endpoint, request)
                if meter is not None:
                    used = meter.used(result.usage, most, no_cost=result.no_cost)
                wait = None
                if isinstance(result, Fault):
                    draw = random.random()  # noqa: S311  # jitter is no secret
                    wait = wait_s(policy, len(calls) + 1, result, draw)
                if limit is not None:
                    _teach(limit, ticket, result, wait or 0.0)
            finally:
                if limit is not None:
                    limit.release()
        finally:
            if meter is not None:
                meter.settle(most, used)
        call = _record(len(calls) + 1, result, wait or 0.0)
        calls.append(call)
        if on_try is not None:
            on_try(call)
        if wait is None:
            return Conversation(result, tuple(calls), began_ns)
        await asyncio.sleep(wait)


def _teach(limit: AdaptiveLimit, ticket: int, result: Reply | Fault, wait: float) -> None:
    """Let the limit learn from a try, and obey what the provider asks of all calls. Other faults teach nothing."""
    if isinstance(result, Reply):
        limit.succeeded(ticket)
    elif result.kind.refusal:
        limit.refused(ticket, wait, asked_s=result.retry_after_s or 0.0)
    elif result.kind.timeout:
        limit.timed_out(ticket)
    if result.rest_s:
        limit.rest(result.rest_s)


def _record(number: int, result: Reply | Fault, waited_s: float) -> CallRecord:
    if isinstance(result, Reply):
        return CallRecord(number, 200, None, result.usage, result.latency_ms, result.request_id)
    return CallRecord(
        number,
        result.status,
        result.kind,
        result.usage,
        result.latency_ms,
        result.request_id,
        message=f"{result.kind}: {result.message}",
        waited_s=waited_s,
        no_cost=result.no_cost,
    )
