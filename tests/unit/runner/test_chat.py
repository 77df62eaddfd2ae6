"""The chat harness: what is asked, and what a reply becomes."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from benchgen.eval.v1 import environment_pb2, result_pb2
from services.common.models.retry import CallRecord, Conversation
from services.common.models.types import (
    UNKNOWN_USAGE,
    ChatRequest,
    Fault,
    FaultKind,
    Reply,
    Usage,
)
from services.runner.harness.chat import MAX_INLINE, ChatHarness, Payload, Trial

BEGAN_NS = 1_700_000_000_250_000_000
MESSAGES = ({"role": "user", "content": "2 + 2?"},)


class Answering:
    """A subject that gives one conversation and keeps what it was asked."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self.asked: list[ChatRequest] = []

    async def ask(self, trial: Trial, request: ChatRequest) -> Conversation:
        self.asked.append(request)
        return self._conversation


def trial(case_id: str = "case-1", number: int = 0) -> Trial:
    return Trial(7, number, case_id, MESSAGES, "ab" * 32)


def answered(**fields: Any) -> Conversation:
    told: dict[str, Any] = {"text": "4", "latency_ms": 20.0, "first_byte_ms": 5.0}
    reply = Reply(**told | fields)
    return Conversation(reply, (CallRecord(1, 200, None, reply.usage, 20.0, "q1"),), began_ns=BEGAN_NS)


async def run(
    conversation: Conversation, *, stop: list[str] | None = None
) -> tuple[result_pb2.TrialResult, Payload | None]:
    generation = environment_pb2.Generation(stop=stop or [])
    outcome = await ChatHarness(Answering(conversation), generation, 0).run(trial())
    assert not isinstance(outcome, Fault)
    return outcome


# ------------------------------------------------------------------------------------------- what is asked


async def params(generation: environment_pb2.Generation) -> dict[str, Any]:
    subject = Answering(answered())
    await ChatHarness(subject, generation, 1).run(trial())
    assert subject.asked[0].messages is MESSAGES
    return dict(subject.asked[0].params)


async def test_parameters_that_are_not_set_are_not_sent() -> None:
    assert set(await params(environment_pb2.Generation())) == {"seed"}


async def test_parameters_that_are_set_are_sent_also_when_they_are_nothing() -> None:
    sent = await params(
        environment_pb2.Generation(
            temperature=0,
            top_p=0.5,
            max_tokens=64,
            stop=["a", "b", "c", "d", "e"],
            extra_json='{"top_k": 5, "temperature": 2}',
        )
    )
    del sent["seed"]
    # The API takes four stop sequences.
    assert sent == {
        "temperature": 0,
        "top_p": 0.5,
        "max_tokens": 64,
        "stop": ["a", "b", "c", "d"],
        "top_k": 5,
    }


@pytest.mark.parametrize("seed", [99, None])
async def test_a_seed_that_the_environment_writes_down_is_meant(seed: int | None) -> None:
    extra = orjson.dumps({"seed": seed}).decode()
    assert await params(environment_pb2.Generation(extra_json=extra)) == {"seed": seed}


async def test_seeds_differ_by_trial_case_and_run_and_come_again() -> None:
    async def seed(run_seed: int, case_id: str, number: int) -> int:
        subject = Answering(answered())
        await ChatHarness(subject, environment_pb2.Generation(), run_seed).run(trial(case_id, number))
        return int(subject.asked[0].params["seed"])

    keys = [(run_seed, case, number) for run_seed in (0, 1) for case in ("a", "b") for number in range(20)]
    first = [await seed(*key) for key in keys]
    assert first == [await seed(*key) for key in keys]
    assert len(set(first)) == len(keys)
    assert all(0 <= each < 2**31 for each in first)


# -------------------------------------------------------------------------------------- what it becomes


async def test_a_reply() -> None:
    usage = Usage(input=10, output=5, cached=2, cache_write=1, reasoning=3)
    result, payload = await run(
        answered(usage=usage, reasoning="hm", finish_reason="stop", model="m-2", request_id="q1")
    )
    assert payload is None
    assert result == result_pb2.TrialResult(
        position=7,
        trial=0,
        case_id="case-1",
        outcome=result_pb2.OUTCOME_OK,
        response="4",
        reasoning="hm",
        finish_reason="stop",
        usage=result_pb2.Usage(input_tokens=10, output_tokens=5, cached_tokens=2, reasoning_tokens=3),
        latency_ms=20,
        first_byte_ms=5,
        calls=1,
        reported_model="m-2",
        input_digest="ab" * 32,
        start_time=Timestamp(seconds=1_700_000_000, nanos=250_000_000),
    )


async def test_tokens_that_were_not_reported_stay_unknown() -> None:
    result, _ = await run(answered())
    assert not result.usage.HasField("input_tokens")
    assert not result.usage.HasField("output_tokens")


@pytest.mark.parametrize(
    ("fields", "stop", "outcome", "response"),
    [
        ({"text": "4"}, [], "OK", "4"),
        ({"text": ""}, [], "EMPTY", ""),
        ({"text": " \n"}, [], "EMPTY", " \n"),
        ({"text": "4", "finish_reason": "length"}, [], "TRUNCATED", "4"),
        ({"text": "", "finish_reason": "length"}, [], "TRUNCATED", ""),
        ({"text": "", "refusal": "no"}, [], "REFUSED", "no"),
        ({"text": "4", "refusal": "no"}, [], "REFUSED", "4"),
        ({"text": "x", "finish_reason": "content_filter"}, [], "REFUSED", "x"),
        # What an endpoint says after a stop sequence that it did not obey does not count.
        ({"text": "4\n\nQ: 3?"}, ["\n\nQ:"], "OK", "4"),
        ({"text": "a B c A"}, ["A", "B"], "OK", "a "),
        ({"text": "\n\nQ: 3?"}, ["\n\nQ:"], "EMPTY", ""),
        ({"text": "4\n\nQ: 3?\n4\n\nQ: 3", "finish_reason": "length"}, ["\n\nQ:"], "OK", "4"),
        ({"text": "4\n\nQ: 3?", "finish_reason": "content_filter"}, ["\n\nQ:"], "REFUSED", "4"),
        ({"text": "4", "finish_reason": "length"}, ["\n\nQ:"], "TRUNCATED", "4"),
        # The fifth of them is not sent, but applied.
        ({"text": "4e5"}, ["a", "b", "c", "d", "e"], "OK", "4"),
    ],
)
async def test_outcomes(fields: dict[str, Any], stop: list[str], outcome: str, response: str) -> None:
    result, _ = await run(answered(**fields), stop=stop)
    assert result_pb2.Outcome.Name(result.outcome) == f"OUTCOME_{outcome}"
    assert result.response == response
    assert result.finish_reason == fields.get("finish_reason", "")


async def test_a_fault_that_may_pass_is_a_result() -> None:
    fault = Fault(FaultKind.SERVER_ERROR, "it broke", status=500, retryable=True, latency_ms=9.0)
    tries = (
        CallRecord(1, 429, FaultKind.RATE_LIMITED, UNKNOWN_USAGE, 3.0, None, "rate_limited: slow", 1.5, True),
        CallRecord(2, None, FaultKind.CONNECT, Usage(input=4, output=0), 4.0, None, "connect: no"),
        CallRecord(3, 500, FaultKind.SERVER_ERROR, UNKNOWN_USAGE, 9.0, None, "server_error: it broke"),
    )
    result, payload = await run(Conversation(fault, tries))
    assert payload is None
    assert (result.outcome, result.error, result.calls) == (
        result_pb2.OUTCOME_PROVIDER_ERROR,
        "server_error: it broke",
        3,
    )
    assert result.latency_ms == 9
    assert not result.HasField("usage")
    limited, refused = result.failed_calls
    assert limited == result_pb2.FailedCall(
        http_status=429, error="rate_limited: slow", latency_ms=3, wait_ms=1500, no_cost=True
    )
    # Nothing was reported, which is not the same as nothing.
    assert not limited.HasField("usage")
    assert (refused.http_status, refused.usage.input_tokens, refused.no_cost) == (0, 4, False)


@pytest.mark.parametrize("no_cost", [False, True])
async def test_a_fault_says_what_is_known_of_its_cost(no_cost: bool) -> None:
    fault = Fault(FaultKind.BAD_REPLY, "no choices", usage=Usage(9, 1), no_cost=no_cost)
    result, _ = await run(Conversation(fault, (CallRecord(1, 200, fault.kind, fault.usage, 1.0, None),)))
    assert (result.usage.input_tokens, result.usage.output_tokens) == (9, 1)
    assert result.no_cost is no_cost


async def test_an_answer_that_cannot_be_written_down_is_lost_and_its_calls_are_not() -> None:
    result, payload = await run(answered(text="\ud800", finish_reason="stop"))
    assert payload is None
    assert (result.outcome, result.calls, result.no_cost) == (result_pb2.OUTCOME_HARNESS_ERROR, 1, False)
    assert (result.position, result.case_id) == (7, "case-1")
    assert result.error


async def test_a_fault_for_good_is_no_result() -> None:
    fault = Fault(FaultKind.QUOTA, "no money", status=429, permanent_for_run=True)
    harness = ChatHarness(Answering(Conversation(fault, ())), environment_pb2.Generation(), 0)
    assert await harness.run(trial()) is fault


async def test_what_calls_cost_before_a_fault_for_good_is_kept() -> None:
    fault = Fault(FaultKind.QUOTA, "no money", status=402, permanent_for_run=True, no_cost=True)
    calls = (
        CallRecord(1, None, FaultKind.DISCONNECTED, UNKNOWN_USAGE, 3.0, None, "disconnected: gone"),
        CallRecord(2, 402, FaultKind.QUOTA, UNKNOWN_USAGE, 4.0, None, "quota: no money", no_cost=True),
    )
    result, _ = await run(Conversation(fault, calls))
    assert (result.outcome, result.calls) == (result_pb2.OUTCOME_PROVIDER_ERROR, 2)
    assert not result.failed_calls[0].no_cost
    harness = ChatHarness(Answering(Conversation(fault, calls[1:])), environment_pb2.Generation(), 0)
    assert await harness.run(trial()) is fault


async def test_a_subject_that_makes_no_call() -> None:
    result, _ = await run(Conversation(Reply("42"), ()))
    assert (result.response, result.calls, result.HasField("start_time")) == ("42", 0, False)


# -------------------------------------------------------------------------------------------- long ones


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [("x" * MAX_INLINE, ""), ("\u20ac" * (MAX_INLINE // 3), "y" * MAX_INLINE), ("", "")],
)
async def test_what_fits_is_sent_as_it_is(text: str, reasoning: str) -> None:
    result, payload = await run(answered(text=text, reasoning=reasoning))
    assert payload is None
    assert not result.HasField("payload")
    assert (result.response, result.reasoning) == (text, reasoning)


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("x" * (MAX_INLINE + 1), "why"),
        ("4", "\u20ac" * MAX_INLINE),
        # The cut falls within a character.
        ("x" + "\U0001f600" * MAX_INLINE, None),
    ],
)
async def test_what_does_not_fit_is_cut_and_kept_whole(text: str, reasoning: str | None) -> None:
    result, payload = await run(answered(text=text, reasoning=reasoning))
    assert payload is not None
    assert orjson.loads(payload.data) == {"response": text, "reasoning": reasoning or ""}
    assert payload.digest == hashlib.sha256(payload.data).hexdigest()
    assert (result.payload.digest, result.payload.size_bytes) == (payload.digest, len(payload.data))
    for kept, whole in ((result.response, text), (result.reasoning, reasoning or "")):
        assert whole.startswith(kept)
        assert len(kept.encode()) <= MAX_INLINE
        assert kept == whole or len(kept.encode()) > MAX_INLINE - 4
