"""Endpoints, outcomes and seeds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.errors import InvalidInput
from services.common.models.seeds import derive_seed
from services.common.models.types import Endpoint, Outcome, Reply, Timeouts, classify

REPLY_OUTCOMES = [
    (Reply("42", finish_reason="stop"), Outcome.OK),
    (Reply("42"), Outcome.OK),
    (Reply("the answ", finish_reason="length"), Outcome.TRUNCATED),
    (Reply("", finish_reason="length"), Outcome.TRUNCATED),
    (Reply("", refusal="I cannot", finish_reason="stop"), Outcome.REFUSED),
    (Reply("half", finish_reason="content_filter"), Outcome.REFUSED),
    (Reply("", refusal="I can", finish_reason="length"), Outcome.REFUSED),
    (Reply("", finish_reason="stop"), Outcome.EMPTY),
    (Reply(" \n\t", finish_reason="stop"), Outcome.EMPTY),
    (Reply("", finish_reason="tool_calls", tool_calls=({"id": "1"},)), Outcome.OK),
]


@pytest.mark.parametrize(("reply", "outcome"), REPLY_OUTCOMES)
def test_classify(reply: Reply, outcome: Outcome) -> None:
    assert classify(reply) is outcome


def test_only_the_models_own_doing_is_final() -> None:
    assert [outcome.value for outcome in Outcome if outcome.final] == [
        "ok",
        "truncated",
        "refused",
        "empty",
        "limit",
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"base_url": "localhost:8000/v1"}, "base_url"),
        ({"base_url": "ftp://host/v1"}, "base_url"),
        ({"base_url": "http:///v1"}, "base_url"),
        ({"base_url": "https://user:pass@host/v1"}, "no user or password"),
        ({"base_url": "https://host/v1#x"}, "#x"),
        ({"model": ""}, "model"),
        ({"api_key": "sk-abc\n"}, "api_key"),
    ],
)
def test_an_endpoint_that_cannot_work_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        Endpoint(**{"base_url": "https://host/v1", "model": "m"} | values)


def test_refusals_do_not_show_the_secret() -> None:
    with pytest.raises(InvalidInput) as caught:
        Endpoint("https://host/v1", "m", api_key="sk-very secret")
    assert "secret" not in str(caught.value)


def test_secrets_are_not_in_the_representation() -> None:
    endpoint = Endpoint("https://host/v1", "m", api_key="sk-hidden")
    assert "hidden" not in repr(endpoint)


def test_timeouts_must_be_positive() -> None:
    with pytest.raises(InvalidInput, match="total_s"):
        Timeouts(total_s=0)
    with pytest.raises(InvalidInput, match="connect_s"):
        Timeouts(connect_s=float("nan"))


def test_seeds_are_pinned() -> None:
    """A changed derivation would make old runs irreproducible."""
    assert derive_seed(0, "q1", 0) == 1110126544
    assert derive_seed(7, "q1", 3) == 1319256556


@given(st.integers(), st.text(), st.integers(min_value=0))
def test_a_seed_has_31_bits(run_seed: int, case_id: str, trial: int) -> None:
    assert 0 <= derive_seed(run_seed, case_id, trial) < 2**31
    assert derive_seed(run_seed, case_id, trial) == derive_seed(run_seed, case_id, trial)


def test_seeds_differ_by_run_case_and_trial() -> None:
    seeds = {
        derive_seed(run, f"q{case}", trial) for run in range(5) for case in range(20) for trial in range(5)
    }
    assert len(seeds) == 500
