"""Streams that nobody asked for are put together, or said to be broken."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.models.replies import ErrorBody, Timing, Unreadable, parse_reply
from services.common.models.streams import completion_of, is_stream
from services.common.models.types import Reply, Usage


def stream(*chunks: Any, end: bytes = b"data: [DONE]\n\n") -> bytes:
    return b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks) + end


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"model": "m-1", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def read(body: bytes) -> Reply | Unreadable | ErrorBody:
    data = completion_of(body)
    return data if isinstance(data, Unreadable) else parse_reply(data, None, Timing(1.0, 2.0))


USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}


def test_what_was_said_is_put_together() -> None:
    body = stream(
        delta(role="assistant", content=""),
        delta(reasoning_content="6 * 7"),
        delta(content="4"),
        {"choices": [{"index": 1, "delta": {"content": "other"}}]},
        delta(content="2"),
        delta("stop"),
        USAGE,
    )
    found = read(b": a comment\r\n\r\nevent: message\r\n" + body.replace(b"\n", b"\r\n"))
    assert isinstance(found, Reply)
    assert (found.text, found.reasoning, found.finish_reason) == ("42", "6 * 7", "stop")
    assert (found.model, found.usage) == ("m-1", Usage(9, 2))


def test_tool_calls_come_in_pieces() -> None:
    first = {"index": 0, "id": "t1", "type": "function", "function": {"name": "add", "arguments": '{"a"'}}
    second = {"index": 0, "function": {"arguments": ": 1}"}}
    found = read(stream(delta(tool_calls=[first]), delta(tool_calls=[second]), delta("tool_calls")))
    assert isinstance(found, Reply)
    assert found.tool_calls == (
        {"id": "t1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
    )


def test_a_stream_that_is_done_without_a_reason() -> None:
    found = read(stream(delta(content="42")))
    assert isinstance(found, Reply)
    assert (found.text, found.finish_reason) == ("42", None)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (stream(delta(content="4"), end=b""), "ended before its answer did"),
        (stream(delta(content="4"), end=b'data: {"cho'), "not JSON"),
        (stream(), "ended before"),
        (b"", "ended before"),
        (b"data: 7\n\n", "ended before"),
    ],
)
def test_what_is_cut_off_is_no_answer(body: bytes, words: str) -> None:
    found = read(body)
    assert isinstance(found, Unreadable)
    assert words in found.message


def test_what_a_stream_that_was_cut_off_cost_is_kept() -> None:
    found = read(stream(USAGE, delta(content="4"), end=b""))
    assert isinstance(found, Unreadable)
    assert found.usage == Usage(9, 2)


def test_an_error_in_the_middle() -> None:
    found = read(stream(delta(content="4"), {"error": {"message": "overloaded", "code": 529}}))
    assert isinstance(found, ErrorBody)
    assert found.status == 529


def test_what_is_a_stream() -> None:
    assert is_stream("text/event-stream; charset=utf-8", b"")
    assert is_stream("application/json", b"data: {}")
    assert not is_stream("application/json", b'{"data": 1}')


chunks = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "index", "content", "tool_calls", "function", "name", "usage"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(st.lists(chunks, max_size=4))
def test_no_stream_raises(events: list[Any]) -> None:
    read(b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events if _fits(event)))


def _fits(event: Any) -> bool:
    try:
        orjson.dumps(event)
    except TypeError:
        return False
    return True
