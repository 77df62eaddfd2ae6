"""Results as they come from a runner, checked and converted."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.errors import InvalidInput
from benchgen.eval.v1 import lease_pb2, model_pb2, result_pb2, run_pb2
from services.scorer.domain import Outcome, Totals
from services.scorer.intake import MAX_RESPONSE, Intake

Usage = result_pb2.Usage


def claims(
    positions: list[int],
    *,
    first: int = 0,
    count: int = 1,
    trials: int = 1,
    price: dict[str, str] | None = None,
) -> lease_pb2.LeaseClaims:
    model = model_pb2.Model(name="m", price=model_pb2.Price(**(price or {})))
    spec = run_pb2.RunSpec(trials=trials, subject=run_pb2.Subject(model=model))
    return lease_pb2.LeaseClaims(attempt=3, first=first, count=count, positions=positions, spec=spec)


def result(**fields: Any) -> result_pb2.TrialResult:
    fields.setdefault("outcome", result_pb2.OUTCOME_OK)
    return result_pb2.TrialResult(position=5, case_id="case-5", **fields)


@pytest.fixture
def intake() -> Intake:
    return Intake(claims([5], price={"input_usd_per_mtok": "1.5", "output_usd_per_mtok": "2"}))


# ----------------------------------------------------------------------------------------------- offsets


def test_offsets_of_a_shard_that_begins_and_ends_within_a_case() -> None:
    # Trials 4 to 11 of three each: from the second of slot 1 to the last of slot 3, of cases that were drawn.
    intake = Intake(claims([20, 70, 71], first=4, count=8, trials=3))
    offsets = {
        (position, trial): intake.offset(position, trial)
        for position in (7, 20, 70, 71, 72)
        for trial in range(4)
    }
    held = {key: offset for key, offset in offsets.items() if offset is not None}
    assert held == {
        (20, 1): 0,
        (20, 2): 1,
        (70, 0): 2,
        (70, 1): 3,
        (70, 2): 4,
        (71, 0): 5,
        (71, 1): 6,
        (71, 2): 7,
    }


@given(
    st.integers(min_value=0, max_value=5000),
    st.integers(min_value=1, max_value=256),
    st.integers(min_value=1, max_value=1000),
    st.randoms(use_true_random=False),
)
def test_every_trial_of_a_shard_has_an_offset_of_its_own(
    first: int, count: int, trials: int, random: Any
) -> None:
    slots = (first + count - 1) // trials - first // trials + 1
    positions = sorted(random.sample(range(10_000), slots))
    intake = Intake(claims(positions, first=first, count=count, trials=trials))
    offsets = [
        offset
        for position in positions
        for trial in range(trials)
        if (offset := intake.offset(position, trial)) is not None
    ]
    assert offsets == list(range(count))


# ------------------------------------------------------------------------------------------------ fields


def test_a_full_result(intake: Intake) -> None:
    record = intake.record(
        result(
            response="4",
            reasoning="hm",
            finish_reason="stop",
            usage=Usage(input_tokens=10, output_tokens=5, cached_tokens=4, reasoning_tokens=1),
            latency_ms=12.5,
            first_byte_ms=3.5,
            start_time={"seconds": 1_700_000_000, "nanos": 500_000_000},
            calls=2,
            failed_calls=[result_pb2.FailedCall(http_status=429, error="slow down", latency_ms=1, wait_ms=2)],
            payload=result_pb2.PayloadRef(digest="0a" * 32, size_bytes=100_000),
            reported_model="m-1",
            input_digest="ab" * 32,
        )
    )
    assert (record.key, record.attempt, record.outcome) == ((5, 0), 3, Outcome.OK)
    assert (record.case_id, record.response, record.reasoning, record.finish_reason) == (
        "case-5",
        "4",
        "hm",
        "stop",
    )
    assert (record.input_tokens, record.output_tokens, record.cached_tokens) == (10, 5, 4)
    assert (record.reasoning_tokens, record.latency_ms, record.first_byte_ms) == (1, 12.5, 3.5)
    assert record.started_at == datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC)
    assert (record.calls, record.payload_digest, record.payload_bytes) == (2, "0a" * 32, 100_000)
    assert (record.reported_model, record.input_digest, record.error) == ("m-1", b"\xab" * 32, None)
    assert record.failed_calls == [
        {
            "http_status": 429,
            "error": "slow down",
            "latency_ms": 1,
            "wait_ms": 2,
            "input_tokens": None,
            "output_tokens": None,
            "no_cost": False,
        }
    ]


def test_what_was_not_sent_is_not_there(intake: Intake) -> None:
    record = intake.record(result())
    assert record.response == ""
    absent = (
        record.reasoning,
        record.finish_reason,
        record.reported_model,
        record.error,
        record.input_digest,
        record.input_tokens,
        record.latency_ms,
        record.started_at,
        record.cost_picousd,
        record.payload_digest,
    )
    assert absent == (None,) * len(absent)
    assert intake.record(result(latency_ms=0, usage=Usage(input_tokens=0))).latency_ms == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"trial": 1}, "the trial is not of this shard"),
        ({"outcome": result_pb2.OUTCOME_UNSPECIFIED}, "outcome: expected a known one, found 0"),
        ({"outcome": 12}, "outcome: expected a known one, found 12"),
        ({"response": "x" * (MAX_RESPONSE + 1)}, "response: at most 65536 bytes"),
        ({"reasoning": "\u20ac" * (MAX_RESPONSE // 3 + 1)}, "reasoning: at most 65536 bytes"),
        ({"calls": 10_001}, "calls: at most 10000, found 10001"),
        ({"usage": Usage(output_tokens=2**31)}, "usage.output_tokens: at most 2147483647, found 2147483648"),
        ({"latency_ms": float("nan")}, "latency_ms: expected milliseconds from 0, found nan"),
        ({"latency_ms": -1.0}, "latency_ms: expected milliseconds from 0, found -1.0"),
        ({"first_byte_ms": float("inf")}, "first_byte_ms: expected milliseconds from 0, found inf"),
        ({"start_time": {"seconds": -(10**14)}}, "start_time: "),
        ({"start_time": {"nanos": -1}}, "start_time: "),
        ({"input_digest": "AB" * 32}, "input_digest: expected a sha256"),
        (
            {"payload": result_pb2.PayloadRef(digest="../x", size_bytes=1)},
            "payload.digest: expected a sha256",
        ),
        (
            {"payload": result_pb2.PayloadRef(digest="a" * 64, size_bytes=2**26 + 1)},
            "payload: at most 67108864 bytes",
        ),
        (
            {"failed_calls": [result_pb2.FailedCall(latency_ms=float("nan"))]},
            "failed_calls.latency_ms: expected milliseconds",
        ),
        (
            {"failed_calls": [result_pb2.FailedCall(usage=Usage(input_tokens=2**32 - 1))]},
            "usage.input_tokens: at most",
        ),
    ],
)
def test_what_is_refused(intake: Intake, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        intake.record(result(**fields))
    assert caught.value.message.startswith(said)


def test_bounds_are_what_is_still_taken(intake: Intake) -> None:
    longest = "\u20ac" * (MAX_RESPONSE // 3)
    taken = intake.record(
        result(
            response=longest,
            reasoning="x" * MAX_RESPONSE,
            error="e" * 5000,
            calls=10_000,
            usage=Usage(input_tokens=2**31 - 1),
        )
    )
    assert taken.response == longest
    assert taken.error == "e" * 2000


def test_nul_is_replaced_everywhere(intake: Intake) -> None:
    record = intake.record(
        result(
            response="a\0b",
            reasoning="\0",
            finish_reason="\0",
            reported_model="\0",
            error="\0",
            failed_calls=[result_pb2.FailedCall(error="\0")],
        )
    )
    assert record.response == "a\ufffdb"
    others = (record.reasoning, record.finish_reason, record.reported_model, record.error)
    assert others == ("\ufffd",) * 4
    assert record.failed_calls[0]["error"] == "\ufffd"


# -------------------------------------------------------------------------------------------------- cost

FREE = result_pb2.FailedCall(error="503", http_status=503, no_cost=True)
CUT = result_pb2.FailedCall(error="disconnected")
CHARGED = result_pb2.FailedCall(usage=Usage(input_tokens=100, output_tokens=0))
UNSURE = result_pb2.FailedCall(usage=Usage(input_tokens=100))
TOLD = Usage(input_tokens=10, output_tokens=5)


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        # 10 tokens at 1.5 and 5 at 2 USD a million are 25 millionths of a USD.
        ({"calls": 1, "usage": TOLD}, 25_000_000),
        ({"calls": 2, "usage": TOLD, "failed_calls": [FREE]}, 25_000_000),
        ({"calls": 2, "usage": TOLD, "failed_calls": [CHARGED]}, 175_000_000),
        ({"calls": 2, "usage": TOLD, "failed_calls": [UNSURE]}, None),
        ({"calls": 1, "usage": Usage(input_tokens=10)}, None),
        ({"calls": 1}, None),
        ({"calls": 0}, None),
        ({"calls": 1, "usage": Usage(input_tokens=0, output_tokens=0)}, 0),
        ({"calls": 2, "usage": TOLD, "failed_calls": [CUT]}, None),
        # A prompt that a filter refused with an error status.
        ({"calls": 1, "outcome": result_pb2.OUTCOME_REFUSED, "usage": Usage(), "no_cost": True}, 0),
        ({"calls": 1, "outcome": result_pb2.OUTCOME_PROVIDER_ERROR}, None),
        ({"calls": 1, "outcome": result_pb2.OUTCOME_PROVIDER_ERROR, "no_cost": True}, 0),
        # Nothing is said of the second call.
        ({"calls": 2, "usage": TOLD}, None),
        ({"calls": 1, "outcome": result_pb2.OUTCOME_PROVIDER_ERROR, "usage": TOLD}, 25_000_000),
        (
            {
                "calls": 2,
                "outcome": result_pb2.OUTCOME_PROVIDER_ERROR,
                "failed_calls": [CHARGED],
                "no_cost": True,
            },
            150_000_000,
        ),
    ],
)
def test_cost_is_known_or_it_is_not(intake: Intake, fields: dict[str, Any], cost: int | None) -> None:
    assert intake.record(result(**fields)).cost_picousd == cost


_CALL = st.tuples(st.none() | st.integers(0, 1000), st.none() | st.integers(0, 1000), st.booleans())


@given(st.lists(st.lists(_CALL, min_size=1, max_size=5), max_size=6), st.sampled_from(list(Outcome)))
def test_the_spend_of_a_run_is_that_of_its_calls(
    trials: list[list[tuple[int | None, int | None, bool]]], outcome: Outcome
) -> None:
    """Every call is counted once: with what it cost, or as one of which that is not known."""
    intake = Intake(claims([5], price={"input_usd_per_mtok": "1.5", "output_usd_per_mtok": "2"}))
    totals, known, unknown = Totals(), 0, 0
    for calls in trials:
        *failed, (last_in, last_out, last_free) = calls
        record = intake.record(
            result(
                outcome=outcome,
                calls=len(calls),
                usage=Usage(input_tokens=last_in, output_tokens=last_out),
                no_cost=last_free,
                failed_calls=[
                    result_pb2.FailedCall(
                        usage=Usage(input_tokens=read, output_tokens=written), no_cost=no_cost
                    )
                    for read, written, no_cost in failed
                ],
            )
        )
        sums = [0, 0]
        for read, written, no_cost in calls:
            if read is not None and written is not None:
                sums[0] += read * 1_500_000 + written * 2_000_000
            elif not (no_cost and read is None and written is None):
                sums[1] += 1
        assert record.cost_picousd == (None if sums[1] else sums[0])
        totals.add_spend(record)
        known, unknown = known + sums[0], unknown + sums[1]
    assert (totals.cost_picousd, totals.calls_of_unknown_cost) == (known, unknown)
    assert totals.calls == sum(map(len, trials))


def test_cost_without_a_price_is_unknown_and_with_a_price_of_nothing_is_nothing() -> None:
    told = result(calls=1, usage=TOLD)
    assert Intake(claims([5])).record(told).cost_picousd is None
    free = {"input_usd_per_mtok": "0", "output_usd_per_mtok": "0"}
    assert Intake(claims([5], price=free)).record(told).cost_picousd == 0
    half = {"input_usd_per_mtok": "1"}
    assert Intake(claims([5], price=half)).record(told).cost_picousd is None


def test_a_cost_that_no_column_holds() -> None:
    dear = Intake(claims([5], price={"input_usd_per_mtok": "100000", "output_usd_per_mtok": "1"}))
    with pytest.raises(InvalidInput, match="usage: so many tokens cannot be"):
        dear.record(result(calls=1, usage=Usage(input_tokens=2**31 - 1, output_tokens=0)))
