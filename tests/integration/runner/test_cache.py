"""The response cache: what is asked again and what is not, counted at a real endpoint."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, NamedTuple

import grpc
import pytest
from aiohttp import web

from benchgen.errors import FailedPrecondition, InvalidInput, PermissionDenied
from benchgen.eval.v1 import environment_pb2, model_pb2, result_pb2, run_pb2
from services.common.auth import Scope
from services.common.objects import Bucket, ObjectStore
from services.common.signing import Signer
from services.scorer.payloads import payload_key
from tests import conftest
from tests.integration.runner.bench import Bench, completion
from tests.integration.runner.support import until
from tests.integration.scorer.support import (
    PRICE,
    Environment,
    answer,
    claims_of,
    new_seed,
    object_settings,
    refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CASES = 40


@pytest.fixture(autouse=True)
def _new_model() -> None:
    """A model that no other test has asked: all of them share one cache."""
    _models.append(f"m-{secrets.token_hex(6)}")


_models: list[str] = []


def spec_of(bench: Bench, *, cases: int = CASES, **changes: Any) -> run_pb2.RunSpec:
    """A run that uses the cache; changes are of the specification, or of its model."""
    model = model_pb2.Model(name="m", base_url=bench.url, model_id=_models[-1], price=PRICE)
    for name in ("base_url", "model_id", "name", "price"):
        if name in changes:
            setattr(model, name, changes.pop(name))
    changes.setdefault("use_cache", True)
    changes.setdefault("generation", environment_pb2.Generation(temperature=0))
    return bench.environment.spec(cases=cases, subject=run_pb2.Subject(model=model), **changes)


async def done(bench: Bench, spec: run_pb2.RunSpec, **lease: Any) -> int:
    """Run it to its end; returns how many calls that took."""
    before = len(bench.endpoint.asked)
    assert await bench.run(bench.lease(spec, **lease))
    return len(bench.endpoint.asked) - before


class Row(NamedTuple):
    """A result without what only says how it was come by."""

    position: int
    trial: int
    outcome: int
    response: str
    reasoning: str
    scores: str


async def rows(bench: Bench, run: str) -> list[Row]:
    page = await bench.scorer.list(run, page_size=1000)
    return [
        Row(r.position, r.trial, r.outcome, r.response, r.reasoning, str(list(r.scores)))
        for r in page.results
    ]


def capricious(bench: Bench) -> None:
    """From now on no two answers of the endpoint are the same, and some are right."""
    said = count()

    async def bend(number: int) -> web.Response | None:
        n = next(said)
        return None if n % 3 == 0 else completion(f"answer {n}")

    bench.endpoint.bend = bend


# ------------------------------------------------------------------------------------- what it is there for


async def test_the_same_run_again_makes_no_call_and_has_the_same_rows(bench: Bench) -> None:
    capricious(bench)
    first, again = spec_of(bench), spec_of(bench)
    assert await done(bench, first) == CASES
    assert await done(bench, again) == 0
    assert await rows(bench, again.run) == await rows(bench, first.run)
    before, now = await bench.scorer.progress(first.run), await bench.scorer.progress(again.run)
    assert (before.cache_hits, before.calls, before.input_tokens) == (0, CASES, 10 * CASES)
    assert now == run_pb2.RunProgress(recorded=CASES, scored=CASES, passed=before.passed, cache_hits=CASES)
    result = (await bench.scorer.list(again.run)).results[0]
    assert (result.cached, result.saved_usage.input_tokens, result.saved_usage.output_tokens) == (True, 10, 5)
    assert result.HasField("cost_picousd")
    assert result.cost_picousd == 0
    assert not result.HasField("latency_ms")
    assert not result.HasField("usage")
    assert not any(r.cached for r in (await bench.scorer.list(first.run)).results)


async def test_a_report_counts_what_came_from_the_cache_apart_from_what_was_spent(bench: Bench) -> None:
    await done(bench, spec_of(bench, cases=10))
    half = spec_of(bench, cases=20)
    assert await done(bench, half) == 10
    whole = spec_of(bench, cases=20)
    assert await done(bench, whole) == 0
    reports = []
    for spec in (half, whole):
        assert await bench.scorer.seal(spec) == result_pb2.SealRunResponse.STATE_REPORTED
        reports.append(await bench.scorer.report(spec.run))
    mixed, free = reports
    assert (mixed.cache_hits, mixed.calls, mixed.tokens.input, mixed.saved_tokens.input) == (10, 10, 100, 100)
    assert mixed.cost_usd.total == pytest.approx(10 * 20e-6)
    # Latencies are those of the ten calls.
    assert mixed.HasField("latency_ms")
    assert (free.cache_hits, free.calls, free.cost_usd.total) == (20, 0, 0)
    assert (free.tokens.input, free.tokens.output, free.saved_tokens.output) == (0, 0, 100)
    assert free.HasField("cost_usd")
    assert not free.HasField("latency_ms")
    assert free.metrics["correct"].mean == mixed.metrics["correct"].mean == 1


async def test_without_being_asked_for_nothing_is_kept_and_nothing_given(bench: Bench) -> None:
    assert await done(bench, spec_of(bench, use_cache=False)) == CASES
    assert await done(bench, spec_of(bench)) == CASES
    assert await done(bench, spec_of(bench, use_cache=False)) == CASES


async def test_answers_are_judged_by_the_rules_of_the_run_that_takes_them(
    bench: Bench, other: Environment
) -> None:
    """The other environment asks the same of the same cases, and expects something else."""
    await done(bench, spec_of(bench, cases=3))
    spec = spec_of(bench, cases=3)
    spec.targets_digest, spec.inputs_digest = other.data.targets_digest, other.data.inputs_digest
    assert await done(bench, spec) == 0
    totals = await bench.scorer.progress(spec.run)
    assert (totals.recorded, totals.passed, totals.cache_hits) == (3, 0, 3)


# ------------------------------------------------------------------------------------- what is another request


def _generation(**fields: Any) -> environment_pb2.Generation:
    return environment_pb2.Generation(**fields)


OTHERS: dict[str, dict[str, Any]] = {
    "temperature": {"generation": _generation(temperature=0.5)},
    "no temperature": {"generation": _generation()},
    "longest reply": {"generation": _generation(temperature=0, max_tokens=9)},
    "further field": {"generation": _generation(temperature=0, extra_json='{"top_k": 4}')},
    "seed": {"seed": 7},
    "model": {"model_id": "another"},
}


@pytest.mark.parametrize("name", OTHERS)
async def test_whatever_is_asked_otherwise_is_asked(bench: Bench, name: str) -> None:
    await done(bench, spec_of(bench, cases=8))
    assert await done(bench, spec_of(bench, cases=8, **OTHERS[name])) == 8
    assert await done(bench, spec_of(bench, cases=8)) == 0


async def test_another_address_is_another_endpoint_and_another_spelling_is_not(bench: Bench) -> None:
    await done(bench, spec_of(bench, cases=8))
    elsewhere = bench.url.replace("127.0.0.1", "localhost")
    assert await done(bench, spec_of(bench, cases=8, base_url=elsewhere)) == 8
    assert await done(bench, spec_of(bench, cases=8, base_url=bench.url.replace("http", "HTTP") + "/")) == 0
    # What a model is called here, and what it is said to cost, is nothing that the endpoint hears of.
    renamed = spec_of(bench, cases=8, name="n")
    renamed.subject.model.price.input_usd_per_mtok = "9"
    assert await done(bench, renamed) == 0


async def test_stop_sequences_that_are_not_sent_count_too(bench: Bench) -> None:
    """Four are sent; the fifth cuts the reply here, so that another fifth makes another answer."""

    async def bend(number: int) -> web.Response | None:
        return completion(f"{2 * number}|x")

    bench.endpoint.bend = bend
    stops = ["a", "b", "c", "d"]
    cut = spec_of(bench, cases=4, generation=_generation(stop=[*stops, "|"]))
    assert await done(bench, cut) == 4
    whole = spec_of(bench, cases=4, generation=_generation(stop=[*stops, "e"]))
    assert await done(bench, whole) == 4
    assert [(await rows(bench, s.run))[0].response for s in (cut, whole)] == ["0", "0|x"]


@pytest.mark.parametrize("extra", ["", '{"seed": 5}'], ids=["derived seeds", "one seed"])
async def test_repeats_have_answers_of_their_own(bench: Bench, extra: str) -> None:
    capricious(bench)
    generation = _generation(temperature=1, extra_json=extra)
    once = spec_of(bench, cases=10, generation=generation)
    assert await done(bench, once) == 10
    # The first of three is known; the others are other trials.
    thrice = spec_of(bench, cases=10, trials=3, generation=generation)
    assert await done(bench, thrice) == 20
    again = spec_of(bench, cases=10, trials=3, generation=generation)
    assert await done(bench, again) == 0
    assert await rows(bench, again.run) == await rows(bench, thrice.run)
    answers = {row.response for row in await rows(bench, thrice.run) if row.response.startswith("answer")}
    assert len(answers) > 10


async def test_a_run_of_a_few_cases_leaves_the_others_to_be_asked(bench: Bench) -> None:
    await done(bench, spec_of(bench, cases=10))
    spec = spec_of(bench)
    assert await done(bench, spec) == CASES - 10
    assert await bench.passed(spec.run) == (CASES, CASES)


# ------------------------------------------------------------------------------------- what is kept


async def test_only_answers_without_a_blemish_are_kept(bench: Bench) -> None:
    async def bend(number: int) -> web.Response | None:
        match number:
            case 1:
                return completion("2", finish_reason="length")
            case 2:
                return completion("")
            case 3:
                return completion("no", finish_reason="content_filter")
            case 4:
                return web.Response(status=400, text="not this one")
        return None

    bench.endpoint.bend = bend
    for _ in range(2):
        spec = spec_of(bench, cases=6)
        before = len(bench.endpoint.asked)
        await done(bench, spec)
        asked = sorted(int(question.split()[0]) for question in bench.endpoint.asked[before:])
    assert asked == [1, 2, 3, 4]
    assert [row.outcome for row in await rows(bench, spec.run)] == [1, 2, 4, 3, 6, 1]


async def test_a_long_answer_is_judged_whole_and_outlives_its_run(bench: Bench) -> None:
    async def bend(number: int) -> web.Response | None:
        return completion(" " * 70_000 + str(2 * number)) if number == 3 else None

    bench.endpoint.bend = bend
    first = spec_of(bench, cases=5)
    await done(bench, first)
    removal = result_pb2.DeleteResultsRequest(run=first.run)
    removal.end_time.GetCurrentTime()
    removal.end_time.seconds += 60
    assert (await bench.scorer.records("hub").DeleteResults(removal)).done
    again = spec_of(bench, cases=5)
    assert await done(bench, again) == 0
    assert await bench.passed(again.run) == (5, 5)
    result = (await bench.scorer.list(again.run)).results[3]
    assert result.payload.size_bytes > 70_000


async def test_a_long_answer_that_is_lost_is_asked_for_again(
    bench: Bench, buckets: conftest.ObjectStore
) -> None:
    async def bend(number: int) -> web.Response | None:
        return completion(" " * 70_000 + f"{2 * number} {bench.url}") if number in (2, 3) else None

    bench.endpoint.bend = bend
    first = spec_of(bench, cases=5)
    await done(bench, first)
    lost = (await bench.scorer.list(first.run)).results[3].payload.digest
    async with ObjectStore(object_settings(buckets, "scorer")) as objects:
        later = datetime.now(UTC) + timedelta(minutes=5)
        await objects.remove_unless_newer(Bucket.PAYLOADS, payload_key(lost), later)
    bench.endpoint.bend = None
    assert await done(bench, spec_of(bench, cases=5)) == 1
    again = spec_of(bench, cases=5)
    assert await done(bench, again) == 0
    assert [len(row.response) > 70 for row in await rows(bench, again.run)] == [
        False,
        False,
        True,
        False,
        False,
    ]


async def test_runs_that_ask_the_same_at_once_agree_afterwards(bench: Bench) -> None:
    capricious(bench)
    specs = [spec_of(bench) for _ in range(4)]
    ended = await asyncio.gather(*(bench.run(bench.lease(spec, permits=64)) for spec in specs))
    assert ended == [True] * 4
    for spec in specs:
        totals = await bench.scorer.progress(spec.run)
        assert (totals.recorded, totals.calls + totals.cache_hits) == (CASES, CASES)
    fifth, sixth = spec_of(bench), spec_of(bench)
    assert await done(bench, fifth) == await done(bench, sixth) == 0
    assert await rows(bench, fifth.run) == await rows(bench, sixth.run)


# ------------------------------------------------------------------------------------- what can go wrong


async def test_a_runner_that_dies_leaves_the_rest_to_the_next(bench: Bench) -> None:
    await done(bench, spec_of(bench, cases=20))
    spec = spec_of(bench)
    bench.endpoint.gate = asyncio.Event()
    before = len(bench.endpoint.asked)
    work = asyncio.create_task(bench.run(bench.lease(spec, permits=8)))
    await until(lambda: len(bench.endpoint.asked) - before == 8)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert (await bench.scorer.progress(spec.run)).cache_hits == 20
    bench.endpoint.gate.set()
    assert await done(bench, spec, attempt=2) == 20
    totals = await bench.scorer.progress(spec.run)
    assert (totals.recorded, totals.passed, totals.cache_hits, totals.calls) == (CASES, CASES, 20, 20)


async def test_a_scorer_that_is_away_is_waited_for(bench: Bench) -> None:
    await done(bench, spec_of(bench))
    await bench.scorer_wire.close()
    spec = spec_of(bench)
    work = asyncio.create_task(bench.run(bench.lease(spec)))
    await asyncio.sleep(0.1)
    assert not work.done()
    await bench.scorer_wire.open()
    assert await work
    assert (await bench.scorer.progress(spec.run)).cache_hits == CASES


async def test_a_zombies_call_is_paid_for_where_the_cache_was_faster(bench: Bench) -> None:
    """Both are of one attempt, which is what an answer that is sent twice looks like, too."""
    await done(bench, spec_of(bench, cases=4))
    spec = spec_of(bench, cases=4)
    await done(bench, spec)
    async with bench.scorer.stream(claims_of(spec)) as stream:
        assert await stream.send(answer(1), answer(2)) == []
        assert await stream.send(answer(1), answer(2)) == []
    totals = await bench.scorer.progress(spec.run)
    assert (totals.recorded, totals.cache_hits, totals.calls, totals.input_tokens) == (4, 4, 2, 20)


def request_of(bench: Bench, spec: run_pb2.RunSpec, digests: list[str], **fields: Any) -> Any:
    claims = claims_of(spec)
    lease = bench.scorer.sign(claims, fields.pop("key", None))
    return result_pb2.LoadCachedRequest(lease=lease, request_digests=digests)


async def test_a_runner_finds_and_keeps_nothing_but_what_its_lease_asks(bench: Bench) -> None:
    """One that was broken into, with a lease and with the digests of other requests."""
    sent: list[str] = []
    real = bench.records.LoadCached

    async def load(request: result_pb2.LoadCachedRequest, **more: Any) -> Any:
        sent[:] = request.request_digests
        return await real(request, **more)

    setattr(bench.records, "LoadCached", load)  # noqa: B010 - a stub's methods are attributes
    await done(bench, spec_of(bench, cases=4))
    assert len(set(sent)) == 4
    # Answers to other trials of the same model: none is given for these.
    spec = spec_of(bench, cases=4)
    wrong = request_of(bench, spec, [*reversed(sent)])
    assert (await real(wrong)).loaded == 0
    # A forged answer to a request that is not the trial's own is a result, as ever, and nobody else gets it.
    elsewhere = spec_of(bench, cases=4, model_id="m-elsewhere" + secrets.token_hex(4))
    forged = [answer(n, "forged", request_digest=digest) for n, digest in enumerate(reversed(sent))]
    await bench.scorer.record(claims_of(elsewhere), *forged)
    honest = spec_of(bench, cases=4, model_id=elsewhere.subject.model.model_id)
    assert await done(bench, honest) == 4
    assert await bench.passed(honest.run) == (4, 4)
    # Another endpoint's answers are another endpoint's, whatever is asked.
    assert (await real(request_of(bench, spec_of(bench, cases=4, model_id="m-0"), sent))).loaded == 0
    assert (await real(request_of(bench, spec, sent))).loaded == 4


async def test_who_may_load_what(bench: Bench) -> None:
    spec = spec_of(bench, cases=4)
    off = spec_of(bench, cases=4, use_cache=False)
    load = bench.records.LoadCached
    digests = ["0" * 64] * 4
    assert isinstance(await refusal(load(request_of(bench, off, digests))), FailedPrecondition)
    assert isinstance(await refusal(load(request_of(bench, spec, digests[:3]))), InvalidInput)
    stranger = Signer(new_seed())
    assert isinstance(await refusal(load(request_of(bench, spec, digests, key=stranger))), PermissionDenied)
    for identity in ("hub", "gateway"):
        call = bench.scorer.records(identity).LoadCached(request_of(bench, spec, digests))
        assert isinstance(await refusal(call), PermissionDenied)


async def test_clearing_the_answers_of_one_model(bench: Bench) -> None:
    other = f"{_models[-1]}-b"
    await done(bench, spec_of(bench, cases=8))
    await done(bench, spec_of(bench, cases=8, model_id=other))
    request = result_pb2.ClearCacheRequest(base_url=bench.url, model_id=_models[-1])
    clear = bench.scorer.results.ClearCache
    refused = await refusal(clear(request, metadata=bench.scorer.as_(Scope.READ, Scope.RUN)))
    assert isinstance(refused, PermissionDenied)
    nothing = await refusal(clear(result_pb2.ClearCacheRequest(), metadata=bench.scorer.as_()))
    assert isinstance(nothing, InvalidInput)
    assert "base_url and model_id" in nothing.message
    assert (await clear(request, metadata=bench.scorer.as_(Scope.MODELS))).removed == 8
    assert (await clear(request, metadata=bench.scorer.as_())).removed == 0
    assert await done(bench, spec_of(bench, cases=8)) == 8
    assert await done(bench, spec_of(bench, cases=8, model_id=other)) == 0
    assert await done(bench, spec_of(bench, cases=8)) == 0


async def test_a_scorer_that_does_not_know_the_cache_does_not_stop_a_run(bench: Bench) -> None:
    """The version before, while a new one is rolled out."""

    class Unknown(grpc.aio.AioRpcError):
        def __init__(self) -> None:
            super().__init__(grpc.StatusCode.UNIMPLEMENTED, grpc.aio.Metadata(), grpc.aio.Metadata())

    async def load(request: result_pb2.LoadCachedRequest, **more: Any) -> Any:
        raise Unknown

    setattr(bench.records, "LoadCached", load)  # noqa: B010 - a stub's methods are attributes
    assert await done(bench, spec_of(bench, cases=4)) == 4
