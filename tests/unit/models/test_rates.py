"""When to try again, and when a rate limit is filled again."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from services.common.models.rates import duration, retry_after, used_up

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 0.5 "}, 0.5),
        ({"Retry-After-Ms": "1500", "Retry-After": "9"}, 1.5),
        ({"Retry-After": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"Retry-After": formatdate(NOW - 30, usegmt=True)}, 0.0),
        # By the clock of whoever wrote it, when this machine's is an hour behind.
        (
            {"Retry-After": formatdate(NOW + 3630, usegmt=True), "Date": formatdate(NOW + 3600, usegmt=True)},
            30.0,
        ),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "nan"}, None),
        ({"X-RateLimit-Remaining-Requests": "0", "X-RateLimit-Reset-Requests": "6m0s"}, 360.0),
        ({"X-RateLimit-Remaining-Requests": "3", "X-RateLimit-Reset-Requests": "6m0s"}, None),
        ({"X-RateLimit-Remaining-Tokens": "-1", "X-RateLimit-Reset-Tokens": "1s"}, None),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(CIMultiDict(headers), NOW) == seconds


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [("1s", 1.0), ("6m0s", 360.0), ("12ms", 0.012), ("1d2h", 93_600.0), ("", None), ("5", None)],
)
def test_durations(raw: str, seconds: float | None) -> None:
    assert duration(raw) == (pytest.approx(seconds) if seconds is not None else None)


@given(st.text())
def test_no_header_breaks_the_reading(raw: str) -> None:
    found = retry_after({"retry-after": raw}, NOW)
    assert found is None or found >= 0
    left = used_up({"x-ratelimit-remaining": "0", "x-ratelimit-reset": raw}, NOW)
    assert left is None or left > 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-remaining-requests": "12", "x-ratelimit-remaining-tokens": "900"}, None),
        ({"x-ratelimit-remaining-requests": "0"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "0"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20"}, 20.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2.5s"}, 62.5),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "9s",
            },
            9.0,
        ),
        (
            {
                "anthropic-ratelimit-output-tokens-remaining": "0",
                "anthropic-ratelimit-output-tokens-reset": "2023-11-14T22:13:50Z",
            },
            30.0,
        ),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:50",
            },
            None,
        ),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000005000"}, 5.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000005"}, 5.0),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "7"}, 7.0),
        ({"ratelimit-remaining": "1", "ratelimit-reset": "7"}, None),
    ],
)
def test_how_long_a_rate_limit_is_used_up(headers: dict[str, str], seconds: float | None) -> None:
    assert used_up(CIMultiDict(headers), NOW) == seconds
