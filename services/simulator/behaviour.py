"""What a model string asks for, and the draws that follow from it."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from benchgen.errors import NotFound
from services.common.models.builtin import PREFIX, SIMULATED_PARAMS
from services.common.models.params import read_params

NAME = "simulated"
_MAX_LATENCY_S = 600.0


class Mishap(Enum):
    """What goes wrong with a request on purpose."""

    DROP = auto()
    ERROR = auto()
    RATE_LIMIT = auto()


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The parameters of ``simulated?...``; their meaning is in the table of built-in models."""

    accuracy: float
    latency_ms: float
    latency_sigma: float
    error_rate: float
    error_429: float
    retry_after_s: float
    drop_rate: float
    seed: int
    in_tokens: int | None = None
    out_tokens: int | None = None


def parse_model(model: str) -> Behaviour:
    """Read ``simulated?key=value``, with or without ``builtin/`` before it.

    :raises NotFound: another model is asked for.
    :raises InvalidInput: a parameter is unknown or wrong.
    """
    name, _, query = model.removeprefix(PREFIX).partition("?")
    if name != NAME:
        raise NotFound(f"there is no model {name[:80]!r} here; there is: {NAME}?accuracy=0.8&latency_ms=50")
    values: dict[str, Any] = read_params(NAME, query, SIMULATED_PARAMS)
    return Behaviour(**values)


class Draws:
    """The draws of one behaviour. Faults and latencies are fresh; answers depend on the trial alone."""

    __slots__ = ("_random", "behaviour")

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self._random = random.Random(behaviour.seed)  # noqa: S311  # nothing is secret here

    def mishap(self) -> Mishap | None:
        """What goes wrong this time; a fresh draw each time, so that a retry may succeed."""
        behaviour = self.behaviour
        if not (behaviour.drop_rate or behaviour.error_rate or behaviour.error_429):
            return None
        draw = self._random.random()
        for mishap, rate in (
            (Mishap.DROP, behaviour.drop_rate),
            (Mishap.ERROR, behaviour.error_rate),
            (Mishap.RATE_LIMIT, behaviour.error_429),
        ):
            if draw < rate:
                return mishap
            draw -= rate
        return None

    def latency_s(self) -> float:
        """Seconds to wait before answering: the median, spread log-normally."""
        behaviour = self.behaviour
        seconds = behaviour.latency_ms / 1_000
        if seconds and behaviour.latency_sigma:
            seconds *= math.exp(behaviour.latency_sigma * self._random.gauss(0, 1))
        return min(seconds, _MAX_LATENCY_S)

    def trial(self, case_id: str, trial: str) -> float:
        """A number in [0, 1) that one trial of one case always draws under one seed.

        It does not depend on the accuracy, so what a simulated model knows, a more accurate one knows too.
        """
        text = f"{self.behaviour.seed}:{trial}:{case_id}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2**64
