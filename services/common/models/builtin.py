"""Subjects that every installation has, without a key and without a network.

``builtin/oracle`` and ``builtin/empty`` are loaded by the scorer, and ``builtin/simulated`` is a server of
ours in its own process. The others answer here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from benchgen.errors import InvalidInput
from services.common.models.params import Param, Value, read_params
from services.common.models.types import ChatRequest, Reply, Usage

PREFIX = "builtin/"


@dataclass(frozen=True, slots=True)
class BuiltinSpec:
    """One built-in subject and who answers for it: this process, the scorer, or the simulator's server."""

    name: str
    answered_by: Literal["runner", "scorer", "simulator"]
    description: str
    params: tuple[Param, ...] = ()


_SEED = Param("seed", "integer", 0, 0, 2**31 - 1, "another seed gives another draw")

SIMULATED_PARAMS = (
    Param("accuracy", "number", 0.8, 0, 1, "share of trials that are answered with the reference solution"),
    Param("latency_ms", "number", 0.0, 0, 600_000, "median time to answer, in milliseconds"),
    Param("latency_sigma", "number", 0.0, 0, 5, "spread of a log-normal latency; 0 is a constant one"),
    Param("error_rate", "number", 0.0, 0, 1, "share of requests that fail with status 500"),
    Param("error_429", "number", 0.0, 0, 1, "share of requests that are refused with status 429"),
    Param("retry_after_s", "number", 1.0, 0, 120, "the Retry-After of a 429, in seconds"),
    Param("drop_rate", "number", 0.0, 0, 1, "share of requests whose connection is closed without an answer"),
    Param("in_tokens", "integer", None, 0, 10**9, "input tokens to report; default: bytes / 4"),
    Param("out_tokens", "integer", None, 0, 10**9, "output tokens to report; default: bytes / 4"),
    _SEED,
)

BUILTINS: Mapping[str, BuiltinSpec] = {
    spec.name: spec
    for spec in (
        BuiltinSpec("oracle", "scorer", "the reference solutions: what a perfect model would score"),
        BuiltinSpec("empty", "scorer", "the empty answer: what saying nothing would score"),
        BuiltinSpec(
            "constant",
            "runner",
            "the same text every time",
            (Param("text", "text", "42", 0, 10_000, "what to answer"),),
        ),
        BuiltinSpec(
            "random-choice",
            "runner",
            "a letter drawn at random: the honest baseline of multiple choice",
            (Param("choices", "text", "ABCD", 1, 26, "the letters to draw from"), _SEED),
        ),
        BuiltinSpec("echo", "runner", "the last message of the user"),
        BuiltinSpec("simulated", "simulator", "a server that is right as often as you say", SIMULATED_PARAMS),
    )
}


@dataclass(frozen=True, slots=True)
class Builtin:
    """A built-in subject with its parameters, as written in ``builtin/NAME?key=value``."""

    spec: BuiltinSpec
    values: Mapping[str, Value]

    async def chat(self, request: ChatRequest) -> Reply:
        """Answer as a model would, at once and for no tokens.

        :raises InvalidInput: this subject is not answered here.
        """
        match self.spec.name:
            case "constant":
                text = str(self.values["text"])
            case "random-choice":
                text = self._drawn(request)
            case "echo":
                text = _last_user_text(request)
            case name:
                raise InvalidInput(f"builtin/{name} is answered by the {self.spec.answered_by}")
        return Reply(text=text, finish_reason="stop", usage=_NOTHING_USED, model=PREFIX + self.spec.name)

    def _drawn(self, request: ChatRequest) -> str:
        """Draw from our seed, the trial's and the question: the same trial draws the same letter again."""
        seeds = f"{self.values['seed']}:{request.params.get('seed')}:".encode()
        digest = hashlib.sha256(seeds + orjson.dumps(request.messages)).digest()
        choices = str(self.values["choices"])
        return choices[int.from_bytes(digest[:8], "big") % len(choices)]


_NOTHING_USED = Usage(input=0, output=0, cached=0, cache_write=0, reasoning=0)


def is_builtin(model: str) -> bool:
    """Whether a model's name means a built-in subject."""
    return model.startswith(PREFIX)


def parse_builtin(model: str) -> Builtin:
    """Read ``builtin/NAME`` or ``builtin/NAME?key=value&key=value``.

    :raises InvalidInput: there is no such subject, or its parameters are wrong; says what there is.
    """
    name, _, query = model.removeprefix(PREFIX).partition("?")
    spec = BUILTINS.get(name) if is_builtin(model) else None
    if spec is None:
        known = ", ".join(PREFIX + known for known in BUILTINS)
        raise InvalidInput(f"there is no built-in model {model.partition('?')[0][:80]!r}; there are: {known}")
    return Builtin(spec, read_params(PREFIX + name, query, spec.params))


def _last_user_text(request: ChatRequest) -> str:
    for message in reversed(request.messages):
        if message.get("role") == "user":
            return _text(message.get("content"))
    return ""


def _text(content: Any) -> str:
    """The text of a message's content, which is a text or a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
