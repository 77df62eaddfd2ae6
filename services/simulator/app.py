"""The routes of the simulator: chat completions, the model list, health and metrics."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Coroutine, Iterable, Mapping
from time import time
from typing import Any, NamedTuple

import orjson
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from benchgen.errors import BenchgenError, InvalidInput, NotFound, Unauthenticated
from services.common.auth import identify
from services.simulator.answers import CANNED, wrong_answer
from services.simulator.behaviour import NAME, Draws, Mishap, parse_model
from services.simulator.http import Request, Response
from services.simulator.solutions import Solution, Solutions

log = structlog.get_logger()

_KEPT_MODELS = 256
_DIGEST = re.compile(rb"[0-9a-f]{64}")
_POSITION = re.compile(rb"\d{1,15}")
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    429: "rate_limit_error",
}


class _Asked(NamedTuple):
    """A request that was understood."""

    model: str
    draws: Draws
    input_bytes: int
    digest: str
    position: int
    trial: str


class _Counts(Collector):
    """Plain integers that become metrics when somebody looks: counting must cost nothing."""

    def __init__(self) -> None:
        self.answers: dict[str, int] = {"right": 0, "wrong": 0, "canned": 0}
        self.mishaps: dict[Mishap, int] = dict.fromkeys(Mishap, 0)
        self.refused = 0

    def collect(self) -> Iterable[Metric]:
        answers = CounterMetricFamily("benchgen_simulator_answers", "Answers, by kind.", labels=["kind"])
        for kind, count in self.answers.items():
            answers.add_metric([kind], count)
        mishaps = CounterMetricFamily(
            "benchgen_simulator_mishaps", "Faults made on purpose.", labels=["kind"]
        )
        for mishap, count in self.mishaps.items():
            mishaps.add_metric([mishap.name.lower()], count)
        refused = CounterMetricFamily("benchgen_simulator_refused", "Requests that could not be answered.")
        refused.add_metric([], self.refused)
        return [answers, mishaps, refused]


class Simulator:
    """Answers requests. ``ready`` says whether ``/readyz`` does."""

    def __init__(self, solutions: Solutions, peers: Mapping[str, str]) -> None:
        """``peers`` are the token hashes of those that may be answered with solutions, and their identities."""
        self.ready = False
        self._peers = peers
        # Only valid ones get in, and there are few.
        self._known_credentials: set[bytes] = set()
        self._solutions = solutions
        self._draws: OrderedDict[str, Draws] = OrderedDict()
        self._counts = _Counts()
        self._registry = CollectorRegistry()
        self._registry.register(self._counts)
        ProcessCollector(registry=self._registry)
        self._number = 0

    def handle(self, request: Request) -> Response | Coroutine[Any, Any, Response]:
        """Answer at once where the solution is in memory, and as a coroutine where it must be fetched."""
        try:
            if request.path == b"/v1/chat/completions":
                if request.method != b"POST":
                    return self.refuse(405, "expected POST")
                return self._chat(request)
            if request.method not in (b"GET", b"HEAD"):
                return self.refuse(404, "there is nothing at this address")
            return self._look(request.path)
        except NotFound as error:
            return self.refuse(404, error.message)
        except BenchgenError as error:
            return self.refuse(400, error.message)

    def refuse(self, status: int, message: str) -> Response:
        """An error in the shape that OpenAI's API has."""
        self._counts.refused += 1
        return Response(status, _error_body(status, message))

    def _look(self, path: bytes) -> Response:
        if path == b"/v1/models":
            model = {"id": NAME, "object": "model", "created": 0, "owned_by": "benchgen"}
            return Response(200, orjson.dumps({"object": "list", "data": [model]}))
        if path == b"/healthz":
            return Response(200, b"ok\n", content_type=b"text/plain")
        if path == b"/readyz":
            text = b"ready\n" if self.ready else b"not ready\n"
            return Response(200 if self.ready else 503, text, content_type=b"text/plain")
        if path == b"/metrics":
            return Response(200, generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST.encode())
        return self.refuse(404, "there is nothing at this address")

    def _chat(self, request: Request) -> Response | Coroutine[Any, Any, Response]:
        asked = self._understand(request)
        mishap = asked.draws.mishap()
        if mishap is not None:
            return self._fail(mishap, asked.draws)
        if not asked.digest:
            self._counts.answers["canned"] += 1
            return self._reply(asked, CANNED)
        if not self._may_see_solutions(request):
            return self.refuse(401, "solutions are for runners: present a service credential")
        solution = self._solutions.peek(asked.digest, asked.position)
        if solution is None:
            return self._chat_later(asked)
        return self._answer(asked, solution)

    async def _chat_later(self, asked: _Asked) -> Response:
        try:
            solution = await self._solutions.get(asked.digest, asked.position)
        except NotFound as error:
            return self.refuse(404, error.message)
        except InvalidInput as error:
            return self.refuse(400, error.message)
        except BenchgenError as error:
            log.warning("simulator.no_solution", digest=asked.digest, error=error.message)
            return self.refuse(503, error.message)
        except Exception:
            log.exception("simulator.broken", digest=asked.digest)
            return self.refuse(500, "the solution could not be read")
        return self._answer(asked, solution)

    def _may_see_solutions(self, request: Request) -> bool:
        """Whether a service presents itself; a right answer gives the solution away."""
        credential = request.headers.get(b"authorization", b"")
        if credential in self._known_credentials:
            return True
        try:
            identify(credential.removeprefix(b"Bearer ").decode("latin-1"), self._peers)
        except Unauthenticated:
            return False
        self._known_credentials.add(credential)
        return True

    def _understand(self, request: Request) -> _Asked:
        """Check a request. Raises InvalidInput or NotFound with what was expected."""
        try:
            body = orjson.loads(request.body)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise InvalidInput("expected a JSON object")
        model, messages = body.get("model"), body.get("messages")
        if not isinstance(model, str):
            raise InvalidInput("model: expected a text")
        if not isinstance(messages, list) or not messages:
            raise InvalidInput("messages: expected a list of at least one")
        if body.get("stream"):
            raise InvalidInput("stream: this server does not stream; leave it out")
        size = 0
        for message in messages:
            if not isinstance(message, dict):
                raise InvalidInput("messages: expected objects")
            content = message.get("content")
            size += len(content.encode()) if isinstance(content, str) else len(orjson.dumps(content))
        draws = self._draws.get(model) or self._remember(model)
        headers = request.headers
        digest, position = headers.get(b"x-benchgen-solutions", b""), headers.get(b"x-benchgen-case", b"")
        if not digest:
            return _Asked(model, draws, size, "", 0, "")
        if not _DIGEST.fullmatch(digest):
            raise InvalidInput("x-benchgen-solutions: expected 64 hexadecimal digits")
        if not _POSITION.fullmatch(position):
            raise InvalidInput("x-benchgen-case: expected the position of a case")
        trial = headers.get(b"x-benchgen-trial", b"0")
        return _Asked(model, draws, size, digest.decode(), int(position), trial.decode("latin-1"))

    def _remember(self, model: str) -> Draws:
        draws = Draws(parse_model(model))
        self._draws[model] = draws
        if len(self._draws) > _KEPT_MODELS:
            self._draws.popitem(last=False)
        return draws

    def _fail(self, mishap: Mishap, draws: Draws) -> Response:
        self._counts.mishaps[mishap] += 1
        if mishap is Mishap.DROP:
            return Response(None, delay_s=draws.latency_s())
        if mishap is Mishap.ERROR:
            return Response(500, _error_body(500, "simulated server error"), delay_s=draws.latency_s())
        wait = b"Retry-After: %b\r\n" % f"{draws.behaviour.retry_after_s:g}".encode()
        return Response(429, _error_body(429, "simulated rate limit"), headers=wait)

    def _answer(self, asked: _Asked, solution: Solution) -> Response:
        accuracy = asked.draws.behaviour.accuracy
        draw = asked.draws.trial(solution.case_id, asked.trial)
        if draw < accuracy:
            self._counts.answers["right"] += 1
            return self._reply(asked, solution.text)
        self._counts.answers["wrong"] += 1
        return self._reply(asked, wrong_answer(solution.text, (draw - accuracy) / (1 - accuracy)))

    def _reply(self, asked: _Asked, text: str) -> Response:
        behaviour = asked.draws.behaviour
        tokens_in, tokens_out = behaviour.in_tokens, behaviour.out_tokens
        if tokens_in is None:
            tokens_in = asked.input_bytes // 4 + 1
        if tokens_out is None:
            tokens_out = len(text.encode()) // 4 + 1
        self._number += 1
        body = orjson.dumps(
            {
                "id": f"chatcmpl-sim-{self._number}",
                "object": "chat.completion",
                "created": int(time()),
                "model": asked.model,
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                ],
                "usage": {
                    "prompt_tokens": tokens_in,
                    "completion_tokens": tokens_out,
                    "total_tokens": tokens_in + tokens_out,
                },
            }
        )
        return Response(200, body, delay_s=asked.draws.latency_s())


def _error_body(status: int, message: str) -> bytes:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "code": None, "param": None}})
