"""The decision to wait or to give up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.errors import InvalidInput
from services.common.models.retry import MAX_RETRY_AFTER_S, RetryPolicy, wait_s
from services.common.models.types import Fault, FaultKind

policies = st.builds(
    lambda tries, base, more, jitter: RetryPolicy(tries, base, base + more, jitter),
    st.integers(1, 50),
    st.floats(0, 10),
    st.floats(0, 100),
    st.floats(0, 1),
)
draws = st.floats(0, 1, exclude_max=True)


def passing(retry_after_s: float | None = None) -> Fault:
    return Fault(FaultKind.RATE_LIMITED, "slow down", 429, retry_after_s, retryable=True)


@given(policies, st.integers(1, 10_000), draws, st.none() | st.floats(0, 1e12))
def test_waits_are_bounded_and_end(policy: RetryPolicy, tries: int, draw: float, asked: float | None) -> None:
    wait = wait_s(policy, tries, passing(asked), draw)
    if tries >= policy.max_tries:
        assert wait is None
    else:
        assert wait is not None
        assert 0 <= wait <= max(policy.cap_s, MAX_RETRY_AFTER_S + policy.base_s)


@given(policies, draws, st.floats(0, MAX_RETRY_AFTER_S))
def test_nobody_comes_back_before_the_provider_said(policy: RetryPolicy, draw: float, asked: float) -> None:
    wait = wait_s(policy, 1, passing(asked), draw)
    assert wait is None or wait >= asked


@given(policies, draws)
def test_what_does_not_pass_is_not_tried_again(policy: RetryPolicy, draw: float) -> None:
    assert wait_s(policy, 1, Fault(FaultKind.BAD_REQUEST, "no", 400), draw) is None
    permanent = Fault(FaultKind.QUOTA, "no", 429, retryable=True, permanent_for_run=True)
    assert wait_s(policy, 1, permanent, draw) is None


def test_waits_double_up_to_the_cap() -> None:
    policy = RetryPolicy(max_tries=8, base_s=1, cap_s=10, jitter=0)
    assert [wait_s(policy, tries, passing(), 0.5) for tries in range(1, 9)] == [1, 2, 4, 8, 10, 10, 10, None]


@pytest.mark.parametrize(
    "values",
    [{"max_tries": 0}, {"base_s": -1}, {"base_s": 5, "cap_s": 1}, {"jitter": 1.5}, {"jitter": float("nan")}],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        RetryPolicy(**values)
