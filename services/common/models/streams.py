"""Reading a stream of events from an endpoint that streams although nobody asked: put together, it is a completion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from services.common.models.replies import Unreadable, parse_usage, read_json
from services.common.models.types import UNKNOWN_USAGE

_TEXTS = ("content", "reasoning", "reasoning_content", "refusal")


def is_stream(content_type: str, body: bytes) -> bool:
    """Whether a body is a stream of server-sent events."""
    return "event-stream" in content_type.lower() or body.startswith(b"data:")


def completion_of(body: bytes) -> Any:
    """Put the chunks of a stream together, as the body that would have come without streaming.

    A stream counts when it says how its answer ended, or that it is done: one that was cut off is no answer.
    Only the first choice is read.
    """
    message: dict[str, Any] = {}
    whole: dict[str, Any] = {}
    finish: Any = None
    is_done = False
    for data in _events(body):
        if data == b"[DONE]":
            is_done = True
            break
        try:
            chunk = read_json(data)
        except ValueError as error:
            return Unreadable(f"an event of the stream is not JSON ({error})")
        if type(chunk) is not dict:
            continue
        if chunk.get("error"):
            return {"error": chunk["error"], "usage": chunk.get("usage") or whole.get("usage")}
        whole |= {name: chunk[name] for name in ("id", "model", "usage") if chunk.get(name)}
        for choice in _list(chunk.get("choices")):
            if choice.get("index", 0) == 0:
                finish = choice.get("finish_reason") or finish
                _add(message, choice.get("delta"))
    if finish is None and not (is_done and message):
        told = whole.get("usage")
        usage = parse_usage(told) if type(told) is dict else UNKNOWN_USAGE
        return Unreadable("the stream ended before its answer did", usage)
    calls = message.pop("tool_calls", {})
    spoken: dict[str, Any] = {"content": ""} | {name: "".join(parts) for name, parts in message.items()}
    if calls:
        spoken["tool_calls"] = list(calls.values())
    return whole | {"choices": [{"index": 0, "message": spoken, "finish_reason": finish}]}


def _events(body: bytes) -> Iterator[bytes]:
    """The data of each event. Lines of one event are joined, as the standard says."""
    lines: list[bytes] = []
    for line in body.replace(b"\r\n", b"\n").split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[5:].strip())
        elif not line and lines:
            yield b"\n".join(lines)
            lines = []
    if lines:
        yield b"\n".join(lines)


def _add(message: dict[str, Any], delta: object) -> None:
    if type(delta) is not dict:
        return
    for name in _TEXTS:
        if type(text := delta.get(name)) is str:
            message.setdefault(name, []).append(text)
    for part in _list(delta.get("tool_calls")):
        calls = message.setdefault("tool_calls", {})
        place = part.get("index")
        call = calls.setdefault(
            place if type(place) is int else len(calls), {"type": "function", "function": {}}
        )
        function = part.get("function")
        call |= {name: part[name] for name in ("id", "type") if part.get(name)}
        if type(function) is dict:
            for name in ("name", "arguments"):
                if type(function.get(name)) is str:
                    call["function"][name] = call["function"].get(name, "") + function[name]


def _list(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if type(one) is dict] if type(value) is list else []
