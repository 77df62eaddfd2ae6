"""Reading the body of a chat completion, whatever shape a server gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from services.common.models.types import UNKNOWN_USAGE, Reply, Usage

#: What a count of tokens is bounded by everywhere; a provider that reports more does not count tokens.
MAX_TOKENS = 2**31 - 1


class Unreadable(NamedTuple):
    """Why a body with a good status is no chat completion, and what it cost all the same."""

    message: str
    usage: Usage = UNKNOWN_USAGE


class ErrorBody(NamedTuple):
    """An error that came with a good status, as some routers send it. ``status`` is the one it names.

    ``refused`` says that nothing was made: the request failed as a whole, with that status.
    """

    error: object
    status: int | None
    usage: Usage = UNKNOWN_USAGE
    refused: bool = False


class Timing(NamedTuple):
    """When things happened, in milliseconds from the start of the try."""

    first_byte_ms: float
    latency_ms: float


def read_json(body: bytes) -> Any:
    """Parse JSON. Raises ValueError where it is none.

    The strict parser is tried first. The lenient one takes what real servers write besides: NaN in log
    probabilities, and half a surrogate pair where a text was cut inside an emoji.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(body)
        except RecursionError:
            raise ValueError("nested too deeply") from error


def parse_reply(data: Any, request_id: str | None, timing: Timing) -> Reply | Unreadable | ErrorBody:
    """Turn a parsed body into a reply, or say what is missing. Only the first choice is read."""
    if type(data) is not dict:
        return Unreadable(f"expected a JSON object, found {_kind(data)}")
    told = data.get("usage")
    usage = parse_usage(told) if type(told) is dict else UNKNOWN_USAGE
    error = data.get("error")
    if error:
        status = _status_of(error)
        return ErrorBody(data, status, usage, refused=status is not None)
    choices = data.get("choices")
    if type(choices) is not list or not choices:
        return Unreadable(f"choices: expected a list of at least one, found {_kind(choices)}", usage)
    choice = choices[0]
    if type(choice) is not dict:
        return Unreadable(f"choices[0]: expected an object, found {_kind(choice)}", usage)
    if choice.get("error"):
        return ErrorBody(choice, _status_of(choice["error"]), usage)
    message = choice.get("message")
    if type(message) is not dict:
        return Unreadable(f"choices[0].message: expected an object, found {_kind(message)}", usage)
    content = message.get("content")
    if type(content) is not str:
        content = _joined(content)
        if content is None:
            return Unreadable("choices[0].message.content: expected text, a list of parts, or null", usage)
    calls = message.get("tool_calls")
    return Reply(
        text=valid(content),
        reasoning=_text(message.get("reasoning")) or _text(message.get("reasoning_content")),
        refusal=_text(message.get("refusal")),
        finish_reason=_text(choice.get("finish_reason")),
        tool_calls=tuple(call for call in calls if type(call) is dict) if type(calls) is list else (),
        usage=usage,
        model=_text(data.get("model")),
        request_id=request_id,
        latency_ms=timing.latency_ms,
        first_byte_ms=timing.first_byte_ms,
    )


def parse_usage(usage: Mapping[str, Any]) -> Usage:
    """Normalise the usage of a chat completion. What is missing or is no count stays unknown."""
    read = usage.get("prompt_tokens_details")
    written = usage.get("completion_tokens_details")
    cached = cache_write = reasoning = None
    if type(read) is dict:
        cached, cache_write = _count(read.get("cached_tokens")), _count(read.get("cache_write_tokens"))
    if type(written) is dict:
        reasoning = _count(written.get("reasoning_tokens"))
    return Usage(
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        cached,
        cache_write,
        reasoning,
    )


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None


def _text(value: object) -> str | None:
    return valid(value) if type(value) is str and value else None


def valid(text: str) -> str:
    """Replace half surrogate pairs and NUL, which not every UTF-8 text, message or table can hold.

    Everything that a provider says goes through here.
    """
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _joined(content: object) -> str | None:
    """The text of a message that is null or comes in parts; parts that are no text are left out."""
    if content is None:
        return ""
    if type(content) is not list:
        return None
    parts = [
        part["text"]
        for part in content
        if type(part) is dict and part.get("type") == "text" and "text" in part
    ]
    return "".join(part for part in parts if type(part) is str)


def _status_of(error: object) -> int | None:
    code = error.get("code") if type(error) is dict else None
    return code if type(code) is int and 400 <= code <= 599 else None


def _kind(value: object) -> str:
    names = {type(None): "nothing", list: "a list", dict: "an object", str: "a text", bool: "a boolean"}
    return "an empty list" if value == [] else names.get(type(value), "a number")
