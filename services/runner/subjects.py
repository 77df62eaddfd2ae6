"""Whoever answers a run's trials, made from its specification."""

from __future__ import annotations

from collections.abc import Callable

from benchgen.errors import InvalidInput
from benchgen.eval.v1 import run_pb2
from services.common.models.builtin import Builtin, is_builtin, parse_builtin
from services.common.models.client import ModelClient
from services.common.models.limiter import AdaptiveLimit
from services.common.models.meter import Meter
from services.common.models.retry import CallRecord, Conversation, RetryPolicy, chat_with_retries
from services.common.models.types import ChatRequest, Endpoint, Timeouts
from services.runner.harness.chat import Subject, Trial


class EndpointSubject:
    """A model behind an OpenAI-compatible endpoint."""

    def __init__(
        self,
        client: ModelClient,
        endpoint: Endpoint,
        policy: RetryPolicy,
        limit: AdaptiveLimit,
        on_try: Callable[[CallRecord], None] | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._policy = policy
        self._limit = limit
        self._on_try = on_try
        self._meter = meter

    async def ask(self, trial: Trial, request: ChatRequest) -> Conversation:
        """Call until there is an answer or a fault that does not pass; each try holds a permit."""
        return await chat_with_retries(
            self._client,
            self._endpoint,
            request,
            self._policy,
            limit=self._limit,
            on_try=self._on_try,
            meter=self._meter,
        )


class SimulatedSubject(EndpointSubject):
    """The simulator, which has to be told which solution it may answer with."""

    def __init__(
        self,
        client: ModelClient,
        endpoint: Endpoint,
        policy: RetryPolicy,
        limit: AdaptiveLimit,
        solutions_digest: str,
        on_try: Callable[[CallRecord], None] | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(client, endpoint, policy, limit, on_try, meter)
        self._solutions_digest = solutions_digest

    async def ask(self, trial: Trial, request: ChatRequest) -> Conversation:
        headers = {
            "x-benchgen-solutions": self._solutions_digest,
            "x-benchgen-case": str(trial.position),
            "x-benchgen-trial": str(trial.trial),
        }
        return await super().ask(trial, ChatRequest(request.messages, request.params, headers))


class BuiltinSubject:
    """A subject that needs no call."""

    def __init__(self, builtin: Builtin) -> None:
        self._builtin = builtin

    async def ask(self, trial: Trial, request: ChatRequest) -> Conversation:
        return Conversation(await self._builtin.chat(request), ())


def subject_of(
    spec: run_pb2.RunSpec,
    secret: str,
    client: ModelClient,
    limit: AdaptiveLimit,
    on_try: Callable[[CallRecord], None] | None = None,
    meter: Meter | None = None,
) -> Subject:
    """Whoever answers for this specification.

    :param secret: the key of the endpoint; empty when it needs none. For the simulator: the token for it.
    :param on_try: learns of every call.
    :param meter: what every call is taken from before it is sent; None where nothing limits what is spent.
    :raises InvalidInput: nobody here can.
    """
    if spec.subject.WhichOneof("kind") != "model":
        raise InvalidInput("recorded predictions are loaded by the scorer, not run")
    model = spec.subject.model
    if is_builtin(model.name) and not model.base_url:
        return BuiltinSubject(parse_builtin(model.name))
    timeout = spec.call_timeout_seconds
    endpoint = Endpoint(
        base_url=model.base_url,
        model=model.model_id,
        api_key=secret or None,
        timeouts=Timeouts(connect_s=min(10.0, timeout), first_byte_s=timeout, total_s=timeout),
    )
    policy = RetryPolicy(max_tries=spec.max_tries)
    if is_builtin(model.name):
        return SimulatedSubject(client, endpoint, policy, limit, spec.solutions_digest, on_try, meter)
    return EndpointSubject(client, endpoint, policy, limit, on_try, meter)
