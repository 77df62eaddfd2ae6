"""Which error is which."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from services.common.models.faults import (
    MAX_MESSAGE_CHARS,
    fault_of_error,
    fault_of_status,
    scrub,
)
from services.common.models.replies import ErrorBody, Timing, parse_reply
from services.common.models.types import Endpoint, Fault, FaultKind, Reply, Usage

KEY = "sk-test-0123456789abcdef"
ENDPOINT = Endpoint("https://host/v1", "m", api_key=KEY)
TIMING = Timing(1.0, 2.0)


def fault(status: int, body: Any = None, **headers: str) -> Fault:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    found = fault_of_status(ENDPOINT, status, CIMultiDict(headers), raw, TIMING)
    assert isinstance(found, Fault), found
    return found


@pytest.mark.parametrize(
    ("status", "kind", "retryable", "permanent"),
    [
        (301, FaultKind.REDIRECT, False, True),
        (307, FaultKind.REDIRECT, False, True),
        (400, FaultKind.BAD_REQUEST, False, False),
        (401, FaultKind.AUTHENTICATION, False, True),
        (402, FaultKind.QUOTA, False, True),
        (403, FaultKind.AUTHENTICATION, False, True),
        (404, FaultKind.NOT_FOUND, False, True),
        (408, FaultKind.SERVER_ERROR, True, False),
        (409, FaultKind.SERVER_ERROR, True, False),
        (418, FaultKind.BAD_REQUEST, False, False),
        (422, FaultKind.BAD_REQUEST, False, False),
        (429, FaultKind.RATE_LIMITED, True, False),
        (500, FaultKind.SERVER_ERROR, True, False),
        (502, FaultKind.SERVER_ERROR, True, False),
        (503, FaultKind.OVERLOADED, True, False),
        (529, FaultKind.OVERLOADED, True, False),
    ],
)
def test_the_table(status: int, kind: FaultKind, retryable: bool, permanent: bool) -> None:
    found = fault(status, {"error": {"message": "words"}})
    assert (found.kind, found.retryable, found.permanent_for_run) == (kind, retryable, permanent)
    assert found.status == status


@pytest.mark.parametrize(
    "code", ["insufficient_quota", "project_spend_limit_exceeded", "enforced_spend_limit_reached"]
)
def test_no_quota_is_permanent_although_it_is_a_429(code: str) -> None:
    for error in ({"message": "m", "code": code}, {"message": "m", "type": code}):
        found = fault(429, {"error": error})
        assert (found.kind, found.retryable, found.permanent_for_run) == (FaultKind.QUOTA, False, True)


def test_a_daily_quota_is_permanent() -> None:
    body = [
        {"error": {"code": 429, "message": "quota", "details": [{"quotaId": "RequestsPerDayPerProject"}]}}
    ]
    assert fault(429, body).kind is FaultKind.QUOTA


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "too long", "code": "context_length_exceeded"}},
        {"object": "error", "message": "This model's maximum context length is 4096 tokens", "code": 400},
        {"error": {"message": "the request exceeds", "type": "exceed_context_size_error"}},
    ],
)
def test_context_length_fails_one_case_only(body: Any) -> None:
    found = fault(400, body)
    assert (found.kind, found.retryable, found.permanent_for_run) == (FaultKind.CONTEXT_LENGTH, False, False)


def test_an_unknown_model_under_status_400() -> None:
    assert fault(400, {"error": {"message": "no", "code": "model_not_found"}}).permanent_for_run


def test_a_blocked_prompt_is_a_refusal() -> None:
    azure = {"error": {"message": "filtered", "code": "content_filter", "innererror": {"code": "X"}}}
    moderated = {"error": {"message": "flagged", "code": 403, "metadata": {"reasons": ["violence"]}}}
    for status, body in ((400, azure), (403, moderated)):
        found = fault_of_status(ENDPOINT, status, {}, orjson.dumps(body), TIMING)
        assert isinstance(found, Reply)
        assert found.finish_reason == "content_filter"
        assert found.refusal == body["error"]["message"]


def test_the_provider_may_say_whether_to_retry() -> None:
    assert not fault(500, {}, **{"x-should-retry": "false"}).retryable
    assert fault(400, {}, **{"x-should-retry": "true"}).retryable
    assert not fault(401, {}, **{"x-should-retry": "true"}).retryable


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "words"}}, "words"),
        ({"error": "words"}, "words"),
        ({"detail": "words"}, "words"),
        ({"message": "words"}, "words"),
        ([{"error": {"message": "words"}}], "words"),
        (b"<html>\n  words </html>", "<html> words </html>"),
        (b"", "status 500 without a message"),
        (b"{}", "status 500 without a message"),
        ({"detail": [{"loc": ["body"]}]}, "[{'loc': ['body']}]"),
        (
            {"error": {"message": None, "code": {"odd": 1}}},
            "{'error': {'message': None, 'code': {'odd': 1}}}",
        ),
    ],
)
def test_the_providers_own_words(body: Any, message: str) -> None:
    assert fault(500, body).message == message


def test_an_error_within_a_good_status() -> None:
    found = fault_of_error(ENDPOINT, {}, ErrorBody({"error": {"message": "slow down"}}, 429), TIMING)
    assert isinstance(found, Fault)
    assert (found.kind, found.message) == (FaultKind.RATE_LIMITED, "slow down")
    unnamed = fault_of_error(ENDPOINT, {}, ErrorBody({"error": "gone"}, None), TIMING)
    assert isinstance(unnamed, Fault)
    assert unnamed.retryable


def test_secrets_are_scrubbed() -> None:
    words = f"Incorrect API key {KEY} and Bearer abcdefgh12345 and sk-other-0123456789ab"
    message = fault(401, {"error": {"message": words}}).message
    assert message == "Incorrect API key [secret] and [secret] and [secret]"


@given(st.text(), st.text())
def test_no_message_is_long_or_holds_the_key(before: str, after: str) -> None:
    message = scrub(ENDPOINT, before * 300 + KEY + after * 3000)
    assert len(message) <= MAX_MESSAGE_CHARS
    assert KEY not in message


@given(st.text(st.characters(codec=None)))
def test_every_message_can_be_stored(text: str) -> None:
    scrub(ENDPOINT, text).encode()
    assert "\0" not in scrub(ENDPOINT, text)


@pytest.mark.parametrize("status", [400, 401])
def test_half_a_surrogate_pair_in_an_error(status: int) -> None:
    found = fault(status, b'{"error": {"message": "bad \\ud800 key\\u0000"}}')
    assert found.message == "bad \ufffd key\ufffd"


def test_an_error_that_is_nested_deeply_is_still_one() -> None:
    deep = b'{"detail":' * 900 + b"1" + b"}" * 900
    assert fault(400, deep).kind is FaultKind.BAD_REQUEST
    assert fault(401, b"[" * 1000 + b"]" * 1000).permanent_for_run


@pytest.mark.parametrize(
    ("status", "no_cost"), [(201, False), (307, True), (400, True), (401, True), (429, True), (500, True)]
)
def test_an_error_status_costs_nothing(status: int, no_cost: bool) -> None:
    assert fault(status, {"error": {"message": "m"}}).no_cost is no_cost


def test_a_prompt_that_was_blocked_cost_nothing() -> None:
    body = orjson.dumps({"error": {"message": "filtered", "code": "content_filter"}})
    found = fault_of_status(ENDPOINT, 400, {}, body, TIMING)
    assert isinstance(found, Reply)
    assert found.no_cost


@pytest.mark.parametrize(
    ("data", "no_cost", "usage"),
    [
        # It failed as a whole, or nobody knows when it did, or it says what it used.
        ({"error": {"message": "m", "code": 429}}, True, Usage()),
        ({"error": {"message": "m"}}, False, Usage()),
        ({"choices": [{"error": {"message": "m", "code": 502}}]}, False, Usage()),
        ({"error": {"message": "m", "code": 502}, "usage": {"prompt_tokens": 3}}, False, Usage(3)),
    ],
)
def test_what_an_error_within_a_good_status_cost(data: Any, no_cost: bool, usage: Usage) -> None:
    body = parse_reply(data, None, TIMING)
    assert isinstance(body, ErrorBody)
    found = fault_of_error(ENDPOINT, {}, body, TIMING)
    assert isinstance(found, Fault)
    assert (found.no_cost, found.usage) == (no_cost, usage)
