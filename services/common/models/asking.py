"""What a model is asked in one trial: the same for who asks and for who keeps the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from benchgen.eval.v1 import environment_pb2
from services.common.models.seeds import derive_seed
from services.common.models.types import ChatRequest

#: OpenAI takes at most four stop sequences; the others are applied to the reply.
_MOST_STOPS = 4


class Asking:
    """Makes the requests of a run.

    :param generation: the run's settings.
    :param seed: the run's seed.
    """

    def __init__(self, generation: environment_pb2.Generation, seed: int) -> None:
        self.stop = tuple(generation.stop)
        """All stop sequences, those too that are applied to the reply only."""
        self._seed = seed
        self._params = parameters(generation)
        # Who writes one into the environment means it, also as null: then none is sent.
        self._has_seed = "seed" in self._params

    def request(self, messages: Sequence[Mapping[str, Any]], case_id: str, trial: int) -> ChatRequest:
        """What is asked in one trial of a case."""
        params = self._params
        if not self._has_seed:
            params = params | {"seed": derive_seed(self._seed, case_id, trial)}
        return ChatRequest(messages, params)

    def digest(self, request: ChatRequest) -> str:
        """What names a request together with its answer: the sha256 of all that decides what is sent, and of the stop
        sequences, which also decide what is kept of the reply. The model is named apart from it."""
        sent = {name: value for name, value in request.params.items() if value is not None}
        whole = orjson.dumps([request.messages, sent, self.stop], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(whole).hexdigest()


def parameters(generation: environment_pb2.Generation) -> dict[str, Any]:
    """The parameters of a call, as the API names them."""
    params: dict[str, Any] = orjson.loads(generation.extra_json) if generation.extra_json else {}
    for name in ("temperature", "top_p", "max_tokens"):
        if generation.HasField(name):
            params[name] = getattr(generation, name)
    if generation.stop:
        params["stop"] = list(generation.stop)[:_MOST_STOPS]
    return params
