"""Runners that stand still for longer than their leases: the model never gets more calls at once than it allows."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator

import pytest
from aiohttp import web

from benchgen.eval.v1 import model_pb2, model_pb2_grpc, run_pb2, run_pb2_grpc
from services.local.ports import LOOPBACK
from tests.resilience.cluster import ENVIRONMENT, LEASE_SECONDS, Cluster

CAP = 8
CASES = 120
#: A lease may be a third old when its holder freezes. From then on it is kept for the time of another one.
KEPT_SECONDS = (2 / 3 + 1) * LEASE_SECONDS


class GatedModel:
    """An endpoint whose calls stay open until they are let go; counts how many are."""

    def __init__(self, cluster: Cluster) -> None:
        self.open = 0
        self.most = 0
        self._background = cluster.background
        self._gate = asyncio.Event()
        self._runner = self._background.call(self._start())
        self.url = f"http://{LOOPBACK}:{self._runner.addresses[0][1]}/v1"

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, LOOPBACK, 0).start()
        return runner

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await self._gate.wait()
        finally:
            self.open -= 1
        message = {"role": "assistant", "content": "1"}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}]})

    async def _let(self, go: bool, first: bool) -> None:
        if go:
            self._gate.set()
        if first:
            # Those that wait are let go, and those that come after them are not.
            self._gate, old = asyncio.Event(), self._gate
            old.set()

    def let_go_those_there_are(self) -> None:
        """End the calls that are open now."""
        self._background.call(self._let(go=False, first=True))

    def let_all_go(self) -> None:
        """End every call at once from now on."""
        self._background.call(self._let(go=True, first=False))

    def close(self) -> None:
        """Stop."""
        self.let_all_go()
        self._background.call(self._runner.cleanup())


@pytest.fixture
def gated(cluster: Cluster) -> Iterator[GatedModel]:
    made = GatedModel(cluster)
    yield made
    made.close()


def started(cluster: Cluster, gated: GatedModel) -> str:
    """A run of a model that is registered for it."""
    name = f"gated-{uuid.uuid4().hex[:8]}"
    model = model_pb2.Model(
        name=name,
        base_url=gated.url,
        model_id="m",
        api=model_pb2.Model.API_OPENAI_CHAT,
        max_concurrency=CAP,
    )
    cluster.call(
        lambda channel: model_pb2_grpc.ModelServiceStub(channel).CreateModel,
        model_pb2.CreateModelRequest(request_id=str(uuid.uuid4()), model=model),
    )
    request = run_pb2.CreateRunRequest(
        request_id=str(uuid.uuid4()),
        environment=ENVIRONMENT,
        model=name,
        selection=run_pb2.Selection(limit=CASES),
    )
    run: run_pb2.Run = cluster.call(lambda channel: run_pb2_grpc.RunServiceStub(channel).CreateRun, request)
    return run.name


@pytest.mark.parametrize("sleeps", ["until its leases have ended", "until others have its permits"])
def test_a_runner_that_stands_still_past_its_leases(cluster: Cluster, gated: GatedModel, sleeps: str) -> None:
    run = started(cluster, gated)

    def halves() -> bool:
        told = [row["told"] for row in cluster.query("SELECT told FROM hub.permits WHERE free_at IS NULL")]
        if gated.open == CAP and told != [CAP // 2] * 2:
            gated.let_go_those_there_are()
        return gated.open == CAP and told == [CAP // 2] * 2

    cluster.until(halves, "a half of the calls for each runner")
    frozen = cluster.of_kind("runner")[0]
    frozen.freeze()
    stood = time.monotonic()
    # No share is kept free for it, as when it is silent for long or nothing waits; the other one says that it is there.
    cluster.query("DELETE FROM hub.runners")
    if sleeps == "until its leases have ended":
        cluster.until(
            lambda: len(cluster.query("SELECT FROM hub.permits WHERE free_at IS NOT NULL")) == 1,
            "the end of its leases",
        )
        frozen.thaw()
    time.sleep(stood + KEPT_SECONDS - 0.2 - time.monotonic())
    # The calls of the one that stood still are open at the model all the while: nobody got their permits.
    assert (gated.open, gated.most) in {(CAP, CAP), (CAP // 2, CAP)}
    gated.let_go_those_there_are()
    cluster.until(lambda: gated.open == CAP, "all calls that the model allows")
    if sleeps == "until others have its permits":
        frozen.thaw()
        time.sleep(LEASE_SECONDS)
        assert gated.open <= CAP
    gated.let_all_go()
    cluster.until_ended(run)
    assert gated.most == CAP
