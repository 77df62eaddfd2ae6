"""A run that goes on after its seal, and one that is removed: what becomes of its rows and objects."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import orjson
import pytest
import pytest_asyncio

from benchgen.errors import FailedPrecondition, LeaseLost, NotFound
from benchgen.eval.v1 import result_pb2, run_pb2
from services.common.clock import SharedClock
from services.common.objects import Bucket, ObjectStore
from services.scorer.removal import Remover
from tests import conftest
from tests.integration.scorer.support import (
    Environment,
    Scorer,
    answer,
    claims_of,
    fault,
    object_settings,
    refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

REPORTED = result_pb2.SealRunResponse.STATE_REPORTED
_TABLES = ("results", "attempts", "scores", "scorings", "reports", "run_progress", "charges")


@pytest_asyncio.fixture(loop_scope="module")
async def connection(scorer: Scorer, scorer_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    made = await asyncpg.connect(scorer_dsn)
    try:
        yield made
    finally:
        await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def objects(buckets: conftest.ObjectStore) -> AsyncIterator[ObjectStore]:
    async with ObjectStore(object_settings(buckets, "scorer")) as store:
        yield store


async def missing(
    scorer: Scorer, spec: run_pb2.RunSpec, *ranges: tuple[int, int, int, int, int]
) -> list[int]:
    request = result_pb2.FindMissingRequest(
        run=spec.run,
        ranges=[
            result_pb2.TrialRange(first_position=a, first_trial=b, last_position=c, last_trial=d, count=n)
            for a, b, c, d, n in ranges
        ],
    )
    return list((await scorer.records("hub").FindMissing(request)).incomplete)


async def remove(scorer: Scorer, run: str, ended_at: datetime | None = None) -> None:
    request = result_pb2.DeleteResultsRequest(run=run)
    request.end_time.FromDatetime(ended_at or datetime.now(UTC) + timedelta(seconds=2))
    while not (await scorer.records("hub").DeleteResults(request)).done:
        pass


# Resuming


async def test_a_resumed_run_is_reported_again_over_all_results(
    scorer: Scorer, environment: Environment
) -> None:
    spec = environment.spec(cases=10)
    first = claims_of(spec, epoch=1)
    await scorer.record(first, *(answer(n) for n in range(8)), fault(8), fault(9))
    assert await missing(scorer, spec, (0, 0, 4, 0, 5), (5, 0, 9, 0, 5)) == [1]
    assert await scorer.seal(spec, epoch=1) == REPORTED
    before = await scorer.report(spec.run)
    assert (before.number, before.coverage.scored, before.outcomes["provider_error"]) == (1, 8, 2)
    # The next lease says that the run goes on: nothing else has to.
    again = claims_of(spec, epoch=2, attempt=2)
    async with scorer.stream(again) as stream:
        assert await stream.send(answer(8), fault(9)) == []
    await refused_of_epoch(scorer, spec, 1)
    assert isinstance(await refusal(scorer.seal(spec, epoch=1)), FailedPrecondition)
    assert await scorer.seal(spec, epoch=2) == REPORTED
    after = await scorer.report(spec.run)
    assert (after.number, after.coverage.scored, after.coverage.recorded) == (2, 9, 10)
    assert dict(after.outcomes) == {"ok": 9, "provider_error": 1}
    # Everything that was ever paid for is in the bill: 10 calls and 2.
    assert after.calls == 12
    assert (after.tokens.input, after.tokens.output) == (90, 45)
    progress = await scorer.progress(spec.run)
    assert (progress.recorded, progress.faults, progress.calls) == (10, 1, 12)
    assert await missing(scorer, spec, (0, 0, 4, 0, 5), (5, 0, 9, 0, 5)) == [1]


async def refused_of_epoch(scorer: Scorer, spec: run_pb2.RunSpec, epoch: int) -> None:
    async def open_stream() -> None:
        async with scorer.stream(claims_of(spec, epoch=epoch)):
            pass

    assert isinstance(await refusal(open_stream()), LeaseLost)


async def test_a_lease_of_the_sealed_epoch_does_not_open_it_again(
    scorer: Scorer, environment: Environment
) -> None:
    spec = environment.spec(cases=3)
    await scorer.record(claims_of(spec, epoch=3), answer(0))
    await scorer.seal(spec, epoch=3)
    for epoch in (2, 3):
        await refused_of_epoch(scorer, spec, epoch)
    async with scorer.stream(claims_of(spec, epoch=4)) as stream:
        assert await stream.send(answer(1)) == []


async def test_what_is_missing_of_samples_and_repeats(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec(cases=4, trials=3)
    chosen = [3, 40, 41, 900]
    claims = claims_of(spec, positions=chosen)
    done = [answer(position, trial=trial) for position in chosen for trial in range(3)]
    ranges = [(3, 0, 40, 1, 5), (40, 2, 41, 2, 4), (900, 0, 900, 2, 3)]
    assert await missing(scorer, spec, *ranges) == [0, 1, 2]
    await scorer.record(claims, *done[:5], *done[6:11], fault(900, 2))
    assert await missing(scorer, spec, *ranges) == [1, 2]
    await scorer.record(claims_of(spec, positions=chosen, attempt=2), done[5], done[11])
    assert await missing(scorer, spec, *ranges) == []


# Removing


def long_answer(position: int, text: str) -> tuple[result_pb2.TrialResult, str, bytes]:
    data = orjson.dumps({"response": text, "reasoning": ""})
    digest = hashlib.sha256(data).hexdigest()
    payload = result_pb2.PayloadRef(digest=digest, size_bytes=len(data))
    return answer(position, text[:10], payload=payload), f"responses/{digest}.json", data


async def test_nothing_is_left_of_a_removed_run(
    scorer: Scorer, environment: Environment, connection: asyncpg.Connection, objects: ObjectStore
) -> None:
    spec, other = environment.spec(cases=600), environment.spec(cases=600)
    own, own_key, own_data = long_answer(1, f"only of {spec.run}")
    shared, shared_key, shared_data = long_answer(2, f"of both, {spec.run}")
    newer, newer_key, newer_data = long_answer(3, f"written again, {spec.run}")
    for key, data in ((own_key, own_data), (shared_key, shared_data)):
        await objects.put(Bucket.PAYLOADS, key, data)
    await objects.put(Bucket.PAYLOADS, newer_key, newer_data)
    await scorer.record(claims_of(spec), own, shared, newer, fault(4))
    await scorer.record(claims_of(spec, attempt=2), fault(4))
    await scorer.record(claims_of(spec, first=256, count=256), *(answer(n) for n in range(256, 512)))
    await scorer.record(claims_of(other), shared)
    await scorer.seal(spec)
    for _ in range(2):
        await remove(scorer, spec.run, datetime.now(UTC) - timedelta(hours=1))
    # What was written after the run had ended is somebody else's.
    assert await objects.exists(Bucket.PAYLOADS, newer_key)
    for table in _TABLES:
        assert await connection.fetchval(f"SELECT count(*) FROM {table} WHERE run_id = $1", spec.run) == 0
    for call in (scorer.report(spec.run), scorer.list(spec.run)):
        assert isinstance(await refusal(call), NotFound)
    assert len((await scorer.list(other.run)).results) == 1
    # A runner that had slept brings nothing back.
    await refused_of_epoch(scorer, spec, 5)
    assert await connection.fetchval("SELECT count(*) FROM run_progress WHERE run_id = $1", spec.run) == 0


async def test_the_objects_of_a_removed_run_go_with_the_last_that_names_them(
    scorer: Scorer, environment: Environment, objects: ObjectStore
) -> None:
    spec, other = environment.spec(cases=10), environment.spec(cases=10)
    own, own_key, own_data = long_answer(1, f"only of {spec.run}")
    shared, shared_key, shared_data = long_answer(2, f"of both, {spec.run}")
    for key, data in ((own_key, own_data), (shared_key, shared_data)):
        await objects.put(Bucket.PAYLOADS, key, data)
    await scorer.record(claims_of(spec), own, shared)
    await scorer.record(claims_of(other), shared)
    await remove(scorer, spec.run)
    assert not await objects.exists(Bucket.PAYLOADS, own_key)
    assert await objects.exists(Bucket.PAYLOADS, shared_key)
    await remove(scorer, other.run)
    assert not await objects.exists(Bucket.PAYLOADS, shared_key)


async def test_results_on_their_way_into_a_removed_run_are_refused(
    scorer: Scorer, environment: Environment, connection: asyncpg.Connection
) -> None:
    spec = environment.spec(cases=10)
    async with scorer.stream(claims_of(spec)) as stream:
        assert await stream.send(answer(0)) == []
        await remove(scorer, spec.run)
        assert isinstance(await refusal(stream.send(answer(1))), LeaseLost)
    assert await connection.fetchval("SELECT count(*) FROM results WHERE run_id = $1", spec.run) == 0


async def test_a_run_that_nothing_was_recorded_of_can_be_removed(
    scorer: Scorer, environment: Environment
) -> None:
    spec = environment.spec(cases=10)
    await remove(scorer, spec.run)
    await refused_of_epoch(scorer, spec, 1)


# Sweeping


async def test_answers_that_no_result_names_are_swept_when_they_are_old(
    scorer: Scorer, environment: Environment, scorer_dsn: str, objects: ObjectStore
) -> None:
    spec = environment.spec(cases=10)
    named, named_key, named_data = long_answer(1, f"named, {spec.run}")
    _, orphan_key, orphan_data = long_answer(2, f"not named, {spec.run}")
    await objects.put(Bucket.PAYLOADS, named_key, named_data)
    await objects.put(Bucket.PAYLOADS, orphan_key, orphan_data)
    await scorer.record(claims_of(spec), named)
    async with asyncpg.create_pool(scorer_dsn, min_size=1, max_size=2) as pool:
        remover = Remover(pool, objects, SharedClock(pool))
        await remover.sweep(timedelta(hours=1))
        assert await objects.exists(Bucket.PAYLOADS, orphan_key)
        await remover.sweep(timedelta(seconds=-2))
        assert not await objects.exists(Bucket.PAYLOADS, orphan_key)
        assert await objects.exists(Bucket.PAYLOADS, named_key)


async def test_recorded_answers_are_listed_and_removed(scorer: Scorer, objects: ObjectStore) -> None:
    targets, digests = "7" * 64, ["8" * 64, "9" * 64]
    for digest in digests:
        for first in range(3):
            await objects.put(Bucket.PREDICTIONS, f"{targets}/{digest}/{first}.jsonl", b"{}")
    now, later = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(seconds=2)

    async def listed(before: datetime) -> set[str]:
        request = result_pb2.ListPredictionsRequest()
        request.written_before.FromDatetime(before)
        page = await scorer.records("hub").ListPredictions(request)
        return {stored.digest for stored in page.predictions if stored.targets_digest == targets}

    async def delete(digest: str, before: datetime) -> None:
        stored = result_pb2.StoredPredictions(targets_digest=targets, digest=digest)
        request = result_pb2.DeletePredictionsRequest(predictions=stored)
        request.written_before.FromDatetime(before)
        await scorer.records("hub").DeletePredictions(request)

    assert await listed(now) == set()
    assert await listed(later) == set(digests)
    await delete(digests[0], now)
    assert await listed(later) == set(digests)
    await delete(digests[0], later)
    assert await listed(later) == {digests[1]}
    await delete(digests[1], later)
