"""Calls of programs: stored once, counted once, and the same answers for a trial that is run again."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import Any

import orjson
import pytest

from benchgen.errors import InvalidInput, LeaseLost, NotFound, PermissionDenied
from benchgen.eval.v1 import lease_pb2, result_pb2
from services.common.auth import Scope
from tests.integration.scorer.support import (
    Environment,
    Scorer,
    answer,
    claims_of,
    refusal,
    subject,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAM = result_pb2.ProgramRun(
    ended="exited", exit_code=0, wall_seconds=1.5, cpu_seconds=0.5, stdout="hello", batch=1
)


def call(
    text: str, said: str = "yes", position: int = 0, trial: int = 0, **fields: Any
) -> result_pb2.ModelCall:
    """One answered call; 10 tokens in and 5 out, which cost 20e6 picodollars."""
    fields.setdefault("usage", result_pb2.Usage(input_tokens=10, output_tokens=5))
    fields.setdefault("calls", 1)
    if "error" not in fields:
        fields["answer_json"] = orjson.dumps({"said": said}).decode()
    return result_pb2.ModelCall(
        position=position,
        trial=trial,
        call_id=secrets.token_hex(8),
        endpoint="chat.completions",
        request_digest=hashlib.sha256(text.encode()).hexdigest(),
        request_json=orjson.dumps({"asked": text}).decode(),
        **fields,
    )


async def record(
    scorer: Scorer, claims: lease_pb2.LeaseClaims, made: result_pb2.ModelCall
) -> result_pb2.RecordCallResponse:
    request = result_pb2.RecordCallRequest(lease=scorer.sign(claims), call=made)
    return await scorer.records("runner").RecordCall(request)


async def replayed(
    scorer: Scorer, claims: lease_pb2.LeaseClaims, position: int = 0, trial: int = 0
) -> list[result_pb2.ModelCall]:
    request = result_pb2.ReplayCallsRequest(lease=scorer.sign(claims), position=position, trial=trial)
    answers = scorer.records("runner").ReplayCalls(request)
    return [stored async for message in answers for stored in message.calls]


async def transcript(scorer: Scorer, run: str, *scopes: Scope, **fields: Any) -> result_pb2.ListCallsResponse:
    request = result_pb2.ListCallsRequest(run=run, case_id="sum-0", **fields)
    return await scorer.results.ListCalls(request, metadata=scorer.as_(*scopes))


async def test_a_call_is_stored_and_counted_once_however_often_it_is_sent(
    scorer: Scorer, environment: Environment
) -> None:
    claims = claims_of(environment.spec())
    failed = result_pb2.FailedCall(http_status=503, error="busy", usage=result_pb2.Usage(input_tokens=7))
    made = call("a", calls=2, failed_calls=[failed])
    numbers = [(await record(scorer, claims, made)).number for _ in range(3)]
    assert numbers == [1, 1, 1]
    totals = await scorer.progress(claims.run)
    assert (totals.calls, totals.input_tokens, totals.output_tokens) == (2, 17, 5)
    # What the failed try cost is not known: its output was not reported.
    assert (totals.cost_picousd, totals.calls_of_unknown_cost) == (20_000_000, 1)


async def test_the_same_request_twice_has_two_answers_in_order(
    scorer: Scorer, environment: Environment
) -> None:
    claims = claims_of(environment.spec())
    await record(scorer, claims, call("a", "first"))
    await record(scorer, claims, call("b", "other"))
    await record(scorer, claims, call("a", "second", occurrence=1))
    await record(scorer, claims, call("c", error="server_error: gone", usage=None))
    again = claims_of(claims.spec, attempt=2)
    assert [orjson.loads(stored.answer_json)["said"] for stored in await replayed(scorer, again)] == [
        "first",
        "other",
        "second",
    ]
    assert await replayed(scorer, again, position=1) == []


async def test_of_two_attempts_at_once_the_first_answer_stands_for_both(
    scorer: Scorer, environment: Environment
) -> None:
    spec = environment.spec()
    attempts = [claims_of(spec, attempt=number) for number in (1, 2, 3)]
    made = [call("a", f"attempt {claims.attempt}") for claims in attempts]
    answers = await asyncio.gather(*map(record, [scorer] * 3, attempts, made))
    said = {orjson.loads(a.answer_json or m.answer_json)["said"] for a, m in zip(answers, made, strict=True)}
    assert len(said) == 1
    assert sorted(a.number for a in answers) == [1, 2, 3]
    assert len(await replayed(scorer, attempts[0])) == 1
    # Sent again it is answered in the same way, and all three were paid for.
    again = await asyncio.gather(*map(record, [scorer] * 3, attempts, made))
    assert again == answers
    assert (await scorer.progress(spec.run)).calls == 3


async def test_what_a_trial_used_is_what_its_calls_used(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec(harness_json='{"type":"program"}')
    claims = claims_of(spec)
    for text in "ab":
        await record(scorer, claims, call(text))
    await record(scorer, claims, call("c", position=1, usage=None))
    made = answer(0, calls=77, usage=result_pb2.Usage(input_tokens=999), program=PROGRAM)
    await scorer.record(claims, made, answer(1, program=PROGRAM), answer(2, program=PROGRAM))
    listed = (await scorer.list(spec.run, page_size=3)).results
    assert [result.calls for result in listed] == [2, 1, 0]
    assert [result.usage.input_tokens for result in listed] == [20, 0, 0]
    assert listed[0].cost_picousd == 2 * 20_000_000
    assert not listed[1].HasField("cost_picousd")
    assert listed[0].program == PROGRAM
    totals = await scorer.progress(spec.run)
    assert (totals.recorded, totals.calls, totals.input_tokens, totals.calls_of_unknown_cost) == (3, 3, 20, 1)


async def test_calls_of_a_trial_without_a_result_are_in_the_report(
    scorer: Scorer, environment: Environment
) -> None:
    spec = environment.spec(cases=2)
    claims = claims_of(spec)
    await record(scorer, claims, call("a", usage=None))
    await scorer.record(claims, answer(1, program=PROGRAM))
    assert await scorer.seal(spec) == result_pb2.SealRunResponse.STATE_REPORTED
    report = await scorer.report(spec.run)
    assert report.calls == 1
    assert not report.HasField("cost_usd")
    late = call("b")
    assert isinstance(await refusal(record(scorer, claims, late)), LeaseLost)
    assert (await scorer.progress(spec.run)).calls == 1


async def test_a_transcript_page_by_page(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec()
    claims = claims_of(spec)
    # Long ones: a page ends early.
    for number in range(5):
        await record(scorer, claims, call(f"{number}" + "x" * 700_000))
    assert isinstance(await refusal(transcript(scorer, spec.run)), NotFound)
    await scorer.record(claims, answer(0, program=PROGRAM))
    numbers: list[int] = []
    page = await transcript(scorer, spec.run)
    pages = 1
    numbers += [made.number for made in page.calls]
    while page.next_page_token:
        page = await transcript(scorer, spec.run, page_token=page.next_page_token)
        numbers += [made.number for made in page.calls]
        pages += 1
    assert numbers == [1, 2, 3, 4, 5]
    assert pages > 1
    one = await transcript(scorer, spec.run, page_size=1)
    assert len(one.calls) == 1
    assert orjson.loads(one.calls[0].answer_json) == {"said": "yes"}
    assert one.calls[0].cost_picousd == 20_000_000
    assert (await transcript(scorer, spec.run, trial=3)).calls == []


async def test_what_a_simulated_model_said_needs_the_scope(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec(
        subject=subject("builtin/simulated"), simulated=True, harness_json='{"type":"program"}'
    )
    claims = claims_of(spec)
    await record(scorer, claims, call("a"))
    await scorer.record(claims, answer(0, program=PROGRAM))
    hidden = (await transcript(scorer, spec.run, Scope.READ)).calls[0]
    assert (hidden.request_json, hidden.answer_json) == ("", "")
    assert (await transcript(scorer, spec.run)).calls[0].answer_json
    assert (await scorer.list(spec.run, Scope.READ)).results[0].program.stdout == ""
    assert (await scorer.list(spec.run)).results[0].program.stdout == "hello"


async def test_calls_that_make_no_sense(scorer: Scorer, environment: Environment) -> None:
    claims = claims_of(environment.spec(), count=1)
    wrong = [
        (call("a", position=1), "not of this shard"),
        (call("a", error="it broke", answer_json="{}"), "both or neither"),
        (call("a", calls=20_000), "calls: at most"),
    ]
    for made, reason in wrong:
        error = await refusal(record(scorer, claims, made))
        assert isinstance(error, InvalidInput)
        assert reason in error.message
    unsigned = result_pb2.RecordCallRequest(lease=lease_pb2.SignedLease(claims=b"", signature=b"x"))
    assert isinstance(await refusal(scorer.records("runner").RecordCall(unsigned)), PermissionDenied)
    assert isinstance(
        await refusal(
            scorer.records("hub").RecordCall(
                result_pb2.RecordCallRequest(lease=scorer.sign(claims), call=call("a"))
            )
        ),
        PermissionDenied,
    )


async def test_nothing_of_a_removed_run_is_left(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec()
    claims = claims_of(spec)
    await record(scorer, claims, call("a"))
    await scorer.record(claims, answer(0, program=PROGRAM))
    request = result_pb2.DeleteResultsRequest(run=spec.run)
    while not (await scorer.records("hub").DeleteResults(request)).done:
        pass
    assert isinstance(await refusal(record(scorer, claims, call("b"))), LeaseLost)
    assert isinstance(await refusal(transcript(scorer, spec.run)), NotFound)


async def test_what_calls_count_for_against_budgets_is_known_by_lease(
    scorer: Scorer, environment: Environment
) -> None:
    spec = environment.spec(harness_json='{"type":"program"}')
    claims = [claims_of(spec, attempt=attempt) for attempt in (1, 2)]
    made = call("a", charge=result_pb2.Charge(picousd=70, tokens=7))
    for _ in range(2):
        await record(scorer, claims[0], made)
    await record(scorer, claims[0], call("b", charge=result_pb2.Charge(picousd=30, tokens=3)))
    await record(scorer, claims[1], call("c", charge=result_pb2.Charge(picousd=5, tokens=1)))
    await scorer.record(claims[1], answer(0, program=PROGRAM))
    request = result_pb2.GetChargesRequest(
        run=spec.run, leases=[result_pb2.LeaseName(shard=one.shard, attempt=one.attempt) for one in claims]
    )
    charges = (await scorer.records("hub").GetCharges(request)).charges
    assert [(charge.picousd, charge.tokens) for charge in charges] == [(100, 10), (5, 1)]
