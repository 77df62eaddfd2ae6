"""Reading the bodies of chat completions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.models.replies import (
    MAX_TOKENS,
    ErrorBody,
    Timing,
    Unreadable,
    parse_reply,
    parse_usage,
    read_json,
    valid,
)
from services.common.models.types import Reply, Usage

TIMING = Timing(5.0, 12.5)


def parsed(data: Any) -> Reply:
    reply = parse_reply(data, "req-1", TIMING)
    assert isinstance(reply, Reply), reply
    return reply


def completion(message: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {"model": "m-1", "choices": [{"message": message, "finish_reason": "stop"} | choice]}


def test_a_plain_reply() -> None:
    reply = parsed(completion({"content": "42"}) | {"usage": {"prompt_tokens": 10, "completion_tokens": 2}})
    assert reply == Reply(
        text="42",
        finish_reason="stop",
        usage=Usage(input=10, output=2),
        model="m-1",
        request_id="req-1",
        latency_ms=12.5,
        first_byte_ms=5.0,
    )


def test_missing_usage_is_unknown_and_not_zero() -> None:
    assert parsed(completion({"content": "42"})).usage == Usage(None, None, None, None, None)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_under_both_names(name: str) -> None:
    assert parsed(completion({"content": "42", name: "six times seven"})).reasoning == "six times seven"


def test_content_that_is_null_or_in_parts() -> None:
    assert parsed(completion({"content": None, "refusal": "no"})).refusal == "no"
    parts = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "4"},
        {"type": "text", "text": "2"},
    ]
    assert parsed(completion({"content": parts})).text == "42"


def test_tool_calls_are_kept() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert parsed(
        completion({"content": None, "tool_calls": [call]}, finish_reason="tool_calls")
    ).tool_calls == (call,)


def test_half_a_surrogate_pair_becomes_text_that_can_be_stored() -> None:
    body = b'{"choices":[{"message":{"content":"cut \\ud83d"},"finish_reason":"length"}]}'
    assert parsed(read_json(body)).text == "cut \ufffd"


def test_everything_that_is_said_can_be_stored() -> None:
    body = rb"""{"model": "m\ud800", "choices": [{"finish_reason": "st\u0000op", "message":
        {"content": "4\u00002", "reasoning": "\udc00", "refusal": "no\ud83d"}}]}"""
    reply = parsed(read_json(body))
    texts = (reply.text, reply.reasoning, reply.refusal, reply.finish_reason, reply.model)
    assert texts == ("4\ufffd2", "\ufffd", "no\ufffd", "st\ufffdop", "m\ufffd")


@given(st.text(st.characters(codec=None)))
def test_valid_text_stays_and_other_text_becomes_valid(text: str) -> None:
    made = valid(text)
    made.encode()
    assert "\x00" not in made
    assert made == text or any(char == "\x00" or "\ud800" <= char <= "\udfff" for char in text)


def test_nan_in_a_reply_is_no_reason_to_lose_it() -> None:
    body = b'{"choices":[{"message":{"content":"42"},"logprobs":{"x":NaN}}]}'
    assert parsed(read_json(body)).text == "42"


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ValueError, match="nested"):
        read_json(b"[" * 200_000)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "an empty list"),
        ({}, "choices: expected a list of at least one, found nothing"),
        ({"choices": []}, "an empty list"),
        ({"choices": ["x"]}, r"choices\[0\]"),
        ({"choices": [{}]}, "message"),
        ({"choices": [{"message": {"content": 7}}]}, "content"),
    ],
)
def test_what_is_missing_is_named(data: Any, words: str) -> None:
    found = parse_reply(data, None, TIMING)
    assert isinstance(found, Unreadable)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(found.message)


def test_an_error_with_a_good_status_is_seen() -> None:
    found = parse_reply({"error": {"message": "upstream is gone", "code": 502}}, None, TIMING)
    assert found == ErrorBody({"error": {"message": "upstream is gone", "code": 502}}, 502, refused=True)
    in_choice = parse_reply({"choices": [{"error": {"message": "late", "code": 429}}]}, None, TIMING)
    assert isinstance(in_choice, ErrorBody)
    assert in_choice.status == 429


def test_usage_with_all_details() -> None:
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 500,
        "prompt_tokens_details": {"cached_tokens": 400, "cache_write_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 300},
    }
    assert parse_usage(usage) == Usage(1000, 500, 400, 5, 300)


@pytest.mark.parametrize("value", [None, -1, 1.5, "7", True, 1e30, 2**31, 2**40, 2**60])
def test_what_is_no_count_is_unknown(value: Any) -> None:
    assert parse_usage({"prompt_tokens": value}).input is None


def test_the_most_tokens_that_anything_has_a_place_for() -> None:
    assert parse_usage({"prompt_tokens": 2**31 - 1}).input == MAX_TOKENS


@pytest.mark.parametrize(
    "data",
    [{"choices": []}, {"choices": [{"message": None}]}, {"choices": [{"message": {"content": 7}}]}],
)
def test_what_an_answer_that_is_none_has_cost_is_kept(data: dict[str, Any]) -> None:
    found = parse_reply(data | {"usage": {"prompt_tokens": 9, "completion_tokens": 1}}, None, TIMING)
    assert isinstance(found, Unreadable)
    assert found.usage == Usage(9, 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "usage", "error", "refusal", "text", "type", "code"]
            ),
            inner,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_no_body_raises(data: Any) -> None:
    found = parse_reply(data, None, TIMING)
    if isinstance(found, Reply):
        found.text.encode()
