"""What a call can cost at most, and the meter that takes it from a grant before the call is sent."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.eval.v1 import model_pb2
from services.common.amounts import NOTHING, Amount
from services.common.models.bounds import Tariff, input_bound, prices_of, reply_bound
from services.common.models.meter import Allowance, Meter, tallied
from services.common.models.types import UNKNOWN_USAGE, ChatRequest, Usage

TARIFF = Tariff(
    prices_of(model_pb2.Model(price=model_pb2.Price(input_usd_per_mtok="1", output_usd_per_mtok="3")))
)
MICRO = 10**6


@pytest.mark.parametrize(
    ("params", "most"),
    [
        ({}, None),
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 10, "max_completion_tokens": 70}, 70),
        ({"max_tokens": 10, "n": 4}, 40),
        ({"max_tokens": 10, "n": 2, "best_of": 5}, 50),
        ({"max_tokens": None}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": 10, "n": 0}, 10),
    ],
)
def test_what_bounds_a_reply(params: dict[str, Any], most: int | None) -> None:
    assert reply_bound(params) == most


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_a_prompt_has_at_most_a_token_for_each_byte_and_room_for_its_template(texts: list[str]) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    most = input_bound(messages, {})
    assert most is not None
    # Of what a template writes around a message five tokens are much.
    assert most >= sum(len(text.encode()) + 5 for text in texts) + 3


def test_nobody_can_tell_what_a_picture_takes() -> None:
    text = {"type": "text", "text": "What is it?"}
    picture = {"type": "image_url", "image_url": {"url": "https://example.org/cat"}}
    assert input_bound([{"role": "user", "content": [text]}], {}) is not None
    assert input_bound([{"role": "user", "content": [text, picture]}], {}) is None


def test_the_most_that_a_call_costs() -> None:
    assert TARIFF.most(100, 10) == Amount(130 * MICRO, 110)
    dear = Tariff(
        prices_of(
            model_pb2.Model(
                price=model_pb2.Price(
                    input_usd_per_mtok="1", output_usd_per_mtok="3", cached_usd_per_mtok="2"
                )
            )
        )
    )
    assert dear.most(100, 10) == Amount(230 * MICRO, 110)


def test_a_call_that_does_not_tell_counts_as_the_most() -> None:
    meter, most = Meter(TARIFF), Amount(500, 50)
    assert meter.used(Usage(input=10, output=5), most, no_cost=False) == Amount(25 * MICRO, 15)
    assert meter.used(UNKNOWN_USAGE, most, no_cost=False) == most
    assert meter.used(Usage(input=10), most, no_cost=False) == most
    assert meter.used(UNKNOWN_USAGE, most, no_cost=True) == NOTHING


def metered(picousd: int | None = 100, **allowed: Any) -> tuple[Meter, list[int]]:
    asked: list[int] = []
    meter = Meter(TARIFF, lambda: asked.append(1))
    meter.word()
    meter.apply(Allowance(picousd, **allowed))
    return meter, asked


async def test_calls_wait_for_room_in_turn_and_more_is_asked_for_once() -> None:
    meter, asked = metered(100)
    await meter.reserve(Amount(60))
    big = asyncio.create_task(meter.reserve(Amount(50)))
    small = asyncio.create_task(meter.reserve(Amount(10)))
    await asyncio.sleep(0)
    assert (big.done(), small.done(), len(asked)) == (False, False, 1)
    assert not meter.admits(Amount(1)), "it would overtake those who wait"
    meter.settle(Amount(60), Amount(45))
    await asyncio.sleep(0)
    assert (big.done(), small.done()) == (True, False)
    said = meter.word()
    assert (said.spent, said.held, said.next) == (Amount(45), Amount(95), Amount(10))
    meter.apply(Allowance(200))
    await small


async def test_between_a_word_and_its_answer_nothing_starts() -> None:
    meter, _ = metered(100)
    meter.word()
    assert not meter.admits(Amount(1))
    waiting = asyncio.create_task(meter.reserve(Amount(1)))
    await asyncio.sleep(0)
    assert not waiting.done()
    meter.apply(Allowance(100))
    await waiting


async def test_when_nothing_is_in_flight_any_more_it_says_so_at_once() -> None:
    meter, asked = metered(100)
    await meter.reserve(Amount(90))
    meter.outlook = lambda: [Amount(50)]
    assert not meter.admits(Amount(50))
    meter.word()
    meter.apply(Allowance(90))
    assert (meter.is_short, len(asked)) == (True, 1)
    meter.settle(Amount(90), Amount(80))
    assert len(asked) == 2


async def test_who_stops_waiting_leaves_nothing_behind() -> None:
    meter, _ = metered(100)
    await meter.reserve(Amount(90))
    waiting = asyncio.create_task(meter.reserve(Amount(20)))
    await asyncio.sleep(0)
    waiting.cancel()
    meter.settle(Amount(90), NOTHING)
    await asyncio.gather(waiting, return_exceptions=True)
    assert meter.admits(Amount(100))
    handed_over = asyncio.create_task(meter.reserve(Amount(100)))
    await asyncio.sleep(0)
    assert not meter.admits(Amount(1))
    await handed_over


async def test_time_and_faults_keep_calls_from_starting() -> None:
    meter, _ = metered(None, until=monotonic() - 1)
    assert not meter.admits(NOTHING)
    meter, asked = metered(None, errors=1)
    meter.note_fault()
    assert meter.admits(Amount(10**15))
    meter.note_fault()
    assert (meter.admits(NOTHING), len(asked)) == (False, 1)
    assert meter.word().errors == 2
    meter.apply(Allowance(None, errors=1))
    assert meter.admits(NOTHING)


async def test_what_the_calls_of_a_trial_count_for_is_tallied_apart() -> None:
    meter, _ = metered(100)

    async def trial(cost: int) -> Amount:
        with tallied() as tally:
            for _ in range(2):
                await meter.reserve(Amount(10))
                await asyncio.sleep(0)
                meter.settle(Amount(10), Amount(cost))
        return tally.charge

    assert list(await asyncio.gather(trial(3), trial(5))) == [Amount(6), Amount(10)]
    assert meter.spent == Amount(16)


def test_a_request_is_bounded_with_all_that_it_carries() -> None:
    meter, _ = metered()
    request = ChatRequest([{"role": "user", "content": "ä" * 50}], {"max_tokens": 10, "stop": ["x" * 100]})
    assert meter.most(request).tokens >= 100 + 100 + 10


async def test_a_call_that_comes_between_word_and_answer_is_asked_for() -> None:
    asked: list[None] = []
    meter = Meter(TARIFF, lambda: asked.append(None))
    meter.apply(Allowance(0))
    assert meter.word().next == NOTHING
    call = asyncio.create_task(meter.reserve(Amount(10, 1)))
    await asyncio.sleep(0)
    assert not asked
    meter.apply(Allowance(0))
    assert len(asked) == 1
    assert meter.word().next == Amount(10, 1)
    # What was refused is not asked for again at once.
    meter.apply(Allowance(0))
    assert len(asked) == 1
    meter.apply(Allowance(10))
    await call
