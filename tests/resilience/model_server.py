"""A model that answers every trial in one way only, and counts who asked for what, when."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from queue import Queue
from typing import NamedTuple

from aiohttp import web

from services.local.ports import LOOPBACK
from tests.resilience.network import Background

_QUESTION = re.compile(r"Case (\S+): what is (\d+) \+ (\d+)\?")


class Trial(NamedTuple):
    """Which trial a request is for: the seed tells the repeats of a case apart."""

    case: str
    seed: int


@dataclass(slots=True)
class Counts:
    """What was asked since the last reset."""

    asked: Counter[Trial] = field(default_factory=Counter)
    answered: Counter[Trial] = field(default_factory=Counter)
    """Replies with an answer that were sent whole."""
    in_flight: int = 0
    most_in_flight: int = 0

    @property
    def repeated(self) -> int:
        """Answers beyond the first of each trial: what was paid for twice."""
        return sum(self.answered.values()) - len(self.answered)


class ModelServer:
    """An OpenAI-compatible endpoint on the background loop.

    Seven of ten answers are right, chosen by the trial; ``refused_case`` tells which cases are always refused.
    """

    def __init__(self, background: Background) -> None:
        self.latency = 0.05
        """How long an answer takes, seconds; half to one and a half of it, by the trial."""
        self.counts = Counts()
        self.deadly_case = ""
        """A case that is never answered; who asks for it is in ``askers``, by the port that it called from."""
        self.askers: Queue[int] = Queue()
        self._begun: Counter[int] = Counter()
        self._ended: Counter[int] = Counter()
        self._background = background
        self._runner = background.call(self._start())
        self.port: int = self._runner.addresses[0][1]

    @property
    def url(self) -> str:
        """What a model is registered with."""
        return f"http://{LOOPBACK}:{self.port}/v1"

    def reset(self) -> None:
        """Count anew. Nothing may be in flight."""
        self.counts = Counts()

    def ended(self) -> Counter[int]:
        """How many requests have been answered, or broken off, by the port that they came from."""
        return self._ended.copy()

    def begun_from(self, ports: set[int], ended: Counter[int]) -> int:
        """How many requests from these ports have come that had not ended then."""
        return sum(self._begun[port] - ended[port] for port in ports)

    def close(self) -> None:
        """Stop."""
        self._background.call(self._runner.cleanup())

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, LOOPBACK, 0).start()
        return runner

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        found = _QUESTION.search(body["messages"][-1]["content"])
        assert found is not None
        trial = Trial(found[1], body["seed"])
        draw = hashlib.sha256(f"{trial.case}:{trial.seed}".encode()).digest()
        counts, caller = self.counts, _port_of(request)
        counts.asked[trial] += 1
        counts.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        self._begun[caller] += 1
        try:
            if trial.case == self.deadly_case:
                self.askers.put(caller)
                await asyncio.Event().wait()
            await asyncio.sleep(self.latency * (0.5 + draw[0] / 255))
            if refused_case(trial.case):
                return web.json_response({"error": {"message": f"no answer to {trial.case}"}}, status=400)
            answer = int(found[2]) + int(found[3]) + (0 if draw[1] < 180 else 1)
            response = web.json_response(_completion(f"The sum is {answer}", draw))
            await response.prepare(request)
            await response.write_eof()
            counts.answered[trial] += 1
            return response
        finally:
            counts.in_flight -= 1
            self._ended[caller] += 1


def refused_case(case: str) -> bool:
    """Whether the model refuses a case for good: one in a hundred."""
    return int(case.rpartition("-")[2]) % 100 == 99


def _port_of(request: web.Request) -> int:
    assert request.transport is not None
    port: int = request.transport.get_extra_info("peername")[1]
    return port


def _completion(text: str, draw: bytes) -> dict[str, object]:
    return {
        "id": "c",
        "object": "chat.completion",
        "model": "counted",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 10 + draw[2] % 16, "completion_tokens": 5 + draw[3] % 16},
    }
