"""OpenAI's API as programs speak it: what they ask, and what they are answered. Nothing here waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from benchgen.bundle.digest import canonical_json, sha256_hex
from services.common.models.types import Reply, Usage

#: Of what a program asks at once, and of what it is answered, bytes.
MAX_BYTES = 4 * 1024 * 1024

CHAT = "chat.completions"
COMPLETIONS = "completions"

#: Characters of a text in one event of a stream.
_PIECE = 200

#: What only says where a request goes and how its answer comes back.
_ENVELOPE = ("model", "stream", "stream_options")
#: What is asked and cannot be answered: an answer that ignores it would mislead.
_UNANSWERABLE = ("logprobs", "top_logprobs", "echo", "suffix")


class Refused(Exception):
    """A request that is not answered, as OpenAI's API says so."""

    def __init__(self, status: int, message: str, code: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param

    def body(self) -> bytes:
        """As JSON."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "api_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a program.

    ``digest`` is the same for the same request, whatever model it names and whether it is streamed.
    """

    endpoint: str
    messages: Sequence[Mapping[str, Any]]
    params: Mapping[str, Any]
    stream: bool
    include_usage: bool
    request_json: str
    digest: str


def read_request(endpoint: str, body: bytes) -> Asked:
    """Read the body of a request.

    :raises Refused: it is not one that can be answered; says why.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"expected a JSON body: {error}", "invalid_json") from None
    if not isinstance(fields, dict):
        raise Refused(400, "expected a JSON object", "invalid_json")
    _check_answerable(fields)
    options = fields.get("stream_options")
    kept = {name: value for name, value in fields.items() if name not in _ENVELOPE and value is not None}
    if endpoint == CHAT:
        messages = _messages(fields)
        about = {"messages"}
    else:
        messages = [{"role": "user", "content": _prompt(fields)}]
        about = {"prompt", "best_of"}
    params = {name: value for name, value in kept.items() if name not in about | {"n"}}
    try:
        digest = sha256_hex(canonical_json([endpoint, kept]))
    except (TypeError, RecursionError) as error:
        raise Refused(400, f"expected plain JSON: {error}", "invalid_json") from None
    return Asked(
        endpoint,
        messages,
        params,
        stream=fields.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        request_json=orjson.dumps(fields).decode(),
        digest=digest,
    )


def _check_answerable(fields: Mapping[str, Any]) -> None:
    for name in ("n", "best_of"):
        if fields.get(name) not in (None, 1):
            message = f"{name}: expected 1: this proxy gives one answer a request; ask again for another"
            raise Refused(400, message, "unsupported_value", param=name)
    for name in _UNANSWERABLE:
        if fields.get(name) not in (None, False, ""):
            raise Refused(400, f"{name}: not supported by this proxy", "unsupported_parameter", param=name)


def _messages(fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        message = "messages: expected a list of at least one message, each an object"
        raise Refused(400, message, "invalid_value", param="messages")
    return messages


def _prompt(fields: Mapping[str, Any]) -> str:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise Refused(400, "prompt: expected one text", "invalid_value", param="prompt")
    return prompt


def with_defaults(params: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A request's parameters, and the run's where it says nothing."""
    merged = {**defaults, **params}
    if "max_completion_tokens" in params and "max_tokens" not in params:
        # Two names for one thing: the program's own counts.
        merged.pop("max_tokens", None)
    return merged


def answer_of(asked: Asked, reply: Reply, *, model: str, call_id: str, created: int) -> dict[str, Any]:
    """A model's reply as the body of an answer."""
    finish = reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")
    named = reply.model or model
    if asked.endpoint == COMPLETIONS:
        choice = {"index": 0, "text": reply.text, "logprobs": None, "finish_reason": finish}
        head = {"id": f"cmpl-{call_id}", "object": "text_completion", "created": created, "model": named}
        return {**head, "choices": [choice], "usage": _usage(reply.usage)}
    message: dict[str, Any] = {
        "role": "assistant",
        "content": reply.text if reply.text or not (reply.tool_calls or reply.refusal) else None,
        "refusal": reply.refusal,
    }
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = list(reply.tool_calls)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    head = {"id": f"chatcmpl-{call_id}", "object": "chat.completion", "created": created, "model": named}
    return {**head, "choices": [choice], "usage": _usage(reply.usage)}


def _usage(usage: Usage) -> dict[str, Any] | None:
    if usage.input is None or usage.output is None:
        return None
    total = {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
    }
    details: dict[str, Any] = {}
    if usage.cached is not None:
        details["prompt_tokens_details"] = {"cached_tokens": usage.cached}
    if usage.reasoning is not None:
        details["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    return total | details


def events(answer: Mapping[str, Any], *, include_usage: bool) -> Iterator[bytes]:
    """A whole answer as the events of a stream: the program sees it after it is stored, and not before."""
    choice = answer["choices"][0]
    is_chat = answer["object"] == "chat.completion"
    head = {
        "id": answer["id"],
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": answer["created"],
        "model": answer["model"],
    }

    def event(part: Mapping[str, Any], finish: str | None = None) -> bytes:
        said = {"index": 0, **part, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if include_usage else {}
        return _event({**head, "choices": [said], **usage})

    if is_chat:
        for delta in _deltas(choice["message"]):
            yield event({"delta": delta})
        yield event({"delta": {}}, choice["finish_reason"])
    else:
        for piece in _pieces(choice["text"]):
            yield event({"text": piece})
        yield event({"text": ""}, choice["finish_reason"])
    if include_usage:
        yield _event({**head, "choices": [], "usage": answer["usage"]})
    yield b"data: [DONE]\n\n"


def _event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


def _deltas(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": "" if message["content"] is not None else None}
    for name in ("reasoning_content", "content", "refusal"):
        for piece in _pieces(message.get(name) or ""):
            yield {name: piece}
    for index, call in enumerate(message.get("tool_calls", ())):
        yield {"tool_calls": [{"index": index, **call}]}


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE]


def models_of(model: str) -> dict[str, Any]:
    """The list of models: the run's."""
    return {"object": "list", "data": [model_of(model)]}


def model_of(model: str) -> dict[str, Any]:
    """The run's model."""
    return {"id": model, "object": "model", "created": 0, "owned_by": "benchgen"}
