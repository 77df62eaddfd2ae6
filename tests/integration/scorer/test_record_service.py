"""RecordService as runners and the hub call it, and as they must not."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import asyncpg
import grpc
import orjson
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from benchgen.errors import InvalidInput, LeaseLost, NotFound, PermissionDenied, Unauthenticated
from benchgen.eval.v1 import lease_pb2, result_pb2, result_pb2_grpc, run_pb2
from services.common.objects import Bucket, ObjectStore
from services.common.signing import Signer
from tests import conftest
from tests.integration.scorer.support import (
    CASES,
    Environment,
    Scorer,
    Stream,
    answer,
    calling,
    claims_of,
    fault,
    new_seed,
    object_settings,
    refusal,
    subject,
)

# One loop and one scorer for all tests of the module: starting each takes longer than most tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")

REPORTED = result_pb2.SealRunResponse.STATE_REPORTED


# ------------------------------------------------------------------------------------------ who may call


@pytest.mark.parametrize("token", ["", "guessed"])
async def test_a_caller_without_a_credential_is_refused(
    scorer: Scorer, environment: Environment, token: str
) -> None:
    claims = claims_of(environment.spec())
    async with calling(scorer.port, token) as channel:
        records = result_pb2_grpc.RecordServiceStub(channel)
        results = result_pb2_grpc.ResultServiceStub(channel)
        calls = [
            records.SealRun(result_pb2.SealRunRequest(spec=claims.spec)),
            records.GetProgress(result_pb2.GetProgressRequest(runs=["r1"])),
            results.GetReport(result_pb2.GetReportRequest(run="r1"), metadata=scorer.as_()),
            Stream(records).open(scorer.sign(claims)),
        ]
        for call in calls:
            assert isinstance(await refusal(call), Unauthenticated)


async def test_everybody_has_calls_of_their_own(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec()
    claims = claims_of(spec)
    runner, hub, gateway = (scorer.records(name) for name in ("runner", "hub", "gateway"))
    calls = [
        runner.SealRun(result_pb2.SealRunRequest(spec=spec)),
        runner.LoadShard(result_pb2.LoadShardRequest(lease=scorer.sign(claims))),
        runner.GetProgress(result_pb2.GetProgressRequest(runs=[spec.run])),
        runner.VerifyVersion(result_pb2.VerifyVersionRequest()),
        Stream(hub).open(scorer.sign(claims)),
        Stream(gateway).open(scorer.sign(claims)),
        gateway.SealRun(result_pb2.SealRunRequest(spec=spec)),
        result_pb2_grpc.ResultServiceStub(scorer.channels["runner"]).GetReport(
            result_pb2.GetReportRequest(run=spec.run), metadata=scorer.as_()
        ),
    ]
    for call in calls:
        error = await refusal(call)
        assert isinstance(error, PermissionDenied)
        assert "may not call" in error.message
    progress = await hub.GetProgress(result_pb2.GetProgressRequest(runs=[spec.run]))
    assert not progress.progress, "a refused call left a run behind"


# ----------------------------------------------------------------------------------------------- leases


async def test_only_the_hubs_signature_makes_a_lease(scorer: Scorer, environment: Environment) -> None:
    claims = claims_of(environment.spec())
    signed = scorer.sign(claims)
    wider = claims_of(claims.spec, first=256)
    forged = [
        scorer.sign(claims, Signer(new_seed())),
        lease_pb2.SignedLease(claims=wider.SerializeToString(), signature=signed.signature),
        lease_pb2.SignedLease(claims=signed.claims),
        lease_pb2.SignedLease(claims=signed.claims, signature=signed.signature[:-1]),
    ]
    for lease in forged:
        error = await refusal(Stream(scorer.records("runner")).open(lease))
        assert isinstance(error, PermissionDenied)
        load = scorer.records("hub").LoadShard(result_pb2.LoadShardRequest(lease=lease))
        assert isinstance(await refusal(load), PermissionDenied)


async def test_a_stream_opens_with_a_lease_and_goes_on_with_batches(
    scorer: Scorer, environment: Environment
) -> None:
    batch = result_pb2.RecordResultsRequest(batch=result_pb2.ResultBatch(sequence=1, results=[answer(0)]))
    claims = claims_of(environment.spec())
    error = await refusal(Stream(scorer.records("runner")).send_raw(batch))
    assert isinstance(error, InvalidInput)
    async with scorer.stream(claims) as stream:
        again = result_pb2.RecordResultsRequest(lease=scorer.sign(claims))
        assert isinstance(await refusal(stream.send_raw(again)), InvalidInput)


async def test_a_lease_allows_its_own_trials_only(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec(trials=3)
    # Trials 256 to 511: from the second trial of case 85 to the first of case 170.
    claims = claims_of(spec, first=256)
    other = environment.spec()
    async with scorer.stream(claims) as stream:
        refused = await stream.send(
            answer(85, trial=0),
            answer(85, trial=1),
            answer(170, trial=1),
            answer(170, trial=2),
            answer(100, trial=3),
            answer(300),
        )
    assert [(r.position, r.trial) for r in refused] == [(85, 0), (170, 2), (100, 3), (300, 0)]
    assert {r.reason for r in refused} == {"the trial is not of this shard"}
    assert (await scorer.progress(spec.run)).recorded == 2
    # Whatever is recorded goes to the lease's run.
    assert (
        other.run
        not in (
            await scorer.records("hub").GetProgress(result_pb2.GetProgressRequest(runs=[other.run]))
        ).progress
    )


async def test_a_lease_of_one_run_is_no_good_for_the_specification_of_another(
    scorer: Scorer, environment: Environment
) -> None:
    claims = claims_of(environment.spec())
    claims.spec.run = environment.spec().run
    error = await refusal(Stream(scorer.records("runner")).open(scorer.sign(claims)))
    assert isinstance(error, PermissionDenied)


async def test_a_result_must_name_the_case_that_is_at_its_position(
    scorer: Scorer, environment: Environment
) -> None:
    spec = environment.spec()
    foreign = answer(1)
    foreign.case_id = "of-another-environment"
    async with scorer.stream(claims_of(spec)) as stream:
        refused = await stream.send(answer(0), foreign)
    assert [(r.position, r.reason) for r in refused] == [
        (1, "case_id: there is no case 'of-another-environment' at 1")
    ]
    assert (await scorer.progress(spec.run)).recorded == 1


async def test_positions_that_the_environment_does_not_have(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec(cases=CASES + 10)
    claims = claims_of(spec, first=1024)
    error = await refusal(Stream(scorer.records("runner")).open(scorer.sign(claims)))
    assert isinstance(error, NotFound)


# ---------------------------------------------------------------------------------------------- results


async def test_a_bad_result_is_refused_alone(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec()
    bad = {
        "outcome": answer(0, outcome=result_pb2.OUTCOME_UNSPECIFIED),
        "response": answer(1, "x" * (64 * 1024 + 1)),
        "reasoning": answer(2, reasoning="ä" * (32 * 1024 + 1)),
        "input_digest": answer(3, input_digest="no digest"),
        "latency_ms": answer(4, latency_ms=float("nan")),
        "first_byte_ms": answer(5, first_byte_ms=float("inf")),
        "calls": answer(6, calls=2**32 - 1),
        "usage.input_tokens": answer(7, usage=result_pb2.Usage(input_tokens=2**31)),
        "payload.digest": answer(8, payload=result_pb2.PayloadRef(digest="../../secrets", size_bytes=3)),
        "payload": answer(9, payload=result_pb2.PayloadRef(digest="a" * 64, size_bytes=2**63)),
        "failed_calls.wait_ms": answer(10, failed_calls=[result_pb2.FailedCall(wait_ms=-1)]),
        "start_time": answer(11, start_time={"seconds": 10**15}),
    }
    async with scorer.stream(claims_of(spec)) as stream:
        refused = await stream.send(*bad.values(), answer(20), answer(21))
        assert {r.position: r.reason.partition(":")[0] for r in refused} == dict(enumerate(bad))
        # A payload that was never stored; one that is, but is something else.
        missing = answer(12, payload=result_pb2.PayloadRef(digest="b" * 64, size_bytes=10))
        refused = await stream.send(missing, answer(22))
        assert [r.position for r in refused] == [12]
    assert (await scorer.progress(spec.run)).recorded == 3


async def test_whatever_is_accepted_can_be_stored(scorer: Scorer, environment: Environment) -> None:
    """Fields at their ends and beyond, in every mixture: a batch is never lost over one of its results."""
    spec = environment.spec()
    random = Random(7)
    usage = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
    times = [0.0, 1e-300, 5.5, 1e10, 1e11, -1.0, float("nan"), float("inf")]
    texts = ["", "a", "\0", "\u2713" * 21_000, "x" * 65_536, "x" * 65_537, "\U0001f600" * 20_000]
    results = []
    for position in range(256):
        some: dict[str, Any] = {
            "outcome": random.randrange(13),
            "response": random.choice(texts[:4]),
            "calls": random.choice([0, 1, 10_000, 2**32 - 1]),
            "usage": result_pb2.Usage(
                input_tokens=random.choice(usage), output_tokens=random.choice(usage[:3])
            ),
            "latency_ms": random.choice(times[:5]),
            "first_byte_ms": random.choice(times),
            "start_time": Timestamp(seconds=random.choice([0, -62135596800, 253402300799, 10**14])),
            "error": random.choice(texts),
            "finish_reason": random.choice(texts),
            "reported_model": random.choice(texts[:4]),
            "input_digest": random.choice(["", "0" * 64, "0" * 63, "g" * 64]),
            "failed_calls": [
                result_pb2.FailedCall(
                    http_status=random.choice([0, 503, 2**32 - 1]),
                    error=random.choice(texts[:4]),
                    usage=result_pb2.Usage(input_tokens=random.choice(usage)),
                )
            ],
        }
        kept = random.sample(sorted(some), 6)
        results.append(answer(position, **{"response": "1"} | {name: some[name] for name in kept}))
    refused = 0
    async with scorer.stream(claims_of(spec)) as stream:
        for start in range(0, 256, 4):
            refused += len(await stream.send(*results[start : start + 4]))
    assert 30 < refused < 226
    assert (await scorer.progress(spec.run)).recorded == 256 - refused


@pytest.mark.parametrize("size", [0, 257])
async def test_a_batch_is_bounded_by_count(scorer: Scorer, environment: Environment, size: int) -> None:
    async with scorer.stream(claims_of(environment.spec())) as stream:
        error = await refusal(stream.send(*[answer(0)] * size))
        assert isinstance(error, InvalidInput)
        assert f"this one has {size}" in error.message


async def test_a_batch_is_bounded_by_bytes(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec()
    async with scorer.stream(claims_of(spec)) as stream:
        longest = [answer(position, "x" * 64 * 1024) for position in range(17)]
        await stream.send(*longest[:15])
        assert isinstance(await refusal(stream.send(*longest)), InvalidInput)
    assert (await scorer.progress(spec.run)).recorded == 15


async def test_texts_that_postgres_has_no_place_for(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec()
    odd = fault(
        0, finish_reason="a\0b", reported_model="\0", failed_calls=[result_pb2.FailedCall(error="\0")]
    )
    odd.error = "\0" * 3000
    nul = answer(1, "2\0", reasoning="\0why")
    await scorer.record(claims_of(spec), odd, nul)
    first, second = (await scorer.list(spec.run)).results
    assert first.error == "\ufffd" * 2000
    assert (first.finish_reason, first.failed_calls[0].error) == ("a\ufffdb", "\ufffd")
    assert (second.response, second.reasoning) == ("2\ufffd", "\ufffdwhy")


async def test_a_long_answer_is_scored_whole(
    scorer: Scorer, environment: Environment, buckets: conftest.ObjectStore
) -> None:
    spec = environment.spec()
    # The rule looks at all of it: what is kept in the row alone would be wrong, or right.
    wholes = {0: "0" + " " * 70_000, 1: "2" + " " * 70_000 + "x"}
    kept = {position: whole[: 64 * 1024] for position, whole in wholes.items()}
    results = []
    async with ObjectStore(object_settings(buckets, "runner")) as objects:
        for position, whole in wholes.items():
            data = orjson.dumps({"response": whole, "reasoning": ""})
            digest = hashlib.sha256(data).hexdigest()
            await objects.put(Bucket.PAYLOADS, f"responses/{digest}.json", data)
            payload = result_pb2.PayloadRef(digest=digest, size_bytes=len(data))
            results.append(answer(position, kept[position], payload=payload))
        wrong = orjson.dumps({"answer": "4"})
        digest = hashlib.sha256(wrong).hexdigest()
        await objects.put(Bucket.PAYLOADS, f"responses/{digest}.json", wrong)
    no_answer = answer(2, payload=result_pb2.PayloadRef(digest=digest, size_bytes=len(wrong)))
    async with scorer.stream(claims_of(spec)) as stream:
        refused = await stream.send(*results, no_answer, answer(3))
    assert [(r.position, r.reason) for r in refused] == [
        (2, "payload: expected a JSON object with a `response`")
    ]
    listed = {result.position: result for result in (await scorer.list(spec.run)).results}
    assert {position: result.scores[0].passed for position, result in listed.items()} == {
        0: True,
        1: False,
        3: True,
    }
    assert listed[0].response == kept[0]
    assert listed[0].payload.size_bytes == len(orjson.dumps({"response": wholes[0], "reasoning": ""}))
    assert not listed[3].HasField("payload")


# -------------------------------------------------------------------------------- resuming and sealing


async def test_a_new_stream_is_told_what_is_held(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec(trials=4)
    # Trials 256 and on: cases 64 to 127.
    claims = claims_of(spec, first=256)
    await scorer.record(
        claims, answer(64, trial=0), answer(64, trial=3), fault(65, trial=1), answer(127, trial=3)
    )
    # The neighbour's trials are not this shard's.
    await scorer.record(claims_of(spec, first=512), answer(128, trial=0))
    later = claims_of(spec, first=256, attempt=2)
    stream = Stream(scorer.records("runner"))
    assert await stream.open(scorer.sign(later)) == [0, 3, 255]
    stream.close()


async def test_positions_of_a_sample(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec(trials=2, cases=4)
    positions = [3, 700, 1023, 1024]
    claims = claims_of(spec, first=1, count=6, positions=positions)
    async with scorer.stream(claims) as stream:
        refused = await stream.send(
            answer(3, trial=0),
            answer(3, trial=1),
            answer(700),
            answer(4),
            answer(1024),
            answer(1024, trial=1),
        )
    assert [(r.position, r.trial) for r in refused] == [(3, 0), (4, 0), (1024, 1)]
    again = Stream(scorer.records("runner"))
    assert await again.open(scorer.sign(claims)) == [0, 1, 5]
    again.close()
    totals = await scorer.progress(spec.run)
    assert (totals.recorded, totals.passed) == (3, 3)


async def test_a_sealed_run_takes_nothing(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec()
    claims = claims_of(spec)
    async with scorer.stream(claims) as stream:
        await stream.send(answer(0))
        assert await scorer.seal(spec) == REPORTED
        # One that was open, a new one, and a loader.
        assert isinstance(await refusal(stream.send(answer(1))), LeaseLost)
    assert isinstance(await refusal(Stream(scorer.records("runner")).open(scorer.sign(claims))), LeaseLost)
    load = result_pb2.LoadShardRequest(lease=scorer.sign(claims))
    assert isinstance(await refusal(scorer.records("hub").LoadShard(load)), LeaseLost)
    assert (await scorer.progress(spec.run)).recorded == 1


async def test_work_of_an_epoch_that_has_passed_is_refused(
    scorer: Scorer, environment: Environment, scorer_dsn: str
) -> None:
    spec = environment.spec()
    async with scorer.stream(claims_of(spec, epoch=3)) as stream:
        await stream.send(answer(0))
    late = Stream(scorer.records("runner"))
    assert isinstance(await refusal(late.open(scorer.sign(claims_of(spec, epoch=2)))), LeaseLost)
    # A seal that was on its way when the run went on must not end it.
    error = await refusal(scorer.seal(spec, epoch=2))
    assert "goes on in an epoch after 2" in error.message
    assert await scorer.seal(spec, epoch=3) == REPORTED


async def test_a_run_that_is_cancelled_before_it_is_reported(
    scorer: Scorer, environment: Environment
) -> None:
    spec = environment.spec()
    await scorer.record(claims_of(spec), answer(0))
    assert await scorer.seal(spec, epoch=0) == REPORTED
    assert await scorer.seal(spec, epoch=1, state="STATE_CANCELLED") == REPORTED
    # The hub's late repetition of the first changes nothing.
    assert await scorer.seal(spec, epoch=0) == REPORTED
    report = await scorer.report(spec.run)
    assert (report.number, report.state) == (2, "cancelled")


async def test_two_hubs_seal_at_once(scorer: Scorer, environment: Environment, scorer_dsn: str) -> None:
    spec = environment.spec()
    await scorer.record(claims_of(spec), *(answer(position) for position in range(200)))

    async def until_reported() -> None:
        while await scorer.seal(spec) != REPORTED:
            await asyncio.sleep(0.01)

    await asyncio.gather(*(until_reported() for _ in range(6)))
    connection = await asyncpg.connect(scorer_dsn)
    try:
        rows = await connection.fetch("SELECT number FROM reports WHERE run_id = $1", spec.run)
    finally:
        await connection.close()
    assert [row["number"] for row in rows] == [1]


# ---------------------------------------------------------------------------------------------- loading


async def test_the_oracle_and_the_empty_answer_are_loaded(scorer: Scorer, environment: Environment) -> None:
    hub = scorer.records("hub")
    ends = {}
    for name in ("builtin/oracle", "builtin/empty"):
        spec = environment.spec(trials=2, cases=20, subject=subject(name))
        lease = scorer.sign(claims_of(spec))
        for _ in range(2):
            answered = await hub.LoadShard(result_pb2.LoadShardRequest(lease=lease))
            assert answered.loaded == 40
        totals = await scorer.progress(spec.run)
        ends[name] = (totals.recorded, totals.scored, totals.passed, totals.faults, totals.calls)
    assert ends == {"builtin/oracle": (40, 40, 40, 0, 0), "builtin/empty": (40, 40, 0, 0, 0)}


async def test_predictions_are_loaded_where_there_are_any(scorer: Scorer, environment: Environment) -> None:
    lines: list[dict[str, object]] = [
        {"case_id": "sum-0", "response": "0", "usage": {"input_tokens": 3, "output_tokens": 4, "more": 1}},
        {"case_id": "sum-1", "response": "2", "trial": 1, "latency_ms": 7},
        {"case_id": "sum-2", "response": " \n"},
        {"case_id": "sum-1050", "response": "x" * 70_000},
    ]
    stored = await upload(scorer, environment, lines)
    assert stored.rows == 4
    spec = environment.spec(trials=2, subject=run_pb2.Subject(predictions=stored))
    hub = scorer.records("hub")
    loaded = []
    for first in (0, 1024 * 2):
        lease = scorer.sign(claims_of(spec, first=first))
        loaded.append((await hub.LoadShard(result_pb2.LoadShardRequest(lease=lease))).loaded)
    assert loaded == [3, 1]
    plain, second, third, long = (await scorer.list(spec.run)).results
    assert (plain.position, plain.trial, plain.usage.output_tokens, plain.scores[0].passed) == (0, 0, 4, True)
    assert (second.position, second.trial, second.latency_ms) == (1, 1, 7)
    assert third.outcome == result_pb2.OUTCOME_EMPTY
    assert len(long.response) == 64 * 1024
    assert not plain.HasField("cost_picousd")


async def test_a_subject_that_has_to_be_asked_is_not_loaded(scorer: Scorer, environment: Environment) -> None:
    lease = scorer.sign(claims_of(environment.spec()))
    call = scorer.records("hub").LoadShard(result_pb2.LoadShardRequest(lease=lease))
    assert isinstance(await refusal(call), InvalidInput)


async def test_predictions_for_another_environment_are_not_loaded(
    scorer: Scorer, environment: Environment, other: Environment
) -> None:
    stored = await upload(scorer, environment, [{"case_id": "sum-0", "response": "0"}])
    spec = other.spec(cases=3, subject=run_pb2.Subject(predictions=stored))
    lease = scorer.sign(claims_of(spec))
    error = await refusal(scorer.records("hub").LoadShard(result_pb2.LoadShardRequest(lease=lease)))
    assert isinstance(error, InvalidInput)
    assert "were not uploaded for this version" in error.message


async def upload(
    scorer: Scorer, environment: Environment, lines: list[dict[str, object]]
) -> run_pb2.Predictions:
    """Upload a file of predictions."""
    data = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    header = result_pb2.PredictionsHeader(targets_digest=environment.data.targets_digest, label="mine.jsonl")

    async def messages() -> AsyncIterator[result_pb2.UploadPredictionsRequest]:
        yield result_pb2.UploadPredictionsRequest(header=header)
        for start in range(0, len(data), 10_000):
            yield result_pb2.UploadPredictionsRequest(chunk=data[start : start + 10_000])

    return await scorer.results.UploadPredictions(messages(), metadata=scorer.as_())


# --------------------------------------------------------------------------------------------- the wire


async def test_health_is_for_everybody(scorer: Scorer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{scorer.port}") as channel:
        call: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        # The only field of the answer is its status: SERVING is 1.
        assert await call(b"") == b"\x08\x01"
