"""Eight runner processes find together how many calls an endpoint bears, and follow it when it moves."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from aiohttp import web

from services.local.ports import LOOPBACK
from tests.resilience.cluster import CASES, Cluster

#: How many calls the model is registered with: more than it ever bears.
CAP = 128
#: As the measurements are promised: so much of the limit is used, and so few calls are refused.
USED, REFUSED = 0.9, 0.02


class Window(NamedTuple):
    """What the endpoint saw in some time."""

    seconds: float
    bears: int
    calls: int
    refused: int
    busy: float

    @property
    def used(self) -> float:
        return self.busy / self.seconds / self.bears

    @property
    def share_refused(self) -> float:
        return self.refused / max(1, self.calls)

    @property
    def is_steady(self) -> bool:
        return self.used > USED and self.share_refused < REFUSED

    def __str__(self) -> str:
        return (
            f"bears {self.bears:3}: {self.used:6.1%} used, {self.share_refused:5.2%} refused of {self.calls} calls"
            f" in {self.seconds:.1f} s"
        )


class LimitedModel:
    """An endpoint that bears so many calls at once and refuses the others with 429."""

    def __init__(self, cluster: Cluster, *, bears: int, latency: float) -> None:
        self.bears = bears
        self.latency = latency
        self.serving = self.most = self._calls = self._refused = 0
        self._busy, self._changed = 0.0, time.monotonic()
        self._began = (0.0, 0, 0, 0.0)
        self._background = cluster.background
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
        self._calls += 1
        if self.serving >= self.bears:
            self._refused += 1
            return web.json_response(
                {"error": {"message": "too many calls at once", "type": "rate_limit"}}, status=429
            )
        self._count(1)
        try:
            await asyncio.sleep(self.latency * (0.75 + 0.5 * (self._calls % 17) / 16))
        finally:
            self._count(-1)
        message = {"role": "assistant", "content": "1"}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}]})

    def _count(self, change: int) -> None:
        now = time.monotonic()
        self._busy += self.serving * (now - self._changed)
        self.serving, self._changed = self.serving + change, now
        self.most = max(self.most, self.serving)

    def look(self) -> Window:
        """What happened since the last look."""
        return self._background.call(self._look())

    async def _look(self) -> Window:
        self._count(0)
        now, calls, refused, busy = time.monotonic(), self._calls, self._refused, self._busy
        then, self._began = self._began, (now, calls, refused, busy)
        return Window(now - then[0], self.bears, calls - then[1], refused - then[2], busy - then[3])

    def close(self) -> None:
        self._background.call(self._runner.cleanup())


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Eight runners, with leases as long as they are: eight of two seconds each are too many for a busy machine."""
    made = Cluster(tmp_path_factory.mktemp("eight"), runners=8, hubs=1, scorers=1, lease_seconds=30)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def limited(eight: Cluster) -> Iterator[LimitedModel]:
    """The endpoint, with eight runners at work on it."""
    made = LimitedModel(eight, bears=64, latency=0.4)
    name = f"limited-{uuid.uuid4().hex[:8]}"
    eight.register_model(name, made.url, cap=CAP)
    run = eight.create(CASES, trials=100, model=name)
    yield made
    eight.cancel(run)
    made.close()


@pytest.mark.soak
def test_a_limit_that_moves_is_followed(limited: LimitedModel) -> None:
    for bears in (64, 24):
        limited.bears = bears
        assert_steady_soon(limited)


def assert_steady_soon(limited: LimitedModel) -> None:
    """A window of a few hundred calls in which much is used and little refused comes by itself."""
    deadline = time.monotonic() + 60
    seen = [limited.look()]
    while True:
        time.sleep(4)
        seen.append(limited.look())
        print(seen[-1])
        if seen[-1].is_steady:
            return
        assert time.monotonic() < deadline, "\n".join(map(str, seen))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_minutes_at_each_limit(limited: LimitedModel) -> None:
    windows = []
    for bears in (64, 24, 96):
        limited.bears = bears
        time.sleep(40)
        limited.look()
        time.sleep(60)
        windows.append(limited.look())
        print(windows[-1])
    assert all(window.is_steady for window in windows), "\n".join(map(str, windows))
