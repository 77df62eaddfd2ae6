"""One shard, worked off: a real endpoint, a real scorer, real object storage, and what can go wrong with each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest
from aiohttp import web

from benchgen.errors import InvalidInput, LeaseLost, NotFound, Unavailable
from benchgen.eval.v1 import lease_pb2, model_pb2, result_pb2, run_pb2
from services.common.models.types import Fault
from services.runner.harness.chat import ChatHarness, Trial
from services.runner.keeper import HeldLease
from services.runner.shard import PermanentFault
from tests.integration.runner.bench import Bench, completion
from tests.integration.runner.support import until
from tests.integration.scorer.support import answer, claims_of, fault

# One loop and one scorer for all tests of the module: starting each takes longer than most tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")

STOP = lease_pb2.RenewLeaseResponse.VERDICT_STOP


@asynccontextmanager
async def running(bench: Bench, lease: HeldLease, **fields: Any) -> AsyncIterator[asyncio.Task[bool]]:
    """Work that goes on during the block, and has ended by its end."""
    task = asyncio.create_task(bench.run(lease, **fields))
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# ------------------------------------------------------------------------------------------- as it should


async def test_a_shard_from_its_lease_to_its_last_acknowledgement(bench: Bench) -> None:
    spec = bench.spec(trials=2, cases=60)
    assert await bench.run(bench.lease(spec, permits=7))
    assert sorted(bench.endpoint.asked) == sorted(f"{n} + {n} = ?" for n in range(60) for _ in range(2))
    assert bench.endpoint.keys == {"Bearer sk-1"}
    assert 1 < bench.endpoint.most <= 7
    totals = await bench.scorer.progress(spec.run)
    assert totals == run_pb2.RunProgress(
        recorded=120,
        scored=120,
        passed=120,
        calls=120,
        input_tokens=1200,
        output_tokens=600,
        cost_picousd=120 * 20_000_000,
    )
    result = (await bench.scorer.list(spec.run, case_id="sum-7")).results[1]
    assert (result.trial, result.response, result.reported_model) == (1, "14", "m-1")
    assert result.latency_ms > 0
    assert (bench.lane.unstored, bench.lane.waiting, bench.lane.limit.in_flight) == (0, 0, 0)


async def test_a_shard_in_the_middle_of_a_case(bench: Bench) -> None:
    spec = bench.spec(trials=3, cases=60)
    assert await bench.run(bench.lease(spec, first=1, count=4))
    page = await bench.scorer.list(spec.run)
    assert [(r.position, r.trial) for r in page.results] == [(0, 1), (0, 2), (1, 0), (1, 1)]


async def test_what_is_held_is_not_asked_again(bench: Bench) -> None:
    spec = bench.spec(cases=10)
    await bench.scorer.record(claims_of(spec), *(answer(n) for n in range(6)), fault(6))
    assert await bench.run(bench.lease(spec, attempt=2))
    assert sorted(bench.endpoint.asked) == [f"{n} + {n} = ?" for n in range(6, 10)]
    assert await bench.passed(spec.run) == (10, 10)
    # And a shard of which everything is held is done without a call.
    assert await bench.run(bench.lease(spec, attempt=3))
    assert len(bench.endpoint.asked) == 4


async def test_a_subject_in_this_process(bench: Bench) -> None:
    spec = bench.spec(
        cases=200, subject=run_pb2.Subject(model=model_pb2.Model(name="builtin/constant?text=8"))
    )
    assert await bench.run(bench.lease(spec, permits=4))
    assert bench.endpoint.asked == []
    assert await bench.passed(spec.run) == (200, 1)


async def test_a_long_answer_is_stored_whole_first(bench: Bench) -> None:
    async def bend(number: int) -> web.Response | None:
        # Its rule looks at all of it: cut to what fits a row, it would be wrong.
        return completion(" " * 70_000 + str(2 * number)) if number == 3 else None

    bench.endpoint.bend = bend
    spec = bench.spec(cases=5)
    assert await bench.run(bench.lease(spec))
    assert await bench.passed(spec.run) == (5, 5)
    assert (await bench.scorer.list(spec.run)).results[3].payload.size_bytes > 70_000


async def test_a_call_that_fails_is_a_result_of_its_own(bench: Bench) -> None:
    async def bend(number: int) -> web.Response | None:
        return web.Response(status=500, text="it broke") if number == 2 else None

    bench.endpoint.bend = bend
    spec = bench.spec(cases=4)
    assert await bench.run(bench.lease(spec))
    broken = (await bench.scorer.list(spec.run)).results[2]
    assert broken.outcome == result_pb2.OUTCOME_PROVIDER_ERROR
    assert "it broke" in broken.error
    totals = await bench.scorer.progress(spec.run)
    assert (totals.recorded, totals.faults, totals.passed) == (4, 1, 3)


async def outcomes(bench: Bench, run: str) -> dict[int, str]:
    """How the trials ended that are not OK, by position."""
    page = await bench.scorer.list(run, page_size=1000)
    return {
        result.position: result_pb2.Outcome.Name(result.outcome).removeprefix("OUTCOME_").lower()
        for result in page.results
        if result.outcome != result_pb2.OUTCOME_OK
    }


async def test_odd_things_that_a_provider_says_concern_their_case_alone(bench: Bench) -> None:
    """Half characters, NUL, and numbers of tokens that nothing has a place for."""

    async def bend(number: int) -> web.Response | None:
        if number == 1:
            body, status = rb'{"error": {"message": "no \ud800\u0000"}}', 400
        elif number == 2:
            body, status = (
                rb"""{"model": "m\udc00", "choices": [{"message": {"content": "4", "reasoning": "\ud800"},
                "finish_reason": "\ud83d"}], "usage": {"prompt_tokens": 1099511627776, "completion_tokens": 5}}""",
                200,
            )
        else:
            return None
        return web.Response(body=body, status=status, content_type="application/json")

    bench.endpoint.bend = bend
    spec = bench.spec(cases=6)
    assert await bench.run(bench.lease(spec))
    assert await bench.passed(spec.run) == (6, 5)
    assert await outcomes(bench, spec.run) == {1: "provider_error"}
    _, refused, odd, *_ = (await bench.scorer.list(spec.run)).results
    assert refused.error == "bad_request: no \ufffd\ufffd"
    assert (odd.response, odd.reasoning, odd.finish_reason) == ("4", "\ufffd", "\ufffd")
    assert odd.reported_model == "m\ufffd"
    assert not odd.usage.HasField("input_tokens")
    totals = await bench.scorer.progress(spec.run)
    # What was refused cost nothing; of the one whose tokens are unknown the cost is, too.
    assert (totals.calls, totals.calls_of_unknown_cost, totals.cost_picousd) == (6, 1, 4 * 20_000_000)


async def test_a_trial_on_which_the_harness_breaks_is_a_result_of_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ChatHarness.run

    async def run(self: ChatHarness, trial: Trial) -> Any:
        if trial.position == 2:
            raise ZeroDivisionError("of all things")
        return await real(self, trial)

    monkeypatch.setattr(ChatHarness, "run", run)
    spec = bench.spec(cases=5)
    assert await bench.run(bench.lease(spec))
    assert await bench.passed(spec.run) == (5, 4)
    assert await outcomes(bench, spec.run) == {2: "harness_error"}
    assert (await bench.scorer.list(spec.run)).results[2].error == "ZeroDivisionError: of all things"


async def test_a_result_that_the_scorer_refuses_is_recorded_as_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ChatHarness.run

    async def run(self: ChatHarness, trial: Trial) -> Any:
        answer = await real(self, trial)
        if trial.position == 2 and not isinstance(answer, Fault):
            answer[0].latency_ms = -1
        return answer

    monkeypatch.setattr(ChatHarness, "run", run)
    spec = bench.spec(cases=5)
    assert await bench.run(bench.lease(spec))
    assert await bench.passed(spec.run) == (5, 4)
    assert await outcomes(bench, spec.run) == {2: "harness_error"}
    refused = (await bench.scorer.list(spec.run)).results[2]
    assert refused.error.startswith("the scorer refused the result: latency_ms: expected milliseconds")
    assert not refused.HasField("cost_picousd")
    totals = await bench.scorer.progress(spec.run)
    assert (totals.calls, totals.calls_of_unknown_cost) == (5, 1)
    assert (bench.lane.unstored, bench.lane.waiting, bench.lane.limit.in_flight) == (0, 0, 0)


async def test_what_calls_cost_that_have_no_answer(bench: Bench) -> None:
    """What was refused cost nothing, what says what it used cost that, and of what was cut nobody knows."""

    async def bend(number: int) -> web.Response | None:
        if number == 0:
            return web.Response(status=500, text="it broke")
        if number == 1:
            used = {"prompt_tokens": 10, "completion_tokens": 5}
            return web.json_response({"choices": [], "usage": used})
        if number == 2:
            return web.json_response({"choices": []})
        return None

    bench.endpoint.bend = bend
    spec = bench.spec(cases=4)
    assert await bench.run(bench.lease(spec))
    tries = spec.max_tries
    totals = await bench.scorer.progress(spec.run)
    assert (totals.calls, totals.calls_of_unknown_cost) == (3 * tries + 1, tries)
    assert totals.cost_picousd == (tries + 1) * 20_000_000
    costs = [
        result.cost_picousd if result.HasField("cost_picousd") else None
        for result in (await bench.scorer.list(spec.run)).results
    ]
    assert costs == [0, tries * 20_000_000, None, 20_000_000]


# ---------------------------------------------------------------------------------------- as it should not


async def test_a_provider_that_refuses_for_good(bench: Bench) -> None:
    async def bend(number: int) -> web.Response | None:
        if number < 3:
            return None
        body = {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}
        return web.json_response(body, status=401)

    bench.endpoint.bend = bend
    spec = bench.spec(cases=50)
    with pytest.raises(PermanentFault, match="Incorrect API key"):
        await bench.run(bench.lease(spec, permits=2))
    # What was answered before is stored, and no more was asked than was in flight.
    assert (await bench.passed(spec.run))[0] == 3
    assert len(bench.endpoint.asked) <= 6
    assert bench.lane.unstored == 0


async def test_a_stop_of_the_run(bench: Bench) -> None:
    bench.endpoint.gate = asyncio.Event()
    spec = bench.spec(cases=50)
    lease = bench.lease(spec, permits=4)
    async with running(bench, lease) as work:
        await until(lambda: bench.endpoint.waiting == 4)
        lease.end(STOP)
        # At once: calls in flight are dropped.
        async with asyncio.timeout(3):
            assert not await work
        assert bench.lane.limit.in_flight == 0
    assert len(bench.endpoint.asked) == 4


async def test_a_runner_that_stops_lets_calls_in_flight_end(bench: Bench) -> None:
    bench.endpoint.gate = asyncio.Event()
    spec = bench.spec(cases=50)
    async with running(bench, bench.lease(spec, permits=4)) as work:
        await until(lambda: bench.endpoint.waiting == 4)
        bench.stopping.set()
        await asyncio.sleep(0.1)
        assert not work.done()
        bench.endpoint.gate.set()
        assert not await work
    assert await bench.passed(spec.run) == (4, 4)
    assert len(bench.endpoint.asked) == 4


async def test_a_runner_that_stops_does_not_wait_for_ever(bench: Bench) -> None:
    bench.endpoint.gate = asyncio.Event()
    async with running(bench, bench.lease(bench.spec(cases=50), permits=4), grace=0.2) as work:
        await until(lambda: bench.endpoint.waiting == 4)
        bench.stopping.set()
        async with asyncio.timeout(3):
            assert not await work


async def test_calls_wait_while_results_cannot_be_stored(bench: Bench) -> None:
    """What a crash would have to pay for again is bounded: sent and not stored, at most twice the permits."""

    async def bend(number: int) -> web.Response | None:
        if len(bench.endpoint.asked) == 20:
            await bench.scorer_wire.close()
        return None

    bench.endpoint.bend = bend
    spec = bench.spec(cases=200)
    async with running(bench, bench.lease(spec, permits=4)) as work:
        await until(lambda: len(bench.endpoint.asked) >= 20)
        await asyncio.sleep(0.5)
        made = len(bench.endpoint.asked)
        assert 0 < bench.lane.unstored <= 9
        assert made <= 30
        await asyncio.sleep(0.2)
        assert len(bench.endpoint.asked) == made
        await bench.scorer_wire.open()
        assert await work
    assert await bench.passed(spec.run) == (200, 200)
    assert sorted(bench.endpoint.asked) == sorted(f"{n} + {n} = ?" for n in range(200)), "a call was repeated"


async def test_a_lease_that_is_refused_ends_the_work(bench: Bench) -> None:
    bench.endpoint.gate = asyncio.Event()
    spec = bench.spec(cases=50)
    async with running(bench, bench.lease(spec, permits=4)) as work:
        await until(lambda: bench.endpoint.waiting == 4)
        await bench.scorer.seal(spec)
        bench.endpoint.gate.set()
        with pytest.raises(LeaseLost):
            await work
    assert len(bench.endpoint.asked) <= 12


async def test_results_that_the_scorer_refuses_are_a_fault(bench: Bench) -> None:
    """Handed back as if nothing had happened, the shard would be asked again and again."""
    lease = bench.lease(bench.spec(cases=5))
    # A runner with other cases in its hands than the scorer.
    lease.claims.positions[:] = [5, 6, 7, 8, 9]
    with pytest.raises(InvalidInput, match="the scorer refused 5 results, the first, of case 5, because"):
        await bench.run(lease)


async def test_an_object_store_that_is_away_is_waited_for(bench: Bench) -> None:
    async def bend(number: int) -> web.Response | None:
        return completion("x" * 70_000) if number == 1 else None

    bench.endpoint.bend = bend
    await bench.objects_wire.close()
    spec = bench.spec(cases=5)
    async with running(bench, bench.lease(spec)) as work:
        await asyncio.sleep(1.0)
        assert bench.endpoint.asked == []
        assert not work.done()
        # The inputs can be read; the answer cannot be stored at first.
        bench.endpoint.gate = asyncio.Event()
        await bench.objects_wire.open()
        await until(lambda: bench.endpoint.waiting == 5)
        await bench.objects_wire.close()
        bench.endpoint.gate.set()
        await until(lambda: bench.endpoint.waiting == 0)
        await asyncio.sleep(0.5)
        assert not work.done()
        await bench.objects_wire.open()
        assert await work
    assert len(bench.endpoint.asked) == 5
    assert (await bench.passed(spec.run))[0] == 5


@pytest.mark.parametrize("ending", ["stopping", "lost"])
async def test_nobody_waits_for_servers_when_the_work_is_not_wanted(bench: Bench, ending: str) -> None:
    await bench.scorer_wire.close()
    lease = bench.lease(bench.spec(cases=5))
    async with running(bench, lease) as work:
        await asyncio.sleep(0.1)
        if ending == "stopping":
            bench.stopping.set()
        else:
            lease.end(lease_pb2.RenewLeaseResponse.VERDICT_LOST)
        with pytest.raises(Unavailable):
            async with asyncio.timeout(5):
                await work


async def test_a_lease_that_ended_before_the_first_call(bench: Bench) -> None:
    spec = bench.spec(cases=5)
    lease = bench.lease(spec)
    lease.end(STOP)
    assert not await bench.run(lease)
    assert bench.endpoint.asked == []


async def test_a_lease_that_lapsed_before_the_first_call(bench: Bench) -> None:
    lease = bench.lease(bench.spec(cases=5))
    lease.expires = monotonic()
    async with running(bench, lease) as work:
        await asyncio.sleep(0.5)
        assert bench.endpoint.asked == []
        # Renewed late.
        lease.expires = monotonic() + 60
        bench.lane.set_permits(8)
        assert await work


async def test_inputs_that_are_not_there(bench: Bench) -> None:
    spec = bench.spec(cases=5)
    spec.inputs_digest = "0" * 64
    with pytest.raises(NotFound):
        await bench.run(bench.lease(spec))
