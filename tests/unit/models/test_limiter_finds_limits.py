"""Many callers together find what an endpoint bears, and follow it when it moves, with few refusals."""

from __future__ import annotations

import pytest

from tests.unit.models.simulated_endpoint import Seen, World


def check(seen: Seen, bears: int, seconds: float) -> None:
    assert seen.busy / seconds > 0.9 * bears, seen
    assert seen.refused < 0.02 * seen.calls, seen


@pytest.mark.parametrize(("callers", "permits", "seed"), [(8, 16, 1), (8, 16, 2), (8, 64, 1), (1, 128, 1)])
def test_a_limit_that_moves(callers: int, permits: int, seed: int) -> None:
    level = 64
    world = World(callers, permits, lambda _: level, seed=seed)
    world.run(20)
    check(world.run(60), level, 60)
    level = 24
    world.run(20)
    check(world.run(60), level, 60)
    level = 96
    world.run(30)
    check(world.run(60), level, 60)


def test_slow_calls() -> None:
    level = 64
    world = World(8, 16, lambda _: level, latency_s=2)
    world.run(60)
    check(world.run(300), level, 300)
    level = 24
    world.run(60)
    check(world.run(300), level, 300)
    level = 96
    world.run(180)
    check(world.run(300), level, 300)


def test_an_outage_is_over_when_it_is_over() -> None:
    world = World(1, 64, lambda now: 0 if 10 <= now < 40 else 64)
    world.run(10)
    outage = world.run(30)
    assert outage.refused < 150, "most of them at once, and few while it lasts"
    world.run(30)
    check(world.run(30), 54, 30)


def test_refusals_by_chance_leave_half() -> None:
    world = World(8, 8, lambda _: 1000, mishaps=0.05)
    world.run(60)
    seen = world.run(60)
    assert seen.busy / 60 > 30


def test_more_callers_than_calls() -> None:
    world = World(8, 8, lambda _: 4)
    world.run(20)
    seen = world.run(60)
    assert seen.busy / 60 > 0.9 * 4
    assert seen.refused < 0.15 * seen.calls


def test_an_endpoint_that_does_not_object_gets_all_permits() -> None:
    world = World(4, 16, lambda _: 10_000)
    world.run(5)
    assert [limit.allowed for limit in world.limits] == [16] * 4
