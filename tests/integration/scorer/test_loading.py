"""Loading shards: patterns that are slow, calls that are broken off, and answers as they are stored."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import orjson
import pytest

from benchgen.errors import InvalidInput, Unavailable
from benchgen.eval.v1 import lease_pb2, result_pb2, run_pb2
from services.common.objects import Bucket, ObjectStore
from services.scorer import predictions
from tests import conftest
from tests.integration.scorer.support import (
    MANIFEST,
    Environment,
    Scorer,
    answer,
    case_rows,
    claims_of,
    materialise,
    object_settings,
    refusal,
    uploaded,
)

# The scorer, and its channels with it, live as long as the module.
pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOW_CASES = 200
SLOW_ANSWER = "a" * 60 + "b"
#: Takes ages on an answer like that.
SLOW_RULE = "  - {name: slow, type: regex, pattern: '((a|aa)+)$', match: fullmatch}\n"
TOO_SLOW = "rule_error: pattern took longer than 0.25 s"
GIVEN_UP = "rule_error: the pattern was too slow on earlier answers"


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory, buckets: conftest.ObjectStore) -> Environment:
    """An environment with a pattern that is slow on some answers."""
    made = materialise(tmp_path_factory.mktemp("slow"), case_rows(SLOW_CASES), MANIFEST + SLOW_RULE)
    return uploaded(made, buckets)


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory, buckets: conftest.ObjectStore) -> Environment:
    """An environment whose answers are what is stored of a NUL."""
    rows = [row | {"answer": "2\ufffd"} for row in case_rows(3)]
    return uploaded(materialise(tmp_path_factory.mktemp("odd"), rows), buckets)


async def predicted(scorer: Scorer, environment: Environment, *responses: str) -> run_pb2.RunSpec:
    """A run of recorded answers to the first cases."""
    header = result_pb2.PredictionsHeader(targets_digest=environment.data.targets_digest, label="mine")

    async def messages() -> AsyncIterator[result_pb2.UploadPredictionsRequest]:
        yield result_pb2.UploadPredictionsRequest(header=header)
        for number, response in enumerate(responses):
            line = orjson.dumps({"case_id": f"sum-{number}", "response": response}) + b"\n"
            yield result_pb2.UploadPredictionsRequest(chunk=line)

    stored = await scorer.results.UploadPredictions(messages(), metadata=scorer.as_())
    return environment.spec(cases=len(responses), subject=run_pb2.Subject(predictions=stored))


def lease_of(scorer: Scorer, spec: run_pb2.RunSpec) -> lease_pb2.SignedLease:
    return scorer.sign(claims_of(spec))


async def load(scorer: Scorer, spec: run_pb2.RunSpec) -> int:
    request = result_pb2.LoadShardRequest(lease=lease_of(scorer, spec))
    return (await scorer.records("hub").LoadShard(request)).loaded


async def errors_of(scorer: Scorer, spec: run_pb2.RunSpec) -> list[str]:
    """What the slow rule says, result by result."""
    page = await scorer.list(spec.run, page_size=1000)
    return [score.error for result in page.results for score in result.scores if score.rule == "slow"]


async def test_a_slow_pattern_is_given_up_after_three_answers(scorer: Scorer, slow: Environment) -> None:
    spec = await predicted(scorer, slow, *["aaa"] * 3, *[SLOW_ANSWER] * (SLOW_CASES - 3))
    assert await load(scorer, spec) == SLOW_CASES
    assert await errors_of(scorer, spec) == [*[""] * 3, *[TOO_SLOW] * 3, *[GIVEN_UP] * (SLOW_CASES - 6)]
    # The other rules judge all of it.
    assert (await scorer.progress(spec.run)).scored == SLOW_CASES


async def test_a_slow_pattern_is_given_up_on_what_runners_send(scorer: Scorer, slow: Environment) -> None:
    spec = slow.spec(cases=20)
    await scorer.record(claims_of(spec), *(answer(number, SLOW_ANSWER) for number in range(20)))
    assert await errors_of(scorer, spec) == [*[TOO_SLOW] * 3, *[GIVEN_UP] * 17]


async def test_a_load_that_is_broken_off_goes_on_where_it_was(scorer: Scorer, slow: Environment) -> None:
    spec = await predicted(scorer, slow, *[SLOW_ANSWER] * SLOW_CASES)
    loading = asyncio.create_task(load(scorer, spec))
    async with asyncio.timeout(30):
        while not (await scorer.progress(spec.run)).recorded:
            await asyncio.sleep(0.01)
    # Two more slow answers are before the rest.
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    await asyncio.sleep(0.5)
    stored = (await scorer.progress(spec.run)).recorded
    assert 0 < stored < SLOW_CASES
    # Nothing goes on behind the caller's back.
    await asyncio.sleep(0.5)
    assert (await scorer.progress(spec.run)).recorded == stored
    assert await load(scorer, spec) == SLOW_CASES
    assert (await scorer.progress(spec.run)).recorded == SLOW_CASES


async def test_an_answer_is_judged_as_it_is_stored(
    scorer: Scorer, odd: Environment, buckets: conftest.ObjectStore
) -> None:
    loaded = await predicted(scorer, odd, "2\0")
    await load(scorer, loaded)
    data = orjson.dumps({"response": "2\0", "reasoning": ""})
    digest = hashlib.sha256(data).hexdigest()
    async with ObjectStore(object_settings(buckets, "runner")) as objects:
        await objects.put(Bucket.PAYLOADS, f"responses/{digest}.json", data)
    sent = odd.spec(cases=2)
    payload = result_pb2.PayloadRef(digest=digest, size_bytes=len(data))
    await scorer.record(claims_of(sent), answer(0, "2\0"), answer(1, "2", payload=payload))
    for run in (loaded.run, sent.run):
        for result in (await scorer.list(run)).results:
            assert result.scores[0].passed, result


async def test_a_damaged_part_of_predictions_is_not_believed(
    scorer: Scorer, environment: Environment, buckets: conftest.ObjectStore
) -> None:
    spec, other = await predicted(scorer, environment, "0"), await predicted(scorer, environment, "wrong")
    keys = [
        f"{predictions.folder_of(spec.targets_digest, one.subject.predictions.digest)}0.jsonl"
        for one in (spec, other)
    ]
    async with ObjectStore(object_settings(buckets, "scorer")) as objects:
        whole, foreign = [await objects.get(Bucket.PREDICTIONS, key) for key in keys]
        assert len(foreign.splitlines()) == 2
        for damaged in (foreign, whole[:-1], whole.replace(b'"0"', b'"1"'), b""):
            await objects.put(Bucket.PREDICTIONS, keys[0], damaged)
            assert isinstance(await refusal(load(scorer, spec)), Unavailable)
        await objects.put(Bucket.PREDICTIONS, keys[0], whole)
    assert await load(scorer, spec) == 1


@pytest.mark.parametrize("digest", ["", "..", "A" * 64, "a" * 63, f"{'a' * 64}/..", f"{'a' * 64}\n"])
async def test_predictions_name_targets_by_digest(scorer: Scorer, digest: str) -> None:
    async def messages() -> AsyncIterator[result_pb2.UploadPredictionsRequest]:
        header = result_pb2.PredictionsHeader(targets_digest=digest)
        yield result_pb2.UploadPredictionsRequest(header=header)

    error = await refusal(scorer.results.UploadPredictions(messages(), metadata=scorer.as_()))
    assert isinstance(error, InvalidInput)
    assert "targets_digest" in error.message
