"""Retries and adaptive concurrency against real servers."""

from __future__ import annotations

import asyncio
import time
from time import monotonic

import orjson
import pytest
from aiohttp import web

from services.common.models.client import ModelClient
from services.common.models.limiter import AdaptiveLimit
from services.common.models.retry import CallRecord, RetryPolicy, chat_with_retries
from services.common.models.types import Endpoint, Fault, FaultKind, Reply
from tests.integration.model_servers import (
    ANSWER,
    QUESTION,
    Answering,
    http_server,
    says,
)

QUICK = RetryPolicy(max_tries=4, base_s=0.005, cap_s=0.02)


def in_turn(*answers: Answering) -> Answering:
    """One answer after the other; the last one for good."""
    left = list(answers)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await (left.pop(0) if len(left) > 1 else left[0])(request)

    return answer


async def test_every_try_is_recorded() -> None:
    answers = in_turn(says(b"{}", 500), says(b"{}", 429, headers={"Retry-After-Ms": "80"}), says(ANSWER))
    seen: list[CallRecord] = []
    async with http_server(answers) as url, ModelClient() as client:
        begin = time.monotonic()
        ended = await chat_with_retries(client, Endpoint(url, "m"), QUESTION, QUICK, on_try=seen.append)
        seconds = time.monotonic() - begin
    assert isinstance(ended.result, Reply)
    assert [(call.number, call.status, call.kind, call.no_cost) for call in ended.calls] == [
        (1, 500, FaultKind.SERVER_ERROR, True),
        (2, 429, FaultKind.RATE_LIMITED, True),
        (3, 200, None, False),
    ]
    assert seen == list(ended.calls)
    assert [call.usage.input for call in ended.calls] == [None, None, 9]
    assert seconds >= 0.08


async def test_a_conversation_begins_when_its_first_call_is_sent() -> None:
    limit = AdaptiveLimit(1)
    await limit.acquire()
    async with http_server(in_turn(says(b"{}", 500), says(ANSWER))) as url, ModelClient() as client:
        work = asyncio.create_task(
            chat_with_retries(client, Endpoint(url, "m"), QUESTION, QUICK, limit=limit)
        )
        await asyncio.sleep(0.1)
        before = time.time_ns()
        limit.release()
        ended = await work
    assert before <= ended.began_ns <= time.time_ns() - int(ended.calls[1].latency_ms * 1e6)


async def test_what_a_reply_that_is_none_has_cost_is_recorded() -> None:
    body = orjson.dumps({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}})
    async with http_server(in_turn(says(body), says(ANSWER))) as url, ModelClient() as client:
        ended = await chat_with_retries(client, Endpoint(url, "m"), QUESTION, QUICK)
    assert [(call.usage.input, call.usage.output, call.no_cost) for call in ended.calls] == [
        (9, 1, False)
    ] * 2


async def test_tries_end() -> None:
    async with http_server(says(b"{}", 503)) as url, ModelClient() as client:
        ended = await chat_with_retries(client, Endpoint(url, "m"), QUESTION, QUICK)
    assert isinstance(ended.result, Fault)
    assert len(ended.calls) == 4


async def test_what_does_not_pass_is_asked_once() -> None:
    body = orjson.dumps({"error": {"message": "no money", "code": "insufficient_quota"}})
    async with http_server(says(body, 429)) as url, ModelClient() as client:
        ended = await chat_with_retries(client, Endpoint(url, "m"), QUESTION, QUICK)
    assert isinstance(ended.result, Fault)
    assert (len(ended.calls), ended.result.permanent_for_run) == (1, True)


async def test_a_wait_can_be_cancelled_and_what_was_tried_is_known() -> None:
    seen: list[CallRecord] = []
    async with http_server(says(b"{}", 429, headers={"Retry-After": "100"})) as url, ModelClient() as client:
        limit = AdaptiveLimit(1)
        work = asyncio.create_task(
            chat_with_retries(client, Endpoint(url, "m"), QUESTION, QUICK, limit=limit, on_try=seen.append)
        )
        while not seen:
            await asyncio.sleep(0.01)
        assert limit.in_flight == 0
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert [call.kind for call in seen] == [FaultKind.RATE_LIMITED]


async def test_a_call_can_be_cancelled_and_gives_its_slot_back() -> None:
    arrived, over = asyncio.Event(), asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        arrived.set()
        await over.wait()
        return web.Response()

    limit = AdaptiveLimit(1)
    async with http_server(answer) as url, ModelClient() as client:
        work = asyncio.create_task(
            chat_with_retries(client, Endpoint(url, "m"), QUESTION, QUICK, limit=limit)
        )
        await arrived.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert limit.in_flight == 0
        over.set()


async def test_the_limit_is_kept_and_learns() -> None:
    in_flight = most = number = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal in_flight, most, number
        number += 1
        mine = number
        in_flight += 1
        most = max(most, in_flight)
        try:
            await asyncio.sleep(0.01)
            return await (says(b"{}", 429) if mine == 3 else says(ANSWER))(request)
        finally:
            in_flight -= 1

    limit = AdaptiveLimit(6)
    allowed: list[int] = []
    async with http_server(answer) as url, ModelClient() as client:
        endpoint = Endpoint(url, "m")
        ended = await asyncio.gather(
            *(
                chat_with_retries(
                    client,
                    endpoint,
                    QUESTION,
                    QUICK,
                    limit=limit,
                    on_try=lambda _: allowed.append(limit.allowed),
                )
                for _ in range(40)
            )
        )
    assert all(isinstance(one.result, Reply) for one in ended)
    assert most == 6
    assert min(allowed) == 5
    assert limit.allowed == 5
    assert sum(len(one.calls) for one in ended) == 41


async def test_all_calls_wait_when_a_rate_limit_is_used_up() -> None:
    asked: list[float] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(monotonic())
        headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "400ms"}
        return await says(ANSWER, headers=headers if len(asked) == 1 else None)(request)

    limit = AdaptiveLimit(1)
    async with http_server(answer) as url, ModelClient() as client:
        endpoint = Endpoint(url, "m")
        calls = (chat_with_retries(client, endpoint, QUESTION, QUICK, limit=limit) for _ in range(3))
        ended = await asyncio.gather(*calls)
    assert all(isinstance(one.result, Reply) for one in ended)
    assert asked[1] - asked[0] >= 0.35
