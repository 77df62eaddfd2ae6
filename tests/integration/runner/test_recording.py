"""A recording stream over a wire that is cut: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import pytest_asyncio

from benchgen.errors import BenchgenError, LeaseLost, PermissionDenied, Unauthenticated, Unavailable
from benchgen.eval.v1 import lease_pb2, result_pb2, result_pb2_grpc
from services.common.signing import Signer
from services.runner.recording import RecordStream, recording
from tests.integration.runner.support import Wire, until, wire_to
from tests.integration.scorer.support import (
    Environment,
    Scorer,
    answer,
    calling,
    claims_of,
    new_seed,
)

# One loop and one scorer for all tests of the module: starting each takes longer than most tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Stored:
    """Counts what was acknowledged."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, count: int) -> None:
        self.count += count


@pytest_asyncio.fixture(loop_scope="module")
async def wire(scorer: Scorer) -> AsyncIterator[Wire]:
    """The way to the scorer."""
    async with wire_to(scorer.port) as opened:
        yield opened


@asynccontextmanager
async def through(
    wire: Wire, scorer: Scorer, claims: lease_pb2.LeaseClaims, stored: Stored, *, wanted: bool = True
) -> AsyncIterator[tuple[RecordStream, asyncio.Task[None]]]:
    """An open stream over the wire."""
    async with calling(wire.port, scorer.tokens["runner"]) as channel:
        stub = result_pb2_grpc.RecordServiceStub(channel)
        async with recording(stub, scorer.sign(claims), stored, lambda: wanted) as both:
            yield both


async def positions(scorer: Scorer, run: str) -> list[int]:
    """What is in the table, in its order."""
    found: list[int] = []
    token = ""
    while True:
        page = await scorer.list(run, page_size=1000, page_token=token)
        found += [result.position for result in page.results]
        token = page.next_page_token
        if not token:
            return found


async def drained(stream: RecordStream, carrier: asyncio.Task[None]) -> None:
    """Wait until everything is stored; fails with the stream."""
    waiting = asyncio.create_task(stream.drained())
    async with asyncio.timeout(20):
        await asyncio.wait({waiting, carrier}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if carrier.done():
        await carrier


async def test_results_arrive(scorer: Scorer, environment: Environment, wire: Wire) -> None:
    spec, stored = environment.spec(), Stored()
    async with through(wire, scorer, claims_of(spec), stored) as (stream, carrier):
        assert stream.held == frozenset()
        for n in range(256):
            stream.add(answer(n, "x" * (n * 200)))
        assert stream.outstanding == 256
        await drained(stream, carrier)
        assert (stream.outstanding, stored.count, stream.rejections) == (0, 256, [])
        # It is as good as new.
        stream.add(answer(3))
        assert stream.outstanding == 1
        await drained(stream, carrier)
    assert await positions(scorer, spec.run) == list(range(256))
    async with through(wire, scorer, claims_of(spec, attempt=2), Stored()) as (stream, _):
        assert stream.held == frozenset(range(256))


@pytest.mark.parametrize("swallowing", [False, True], ids=["cut", "acknowledgements lost"])
async def test_a_wire_that_is_cut_again_and_again(
    scorer: Scorer, environment: Environment, wire: Wire, swallowing: bool
) -> None:
    """With acknowledgements lost the scorer has what the runner thinks it has not: all of that comes twice."""
    spec, stored = environment.spec(), Stored()
    chance = random.Random(3)
    ended = asyncio.Event()

    async def cutting() -> None:
        while not ended.is_set():
            await asyncio.sleep(chance.uniform(0.01, 0.1))
            wire.swallowing = swallowing
            await asyncio.sleep(0.03)
            wire.cut()
            wire.swallowing = False
            await asyncio.sleep(0.15)

    async with through(wire, scorer, claims_of(spec), stored) as (stream, carrier):
        cutter = asyncio.create_task(cutting())
        for n in range(160):
            stream.add(answer(n, "x" * 2_000))
            await asyncio.sleep(chance.uniform(0, 0.015))
            # What is not acknowledged is known at every moment.
            assert stored.count + stream.outstanding == n + 1
        ended.set()
        await cutter
        await drained(stream, carrier)
        assert (stream.outstanding, stored.count) == (0, 160)
    assert wire.opened > 3
    assert await positions(scorer, spec.run) == list(range(160))
    totals = await scorer.progress(spec.run)
    assert (totals.recorded, totals.calls, totals.input_tokens) == (160, 160, 1600)


async def test_a_scorer_that_comes_later(scorer: Scorer, environment: Environment, wire: Wire) -> None:
    await wire.close()
    spec, stored = environment.spec(), Stored()

    async def work() -> None:
        async with through(wire, scorer, claims_of(spec), stored) as (stream, carrier):
            stream.add(answer(0))
            await drained(stream, carrier)

    working = asyncio.create_task(work())
    await asyncio.sleep(0.3)
    assert not working.done()
    await wire.open()
    await working
    assert stored.count == 1


async def test_a_scorer_that_nobody_waits_for(scorer: Scorer, environment: Environment, wire: Wire) -> None:
    await wire.close()
    with pytest.raises(Unavailable):
        async with through(wire, scorer, claims_of(environment.spec()), Stored(), wanted=False):
            pass


async def test_a_run_that_is_sealed_meanwhile(scorer: Scorer, environment: Environment, wire: Wire) -> None:
    spec, stored = environment.spec(), Stored()
    async with through(wire, scorer, claims_of(spec), stored) as (stream, carrier):
        stream.add(answer(0))
        await drained(stream, carrier)
        await scorer.seal(spec)
        stream.add(answer(1))
        with pytest.raises(LeaseLost):
            await drained(stream, carrier)
        assert stream.outstanding == 1
    with pytest.raises(LeaseLost):
        async with through(wire, scorer, claims_of(spec, attempt=2), Stored()):
            pass


async def test_a_run_that_is_sealed_while_the_wire_is_cut(
    scorer: Scorer, environment: Environment, wire: Wire
) -> None:
    spec = environment.spec()
    async with through(wire, scorer, claims_of(spec), Stored()) as (stream, carrier):
        await wire.close()
        await scorer.seal(spec)
        stream.add(answer(1))
        await wire.open()
        with pytest.raises(LeaseLost):
            await drained(stream, carrier)


async def test_what_a_scorer_refuses_is_refused_at_once(
    scorer: Scorer, environment: Environment, wire: Wire
) -> None:
    claims = claims_of(environment.spec())
    forged = scorer.sign(claims, Signer(new_seed()))
    for token, lease, kind in (
        (scorer.tokens["runner"], forged, PermissionDenied),
        (scorer.tokens["hub"], scorer.sign(claims), PermissionDenied),
        ("guessed", scorer.sign(claims), Unauthenticated),
    ):
        async with calling(wire.port, token) as channel, asyncio.timeout(5):
            stub = result_pb2_grpc.RecordServiceStub(channel)
            with pytest.raises(kind):
                async with recording(stub, lease, Stored(), lambda: True):
                    pass


async def test_refused_results_are_named_and_count_as_dealt_with(
    scorer: Scorer, environment: Environment, wire: Wire
) -> None:
    spec, stored = environment.spec(), Stored()
    foreign = answer(1)
    foreign.case_id = "nobody"
    async with through(wire, scorer, claims_of(spec), stored) as (stream, carrier):
        for result in (answer(0), foreign, answer(2)):
            stream.add(result)
        await drained(stream, carrier)
        assert (stored.count, stream.outstanding) == (3, 0)
        # That it was refused was refused as well.
        assert [(r.position, r.trial) for r in stream.rejections] == [(1, 0)]
        odd = answer(3)
        odd.usage.output_tokens = 2**31
        stream.add(odd)
        await drained(stream, carrier)
        assert (stored.count, stream.outstanding, len(stream.rejections)) == (4, 0, 1)
    assert await positions(scorer, spec.run) == [0, 2, 3]
    refused = (await scorer.list(spec.run, case_id="sum-3")).results[0]
    assert refused.outcome == result_pb2.OUTCOME_HARNESS_ERROR
    assert "usage.output_tokens: at most" in refused.error


class Breaking:
    """Takes every lease, and breaks on batches."""

    def __init__(self, breaks: Iterator[bool]) -> None:
        self._breaks = breaks
        self.batches = 0

    async def record(
        self, requests: AsyncIterator[result_pb2.RecordResultsRequest], context: Any
    ) -> AsyncIterator[result_pb2.RecordResultsResponse]:
        async for request in requests:
            if request.WhichOneof("part") == "lease":
                yield result_pb2.RecordResultsResponse(held=result_pb2.HeldTrials())
                continue
            self.batches += 1
            if next(self._breaks):
                await context.abort(grpc.StatusCode.INTERNAL, "it broke")
            ack = result_pb2.BatchAck(sequence=request.batch.sequence)
            yield result_pb2.RecordResultsResponse(ack=ack)


@asynccontextmanager
async def breaking(servicer: Breaking) -> AsyncIterator[result_pb2_grpc.RecordServiceAsyncStub]:
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.record,
        request_deserializer=result_pb2.RecordResultsRequest.FromString,
        response_serializer=result_pb2.RecordResultsResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("benchgen.eval.v1.RecordService", {"RecordResults": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield result_pb2_grpc.RecordServiceStub(channel)
    await server.stop(0)


async def test_a_scorer_that_breaks_now_and_then() -> None:
    stored = Stored()
    servicer = Breaking(iter([True, True, False, True, True, True, False, True, False, False]))
    async with (
        breaking(servicer) as stub,
        recording(stub, lease_pb2.SignedLease(), stored, lambda: True) as (stream, carrier),
    ):
        for n in range(4):
            stream.add(answer(n))
            await drained(stream, carrier)
    assert (stored.count, servicer.batches) == (4, 10)


async def test_a_scorer_that_breaks_on_the_same_results_each_time() -> None:
    servicer = Breaking(iter([True] * 100))
    async with (
        breaking(servicer) as stub,
        recording(stub, lease_pb2.SignedLease(), Stored(), lambda: True) as (stream, carrier),
    ):
        stream.add(answer(0))
        with pytest.raises(BenchgenError, match="it broke") as caught:
            await drained(stream, carrier)
        assert caught.value.reason == "INTERNAL"
        assert stream.outstanding == 1
    assert 3 < servicer.batches < 10


async def test_no_more_than_four_batches_are_unacknowledged() -> None:
    """A scorer that is slow holds the runner back; nothing is sent that would have to be remembered there."""

    class Slow(Breaking):
        async def record(
            self, requests: AsyncIterator[result_pb2.RecordResultsRequest], context: Any
        ) -> AsyncIterator[result_pb2.RecordResultsResponse]:
            await anext(aiter(requests))
            yield result_pb2.RecordResultsResponse(held=result_pb2.HeldTrials())
            async for request in requests:
                self.batches += 1
                waiting.append(request.batch)
                if self.batches == 4:
                    await go_on.wait()
                if go_on.is_set():
                    for batch in waiting:
                        ack = result_pb2.BatchAck(sequence=batch.sequence)
                        yield result_pb2.RecordResultsResponse(ack=ack)
                    waiting.clear()

    go_on, waiting = asyncio.Event(), list[result_pb2.ResultBatch]()
    servicer, stored = Slow(iter([])), Stored()
    async with (
        breaking(servicer) as stub,
        recording(stub, lease_pb2.SignedLease(), stored, lambda: True) as (stream, carrier),
    ):
        for n in range(7 * 256):
            stream.add(answer(n))
        await until(lambda: servicer.batches == 4)
        await asyncio.sleep(0.1)
        assert (servicer.batches, stored.count, stream.outstanding) == (4, 0, 7 * 256)
        go_on.set()
        await drained(stream, carrier)
        assert stored.count == 7 * 256
