"""A shard under a grant: no call is sent that could cost more than there is; what is not known counts as the most."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from benchgen.eval.v1 import lease_pb2, model_pb2, run_pb2
from services.common.models.bounds import Tariff, prices_of
from services.common.models.meter import Allowance, Meter
from services.runner.grants import said
from services.runner.keeper import HeldLease
from tests.integration.runner.bench import Bench
from tests.integration.runner.support import until
from tests.integration.runner.test_shard import running
from tests.integration.scorer.support import PRICE
from tests.integration.scorer.test_charges import charges

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: 10 tokens in at 1 micro-dollar, 5 out at 2.
CALL = 20_000_000


class Giver:
    """Answers what a lease says, as a hub does."""

    def __init__(self, lease: HeldLease, *, cap: int) -> None:
        self.meter = lease.meter = Meter(Tariff(prices_of(model_pb2.Model(price=PRICE))), self._asked)
        self.cap = cap
        self.words: list[lease_pb2.Spending] = []
        self._asking = asyncio.Event()
        self.meter.apply(Allowance(0))

    def is_used_up(self) -> bool:
        """Whether the last word was that nothing is in flight, and that the next call does not fit."""
        if not self.words:
            return False
        last = self.words[-1]
        return last.held_picousd == last.spent_picousd > self.cap - last.next_picousd

    def _asked(self) -> None:
        self._asking.set()

    async def serve(self) -> None:
        while True:
            await self._asking.wait()
            self._asking.clear()
            word = said(self.meter)
            assert word is not None
            self.words.append(word)
            await asyncio.sleep(0.001)
            self.meter.apply(Allowance(min(self.cap, word.held_picousd + word.wanted_picousd)))


@pytest_asyncio.fixture(loop_scope="module")
async def spec(bench: Bench) -> run_pb2.RunSpec:
    made = bench.spec(cases=40)
    made.generation.max_tokens = 64
    return made


@pytest_asyncio.fixture(loop_scope="module")
async def serving() -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks: list[asyncio.Task[None]] = []
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_no_call_is_sent_that_could_cost_more_than_there_is(
    bench: Bench, spec: run_pb2.RunSpec, serving: list[asyncio.Task[None]]
) -> None:
    lease = bench.lease(spec)
    # A call can cost about ten times what it does: four at once at most, and then fewer.
    giver = Giver(lease, cap=45 * CALL)
    serving.append(asyncio.create_task(giver.serve()))
    async with running(bench, lease) as work:
        await until(giver.is_used_up)
        asked = len(bench.endpoint.asked)
        last = giver.words[-1]
        assert last.spent_picousd == asked * CALL
        assert last.spent_picousd <= giver.cap
        assert bench.endpoint.most <= 5
        assert last.wanted_picousd > 0.9 * (40 - asked) * last.next_picousd
        # Nothing is scored, or missing, because of a budget; more lets it go on.
        giver.cap = 10**15
        giver._asking.set()
        assert await work
    assert await bench.passed(spec.run) == (40, 40)
    assert giver.meter.spent.picousd == 40 * CALL
    assert await charges(bench.scorer, lease.claims) == [(40 * CALL, 40 * 15)]


async def test_a_call_of_unknown_usage_counts_as_the_most_and_so_do_retries(
    bench: Bench, spec: run_pb2.RunSpec, serving: list[asyncio.Task[None]]
) -> None:
    failed: set[int] = set()

    async def bend(number: int) -> web.Response | None:
        if number == 1 and number not in failed:
            failed.add(number)
            return web.json_response({"error": {"message": "busy"}}, status=500)
        if number == 2 and number not in failed:
            # Sent, paid for, and not to be understood.
            failed.add(number)
            return web.Response(text="{", content_type="application/json")
        if number == 3:
            return web.json_response({"choices": [{"message": {"content": "6"}, "finish_reason": "stop"}]})
        return None

    bench.endpoint.bend = bend
    spec.cases = spec.planned = 4
    spec.max_tries = 2
    lease = bench.lease(spec)
    giver = Giver(lease, cap=10**15)
    serving.append(asyncio.create_task(giver.serve()))
    assert await bench.run(lease)
    most = giver.words[0].next_picousd
    known = 3 * CALL
    # A 500 is refused before it costs anything; a reply that cannot be read, and one without usage, may have cost most.
    assert known + 1.9 * most < giver.meter.spent.picousd < known + 2.1 * most
    assert [picousd for picousd, _ in await charges(bench.scorer, lease.claims)] == [
        giver.meter.spent.picousd
    ]


async def test_a_call_that_is_broken_off_counts_as_the_most(
    bench: Bench, spec: run_pb2.RunSpec, serving: list[asyncio.Task[None]]
) -> None:
    bench.endpoint.gate = asyncio.Event()
    lease = bench.lease(spec, permits=3)
    giver = Giver(lease, cap=10**15)
    serving.append(asyncio.create_task(giver.serve()))
    async with running(bench, lease) as work:
        await until(lambda: bench.endpoint.waiting == 3)
        lease.end(lease_pb2.RenewLeaseResponse.VERDICT_STOP)
        assert not await work
    word = said(giver.meter, last=True)
    assert word is not None
    assert word.spent_picousd == word.held_picousd > 2.5 * giver.words[0].next_picousd
    assert (word.next_picousd, word.wanted_picousd) == (0, 0)
