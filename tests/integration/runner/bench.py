"""All that a shard's work needs: a model that adds, a scorer, object storage, and wires to cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import orjson
import pytest_asyncio
from aiohttp import web

from benchgen.eval.v1 import model_pb2, result_pb2_grpc, run_pb2
from services.common.models.client import ModelClient
from services.common.objects import Bucket, ObjectStore
from services.common.parts import CaseReader
from services.runner.keeper import HeldLease
from services.runner.lanes import Lane
from services.runner.shard import ShardWork
from tests import conftest
from tests.integration.model_servers import http_server
from tests.integration.runner.support import Wire, wire_to
from tests.integration.scorer.support import PRICE, Environment, Scorer, calling, claims_of, object_settings


def completion(text: str, **fields: Any) -> web.Response:
    """A chat completion; 10 tokens in and 5 out."""
    message = {"role": "assistant", "content": text}
    return web.json_response(
        {
            "model": "m-1",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"} | fields],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        }
    )


@dataclass
class Endpoint:
    """A model that adds: it knows every answer. Tests bend it."""

    asked: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    most: int = 0
    gate: asyncio.Event | None = None
    """What calls wait for, while set."""
    bend: Callable[[int], Awaitable[web.Response | None]] | None = None
    """What else to answer to a case."""
    _open: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.keys.add(request.headers.get("authorization", ""))
        body = orjson.loads(await request.read())
        question = body["messages"][-1]["content"]
        self.asked.append(question)
        self._open += 1
        self.most = max(self.most, self._open)
        try:
            # Long enough for the next one to come in.
            await asyncio.sleep(0.002)
            if self.gate is not None:
                await self.gate.wait()
            number = int(question.split()[0])
            if self.bend is not None and (bent := await self.bend(number)) is not None:
                return bent
            return completion(str(2 * number))
        finally:
            self._open -= 1

    @property
    def waiting(self) -> int:
        """How many calls are under way."""
        return self._open


@dataclass
class Bench:
    """All that a shard's work needs."""

    url: str
    endpoint: Endpoint
    scorer: Scorer
    environment: Environment
    client: ModelClient
    objects: ObjectStore
    records: result_pb2_grpc.RecordServiceAsyncStub
    scorer_wire: Wire
    objects_wire: Wire
    lane: Lane = field(default_factory=lambda: Lane("m"))
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def spec(self, **fields: Any) -> run_pb2.RunSpec:
        model = model_pb2.Model(name="m", base_url=self.url, model_id="m-1", has_secret=True, price=PRICE)
        fields.setdefault("subject", run_pb2.Subject(model=model))
        return self.environment.spec(**fields)

    def lease(self, spec: run_pb2.RunSpec, *, permits: int = 16, **fields: Any) -> HeldLease:
        claims = claims_of(spec, **fields)
        self.lane.set_permits(permits)
        return HeldLease(claims, self.scorer.sign(claims), self.lane, 60, monotonic() + 60)

    async def run(self, lease: HeldLease, *, grace: float = 5.0) -> bool:
        inputs = CaseReader(Bucket.INPUTS, self.objects, None)
        work = ShardWork(lease, "sk-1", self.client, inputs, self.objects, self.records)
        async with asyncio.timeout(20):
            return await work.run(self.stopping, grace)

    async def passed(self, run: str) -> tuple[int, int]:
        """How many results there are, and how many of them passed."""
        totals = await self.scorer.progress(run)
        return totals.recorded, totals.passed


@pytest_asyncio.fixture(loop_scope="module")
async def bench(
    scorer: Scorer, environment: Environment, buckets: conftest.ObjectStore
) -> AsyncIterator[Bench]:
    endpoint = Endpoint()
    settings = object_settings(buckets, "runner")
    async with AsyncExitStack() as stack:
        scorer_wire = await stack.enter_async_context(wire_to(scorer.port))
        objects_wire = await stack.enter_async_context(wire_to(int(settings.s3_endpoint.split(":")[1])))
        settings = settings.model_copy(update={"s3_endpoint": f"127.0.0.1:{objects_wire.port}"})
        channel = await stack.enter_async_context(calling(scorer_wire.port, scorer.tokens["runner"]))
        yield Bench(
            await stack.enter_async_context(http_server(endpoint.answer)),
            endpoint,
            scorer,
            environment,
            await stack.enter_async_context(ModelClient()),
            await stack.enter_async_context(ObjectStore(settings)),
            result_pb2_grpc.RecordServiceStub(channel),
            scorer_wire,
            objects_wire,
        )
        # Calls that were dropped still wait at the endpoint.
        if endpoint.gate is not None:
            endpoint.gate.set()
