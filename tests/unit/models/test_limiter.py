"""Adaptive concurrency: exact, fair, cancellable."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.models.limiter import LONGEST_REST_S, AdaptiveLimit


@dataclass
class Clock:
    """Time that passes when a test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def started(limit: AdaptiveLimit) -> int:
    ticket = limit.try_acquire()
    assert ticket is not None
    return ticket


async def test_never_more_in_flight_than_permits() -> None:
    limit = AdaptiveLimit(3)
    in_flight = most = 0

    async def call() -> None:
        nonlocal in_flight, most
        await limit.acquire()
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0)
        in_flight -= 1
        limit.release()

    await asyncio.gather(*(call() for _ in range(50)))
    assert (most, limit.in_flight, limit.waiting) == (3, 0, 0)


async def test_waiters_are_served_in_order() -> None:
    limit = AdaptiveLimit(1)
    order: list[int] = []

    async def call(number: int) -> None:
        await limit.acquire()
        order.append(number)
        await asyncio.sleep(0)
        limit.release()

    await asyncio.gather(*(call(number) for number in range(20)))
    assert order == list(range(20))


async def test_a_newcomer_does_not_overtake() -> None:
    limit = AdaptiveLimit(1)
    await limit.acquire()
    waiting = asyncio.create_task(limit.acquire())
    await settle()
    limit.release()
    assert limit.try_acquire() is None
    await waiting


async def test_without_permits_nothing_starts() -> None:
    limit = AdaptiveLimit(0)
    waiting = asyncio.create_task(limit.acquire())
    await settle()
    assert not waiting.done()
    limit.set_permits(1)
    await waiting
    assert limit.in_flight == 1


async def test_permits_taken_back_let_calls_end_and_none_start() -> None:
    limit = AdaptiveLimit(4)
    for _ in range(4):
        started(limit)
    limit.set_permits(2)
    assert limit.in_flight == 4
    for left in (3, 2):
        limit.release()
        assert limit.try_acquire() is None
        assert limit.in_flight == left
    limit.release()
    assert limit.try_acquire() is not None


async def test_a_cancelled_waiter_leaves_nothing_behind() -> None:
    limit = AdaptiveLimit(1)
    await limit.acquire()
    first, second = asyncio.create_task(limit.acquire()), asyncio.create_task(limit.acquire())
    await settle()
    first.cancel()
    await settle()
    assert limit.waiting == 1
    limit.release()
    await second
    assert limit.in_flight == 1


async def test_a_slot_handed_to_a_caller_that_is_cancelled_is_given_back() -> None:
    limit = AdaptiveLimit(1)
    await limit.acquire()
    waiting = asyncio.create_task(limit.acquire())
    await settle()
    limit.release()  # hands the slot over
    waiting.cancel()  # before the caller runs again
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert limit.in_flight == 0


async def test_a_slot_freed_while_its_only_waiter_is_being_cancelled() -> None:
    limit = AdaptiveLimit(1)
    await limit.acquire()
    waiting = asyncio.create_task(limit.acquire())
    await settle()
    waiting.cancel()
    limit.release()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (limit.in_flight, limit.waiting) == (0, 0)


def test_release_without_acquire_is_a_mistake() -> None:
    with pytest.raises(RuntimeError):
        AdaptiveLimit(1).release()


def test_negative_permits_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="permits"):
        AdaptiveLimit(-1)


def test_a_timeout_lowers_the_limit_once_per_round_trip() -> None:
    limit = AdaptiveLimit(100)
    tickets = [started(limit) for _ in range(100)]
    for ticket in tickets:
        limit.timed_out(ticket)
        limit.release()
    assert limit.allowed == 85
    limit.timed_out(started(limit))
    assert limit.allowed == 72


def test_each_refusal_takes_one_place_so_that_those_that_were_borne_are_left() -> None:
    limit = AdaptiveLimit(100)
    tickets = [started(limit) for _ in range(100)]
    for ticket in tickets[60:]:
        limit.refused(ticket)
        limit.release()
    assert limit.allowed == 60
    for ticket in tickets[:60]:
        limit.succeeded(ticket)
        limit.release()
    assert limit.allowed == 60


def answered(limit: AdaptiveLimit, calls: int) -> None:
    """So many calls, one after the other."""
    for _ in range(calls):
        limit.succeeded(started(limit))
        limit.release()


def test_places_come_back_slowly_first_and_then_sooner() -> None:
    limit = AdaptiveLimit(30)
    limit.refused(started(limit))
    limit.release()
    steps = [(99, 29), (1, 30), (1, 30)]
    for calls, allowed in steps:
        answered(limit, calls)
        assert limit.allowed == allowed
    for _ in range(10):
        limit.refused(started(limit))
        limit.release()
    grown = []
    for calls in (100, 50, 25, 13, 7, 7, 7):
        answered(limit, calls)
        grown.append(limit.allowed)
    assert grown == [21, 22, 23, 24, 25, 26, 27]


def test_a_success_from_before_a_refusal_brings_nothing_back() -> None:
    limit = AdaptiveLimit(200)
    early = [started(limit) for _ in range(150)]
    limit.refused(started(limit))
    for ticket in early:
        limit.succeeded(ticket)
    assert limit.allowed == 199


def test_refusals_by_chance_take_no_more_than_half() -> None:
    limit = AdaptiveLimit(64)
    for number in range(4000):
        ticket = started(limit)
        if number % 20:
            limit.succeeded(ticket)
        else:
            limit.refused(ticket)
        limit.release()
    assert limit.allowed == 32


def test_after_an_outage_the_limit_goes_back_quickly() -> None:
    clock = Clock()
    limit = AdaptiveLimit(40, clock)
    for ticket in [started(limit) for _ in range(40)]:
        limit.refused(ticket, wait_s=1)
        limit.release()
    assert limit.allowed == 1
    limit.refused(_after_rest(limit, clock), wait_s=2)
    limit.release()
    assert limit.try_acquire() is None, (
        "a refusal of the only call holds back all others for as long as it waits"
    )
    clock.now += 2
    answered(limit, 40)
    assert limit.allowed == 34


def _after_rest(limit: AdaptiveLimit, clock: Clock) -> int:
    clock.now += 1
    return started(limit)


def test_nothing_starts_while_the_provider_asks_for_rest() -> None:
    clock = Clock()
    limit = AdaptiveLimit(4, clock)
    limit.rest(3)
    limit.rest(1)
    clock.now += 2.9
    assert limit.try_acquire() is None
    clock.now += 0.2
    assert limit.try_acquire() is not None
    limit.rest(10**6)
    clock.now += LONGEST_REST_S
    assert limit.try_acquire() is not None, "nobody is obeyed for ever"


async def test_those_who_wait_start_when_the_rest_is_over() -> None:
    limit = AdaptiveLimit(1)
    limit.rest(0.02)
    waiting = asyncio.create_task(limit.acquire())
    await settle()
    limit.rest(0.06)
    began = monotonic()
    await waiting
    assert monotonic() - began > 0.04


def test_what_a_provider_asks_for_holds_back_all_once_it_refuses_everything() -> None:
    clock = Clock()
    limit = AdaptiveLimit(20, clock)
    tickets = [started(limit) for _ in range(10)]
    for ticket in tickets[:4]:
        limit.refused(ticket, 1, asked_s=8)
    started(limit)  # some are refused where many are answered
    limit.refused(tickets[4], 1, asked_s=8)
    clock.now += 7.9
    assert limit.try_acquire() is None
    clock.now += 0.2
    started(limit)


def test_the_limit_never_goes_under_one_and_recovers() -> None:
    limit = AdaptiveLimit(8)
    for _ in range(100):
        limit.refused(started(limit))
        limit.release()
    assert limit.allowed == 1
    answered(limit, 400)
    assert limit.allowed == 8


def test_more_permits_help_only_where_the_endpoint_did_not_object() -> None:
    free, congested = AdaptiveLimit(4), AdaptiveLimit(4)
    congested.refused(started(congested))
    for limit in (free, congested):
        limit.set_permits(10)
    assert (free.allowed, congested.allowed) == (10, 3)


steps = st.lists(
    st.tuples(st.sampled_from(["start", "ok", "refused", "late", "permits"]), st.integers(0, 40)),
    max_size=200,
)


@given(st.integers(0, 40), steps)
def test_the_bounds_hold_whatever_happens(permits: int, todo: list[tuple[str, int]]) -> None:
    limit = AdaptiveLimit(permits)
    tickets: list[int] = []
    for action, number in todo:
        if action == "permits":
            limit.set_permits(number)
        elif action == "start":
            before = limit.in_flight
            ticket = limit.try_acquire()
            assert (ticket is not None) == (before < limit.allowed)
            tickets += [ticket] if ticket is not None else []
        elif tickets:
            ticket = tickets.pop(number % len(tickets))
            {"ok": limit.succeeded, "refused": limit.refused, "late": limit.timed_out}[action](ticket)
            limit.release()
        assert limit.in_flight == len(tickets)
        assert min(1, limit.permits) <= limit.allowed <= limit.permits
