"""How a run is cut: every trial in exactly one shard, every case where its trials are."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.hub.runs.planning import LARGEST_SHARD, MOST_PLANNED, cut, draw, positions


@given(st.integers(1, 100_000))
def test_every_trial_is_in_exactly_one_shard(planned: int) -> None:
    plan = cut(planned)
    bounds = [plan.bounds(number, planned) for number in range(plan.shards)]
    assert bounds[0][0] == 0
    assert sum(count for _, count in bounds) == planned
    assert all(first + count == following for (first, count), (following, _) in pairwise(bounds))
    assert all(1 <= count <= LARGEST_SHARD for _, count in bounds)


@given(st.integers(1, 5_000), st.integers(1, LARGEST_SHARD))
def test_shards_of_programs_have_the_size_of_a_start(planned: int, batch: int) -> None:
    plan = cut(planned, batch)
    counts = [plan.bounds(number, planned)[1] for number in range(plan.shards)]
    assert sum(counts) == planned
    assert set(counts[:-1]) <= {batch}
    assert 1 <= counts[-1] <= batch


@given(st.integers(1, MOST_PLANNED))
def test_shards_are_numbered_with_six_digits(planned: int) -> None:
    assert cut(planned).shards < 10**6


@pytest.mark.parametrize(
    ("planned", "shards"), [(1, 1), (10, 1), (16, 1), (17, 2), (100, 7), (1_319, 16), (10_000, 40)]
)
def test_small_runs_are_shared_too(planned: int, shards: int) -> None:
    assert cut(planned).shards == shards


@given(st.integers(1, 300), st.integers(1, 50), st.data())
def test_a_shard_names_the_cases_of_its_trials(cases: int, trials: int, data: st.DataObject) -> None:
    planned = cases * trials
    plan = cut(planned)
    first, count = plan.bounds(data.draw(st.integers(0, plan.shards - 1)), planned)
    assert list(positions(first, count, trials)) == sorted({t // trials for t in range(first, first + count)})


@given(st.integers(1, 2_000), st.integers(0, 2**64 - 1), st.data())
def test_a_sample_is_a_draw_without_repeats_in_dataset_order(
    cases: int, seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, cases))
    drawn = draw(cases, count, seed)
    assert len(drawn) == count
    assert all(0 <= position < cases for position in drawn)
    assert all(one < other for one, other in pairwise(drawn))
    assert drawn == draw(cases, count, seed)


def test_a_sample_never_changes() -> None:
    assert draw(1_000, 8, 7) == DRAWN_WITH_7
    assert draw(1_000, 8, 8) != DRAWN_WITH_7


def test_every_case_is_as_likely_as_any_other() -> None:
    counts = [0] * 10
    for seed in range(3_000):
        for position in draw(10, 3, seed):
            counts[position] += 1
    assert all(800 < count < 1_000 for count in counts)


DRAWN_WITH_7 = [57, 72, 149, 321, 364, 507, 534, 647]
