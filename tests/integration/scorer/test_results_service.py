"""ResultService: pages of results, who may see answers, and uploads of recorded ones."""

from __future__ import annotations

import gzip
import io
import time
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import grpc
import orjson
import pytest
import pytest_asyncio

from benchgen.errors import FailedPrecondition, InvalidInput, NotFound, PermissionDenied, Unauthenticated
from benchgen.eval.v1 import result_pb2, run_pb2
from benchgen.statuses import error_of
from services.common.auth import Principal, Scope, seal_principal
from services.common.paging import next_token
from services.common.signing import Signer
from services.scorer import predictions
from tests.integration.scorer.support import (
    Environment,
    Scorer,
    answer,
    claims_of,
    fault,
    new_seed,
    refusal,
)

# One loop and one scorer for all tests of the module: starting each takes longer than most tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")

Filter = result_pb2.ListResultsRequest


@pytest_asyncio.fixture(loop_scope="module")
async def run(scorer: Scorer, environment: Environment) -> str:
    """Two trials of 30 cases. Of case n the first is right unless n is even; every fifth's second is a fault."""
    spec = environment.spec(trials=2, cases=30)
    await scorer.record(
        claims_of(spec),
        *(answer(n, None if n % 2 else "wrong") for n in range(30)),
        *(fault(n, 1) if n % 5 == 0 else answer(n, trial=1) for n in range(30)),
    )
    return spec.run


async def all_pages(scorer: Scorer, run: str, **fields: Any) -> list[tuple[int, int]]:
    """Every result there is, page by page."""
    found: list[tuple[int, int]] = []
    token = ""
    while True:
        page = await scorer.list(run, page_token=token, **fields)
        found += [(result.position, result.trial) for result in page.results]
        token = page.next_page_token
        if not token:
            return found


async def test_pages_hold_every_result_once_and_in_order(scorer: Scorer, run: str) -> None:
    whole = [(position, trial) for position in range(30) for trial in range(2)]
    for size in (1, 7, 60, 61, 1000):
        assert await all_pages(scorer, run, page_size=size) == whole
    assert len((await scorer.list(run)).results) == 50


@pytest.mark.parametrize("size", [1, 4, 100])
async def test_filters(scorer: Scorer, run: str, size: int) -> None:
    failed = await all_pages(scorer, run, page_size=size, filter=Filter.FILTER_FAILED)
    passed = await all_pages(scorer, run, page_size=size, filter=Filter.FILTER_PASSED)
    unscored = await all_pages(scorer, run, page_size=size, filter=Filter.FILTER_UNSCORED)
    assert failed == [(n, 0) for n in range(0, 30, 2)]
    assert unscored == [(n, 1) for n in range(0, 30, 5)]
    assert sorted([*failed, *passed, *unscored]) == [(n, trial) for n in range(30) for trial in range(2)]
    assert passed == sorted(passed)


async def test_one_case(scorer: Scorer, run: str) -> None:
    page = await scorer.list(run, case_id="sum-7")
    assert [(result.case_id, result.trial) for result in page.results] == [("sum-7", 0), ("sum-7", 1)]
    assert not (await scorer.list(run, case_id="sum-700")).results
    error = await refusal(scorer.list(run, case_id="sum-7", filter=Filter.FILTER_FAILED))
    assert isinstance(error, InvalidInput)


async def test_a_result_says_what_was_asked_answered_and_judged(
    scorer: Scorer, environment: Environment
) -> None:
    spec = environment.spec(cases=10)
    tried = result_pb2.FailedCall(
        http_status=500, error="it broke", latency_ms=3, wait_ms=4, usage=result_pb2.Usage(input_tokens=6)
    )
    told = answer(
        9,
        "17",
        calls=2,
        failed_calls=[tried],
        reasoning="hm",
        finish_reason="stop",
        reported_model="m-2",
        usage=result_pb2.Usage(input_tokens=10, output_tokens=5, reasoning_tokens=2),
        input_digest="ab" * 32,
    )
    await scorer.record(claims_of(spec, attempt=3), told, fault(8, calls=1))
    broken, result = (await scorer.list(spec.run)).results
    assert (result.run, result.position, result.case_id, result.attempt) == (spec.run, 9, "sum-9", 3)
    assert [(turn.role, turn.content) for turn in result.input] == [("user", "9 + 9 = ?")]
    assert (result.response, result.reasoning, result.finish_reason) == ("17", "hm", "stop")
    assert (result.target_json, result.reported_model) == ('"18"', "m-2")
    assert (result.usage.input_tokens, result.usage.reasoning_tokens) == (10, 2)
    assert not result.usage.HasField("cached_tokens")
    # 10 tokens at 1 USD a million, 5 at 2; the failed call's cost is unknown, since it says nothing of its reply.
    assert not result.HasField("cost_picousd")
    assert result.failed_calls[0] == tried
    correct, near = result.scores
    assert (correct.rule, correct.value, correct.passed, correct.answer) == ("correct", 0.0, False, "17")
    assert correct.explanation
    assert near.rule == "near"
    assert not near.HasField("value")
    assert not near.HasField("passed")
    assert near.error.startswith("rule_error")
    assert broken.outcome == result_pb2.OUTCOME_PROVIDER_ERROR
    assert broken.error == "server_error: it broke"
    assert not broken.scores
    assert not broken.HasField("usage")
    assert abs(broken.record_time.ToDatetime().timestamp() - time.time()) < 24 * 3600


async def test_answers_are_for_those_who_may_see_them(scorer: Scorer, run: str) -> None:
    seen = await scorer.list(run, Scope.READ, Scope.ANSWERS)
    unseen = await scorer.list(run, Scope.READ)
    assert all(result.target_json for result in seen.results)
    assert not any(result.target_json for result in unseen.results)
    assert isinstance(await refusal(scorer.list(run, Scope.ANSWERS)), PermissionDenied)
    report = result_pb2.GetReportRequest(run=run)
    assert isinstance(
        await refusal(scorer.results.GetReport(report, metadata=scorer.as_(Scope.RUN))), PermissionDenied
    )
    assert isinstance(await refusal(scorer.results.GetReport(report)), Unauthenticated)
    forged = seal_principal(Principal("key-1", frozenset(Scope)), Signer(new_seed()))
    call = scorer.results.GetReport(report, metadata=(("benchgen-principal-bin", forged),))
    assert isinstance(await refusal(call), PermissionDenied)


@pytest.mark.parametrize(
    "fields",
    [
        {"page_size": 1001},
        {"page_size": -1},
        {"page_token": "what?"},
        {"page_token": next_token([1])},
        {"page_token": next_token(["0", 0])},
        {"page_token": next_token([0, None])},
        {"page_token": next_token([True, 0])},
        {"page_token": next_token([2**40, 0])},
        {"filter": 99},
    ],
)
async def test_a_page_that_cannot_be_had(scorer: Scorer, run: str, fields: dict[str, Any]) -> None:
    assert isinstance(await refusal(scorer.list(run, **fields)), InvalidInput)


async def test_a_page_of_long_answers_is_a_short_page(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec(cases=140)
    # Of three bytes a character: as many as a row holds, and 17 MiB in all, more than a message may have.
    long = "\u2713" * 21_000
    for start in range(0, 140, 7):
        await scorer.record(
            claims_of(spec), *(answer(n, long, reasoning=long) for n in range(start, start + 7))
        )
    for which in (Filter.FILTER_UNSPECIFIED, Filter.FILTER_FAILED):
        first = await scorer.list(spec.run, page_size=1000, filter=which)
        assert 10 < len(first.results) < 140
        assert first.ByteSize() <= 9 * 1024 * 1024
    assert await all_pages(scorer, spec.run, page_size=1000) == [(n, 0) for n in range(140)]


async def test_runs_and_reports_that_are_not_there(
    scorer: Scorer, environment: Environment, run: str
) -> None:
    assert isinstance(await refusal(scorer.list("r-nobody-knows")), NotFound)
    assert isinstance(await refusal(scorer.report("r-nobody-knows")), NotFound)
    error = await refusal(scorer.report(run))
    assert isinstance(error, FailedPrecondition)
    assert "has not ended" in error.message
    spec = environment.spec(run, trials=2, cases=30)
    await scorer.seal(spec)
    assert (await scorer.report(run)).number == 1


# --------------------------------------------------------------------------------------- predictions


async def uploading(
    scorer: Scorer, environment: Environment, data: bytes, *scopes: Scope
) -> run_pb2.Predictions:
    header = result_pb2.PredictionsHeader(targets_digest=environment.data.targets_digest)

    async def messages() -> AsyncIterator[result_pb2.UploadPredictionsRequest]:
        yield result_pb2.UploadPredictionsRequest(header=header)
        for start in range(0, len(data) or 1, 1 << 20):
            yield result_pb2.UploadPredictionsRequest(chunk=data[start : start + (1 << 20)])

    return await scorer.results.UploadPredictions(messages(), metadata=scorer.as_(*scopes))


async def test_everything_that_is_wrong_with_predictions_is_said_at_once(
    scorer: Scorer, environment: Environment
) -> None:
    lines: list[bytes] = [
        orjson.dumps({"case_id": "sum-1", "response": "2"}),
        b'{"case_id": "sum-2"',
        b"",
        orjson.dumps({"case_id": "sum-3"}),
        orjson.dumps({"case_id": "nobody", "response": ""}),
        orjson.dumps({"case_id": "sum-1", "response": "again"}),
        orjson.dumps({"case_id": "sum-1", "response": "3", "trial": 1}),
        orjson.dumps({"case_id": "sum-4", "response": "8", "trial": 1000}),
        orjson.dumps({"case_id": "sum-5", "response": 10}),
        orjson.dumps({"case_id": "sum-6", "response": "12", "latency": 3}),
        orjson.dumps({"case_id": "sum-7", "response": "", "usage": {"input_tokens": -1}}),
        orjson.dumps({"case_id": "sum-8", "response": "", "latency_ms": -1}),
        orjson.dumps(["sum-9", "18"]),
        b'{"case_id": "sum-9", "response": "\\ud800"}',
        b"\xff\xfe",
        orjson.dumps({"case_id": "sum-1", "response": "and again"}),
    ]
    error = await refusal(uploading(scorer, environment, b"\r\n".join(lines)))
    assert isinstance(error, InvalidInput)
    said = error.message.splitlines()[1:]
    assert [int(line.split()[1].rstrip(":")) for line in said] == [
        2,
        4,
        5,
        6,
        8,
        9,
        10,
        11,
        12,
        13,
        14,
        15,
        16,
    ]
    about = {int(line.split()[1].rstrip(":")): line for line in said}
    assert "response: Field required" in about[4]
    assert "no case 'nobody'" in about[5]
    assert "case 'sum-1', trial 0: answered in line 1 already" in about[6]
    assert "trial" in about[8]
    assert "latency:" in about[10]
    assert "usage.input_tokens" in about[11]
    assert "answered in line 6 already" in about[16]


async def test_a_file_of_nothing_but_problems_is_cut_short(scorer: Scorer, environment: Environment) -> None:
    error = await refusal(uploading(scorer, environment, b"no\n" * 1000))
    assert len(error.message.splitlines()) == 22
    assert error.message.endswith("and maybe more")
    again = b'{"case_id": "sum-1", "response": ""}\n' * 100
    error = await refusal(uploading(scorer, environment, again))
    assert len(error.message.splitlines()) == 22


@pytest.mark.parametrize("data", [b"", b"\n \n"])
async def test_an_empty_file(scorer: Scorer, environment: Environment, data: bytes) -> None:
    error = await refusal(uploading(scorer, environment, data))
    assert "the file is empty" in error.message


async def test_a_packed_file_is_named_as_such(scorer: Scorer, environment: Environment) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("answers.jsonl", b'{"case_id": "sum-1", "response": "2"}\n')
    for data in (packed.getvalue(), gzip.compress(b"{}")):
        error = await refusal(uploading(scorer, environment, data))
        assert error.message.startswith("these predictions are packed: expected JSON lines")


async def test_who_may_upload_and_for_what(scorer: Scorer, environment: Environment) -> None:
    line = b'{"case_id": "sum-1", "response": "2"}'
    assert isinstance(await refusal(uploading(scorer, environment, line, Scope.READ)), PermissionDenied)
    first = await uploading(scorer, environment, line, Scope.RUN)
    assert await uploading(scorer, environment, line, Scope.RUN) == first

    async def headless() -> AsyncIterator[result_pb2.UploadPredictionsRequest]:
        yield result_pb2.UploadPredictionsRequest(chunk=line)

    async def homeless() -> AsyncIterator[result_pb2.UploadPredictionsRequest]:
        header = result_pb2.PredictionsHeader(targets_digest="0" * 64)
        yield result_pb2.UploadPredictionsRequest(header=header)

    for messages, kind in ((headless, InvalidInput), (homeless, NotFound)):
        with pytest.raises(grpc.RpcError) as caught:
            await scorer.results.UploadPredictions(messages(), metadata=scorer.as_())
        assert isinstance(error_of(caught.value), kind)


async def test_a_line_that_is_too_long(scorer: Scorer, environment: Environment) -> None:
    long = orjson.dumps({"case_id": "sum-1", "response": "x" * predictions.MAX_LINE})
    lines = b"\n".join([b'{"case_id": "sum-0", "response": ""}', long, b'{"case_id": "sum-2"}'])
    error = await refusal(uploading(scorer, environment, lines))
    assert [line.strip() for line in error.message.splitlines()[1:]] == [
        f"line 2: expected at most {predictions.MAX_LINE} bytes",
        "line 3: response: Field required",
    ]
