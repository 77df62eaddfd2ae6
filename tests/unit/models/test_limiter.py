"""Adaptive concurrency: exact, fair, cancellable."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.models.limiter import AdaptiveLimit


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


def test_congestion_lowers_the_limit_once_per_round_trip() -> None:
    limit = AdaptiveLimit(100)
    tickets = [started(limit) for _ in range(100)]
    for ticket in tickets:
        limit.congested(ticket)
        limit.release()
    assert limit.allowed == 85
    ticket = started(limit)
    limit.congested(ticket)
    assert limit.allowed == 72


def test_success_raises_the_limit_by_one_per_round_trip() -> None:
    limit = AdaptiveLimit(100)
    limit.congested(started(limit))
    limit.release()
    assert limit.allowed == 85
    for expected in (86, 87, 88):
        tickets = [started(limit) for _ in range(50)]
        for ticket in tickets:
            limit.succeeded(ticket)
            limit.release()
        assert limit.allowed == expected


def test_a_success_from_before_the_decrease_raises_nothing() -> None:
    limit = AdaptiveLimit(10)
    early, late = started(limit), started(limit)
    limit.congested(late)
    allowed = limit.allowed
    limit.succeeded(early)
    assert limit.allowed == allowed


def test_the_limit_never_goes_under_one_and_recovers() -> None:
    limit = AdaptiveLimit(8)
    for _ in range(100):
        limit.congested(started(limit))
        limit.release()
    assert limit.allowed == 1
    for _ in range(100):
        limit.succeeded(started(limit))
        limit.release()
    assert limit.allowed == 8


def test_more_permits_help_only_where_the_endpoint_did_not_object() -> None:
    free, congested = AdaptiveLimit(4), AdaptiveLimit(4)
    congested.congested(started(congested))
    for limit in (free, congested):
        limit.set_permits(10)
    assert (free.allowed, congested.allowed) == (10, 3)


steps = st.lists(
    st.tuples(st.sampled_from(["start", "ok", "congested", "permits"]), st.integers(0, 40)), max_size=200
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
            (limit.succeeded if action == "ok" else limit.congested)(ticket)
            limit.release()
        assert limit.in_flight == len(tickets)
        assert min(1, limit.permits) <= limit.allowed <= limit.permits
